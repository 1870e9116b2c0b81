//! Finds the programs of Debian's RabbitMQ and Postgres (and Prometheus for tests), and installs them if
//! they are missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, geteuid};

use crate::debian_root::{DebianRoot, Release};
use crate::pgbouncer;
use crate::postgres::ACCOUNT;
use crate::process::{Output, Process, Spec};
use crate::progress::{Progress, note};

/// How long an interrupted installation may take to finish the package that it is unpacking. Killing it
/// there would leave the system's package database inconsistent.
const FINISH_PACKAGE: Duration = Duration::from_secs(60);

/// Keeps Debian from starting system-wide servers, which the stack does not use, and removes that setting
/// again. Finishes an interrupted earlier installation. Waits for another running apt.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  trap 'exit 130' HUP INT TERM
  printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy" || exit 1
fi
export DEBIAN_FRONTEND=noninteractive
dpkg --configure -a &&
apt-get -o DPkg::Lock::Timeout=300 update &&
apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
"#;

/// `cargo stack test` sets it to the Debian whose stores it has chosen, if they are not the machine's.
pub const STORES: &str = "STACK_STORES";

/// The paths of the servers' programs.
#[derive(Debug, Clone)]
pub struct Packages {
    /// The inner scripts of RabbitMQ: `rabbitmq-server`, `rabbitmqctl`. The scripts in `PATH` only run as
    /// Debian's own account.
    pub rabbitmq: PathBuf,
    /// The newest `bin` folder of Postgres: `postgres`, `initdb`.
    pub postgres: PathBuf,
    /// The Erlang port mapper.
    pub epmd: PathBuf,
    /// The Debian root of the programs, if it is not the machine's own.
    root: Option<DebianRoot>,
}

impl Packages {
    /// Finds the programs: the machine's, or those of the Debian that [`STORES`] names.
    ///
    /// # Errors
    /// Names the command that installs what is missing.
    pub fn find() -> Result<Self> {
        match std::env::var(STORES) {
            Ok(name) => {
                let release = Release::from_str(&name, false).map_err(|_| {
                    anyhow!("{STORES} is {name:?}, which is no Debian that is known here")
                })?;
                match release.is_of_machine() {
                    true => Self::of_machine(),
                    false => Self::inside(DebianRoot::find(release)?),
                }
            }
            Err(_) => Self::of_machine(),
        }
    }

    /// The same as [`Packages::find`], after installing missing packages if we are root or `sudo` asks for
    /// no password. The output of apt goes to `log`.
    ///
    /// # Errors
    /// When installing is not permitted or fails; the message says what to run by hand.
    pub async fn find_or_install(log: &Path, progress: Progress) -> Result<Self> {
        install_if_permitted(&missing(), log, progress).await?;
        Self::of_machine()
    }

    /// The programs of this Debian, which is made if it does not exist yet.
    ///
    /// # Errors
    /// As [`DebianRoot::find_or_make`], and as [`Packages::find_or_install`] if it is the machine's.
    pub async fn of_release(release: Release, log: &Path, progress: Progress) -> Result<Self> {
        if release.is_of_machine() {
            return Self::find_or_install(log, progress).await;
        }
        Self::inside(DebianRoot::find_or_make(release, progress).await?)
    }

    /// Runs one of these programs, with a clean environment.
    pub fn spec(&self, name: impl Into<String>, program: impl Into<PathBuf>) -> Spec {
        match &self.root {
            Some(root) => root.spec(name, program),
            None => {
                let mut spec = Spec::new(name, program);
                spec.clean_env = true;
                spec
            }
        }
    }

    /// The ids of [`ACCOUNT`], which owns the data of Postgres.
    ///
    /// # Errors
    /// When there is no such account.
    pub(crate) fn account(&self) -> Result<(Uid, Gid)> {
        match &self.root {
            Some(root) => root.account(ACCOUNT),
            None => User::from_name(ACCOUNT)?
                .map(|account| (account.uid, account.gid))
                .with_context(|| format!("the account {ACCOUNT} does not exist")),
        }
    }

    fn of_machine() -> Result<Self> {
        ensure_none(&missing())?;
        Self::in_folder(Path::new("/"), None)
    }

    fn inside(root: DebianRoot) -> Result<Self> {
        let folder = root.path().to_owned();
        Self::in_folder(&folder, Some(root))
    }

    fn in_folder(folder: &Path, root: Option<DebianRoot>) -> Result<Self> {
        Ok(Self {
            rabbitmq: rabbitmq(folder).context("rabbitmq-server has no server script")?,
            postgres: postgres(folder).context("postgresql has no server program")?,
            epmd: epmd(folder).context("erlang has no epmd")?,
            root,
        })
    }
}

