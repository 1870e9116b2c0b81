//! Reports progress on standard error: a spinner on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::process::Process;

/// How often the log of a running process is read.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Prints one line on standard error.
pub fn note(line: &str) {
    // Not `eprintln`: the terminal may be gone, and everything must still be stopped in order.
    writeln!(std::io::stderr(), "{line}").ok();
}

/// Where steps are reported; cheap to copy.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// For people: on standard error.
    Shown,
    /// Not shown, as in tests.
    Silent,
}

/// A running step. Dropping it without [`Step::done`] removes its spinner.
#[derive(Debug)]
pub struct Step {
    progress: Progress,
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// Starts a step; `what` reads like "starting postgres".
    pub fn step(self, what: impl Into<String>) -> Step {
        let what = what.into();
        let spins = matches!(self, Self::Shown) && std::io::stderr().is_terminal();
        let bar = if spins {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if spins {
            let style = "{spinner} {msg} {elapsed:.dim}";
            bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            self.say(&format!("… {what}"));
        }
        bar.set_message(what);
        Step {
            progress: self,
            bar,
            started: Instant::now(),
        }
    }

    /// Prints one line that stays.
    pub fn say(self, line: &str) {
        if let Self::Shown = self {
            note(line);
        }
    }
}

impl Step {
    /// Changes the text beside the spinner; no effect on plain output.
    pub fn update(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Shows the end of a process's log beside `what` until the process ends.
    pub(crate) async fn follow(&self, what: &str, process: &Process) -> ExitStatus {
        loop {
            if let Some(status) = process.exit_status() {
                return status;
            }
            let line: String = process.log_tail(1).trim().chars().take(60).collect();
            self.update(format!("{what}: {line}"));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends the step with a line that stays; `what` reads like "postgres is up".
    pub fn done(self, what: &str) {
        self.bar.finish_and_clear();
        self.progress.say(&format!(
            "✓ {what} ({:.1} s)",
            self.started.elapsed().as_secs_f32()
        ));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
