//! What became of a dead letter, or would.

use std::{collections::BTreeMap, io, io::Write};

use serde::{Deserialize, Serialize};

use crate::{
    output::{OutputArgs, Row},
    printable::printable,
};

/// How a replay of one event went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// No problem any more: it is its resource's newest state.
    Newest,
    /// No problem any more: a newer state of its resource is there, and stays.
    Superseded,
    /// No problem any more: its type has no table.
    Untyped,
    /// Somebody replayed or dismissed it meanwhile.
    Gone,
    /// This version finds a problem as well.
    StillWrong,
    /// Postgres refuses it.
    Refused,
    /// Somebody holds a lock on its row, or on that of its resource.
    Locked,
    /// It is not replayed without being asked for by its id.
    Withheld,
    /// It stops the replay as it stopped the workers.
    Stopped,
}

impl Outcome {
    /// Whether it is no dead letter any more.
    pub(super) fn is_good(self) -> bool {
        match self {
            Self::Newest | Self::Superseded | Self::Untyped | Self::Gone => true,
            Self::StillWrong | Self::Refused | Self::Locked | Self::Withheld | Self::Stopped => {
                false
            }
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Newest => "stored, as the newest state",
            Self::Superseded => "stored, under a newer state",
            Self::Untyped => "stored, its type has no table",
            Self::Gone => "no dead letter any more",
            Self::StillWrong => "still wrong",
            Self::Refused => "refused by postgres",
            Self::Locked => "locked, and left as it was",
            Self::Withheld => "withheld",
            Self::Stopped => "stops the replay",
        }
    }
}

/// An event and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replayed {
    pub(super) webhook_id: String,
    pub(super) outcome: Outcome,
    /// Why it is left as it is.
    pub(super) reason: Option<String>,
    /// Whether it was done, and not only tried.
    pub(super) kept: bool,
}

impl Replayed {
    pub(super) fn print_json(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, self)?;
        writeln!(out)
    }
}

/// How many events fared alike.
#[derive(Debug, Default)]
pub(super) struct Totals(BTreeMap<(Outcome, Option<String>), Total>);

#[derive(Debug, Default)]
struct Total {
    count: u64,
    /// One of them, to look at.
    example: String,
}

impl Totals {
    pub(super) fn count(&mut self, replayed: &Replayed) {
        let reason = replayed
            .reason
            .as_deref()
            .map(|r| without_position(r).to_owned());
        let total = self.0.entry((replayed.outcome, reason)).or_default();
        total.count += 1;
        total.example.clone_from(&replayed.webhook_id);
    }

    /// Whether no problem is left.
    pub(super) fn is_clean(&self) -> bool {
        self.0.keys().all(|(outcome, _)| outcome.is_good())
    }

    /// `finished`: all were looked at.
    pub(super) fn print(&self, kept: bool, finished: bool) -> io::Result<()> {
        let rows: Vec<_> = self
            .0
            .iter()
            .map(|((outcome, reason), total)| TotalRow {
                count: total.count,
                outcome: *outcome,
                reason: reason.as_deref(),
                example: &total.example,
            })
            .collect();
        OutputArgs { json: false }.print_rows(&rows)?;
        let last = match (finished, rows.is_empty(), kept) {
            (false, true, _) => "not finished",
            (false, false, true) => "not finished; what is above was done",
            (false, false, false) => "not finished; this was a trial, and nothing was changed",
            (true, true, _) => "no open dead letters like that",
            (true, false, true) => "done",
            (true, false, false) => "this was a trial, and nothing was changed; do it with --yes",
        };
        writeln!(io::stdout().lock(), "{last}")
    }
}

#[derive(Serialize)]
struct TotalRow<'a> {
    count: u64,
    outcome: Outcome,
    reason: Option<&'a str>,
    example: &'a str,
}

impl Row for TotalRow<'_> {
    const HEADER: &'static [&'static str] = &["count", "outcome", "reason", "such as"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.count.to_string(),
            self.outcome.words().to_owned(),
            printable(self.reason.unwrap_or_default(), false),
            printable(self.example, false),
        ]
    }
}

/// Where in the body a parser stopped tells equal reasons apart.
fn without_position(reason: &str) -> &str {
    reason
        .rsplit_once(" at line ")
        .map_or(reason, |(what, _)| what)
}
