//! The benchmark: how near the pipeline comes to what HTTP server, broker and database can do on the
//! same machine, in the same minutes.
//!
//! Everything is measured in rounds, each with the limits first, so that a machine that gets slower
//! or faster meanwhile changes both sides of a ratio. Every answer is checked, and in the end
//! everything accepted must be stored; otherwise there are no figures.

mod connection;
mod grown;
mod limits;
mod load;
mod peer;
mod pipeline;
mod report;
mod request;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

pub use self::limits::Limits;
pub use self::load::Outcome;
use self::load::{Load, Pace};
use self::peer::Peer;
pub use self::peer::PeerRound;
use self::pipeline::Pipeline;
pub use self::pipeline::{EndToEnd, Lag, Usage};
use crate::packages::Packages;
use crate::programs::Programs;
use crate::progress::Progress;

/// The loads of a closed loop, by connections.
const CONNECTIONS: [usize; 4] = [1, 64, 256, 1_024];
/// Those of them over which everything is measured from the request to the row.
const END_TO_END: [usize; 2] = [USUAL, 256];
/// Shares of repetitions.
const DUPLICATES: [f64; 2] = [0.1, 0.9];
/// Shares of the highest rate in an open loop, over as many connections as reached it.
const SHARES: [f64; 3] = [0.25, 0.5, 0.75];
/// Connections where one number has to do.
const USUAL: usize = 64;
/// How long a queue is filled before it is looked at again.
const FILL_FOR: Duration = Duration::from_secs(2);

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How often everything is measured, with grown tables too.
    pub rounds: u32,
    /// For how long each load lasts; its first second is not counted.
    pub slice: Duration,
    /// How many events are drained from the queue, at least.
    pub drained: u64,
    /// Rows already in the tables, ascending.
    pub grown: Vec<u64>,
    /// The workspace's folder, where what users would write instead is measured too.
    pub peers: Option<PathBuf>,
}

/// One measurement of everything.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// The yardsticks.
    pub limits: Limits,
    /// Closed loops by connections.
    pub accepted: Vec<(usize, Outcome)>,
    /// Closed loops by share of repetitions.
    pub repeated: Vec<(f64, Outcome)>,
    /// Open loops by share of the highest rate.
    pub paced: Vec<(f64, Outcome)>,
    /// Events a second that one and two workers took from a full queue.
    pub drained: [f64; 2],
    /// From request to row, by connections.
    pub end_to_end: Vec<(usize, EndToEnd)>,
    /// From receipt to storage at half of the first of these rates.
    pub lag: Lag,
    /// What a user would write instead, where that is measured.
    pub peer: Option<PeerRound>,
}

/// Some of it with tables that have grown.
#[derive(Debug, Clone, Serialize)]
pub struct Grown {
    /// Rows in the tables.
    pub rows: u64,
    /// The yardsticks at that time, on tables of their own that have not grown.
    pub limits: Limits,
    /// Events accepted a second over 64 connections, once for each round.
    pub accepted: Vec<f64>,
    /// Events a second that one worker took from a full queue, of each round.
    pub drained: Vec<f64>,
    /// Events a second from request to row, of each round.
    pub end_to_end: Vec<f64>,
}

/// Everything that was measured. Its display is a table of medians and ratios.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of time.
    pub rounds: Vec<Round>,
    /// By rows.
    pub grown: Vec<Grown>,
    /// Events accepted and stored in all.
    pub events: u64,
}

