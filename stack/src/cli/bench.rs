//! `cargo stack bench`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use stack::bench::{self, Plan};
use stack::data_folder;
use stack::progress::Progress;

use super::measuring::{self, Outputs, Prepared};
use super::signals::Signals;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How often everything is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,

    /// Seconds of each load; the first is not counted
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(3..=3_600))]
    seconds: u64,

    /// Events that are queued before workers drain them
    #[arg(
        long,
        default_value_t = 200_000,
        value_parser = clap::value_parser!(u64).range(1_000..=10_000_000)
    )]
    drained: u64,

    /// Rows in the tables for the measurements with grown tables, ascending
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0,1000000,10000000",
        value_parser = clap::value_parser!(u64).range(..=1_000_000_000)
    )]
    grown: Vec<u64>,

    /// Measure beside it what a user would write instead, in Node; its packages come from npm
    #[arg(long)]
    peers: bool,

    #[command(flatten)]
    outputs: Outputs,
}

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let ended = signals.unless_stopped(bench(args)).await;
    data_folder::sweep_abandoned()?;
    Ok(ended?.exit_code())
}

async fn bench(args: &Args) -> Result<ExitCode> {
    ensure!(
        args.grown.is_sorted_by(|less, more| less < more),
        "--grown must be ascending, as the tables grow from one measurement to the next"
    );
    let plan = Plan {
        rounds: args.rounds,
        slice: Duration::from_secs(args.seconds),
        drained: args.drained,
        grown: args.grown.clone(),
        peers: args.peers.then(super::workspace).transpose()?,
    };
    measuring::measure(&args.outputs, async |prepared| {
        let Prepared {
            packages,
            programs,
            logs,
        } = prepared;
        bench::run(&packages, programs, &logs, &plan, Progress::Shown).await
    })
    .await
}
