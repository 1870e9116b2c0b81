//! Child processes that can be stopped, frozen and killed, and that never outlive the stack.
//!
//! Four measures ensure that:
//!
//! - Each child leads its own process group, so Ctrl-C in a terminal reaches only the stack, which then
//!   stops the children in order.
//! - Dropping a [`Process`] kills the child and all its descendants.
//! - The kernel kills the child when the stack dies (`setpriv --pdeathsig`).
//! - A pid file lets the next start kill a process that still got away.

mod log;
mod pid_file;
mod spawner;
mod spec;
mod tree;
mod usage;

use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

pub use log::tail;
pub(crate) use pid_file::PidFile;
pub use spec::{Inside, Output, Spec};

/// How often a running child is checked; an exit is noticed at most this late.
const POLL: Duration = Duration::from_millis(20);

/// A running (or ended) child process; dropping it kills the child and its descendants.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    pid: u32,
    child: Mutex<Child>,
    pid_file: Option<PidFile>,
}

impl Process {
    /// Starts a child, after killing a process that an earlier, crashed stack left behind under the same
    /// pid file.
    ///
    /// # Errors
    /// When the log or the pid file cannot be written or `setpriv` cannot be started. A missing program
    /// shows later, as exit code 127 with a line in the log.
    pub fn spawn(spec: Spec) -> Result<Self> {
        if let Some(path) = &spec.pid_file {
            PidFile::kill_leftover(path)?;
        }
        let child = spawner::spawn(spec.command()?)
            .with_context(|| format!("cannot start {} through setpriv (util-linux)", spec.name))?;
        let mut process = Self {
            pid: child.id(),
            child: Mutex::new(child),
            pid_file: None,
            spec,
        };
        if let Some(path) = &process.spec.pid_file {
            process.pid_file = Some(PidFile::write(path, process.pid)?);
        }
        Ok(process)
    }

    /// The name from the [`Spec`].
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The child's process id, even after it has ended.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Path of the log, if the output goes to one.
    pub fn log(&self) -> Option<&Path> {
        match &self.spec.output {
            Output::Log(path) => Some(path),
            Output::Inherit => None,
        }
    }

    /// The last `lines` lines of the log; empty if there is none.
    pub fn log_tail(&self, lines: usize) -> String {
        self.log().map(|path| tail(path, lines)).unwrap_or_default()
    }

    /// Whether the child is still running; a frozen child counts as running.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// How the child ended, or `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.lock()
            .try_wait()
            .expect("a spawned child can be waited for")
    }

    /// Waits until the child ends by itself.
    pub async fn wait(&self) -> ExitStatus {
        loop {
            if let Some(status) = self.exit_status() {
                return status;
            }
            sleep(POLL).await;
        }
    }

    /// Kills the child and its descendants with SIGKILL and returns when the child is gone.
    pub fn kill(&self) {
        let mut child = self.lock();
        if matches!(child.try_wait(), Ok(None)) {
            tree::kill(self.pid);
            // An error would mean that another thread has reaped it: it is gone in any case.
            drop(child.wait());
        }
    }

    /// Freezes the child and its descendants with SIGSTOP: connections stay open, nothing answers.
    ///
    /// # Errors
    /// When the child has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal_tree(Signal::SIGSTOP)
    }

    /// Continues a frozen child and its descendants with SIGCONT.
    ///
    /// # Errors
    /// When the child has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal_tree(Signal::SIGCONT)
    }

    /// Sends SIGTERM and waits for the end; see [`Process::stop`].
    ///
    /// # Errors
    /// When the child had to be killed.
    pub async fn terminate(&self, deadline: Duration) -> Result<ExitStatus> {
        self.stop(Signal::SIGTERM, deadline).await
    }

    /// Sends `signal` to the child alone and waits for its end; returns at once if it has ended.
    ///
    /// # Errors
    /// When it still runs after `deadline`; it is killed then.
    pub async fn stop(&self, signal: Signal, deadline: Duration) -> Result<ExitStatus> {
        {
            let mut child = self.lock();
            // The lock keeps the child from being reaped, so another process cannot get its pid.
            if matches!(child.try_wait(), Ok(None)) {
                tree::signal(self.pid, signal);
            }
        }
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.exit_status() {
                return Ok(status);
            }
            if Instant::now() >= end {
                self.kill();
                bail!(
                    "{} did not stop within {deadline:?} of {signal} and was killed",
                    self.name()
                );
            }
            sleep(POLL).await;
        }
    }

    /// Sends `signal` to the child and its descendants and blocks until it ends, for use in `Drop`; kills
    /// it after `deadline`.
    pub(crate) fn stop_blocking(&self, signal: Signal, deadline: Duration) {
        if self.signal_tree(signal).is_err() {
            return;
        }
        let end = std::time::Instant::now() + deadline;
        while self.is_running() && std::time::Instant::now() < end {
            std::thread::sleep(POLL);
        }
        self.kill();
    }

    /// Why the child ended, with the end of its log, for error messages.
    pub fn how_it_ended(&self) -> String {
        let end = match self.exit_status() {
            Some(status) => format!("{} ended with {status}", self.name()),
            None => format!("{} is running", self.name()),
        };
        match (self.log(), self.log_tail(15)) {
            (Some(log), tail) => format!("{end}; the end of {}:\n{tail}", log.display()),
            (None, _) => end,
        }
    }

    /// Unexpected behaviour of a service: it ended by itself, or panicked.
    pub fn failure(&self) -> Option<String> {
        if !self.is_running() {
            return Some(self.how_it_ended());
        }
        let log = std::fs::read_to_string(self.log()?).ok()?;
        let line = log.lines().find(|line| line.contains("panicked"))?;
        Some(format!("{}: {line}", self.name()))
    }

    fn signal_tree(&self, signal: Signal) -> Result<()> {
        let mut child = self.lock();
        if !matches!(child.try_wait(), Ok(None)) {
            bail!("{} is not running", self.name());
        }
        tree::signal_all(self.pid, signal);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if let Some(pid_file) = self.pid_file.take() {
            pid_file.remove();
        }
    }
}
