//! Replays a poison message in a process of its own, so that a stack overflow, running out of memory or an
//! endless loop does not stop the replay of the others.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use operations::dead_letters::replay::{Outcome, Replayed};
use shared::config::DatabaseArgs;
use tokio::{process::Command, time::timeout};

use crate::actions::Run;

/// Longer than the limit of a transaction, which the child may have to repeat.
const DEADLINE: Duration = Duration::from_secs(120);

/// How to replay one event.
pub(super) struct Child<'a> {
    pub(super) database: &'a DatabaseArgs,
    /// The run that it belongs to; `None` for a trial.
    pub(super) run: Option<&'a Run>,
    pub(super) include_withheld: bool,
    pub(super) any_company: bool,
}

impl Child<'_> {
    /// Replays it. An error means that the event is not the cause.
    pub(super) async fn replay(&self, webhook_id: String) -> anyhow::Result<Replayed> {
        let mut command = Command::new(std::env::current_exe().context("where is hookctl?")?);
        command
            .args(["dead-letters", "replay", "--in-process", "--json"])
            .arg(format!("--id={webhook_id}"))
            .args(self.run.map(|_| "--yes"))
            .args(self.run.map(|run| format!("--run={}", run.id())))
            .args(self.include_withheld.then_some("--include-withheld"))
            .args(self.any_company.then_some("--any-company"))
            // Not on the command line, which every user of the machine can read.
            .envs(self.database.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        match timeout(DEADLINE, command.output()).await {
            Ok(output) => self.judge(webhook_id, &output.context("cannot start hookctl")?),
            Err(_elapsed) => {
                let reason = format!("did not end within {} s", DEADLINE.as_secs());
                Ok(self.stopped(webhook_id, reason))
            }
        }
    }

    fn judge(&self, webhook_id: String, output: &Output) -> anyhow::Result<Replayed> {
        const PANICKED: i32 = 101;
        if let Some(signal) = output.status.signal() {
            let reason = format!("ended by signal {signal}");
            return Ok(self.stopped(webhook_id, reason));
        }
        match output.status.code() {
            Some(0 | 3) => {}
            Some(PANICKED) => return Ok(self.stopped(webhook_id, "panicked".to_owned())),
            _ => bail!("{}", String::from_utf8_lossy(&output.stderr).trim()),
        }
        // Without a line, the event was no dead letter any more when the child read it.
        let line = String::from_utf8_lossy(&output.stdout);
        match line.lines().last() {
            Some(line) => serde_json::from_str(line).context("the child printed something else"),
            None => Ok(Replayed {
                webhook_id,
                outcome: Outcome::Gone,
                reason: None,
                kept: self.run.is_some(),
            }),
        }
    }

    fn stopped(&self, webhook_id: String, reason: String) -> Replayed {
        Replayed {
            webhook_id,
            outcome: Outcome::Stopped,
            reason: Some(reason),
            kept: false,
        }
    }
}
