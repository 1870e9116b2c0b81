//! `cargo stack siege`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use stack::data_folder::{self, DataFolder};
use stack::haproxy;
use stack::packages::Packages;
use stack::programs::{Profile, Programs, Scope};
use stack::progress::Progress;
use stack::siege::{self, Attack, Plan};

use super::measuring::{self, Outputs};
use super::signals::Signals;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seconds for which good senders are looked at, for each attack and way
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=250))]
    seconds: u64,

    /// Only the attacks of which the name has this text
    #[arg(long)]
    only: Option<String>,

    /// Take the build of this command, which may not be optimised: sooner there, and slower
    #[arg(long)]
    own_build: bool,

    #[command(flatten)]
    outputs: Outputs,
}

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let ended = signals.unless_stopped(besiege(args)).await;
    data_folder::sweep_abandoned()?;
    Ok(ended?.exit_code())
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
        return measuring::run_built(&programs).await;
    }
    rlimit::increase_nofile_limit(u64::MAX).context("the limit of open files")?;
    let base = DataFolder::temporary()?;
    let apt = base.path().join("apt.log");
    let packages = Packages::find_or_install(&apt, progress).await?;
    haproxy::install(&apt, progress).await?;
    let folder = args.outputs.logs(&base)?;
    let plan = Plan {
        during: Duration::from_secs(args.seconds),
        attacks: args.attacks()?,
    };
    let report = siege::run(&packages, programs, &folder, &plan, progress).await?;
    args.outputs.print(&report)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn attacks(&self) -> Result<Vec<Attack>> {
        let wanted = self.only.as_deref().unwrap_or_default();
        let attacks = Attack::ALL.into_iter();
        let attacks: Vec<_> = attacks
            .filter(|attack| attack.name().contains(wanted))
            .collect();
        ensure!(
            !attacks.is_empty(),
            "no attack has {wanted:?} in its name; there are {}",
            Attack::ALL.map(Attack::name).join(", ")
        );
        Ok(attacks)
    }
}
