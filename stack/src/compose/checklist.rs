//! The checks of a run: each has a name, is shown while it runs, and ends up in the report.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::progress::Progress;

/// The checks that have been done so far.
#[derive(Debug)]
pub(super) struct Checklist {
    progress: Progress,
    done: Vec<(String, Duration)>,
}

/// The checks, the engine and images, and how long it took.
#[derive(Debug)]
pub struct Report {
    /// The engine and the images.
    pub used: Vec<String>,
    /// What could not be tested, and why.
    pub left_out: Vec<String>,
    done: Vec<(String, Duration)>,
    took: Duration,
}

impl Checklist {
    pub(super) fn new(progress: Progress) -> Self {
        Self {
            progress,
            done: Vec::new(),
        }
    }

    /// Runs one check.
    ///
    /// # Errors
    /// The error of the check, with its name.
    pub(super) async fn check<T>(
        &mut self,
        what: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let step = self.progress.step(what);
        let started = Instant::now();
        let result = work.await.with_context(|| what.to_owned())?;
        step.done(what);
        self.done.push((what.to_owned(), started.elapsed()));
        Ok(result)
    }

    pub(super) fn report(self, used: Vec<String>, left_out: Vec<String>, took: Duration) -> Report {
        Report {
            used,
            left_out,
            done: self.done,
            took,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for used in &self.used {
            writeln!(f, "{used}")?;
        }
        for (what, took) in &self.done {
            writeln!(f, "{:6.1} s  {what}", took.as_secs_f32())?;
        }
        for left_out in &self.left_out {
            writeln!(f, "not tried: {left_out}")?;
        }
        let minutes = self.took.as_secs_f32() / 60.0;
        write!(
            f,
            "docker compose: all {} checks hold ({minutes:.1} min)",
            self.done.len()
        )
    }
}
