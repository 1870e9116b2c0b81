//! What a replay did to a dead letter, or would do, as it is printed.

use std::{io, io::Write};

use operations::dead_letters::replay::{Outcome, Replayed, Totals};
use serde::Serialize;

use crate::{
    output::{OutputArgs, Row},
    printable::printable,
};

pub(super) fn print_json(replayed: &Replayed) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, replayed)?;
    writeln!(out)
}

/// `finished`: all selected dead letters were tried.
pub(super) fn print(totals: &Totals, kept: bool, finished: bool) -> io::Result<()> {
    let rows: Vec<_> = totals
        .iter()
        .map(|(outcome, reason, total)| TotalRow {
            count: total.count,
            outcome,
            reason,
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
