//! `cargo stack console-bench`.

use std::process::ExitCode;

use anyhow::Result;
use stack::bench::console::{self, Plan};
use stack::data_folder::{self, DataFolder};
use stack::packages::Packages;
use stack::programs::{Profile, Programs, Scope};
use stack::progress::Progress;

use super::measuring::{self, Outputs};
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
    let progress = Progress::Shown;
    let workspace = super::workspace()?;
    let programs = Programs::build(&workspace, Scope::Services, Profile::Release, progress).await?;
    if cfg!(debug_assertions) {
        // The one who asks has to be optimised as well.
        return measuring::run_built(&programs).await;
    }
    let base = DataFolder::temporary()?;
    let packages = Packages::find_or_install(&base.path().join("apt.log"), progress).await?;
    let folder = args.outputs.logs(&base)?;
    let plan = Plan {
        events: args.events,
        requests: args.requests,
    };
    let report = console::run(&packages, programs, &folder, plan, progress).await?;
    args.outputs.print(&report)?;
    Ok(ExitCode::SUCCESS)
}
