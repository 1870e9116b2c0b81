//! Runs programs to their end, and returns their output.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::timeout;

/// The only variables of the stack's own environment that programs see. Any other one could be a variable
/// of the compose file, and would change the test.
const KEPT: [&str; 11] = [
    "PATH",
    "HOME",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
];

/// Lines of output that an error shows.
const SHOWN: usize = 25;

/// The folder and environment of programs.
#[derive(Debug, Clone, Default)]
pub(super) struct Shell {
    folder: Option<PathBuf>,
    env: Vec<(String, String)>,
}

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// `None` if a signal ended it.
    pub(super) code: Option<i32>,
    /// Standard output.
    pub(super) out: String,
    /// Standard error.
    pub(super) err: String,
}

impl Shell {
    /// Programs run in `folder`.
    pub(super) fn within(mut self, folder: PathBuf) -> Self {
        self.folder = Some(folder);
        self
    }

    /// Sets a variable.
    pub(super) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// The command, for callers that run it in another way.
    pub(super) fn command(&self, program: &str, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.args(args).env_clear().stdin(Stdio::null());
        command.envs(
            KEPT.iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        command.envs(
            self.env
                .iter()
                .map(|(name, value)| (OsStr::new(name), value)),
        );
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// Runs a program, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started, or does not end in time.
    pub(super) async fn run(
        &self,
        program: &str,
        args: &[&str],
        within: Duration,
    ) -> Result<Ended> {
        let mut command = tokio::process::Command::from(self.command(program, args));
        command.kill_on_drop(true);
        let output = timeout(within, command.output())
            .await
            .with_context(|| format!("{program} {} did not end within {within:?}", args.join(" ")))?
            .with_context(|| format!("cannot run {program}"))?;
        Ok(Ended {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a program that has to succeed, and returns its output.
    ///
    /// # Errors
    /// As [`Shell::run`], and when it fails, with the end of its output.
    pub(super) async fn ok(
        &self,
        program: &str,
        args: &[&str],
        within: Duration,
    ) -> Result<String> {
        let ended = self.run(program, args, within).await?;
        if ended.code != Some(0) {
            bail!("{program} {} failed: {}", args.join(" "), ended.end());
        }
        Ok(ended.out)
    }
}

impl Ended {
    /// The last lines of its whole output.
    pub(super) fn end(&self) -> String {
        let lines: Vec<&str> = self.out.lines().chain(self.err.lines()).collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}
