//! `cargo stack drill`.

mod cluster;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use stack::data_folder::{self, DataFolder};
use stack::drill::machine::{self, Machine};
use stack::drill::{Drill, Incident, Schedule, Settings, System};
use stack::packages::Packages;
use stack::programs::{Profile, Programs, Scope};
use stack::progress::Progress;

use super::signals::Signals;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// How long things go wrong
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    minutes: u64,

    /// Repeats the drill of that seed [default: a random one]
    #[arg(long)]
    seed: Option<u64>,

    /// New events a second
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,

    /// Only these faults, such as `kill:rabbitmq,half-open:postgres`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,

    /// All faults of `--only` at once, a single time, for so many seconds
    #[arg(
        long,
        requires = "only",
        conflicts_with = "minutes",
        value_parser = clap::value_parser!(u64).range(1..=3_600)
    )]
    together: Option<u64>,

    /// Folder for the services' logs, to be kept
    #[arg(long)]
    logs: Option<PathBuf>,

    /// Optimised services
    #[arg(long)]
    release: bool,

    #[command(flatten)]
    cluster: cluster::ClusterArgs,
}

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    if let Some(confined) = args.cluster.confined() {
        return cluster::hold(args, confined).await;
    }
    let ended = if args.cluster.is_wanted() {
        signals.unless_stopped(cluster::confine(args)).await
    } else {
        signals.unless_stopped(on_one_machine(args)).await
    };
    data_folder::sweep_abandoned()?;
    Ok(ended?.exit_code())
}

async fn on_one_machine(args: &Args) -> Result<ExitCode> {
    let progress = Progress::Shown;
    let faults = args.faults(machine::Fault::all())?;
    let base = DataFolder::temporary()?;
    let packages = Packages::find_or_install(&base.path().join("apt.log"), progress).await?;
    let programs = args.programs(progress).await?;
    let settings = args.settings(progress);
    let step = progress.step("starting the stores, two replicas of ingest and the workers");
    let machine = Machine::start(&packages, programs, args.logs.as_deref()).await?;
    let drill = Drill::start(machine, settings, progress)?;
    step.done("everything is up and under load");
    args.hold(drill, settings.seed, faults).await
}

impl Args {
    async fn programs(&self, progress: Progress) -> Result<Programs> {
        let profile = if self.release {
            Profile::Release
        } else {
            Profile::Own
        };
        Programs::build(&super::workspace()?, Scope::Services, profile, progress).await
    }

    fn settings(&self, progress: Progress) -> Settings {
        let seed = self
            .seed
            .unwrap_or_else(|| u64::from(rand::random::<u32>()));
        progress.say(&format!("seed {seed}"));
        Settings {
            seed,
            rate: self.rate,
        }
    }

    /// The faults of `--only`, or `all`.
    fn faults<F: FromStr<Err = anyhow::Error>>(&self, all: Vec<F>) -> Result<Vec<F>> {
        if self.only.is_empty() {
            return Ok(all);
        }
        self.only.iter().map(|name| name.parse()).collect()
    }

    async fn hold<S: System>(
        &self,
        mut drill: Drill<S>,
        seed: u64,
        faults: Vec<S::Fault>,
    ) -> Result<ExitCode> {
        if let Some(seconds) = self.together {
            let incident = Incident::together(&faults, Duration::from_secs(seconds));
            drill.incident(&incident).await?;
        } else {
            let during = Duration::from_secs(60 * self.minutes);
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

    /// The command line that gives these options, without those that are only for the confined program.
    fn to_command_line(&self, seed: u64) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec!["drill".into()];
        let mut add = |name: &str, value: OsString| line.extend([name.into(), value]);
        match self.together {
            Some(seconds) => add("--together", seconds.to_string().into()),
            None => add("--minutes", self.minutes.to_string().into()),
        }
        add("--seed", seed.to_string().into());
        add("--rate", self.rate.to_string().into());
        if !self.only.is_empty() {
            add("--only", self.only.join(",").into());
        }
        if let Some(logs) = &self.logs {
            add("--logs", logs.into());
        }
        line
    }
}
