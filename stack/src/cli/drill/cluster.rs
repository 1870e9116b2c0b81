//! `cargo stack drill --cluster`: builds and installs as usual, then starts this program again in
//! namespaces of its own; that second process runs the drill.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use stack::cluster::{Replication, confinement};
use stack::debian_root::{DebianRoot, Release};
use stack::drill::cluster::{Clustered, Fault, Settings};
use stack::drill::{Drill, Incident};
use stack::process::Process;
use stack::programs::Programs;
use stack::progress::Progress;

/// How long the standby is away in the control run.
const STANDBY_AWAY: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, clap::Args)]
pub(super) struct ClusterArgs {
    /// On three brokers and a pair of Postgres servers with automatic failover; needs root
    #[arg(long)]
    cluster: bool,

    /// Of the cluster, only the faults that tell most, for a drill of a few minutes
    #[arg(long, requires = "cluster", conflicts_with = "only")]
    essential: bool,

    /// With an asynchronous standby: shows that events are lost, and that sending them again mends it
    #[arg(long, requires = "cluster", conflicts_with_all = ["only", "essential", "minutes"])]
    control: bool,

    /// The stores of the cluster
    #[arg(long, requires = "cluster", default_value = "debian13", value_parser = ["debian13", "newest"])]
    stores: String,

    /// Say whether this machine can hold the drill on a cluster, and do nothing else
    #[arg(long, requires = "cluster")]
    check: bool,

    /// The Debian to hold the drill with; only for the program that the drill starts by itself
    #[arg(long, hide = true)]
    confined: Option<PathBuf>,
}

impl ClusterArgs {
    pub(super) fn is_wanted(&self) -> bool {
        self.cluster
    }

    pub(super) fn confined(&self) -> Option<&Path> {
        self.confined.as_deref()
    }

    fn release(&self) -> Release {
        match self.stores.as_str() {
            "newest" => Release::Newest,
            _ => Release::Debian13,
        }
    }
}

/// Does everything that needs the network, and starts the confined program.
pub(super) async fn confine(args: &super::Args) -> Result<ExitCode> {
    let progress = Progress::Shown;
    if let Some(obstacle) = confinement::obstacle() {
        if args.cluster.check {
            writeln!(io::stdout(), "{obstacle}").context("cannot print")?;
            return Ok(ExitCode::FAILURE);
        }
        bail!("a drill on a cluster cannot be held here: {obstacle}");
    }
    if args.cluster.check {
        return Ok(ExitCode::SUCCESS);
    }
    args.faults(Fault::all())?;
    // Held until the end, so that no other run deletes it.
    let debian = DebianRoot::find_or_make(args.cluster.release(), progress).await?;
    // Before the services are built, because cargo may replace this program; a newer one at its path would
    // do as well.
    let own = std::env::current_exe().context("cannot find the running program")?;
    let programs = args.programs(progress).await?;
    let seed = args.settings(progress).seed;
    let mut line = args.to_command_line(seed);
    line.push("--cluster".into());
    for (wanted, flag) in [
        (args.cluster.essential, "--essential"),
        (args.cluster.control, "--control"),
    ] {
        line.extend(wanted.then(|| flag.into()));
    }
    line.extend(["--confined".into(), debian.path().into()]);
    let spec =
        confinement::spec("drill", &own, line).env(stack::programs::BIN_DIR, programs.folder());
    let status = Process::spawn(spec)?.wait().await;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the drill in the namespaces that [`confine`] has made.
pub(super) async fn hold(args: &super::Args, debian: &Path) -> Result<ExitCode> {
    confinement::prepare()?;
    let progress = Progress::Shown;
    let replication = if args.cluster.control {
        Replication::Asynchronous
    } else {
        Replication::Synchronous
    };
    let settings = Settings {
        root: debian,
        replication,
        logs: args.logs.as_deref(),
    };
    let step = progress.step("starting three brokers, a pair of servers and the services");
    let cluster = Clustered::start(Programs::find()?, settings).await?;
    let load = args.settings(Progress::Silent);
    let drill = Drill::start(cluster, load, progress)?;
    step.done("everything is up and under load");
    if args.cluster.control {
        return control(drill).await;
    }
    let all = if args.cluster.essential {
        Fault::essential()
    } else {
        Fault::all()
    };
    args.hold(drill, load.seed, args.faults(all)?).await
}

/// Loses the data that only the lost primary had, and shows that sending the events again restores it.
async fn control(mut drill: Drill<Clustered>) -> Result<ExitCode> {
    let incident = Incident::together(&[Fault::StandbyThenPrimary], STANDBY_AWAY);
    drill.incident(&incident).await?;
    let lost = drill.lost().await?;
    let mut out = io::stdout();
    let print = "cannot print";
    writeln!(out, "lost with the primary: {} events", lost.len()).context(print)?;
    drill.send_again(&lost).await;
    let report = drill.finish().await?;
    writeln!(out, "after they were sent again:\n{report}").context(print)?;
    if lost.is_empty() {
        writeln!(out, "FAILED: an asynchronous standby lost nothing").context(print)?;
    }
    Ok(if report.verdict().is_empty() && !lost.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
