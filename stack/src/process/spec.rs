//! What a child process is started from.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::log;

/// Where a child's output goes.
#[derive(Debug, Clone)]
pub enum Output {
    /// Standard output and error are appended to this file.
    Log(PathBuf),
    /// The child writes to the stack's own standard output and error.
    Inherit,
}

/// What to run: the description from which [`Process::spawn`](super::Process::spawn) starts a child.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The name in messages, for example `vendor-worker`.
    pub name: String,
    /// Path of the program, or a name looked up in `PATH`.
    pub program: PathBuf,
    /// Arguments, without the program's name.
    pub args: Vec<OsString>,
    /// Variables set in the child's environment.
    pub env: Vec<(OsString, OsString)>,
    /// Whether the child sees only `PATH` and `env`, instead of also what the stack itself sees.
    pub clean_env: bool,
    /// Unix account to run as; only root can set it.
    pub user: Option<String>,
    /// Where the output goes.
    pub output: Output,
    /// Remembers the pid until the child is stopped, for the clean-up after a crash of the stack.
    pub pid_file: Option<PathBuf>,
}

impl Spec {
    /// A program with no arguments, the stack's own environment and user, and inherited output.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            clean_env: false,
            user: None,
            output: Output::Inherit,
            pid_file: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Appends the output to `file`, whose folder must exist.
    #[must_use]
    pub fn log(mut self, file: impl Into<PathBuf>) -> Self {
        self.output = Output::Log(file.into());
        self
    }

    pub(super) fn command(&self) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = &self.user {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.arg("--").arg(&self.program).args(&self.args);
        if self.clean_env {
            command.env_clear();
            command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        if let Output::Log(path) = &self.output {
            let file = log::open(path)?;
            command.stdout(file.try_clone().context("cannot share the log file")?);
            command.stderr(file);
        }
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(command)
    }
}
