//! `cargo stack console-bench`.

use std::process::ExitCode;

use anyhow::Result;
use stack::bench::console::{self, Plan};
use stack::data_folder;
use stack::progress::Progress;

use super::measuring::{self, Outputs, Prepared};
use super::signals::Signals;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Events in the tables; ten million take 20 GB of disk for a while
    #[arg(
        long,
        default_value_t = 10_000_000,
        value_parser = clap::value_parser!(u32).range(10_000..=100_000_000)
    )]
    events: u32,

    /// Requests for each page
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    requests: u32,

    #[command(flatten)]
    outputs: Outputs,
}

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let ended = signals.unless_stopped(bench(args)).await;
    data_folder::sweep_abandoned()?;
    Ok(ended?.exit_code())
}

async fn bench(args: &Args) -> Result<ExitCode> {
    let plan = Plan {
        events: args.events,
        requests: args.requests,
    };
    measuring::measure(&args.outputs, async |prepared| {
        let Prepared {
            packages,
            programs,
            logs,
        } = prepared;
        console::run(&packages, programs, &logs, plan, Progress::Shown).await
    })
    .await
}
