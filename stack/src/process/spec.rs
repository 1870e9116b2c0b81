//! The description of a child process.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::log;

/// The script that enters another root file system.
const ENTER: &str = include_str!("enter.sh");
/// The path is the same in every Debian.
const PATH_INSIDE: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a child's output goes.
#[derive(Debug, Clone)]
pub enum Output {
    /// Standard output and error are appended to this file.
    Log(PathBuf),
    /// The child writes to the stack's own standard output and error.
    Inherit,
}

/// Another root file system to run in, and which files of the machine are visible there.
#[derive(Debug, Clone)]
pub struct Inside {
    /// Its folder. The program cannot write to it.
    pub root: PathBuf,
    /// Files and folders of the machine and their paths inside. Something must already exist at the path,
    /// unless it is below `/tmp`, `/run` or `/var/tmp`.
    pub binds: Vec<(PathBuf, PathBuf)>,
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
    /// The folder to run in, instead of the stack's own.
    pub folder: Option<PathBuf>,
    /// Whether the child gets only `PATH` and `env`, instead of also the stack's own environment.
    pub clean_env: bool,
    /// The Unix account to run as; only root can set it.
    pub user: Option<String>,
    /// The Debian root to run in; only root can set it.
    pub inside: Option<Inside>,
    /// Where the output goes.
    pub output: Output,
    /// A file that records the pid until the child is stopped, for the clean-up after a crash of the stack.
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
            folder: None,
            clean_env: false,
            user: None,
            inside: None,
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

    /// Makes a file or folder of the machine visible to a program that runs [`Inside`] another root.
    #[must_use]
    pub fn bind(mut self, outside: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        if let Some(into) = &mut self.inside {
            into.binds.push((outside.into(), inside.into()));
        }
        self
    }

    /// Each program in the chain execs the next one, so the process id stays the same.
    pub(super) fn command(&self) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(inside) = &self.inside {
            command.args([
                "--", "unshare", "--mount", "--", "/bin/sh", "-c", ENTER, "enter",
            ]);
            command.arg(&inside.root);
            for (outside, inside) in &inside.binds {
                command.arg(outside).arg(inside);
            }
            command.args(["--", "setpriv", "--pdeathsig", "KILL"]);
        }
        if let Some(user) = &self.user {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.arg("--").arg(&self.program).args(&self.args);
        if self.clean_env {
            command.env_clear();
            let path = match self.inside {
                Some(_) => PATH_INSIDE.into(),
                None => std::env::var_os("PATH").unwrap_or_default(),
            };
            command.env("PATH", path);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
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
