//! A machine of the cluster: a network, a hostname, a process tree and a disk of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use tokio::time::{Instant, sleep, timeout};

use super::network::{Link, run};
use crate::process::{Process, Spec};

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const COMMAND_WITHIN: Duration = Duration::from_secs(90);
const STOP_WITHIN: Duration = Duration::from_secs(90);
/// How a program is started.
const ONCE: &str = "once";
/// Restarted when it fails, as systemd and container engines do: a broker may give up while its peers are
/// starting as well.
const SUPERVISED: &str = "supervised";
/// Runs a program on the disk `$1` under the hostname `$2`, in mode `$3`. The machine has its own shared
/// memory.
const BOOT: &str = r#"
set -eu
root=$1 how=$3
hostname "$2"
shift 3
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
if [ "$how" = once ]; then
  exec chroot "$root" "$@"
fi
until chroot "$root" "$@"; do
  sleep 1
done
"#;

/// The folders that machines are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Folders<'a> {
    /// The Debian that every disk starts from; it stays unchanged.
    pub(super) root: &'a Path,
    /// Where the disks are.
    pub(super) disks: &'a Path,
    /// Where the logs are.
    pub(super) logs: &'a Path,
}

/// A file of a machine's disk.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) path: &'static str,
    pub(super) text: String,
    /// The only account that may read and write it.
    pub(super) owner: &'static str,
}

/// The program of a machine.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// Files on the disk, written when it is new.
    pub(super) files: Vec<File>,
    /// The account of the program.
    pub(super) account: &'static str,
    /// The program and its arguments.
    pub(super) command: Vec<String>,
    /// Environment of this program and of others on the machine.
    pub(super) env: Vec<(&'static str, String)>,
}

/// A running (or dead) machine.
#[derive(Debug)]
pub(super) struct Node {
    link: Link,
    setup: Setup,
    hosts: String,
    lower: PathBuf,
    disk: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl Node {
    /// A machine with a new disk that is not running yet. `hosts` names the others.
    pub(super) fn new(folders: Folders<'_>, link: Link, hosts: &str, setup: Setup) -> Result<Self> {
        let node = Self {
            link,
            setup,
            hosts: hosts.to_owned(),
            lower: folders.root.to_owned(),
            disk: folders.disks.join(link.name),
            log: folders.logs.join(format!("{}.log", link.name)),
            process: None,
        };
        node.format()?;
        Ok(node)
    }

    pub(super) fn name(&self) -> &'static str {
        self.link.name
    }

    pub(super) fn link(&self) -> Link {
        self.link
    }

    pub(super) fn socket(&self, port: u16) -> SocketAddr {
        (self.link.address, port).into()
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_running)
    }

    /// Starts its program, and connects it to the network.
    pub(super) fn boot(&mut self) -> Result<()> {
        self.kill();
        self.link.join()?;
        let command = self.setup.command.iter().map(String::as_str);
        let spec = self.spec(SUPERVISED, &["--pid", "--fork", "--kill-child"], command);
        self.process = Some(Process::spawn(spec.log(&self.log))?);
        Ok(())
    }

    /// Kills all its processes. Its network then refuses connections.
    pub(super) fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Switches it off: all processes are killed, and nothing answers.
    pub(super) fn switch_off(&self) -> Result<()> {
        self.link.cut()?;
        self.kill();
        Ok(())
    }

    /// Ends its program in order.
    pub(super) async fn stop(&self, command: &[&str]) -> Result<()> {
        let process = self.process.as_ref().context("it has never run")?;
        self.run(command).await?;
        timeout(STOP_WITHIN, process.wait())
            .await
            .map(drop)
            .with_context(|| format!("{} does not stop within {STOP_WITHIN:?}", self.name()))
    }

    pub(super) fn freeze(&self) -> Result<()> {
        self.process.as_ref().context("it has never run")?.pause()
    }

    pub(super) fn thaw(&self) -> Result<()> {
        self.process.as_ref().context("it has never run")?.resume()
    }

    /// Deletes the disk's contents.
    pub(super) fn wipe(&self) -> Result<()> {
        self.kill();
        umount2(&self.disk.join("root"), MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount the disk of {}", self.name()))?;
        fs::remove_dir_all(&self.disk)?;
        self.format()
    }

    /// Runs a program on the machine, even while the machine's own program is down, and returns the output.
    pub(super) async fn run(&self, command: &[&str]) -> Result<String> {
        let output = tempfile::NamedTempFile::new_in(&self.disk)?;
        let spec = self
            .spec(ONCE, &[], command.iter().copied())
            .log(output.path());
        let process = Process::spawn(spec)?;
        let what = || format!("{} on {}", command.join(" "), self.name());
        let status = timeout(COMMAND_WITHIN, process.wait())
            .await
            .with_context(|| format!("{} takes longer than {COMMAND_WITHIN:?}", what()))?;
        let printed = fs::read_to_string(output.path())?;
        ensure!(status.success(), "{} failed:\n{printed}", what());
        Ok(printed)
    }

    /// Waits until `ready` succeeds.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut ready: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        let end = Instant::now() + within;
        loop {
            let error = match ready().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if let Some(process) = &self.process {
                ensure!(process.is_running(), "{}", process.how_it_ended());
            }
            ensure!(
                Instant::now() < end,
                "{} is not {what} within {within:?}: {error:#}; its log ends:\n{}",
                self.name(),
                self.process
                    .as_ref()
                    .map_or(String::new(), |process| process.log_tail(15))
            );
            sleep(Duration::from_millis(300)).await;
        }
    }

    fn spec<'a>(
        &self,
        how: &str,
        namespaces: &[&str],
        command: impl Iterator<Item = &'a str>,
    ) -> Spec {
        let root = self.disk.join("root");
        let account = self.setup.account;
        let mut spec = Spec::new(self.name(), "nsenter")
            .args(self.link.enter())
            .args(["unshare", "--mount", "--uts", "--ipc"])
            .args(namespaces)
            .args(["--", "/bin/sh", "-c", BOOT, "boot"])
            .args([root.as_os_str()])
            .args([self.name(), how, "setpriv", "--pdeathsig", "KILL"])
            .args([
                "--reuid",
                account,
                "--regid",
                account,
                "--init-groups",
                "--",
            ])
            .args(command);
        spec.clean_env = true;
        spec = spec.env("PATH", PATH).env("LANG", "C.UTF-8");
        for (name, value) in &self.setup.env {
            spec = spec.env(*name, value);
        }
        spec
    }

    /// Makes an empty disk: the Debian, with a layer for what is written.
    fn format(&self) -> Result<()> {
        let folder = |name: &str| self.disk.join(name);
        for name in ["written", "work", "root"] {
            fs::create_dir_all(folder(name))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.lower.display(),
            folder("written").display(),
            folder("work").display()
        );
        let root = folder("root");
        nix::mount::mount(
            Some("overlay"),
            &root,
            Some("overlay"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("cannot mount the disk of {}", self.name()))?;
        fs::write(root.join("etc/hosts"), &self.hosts)?;
        for file in &self.setup.files {
            let path = root.join(file.path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
            fs::write(&path, &file.text)?;
            let root = root.to_str().context("paths of the stack are text")?;
            run("chroot", &[root, "chown", file.owner, file.path])?;
            run("chroot", &[root, "chmod", "400", file.path])?;
        }
        Ok(())
    }
}