/// Prometheus' programs, which only tests need.
#[derive(Debug, Clone)]
pub struct Monitoring {
    /// The server.
    pub prometheus: PathBuf,
    /// The program that checks its configuration and rules.
    pub promtool: PathBuf,
}

impl Monitoring {
    /// Finds the programs.
    ///
    /// # Errors
    /// As [`Packages::find`].
    pub fn find() -> Result<Self> {
        let found = Self {
            prometheus: "/usr/bin/prometheus".into(),
            promtool: "/usr/bin/promtool".into(),
        };
        let missing = !found.prometheus.exists() || !found.promtool.exists();
        ensure_none(if missing { &["prometheus"] } else { &[] })?;
        Ok(found)
    }

    /// As [`Packages::find_or_install`].
    ///
    /// # Errors
    /// As [`Packages::find_or_install`].
    pub async fn find_or_install(log: &Path, progress: Progress) -> Result<Self> {
        if Self::find().is_err() {
            install_if_permitted(&["prometheus"], log, progress).await?;
        }
        Self::find()
    }
}

/// Installs PgBouncer, which only tests need, if it is missing and we have the rights. Every Debian root of
/// the stack has it.
///
/// # Errors
/// As [`Packages::find_or_install`].
pub async fn install_pgbouncer(log: &Path, progress: Progress) -> Result<()> {
    let exists = Path::new("/").join(pgbouncer::PROGRAM).exists();
    let missing: &[&str] = if exists { &[] } else { &["pgbouncer"] };
    install_if_permitted(missing, log, progress).await?;
    Ok(())
}

fn ensure_none(missing: &[&str]) -> Result<()> {
    ensure!(
        missing.is_empty(),
        "missing: {0}; install with: sudo apt-get update && sudo apt-get install -y \
         --no-install-recommends {0}",
        missing.join(" ")
    );
    Ok(())
}

/// Names of the Debian packages that are not installed.
fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    let machine = Path::new("/");
    if rabbitmq(machine).is_none() || epmd(machine).is_none() {
        missing.push("rabbitmq-server");
    }
    // A package that is unpacked but not configured has not created the account that the server needs.
    let has_account = matches!(User::from_name(ACCOUNT), Ok(Some(_)));
    if postgres(machine).is_none() || (geteuid().is_root() && !has_account) {
        missing.push("postgresql");
    }
    missing
}

/// This function and the next ones return paths as programs inside `root` see them.
fn rabbitmq(root: &Path) -> Option<PathBuf> {
    let folder = Path::new("usr/lib/rabbitmq/bin");
    let exists = root.join(folder).join("rabbitmq-server").exists();
    exists.then(|| Path::new("/").join(folder))
}

fn epmd(root: &Path) -> Option<PathBuf> {
    let path = Path::new("usr/bin/epmd");
    root.join(path).exists().then(|| Path::new("/").join(path))
}

fn postgres(root: &Path) -> Option<PathBuf> {
    let folder = Path::new("usr/lib/postgresql");
    let versions = std::fs::read_dir(root.join(folder)).ok()?.flatten();
    let newest = versions
        .filter(|entry| entry.path().join("bin/postgres").exists())
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max()?;
    Some(
        Path::new("/")
            .join(folder)
            .join(newest.to_string())
            .join("bin"),
    )
}

fn has_sudo() -> bool {
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sudo.status().is_ok_and(|status| status.success())
}

pub(crate) async fn install_if_permitted(
    packages: &[&str],
    log: &Path,
    progress: Progress,
) -> Result<()> {
    if !packages.is_empty() && (geteuid().is_root() || has_sudo()) {
        install(packages, log, progress).await?;
    }
    Ok(())
}

async fn install(packages: &[&str], log: &Path, progress: Progress) -> Result<()> {
    let what = format!("installing {} with apt-get", packages.join(" and "));
    let step = progress.step(what.clone());
    let script = ["-c", INSTALL, "install"]
        .into_iter()
        .chain(packages.iter().copied());
    let spec = if geteuid().is_root() {
        Spec::new("apt-get", "/bin/sh").args(script)
    } else {
        Spec::new("apt-get", "sudo")
            .args(["-n", "/bin/sh"])
            .args(script)
    };
    let installer = Installer(Process::spawn(Spec {
        output: Output::Log(log.to_owned()),
        ..spec
    })?);
    let status = step.follow(&what, &installer.0).await;
    ensure!(
        status.success(),
        "cannot install packages: {}",
        installer.0.how_it_ended()
    );
    step.done(&format!("installed {}", packages.join(" and ")));
    Ok(())
}

/// Gives apt time to end in order when we are interrupted.
struct Installer(Process);

impl Drop for Installer {
    fn drop(&mut self) {
        if self.0.is_running() {
            note("waiting for apt-get to stop …");
            self.0.stop_blocking(Signal::SIGINT, FINISH_PACKAGE);
        }
    }
}
