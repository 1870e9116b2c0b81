//! A Docker engine: the running one, or one of our own beside it.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tokio::time::{Instant, sleep};

use super::shell::Shell;
use crate::data_folder::{self, DataFolder};
use crate::debian_root::Release;
use crate::packages::install_if_permitted;
use crate::process::{Process, Spec};
use crate::progress::Progress;

const ANSWER_WITHIN: Duration = Duration::from_secs(20);
const START_WITHIN: Duration = Duration::from_secs(60);
/// It first stops its containers.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A working engine. One of our own stops when this value is dropped.
#[derive(Debug)]
pub(super) struct Engine {
    /// The environment in which programs find the engine.
    pub(super) shell: Shell,
    /// For the report.
    pub(super) version: String,
    daemon: Option<Daemon>,
}

/// Our own engine, and the lock on its data.
#[derive(Debug)]
struct Daemon {
    process: Process,
    _lock: File,
}

impl Engine {
    /// The running engine, unless `own` asks for one of our own. Otherwise starts one, and installs
    /// Debian's package first if it is missing. Its images are kept for the next run.
    ///
    /// # Errors
    /// When there is none and we may not start one.
    pub(super) async fn find_or_start(
        base: &DataFolder,
        own: bool,
        progress: Progress,
    ) -> Result<Self> {
        if !own {
            let shell = Shell::default();
            if let Ok(version) = version(&shell).await {
                return Ok(Self {
                    shell,
                    version,
                    daemon: None,
                });
            }
            ensure!(
                std::env::var_os("DOCKER_HOST").is_none(),
                "the Docker engine of DOCKER_HOST does not answer"
            );
        }
        ensure!(
            geteuid().is_root(),
            "no Docker engine answers, and only root can start one"
        );
        let missing = missing();
        install_if_permitted(&missing, &base.path().join("apt.log"), progress).await?;
        let step = progress.step("starting a Docker engine");
        let engine = Self::start(base).await?;
        step.done("a Docker engine is up");
        Ok(engine)
    }

    async fn start(base: &DataFolder) -> Result<Self> {
        let data = data_folder::parent()?.join("engine");
        data_folder::create(&data)?;
        let lock = File::create(data.join("lock")).context("cannot lock the engine's data")?;
        lock.try_lock()
            .context("another run uses the engine's data")?;
        let folder = base.path();
        let socket = format!("unix://{}", folder.join("docker.sock").display());
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let process = Process::spawn(
            Spec::new("dockerd", "dockerd")
                .args([
                    format!("--host={socket}"),
                    option("data-root", &data),
                    option("exec-root", &folder.join("engine")),
                    option("pidfile", &folder.join("docker.pid")),
                ])
                .log(folder.join("dockerd.log")),
        )?;
        let daemon = Daemon {
            process,
            _lock: lock,
        };
        let shell = Shell::default().env("DOCKER_HOST", socket);
        let deadline = Instant::now() + START_WITHIN;
        loop {
            if let Ok(version) = version(&shell).await {
                return Ok(Self {
                    shell,
                    version,
                    daemon: Some(daemon),
                });
            }
            ensure!(
                daemon.process.is_running() && Instant::now() < deadline,
                "cannot start a Docker engine: {}",
                daemon.process.how_it_ended()
            );
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Deletes what earlier runs left in our own engine, except what the next run needs.
    pub(super) async fn tidy(&self) {
        if self.daemon.is_some() {
            for prune in ["container", "volume", "image"] {
                // A failure to free space is not a reason to fail.
                let args = [prune, "prune", "--force"];
                self.shell.run("docker", &args, START_WITHIN).await.ok();
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.stop_blocking(Signal::SIGTERM, STOP_WITHIN);
    }
}

/// Debian's packages with an engine and Compose.
fn missing() -> Vec<&'static str> {
    let has = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| fs::exists(folder.join(program)).unwrap_or(false))
    };
    let mut missing = Vec::new();
    if !has("dockerd") {
        missing.push("docker.io");
    }
    if !has("docker") && Release::Debian13.is_of_machine() {
        missing.push("docker-cli");
    }
    if !has("docker-compose") && Release::Debian12.is_of_machine() {
        missing.push("docker-compose");
    }
    missing
}

async fn version(shell: &Shell) -> Result<String> {
    let args = ["version", "--format", "{{.Server.Version}}"];
    let out = shell.ok("docker", &args, ANSWER_WITHIN).await?;
    Ok(out.trim().to_owned())
}
