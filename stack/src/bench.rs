//! The benchmark: how close the pipeline comes to the limits of HTTP server, broker and database on the
//! same machine, in the same minutes.
//!
//! Everything is measured in rounds, each with the limits first, so that a machine that gets slower or
//! faster meanwhile changes both sides of a ratio. Every answer is checked, and in the end every accepted
//! event must be stored; otherwise there are no figures.

mod connection;
pub mod console;
mod durable;
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

/// Closed loops, by number of connections.
const CONNECTIONS: [usize; 4] = [1, 64, 256, 1_024];
/// The numbers of connections over which everything is measured from the request to the row.
const END_TO_END: [usize; 2] = [USUAL, 256];
/// Shares of duplicates.
const DUPLICATES: [f64; 2] = [0.1, 0.9];
/// Shares of the highest rate in an open loop, over the number of connections that reached it.
const SHARES: [f64; 3] = [0.25, 0.5, 0.75];
/// Connections of the measurements that use only one number.
const USUAL: usize = 64;
/// How long a queue is filled before its length is read again.
const FILL_FOR: Duration = Duration::from_secs(2);

/// The extent of the measurement.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The number of rounds, also with grown tables.
    pub rounds: u32,
    /// Duration of each load; its first second is not counted.
    pub slice: Duration,
    /// How many events are drained from the queue, at least.
    pub drained: u64,
    /// Rows already in the tables, ascending.
    pub grown: Vec<u64>,
    /// The workspace's folder, if the Node implementation is measured too.
    pub peers: Option<PathBuf>,
}

/// One round of all measurements.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// The limits.
    pub limits: Limits,
    /// Closed loops by number of connections.
    pub accepted: Vec<(usize, Outcome)>,
    /// Closed loops by share of duplicates.
    pub repeated: Vec<(f64, Outcome)>,
    /// Open loops by share of the highest rate.
    pub paced: Vec<(f64, Outcome)>,
    /// Events per second that one and two workers consumed from a full queue.
    pub drained: [f64; 2],
    /// From request to row, by number of connections.
    pub end_to_end: Vec<(usize, EndToEnd)>,
    /// From receipt to storage at half of the first of these rates.
    pub lag: Lag,
    /// The Node implementation, if it is measured.
    pub peer: Option<PeerRound>,
}

/// Some of the measurements with grown tables.
#[derive(Debug, Clone, Serialize)]
pub struct Grown {
    /// Rows in the tables.
    pub rows: u64,
    /// The limits at that time, with tables of their own that have not grown.
    pub limits: Limits,
    /// Events accepted per second over 64 connections, for each round.
    pub accepted: Vec<f64>,
    /// Events per second that one worker consumed from a full queue, for each round.
    pub drained: Vec<f64>,
    /// Events per second from request to row, for each round.
    pub end_to_end: Vec<f64>,
}

/// All measurements. The display is a table of medians and ratios.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In order of time.
    pub rounds: Vec<Round>,
    /// By number of rows.
    pub grown: Vec<Grown>,
    /// The total number of events accepted and stored.
    pub events: u64,
}

/// Measures; the services' logs go to `folder`.
///
/// # Errors
/// When any answer was wrong or any event was not stored: then there are no figures.
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

/// A round of both. They take turns in going first, because the machine may get slower or faster meanwhile.
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
