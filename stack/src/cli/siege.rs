//! `cargo stack siege`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use stack::base::{self, Base};
use stack::haproxy;
use stack::packages::Packages;
use stack::process::{Process, Spec};
use stack::programs::{Profile, Programs, Scope};
use stack::progress::Progress;
use stack::siege::{self, Attack, Plan};

use super::signals::Signals;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seconds for which good senders are looked at, for each attack and way
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=250))]
    seconds: u64,

    /// Take the build of this command, which may not be optimised: sooner there, and slower
    #[arg(long)]
    own_build: bool,

    /// Also write every figure to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,

    /// Folder for the services' logs, to be kept
    #[arg(long)]
    logs: Option<PathBuf>,
}

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let ended = signals.unless_stopped(besiege(args)).await;
    base::sweep_abandoned()?;
    match ended? {
        Ok(code) | Err(code) => Ok(code),
    }
}

async fn besiege(args: &Args) -> Result<ExitCode> {
    let progress = Progress::Shown;
    let workspace = super::workspace()?;
    let profile = if args.own_build {
        Profile::Own
    } else {
        Profile::Release
    };
    let programs = Programs::build(&workspace, Scope::Services, profile, progress).await?;
    if cfg!(debug_assertions) && !args.own_build {
        // Strangers and good senders have to be optimised as well.
        let spec = Spec::new("stack siege", programs.folder().join("stack"))
            .args(std::env::args_os().skip(1));
        let status = Process::spawn(spec)?.wait().await;
        return Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    rlimit::increase_nofile_limit(u64::MAX).context("the limit of open files")?;
    let base = Base::temporary()?;
    let apt = base.path().join("apt.log");
    let packages = Packages::find_or_install(&apt, progress).await?;
    haproxy::install(&apt, progress).await?;
    let folder = match &args.logs {
        Some(logs) => {
            fs::create_dir_all(logs)?;
            logs.clone()
        }
        None => base.folder("logs")?,
    };
    let plan = Plan {
        during: Duration::from_secs(args.seconds),
        attacks: Attack::ALL.to_vec(),
    };
    let report = siege::run(&packages, programs, &folder, &plan, progress).await?;
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(&report)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(io::stdout(), "{report}").context("cannot print the report")?;
    Ok(ExitCode::SUCCESS)
}
