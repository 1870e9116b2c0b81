//! The result of a check.

use std::io::{self, Write};

use serde::Serialize;

use crate::output::Row;

/// The severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    Ok,
    /// Events are safe for now, but somebody should look at it.
    Warning,
    /// Events are not safe, or not stored.
    Problem,
    /// Could not be checked.
    Skipped,
}

/// One check with its result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    check: String,
    verdict: Severity,
    found: String,
    /// How to fix it; empty if nothing has to be fixed.
    remedy: String,
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, Severity::Ok, found, "")
    }

    pub(super) fn warning(
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Severity::Warning, found, remedy)
    }

    pub(super) fn problem(
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Severity::Problem, found, remedy)
    }

    pub(super) fn skipped(check: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(check, Severity::Skipped, why, "")
    }

    fn new(
        check: impl Into<String>,
        verdict: Severity,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            check: check.into(),
            verdict,
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    pub(super) fn is_problem(&self) -> bool {
        self.verdict == Severity::Problem
    }

    /// The verdict as the table shows it.
    pub(super) fn verdict(&self) -> &'static str {
        match self.verdict {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Problem => "PROBLEM",
            Severity::Skipped => "skipped",
        }
    }
}

impl Row for Finding {
    const HEADER: &'static [&'static str] = &["check", "verdict", "found"];

    fn cells(&self) -> Vec<String> {
        let verdict = self.verdict().to_owned();
        vec![self.check.clone(), verdict, self.found.clone()]
    }
}

/// Printed below the table, because a fix is too long for a column. Problems come first.
pub(super) fn print_remedies(findings: &[Finding]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for severity in [Severity::Problem, Severity::Warning] {
        for finding in findings.iter().filter(|f| f.verdict == severity) {
            writeln!(out, "\n{}: {}", finding.check, finding.found)?;
            writeln!(out, "  → {}", finding.remedy)?;
        }
    }
    Ok(())
}
