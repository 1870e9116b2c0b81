//! `cargo stack drill`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use stack::base::{self, Base};
use stack::drill::machine::{Fault, Machine};
use stack::drill::{Drill, Incident, Schedule, Settings};
use stack::packages::Packages;
use stack::programs::{Profile, Programs, Scope};
use stack::progress::Progress;

use super::signals::Signals;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long things go wrong
    #[arg(long, default_value_t = 10)]
    minutes: u64,

    /// Repeats the drill of that seed [default: a random one]
    #[arg(long)]
    seed: Option<u64>,

    /// New events a second
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,

    /// Only these faults, such as `kill:rabbitmq,half-open:postgres`
    #[arg(long, value_delimiter = ',')]
    only: Vec<Fault>,

    /// All faults of `--only` at once, a single time, for so many seconds
    #[arg(long, requires = "only", conflicts_with = "minutes")]
    together: Option<u64>,

    /// Folder for the services' logs, to be kept
    #[arg(long)]
    logs: Option<PathBuf>,

    /// Optimised services
    #[arg(long)]
    release: bool,
}

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let ended = signals.unless_stopped(drill(args)).await;
    base::sweep_abandoned()?;
    match ended? {
        Ok(code) | Err(code) => Ok(code),
    }
}

async fn drill(args: &Args) -> Result<ExitCode> {
    let progress = Progress::Shown;
    let base = Base::temporary()?;
    let packages = Packages::find_or_install(&base.path().join("apt.log"), progress).await?;
    let profile = if args.release {
        Profile::Release
    } else {
        Profile::Own
    };
    let programs =
        Programs::build(&super::workspace()?, Scope::Services, profile, progress).await?;
    let seed = args
        .seed
        .unwrap_or_else(|| u64::from(rand::random::<u32>()));
    progress.say(&format!("seed {seed}"));

    let settings = Settings {
        seed,
        rate: args.rate,
    };
    let step = progress.step("starting the stores, two replicas of ingest and the workers");
    let machine = Machine::start(&packages, programs, args.logs.as_deref()).await?;
    let mut drill = Drill::start(machine, settings, progress)?;
    step.done("everything is up and under load");
    if let Some(seconds) = args.together {
        let incident = Incident::together(&args.only, Duration::from_secs(seconds));
        drill.incident(&incident).await?;
    } else {
        let faults = if args.only.is_empty() {
            Fault::all()
        } else {
            args.only.clone()
        };
        let during = Duration::from_secs(60 * args.minutes);
        drill.run(Schedule::new(seed, faults), during).await?;
    }
    let report = drill.finish().await?;
    writeln!(io::stdout(), "{report}").context("cannot print the report")?;
    Ok(if report.verdict().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