/// Measures; the services' logs go to `folder`.
///
/// # Errors
/// When anything was answered wrongly or not stored: then there are no figures.
pub async fn run(
    packages: &Packages,
    programs: Programs,
    folder: &Path,
    plan: &Plan,
    progress: Progress,
) -> Result<Report> {
    let step = progress.step("starting the stores and ingest");
    let mut pipeline = Pipeline::start(packages, programs, folder).await?;
    step.done("the stores and ingest are up");
    let mut peer = match &plan.peers {
        Some(workspace) => Some(Peer::start(workspace, pipeline.stores(), folder).await?),
        None => None,
    };
    let mut rounds = Vec::new();
    for number in 1..=plan.rounds {
        let step = progress.step(format!("round {number} of {}", plan.rounds));
        rounds.push(rotated(&mut pipeline, peer.as_mut(), plan, number).await?);
        step.done(&format!("round {number} of {}", plan.rounds));
    }
    let mut grown = Vec::new();
    let mut rows = 0;
    for &more in &plan.grown {
        grown::grow(pipeline.pool(), rows, more, progress).await?;
        rows = more;
        let step = progress.step(format!("measuring with {rows} rows"));
        grown.push(with_rows(&mut pipeline, plan, rows).await?);
        step.done(&format!("measured with {rows} rows"));
    }
    let (events, missing) = (pipeline.accepted(), pipeline.missing().await?);
    ensure!(
        missing == 0,
        "the figures are void: of {events} accepted events {missing} are not stored"
    );
    if let Some(peer) = peer {
        let missing = peer.missing().await?;
        ensure!(
            missing == 0,
            "the peer's figures are void: {missing} events are not stored"
        );
        peer.stop().await?;
    }
    pipeline.stop().await?;
    Ok(Report {
        rounds,
        grown,
        events,
    })
}

/// A round of both. Who comes first takes turns, as the machine may get slower or faster meanwhile.
async fn rotated(
    pipeline: &mut Pipeline,
    peer: Option<&mut Peer>,
    plan: &Plan,
    number: u32,
) -> Result<Round> {
    let Some(peer) = peer else {
        return round(pipeline, plan).await;
    };
    let (ours, theirs) = if number.is_multiple_of(2) {
        let theirs = peer.round(plan.slice, plan.drained).await?;
        (round(pipeline, plan).await?, theirs)
    } else {
        let ours = round(pipeline, plan).await?;
        (ours, peer.round(plan.slice, plan.drained).await?)
    };
    Ok(Round {
        peer: Some(theirs),
        ..ours
    })
}

async fn round(pipeline: &mut Pipeline, plan: &Plan) -> Result<Round> {
    let limits = limits::measure(pipeline.stores(), plan.slice / 2).await?;
    let closed = |connections, duplicates| Load {
        connections,
        pace: Pace::Closed,
        duplicates,
        during: plan.slice,
    };
    let mut accepted = Vec::new();
    for connections in CONNECTIONS {
        let outcome = pipeline.accept(closed(connections, 0.0)).await?;
        accepted.push((connections, outcome));
    }
    pipeline.fill(plan.drained).await?;
    let one = pipeline.drain(1).await?;

    let mut repeated = Vec::new();
    for duplicates in DUPLICATES {
        let outcome = pipeline.accept(closed(USUAL, duplicates)).await?;
        repeated.push((duplicates, outcome));
    }
    let (connections, highest) = accepted
        .iter()
        .map(|(connections, outcome)| (*connections, outcome.rate))
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .expect("there are closed loops");
    let mut paced = Vec::new();
    for share in SHARES {
        let load = Load {
            pace: Pace::Open(highest * share),
            ..closed(connections, 0.0)
        };
        paced.push((share, pipeline.accept(load).await?));
    }
    pipeline.fill(plan.drained).await?;
    let two = pipeline.drain(2).await?;

    let mut end_to_end = Vec::new();
    for connections in END_TO_END {
        let outcome = pipeline.store(closed(connections, 0.0)).await?;
        end_to_end.push((connections, outcome));
    }
    let half = Load {
        pace: Pace::Open(end_to_end[0].1.rate / 2.0),
        ..closed(USUAL, 0.0)
    };
    Ok(Round {
        limits,
        accepted,
        repeated,
        paced,
        drained: [one, two],
        end_to_end,
        lag: pipeline.lag(half).await?,
        peer: None,
    })
}

async fn with_rows(pipeline: &mut Pipeline, plan: &Plan, rows: u64) -> Result<Grown> {
    let load = Load {
        connections: USUAL,
        pace: Pace::Closed,
        duplicates: 0.0,
        during: plan.slice,
    };
    let mut grown = Grown {
        rows,
        limits: limits::measure(pipeline.stores(), plan.slice / 2).await?,
        accepted: Vec::new(),
        drained: Vec::new(),
        end_to_end: Vec::new(),
    };
    for _ in 0..plan.rounds {
        grown.accepted.push(pipeline.accept(load).await?.rate);
        pipeline.fill(plan.drained).await?;
        grown.drained.push(pipeline.drain(1).await?);
        grown.end_to_end.push(pipeline.store(load).await?.rate);
    }
    Ok(grown)
}
