//! The result of a rebuild, and how it is shown.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    io::{self, Write},
};

use serde::Serialize;

use crate::{
    output::{OutputArgs, Row},
    printable::printable,
};

/// Why a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// There was no row.
    Missing,
    /// It has an older state.
    Older,
    /// It differs from the event that it names.
    Wrong,
    /// Its event is a dead letter now, or was erased.
    NotHealthy,
}

/// The first problems, as examples.
const EXAMPLES: usize = 10;

/// The result for one table.
pub(super) struct Totals {
    table: &'static str,
    /// The number of events read, in all passes.
    pub(super) events: u64,
    /// Why each row was first written, by a hash of its id, so that millions of rows fit into memory.
    changed: HashMap<u64, Change>,
    mended_in_this_pass: bool,
    problems: u64,
    examples: Vec<(String, String)>,
    /// Rows that stayed as they are because their event does not exist.
    pub(super) rows_without_event: i64,
    /// Whether all events were read.
    pub(super) is_finished: bool,
}

impl Totals {
    pub(super) fn new(table: &'static str) -> Self {
        Self {
            table,
            events: 0,
            changed: HashMap::new(),
            mended_in_this_pass: false,
            problems: 0,
            examples: Vec::new(),
            rows_without_event: 0,
            is_finished: false,
        }
    }

    /// Each pass reads all events again, and finds the same problems.
    pub(super) fn begin_pass(&mut self) {
        self.events = 0;
        self.mended_in_this_pass = false;
        self.problems = 0;
        self.examples.clear();
    }

    pub(super) fn has_mended_in_this_pass(&self) -> bool {
        self.mended_in_this_pass
    }

    pub(super) fn change(&mut self, id: &str, change: Change) {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        self.changed.entry(hasher.finish()).or_insert(change);
        self.mended_in_this_pass |= change == Change::Wrong;
    }

    pub(super) fn problem(&mut self, webhook_id: String, reason: String) {
        self.problems += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push((webhook_id, reason));
        }
    }

    fn count(&self, change: Change) -> usize {
        self.changed.values().filter(|c| **c == change).count()
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_fine(&self, kept: bool) -> bool {
        self.problems == 0 && (kept || self.changed.is_empty())
    }

    fn line(&self) -> Line {
        Line {
            table: self.table,
            events: self.events,
            missing: self.count(Change::Missing),
            older: self.count(Change::Older),
            wrong: self.count(Change::Wrong),
            event_not_healthy: self.count(Change::NotHealthy),
            problems: self.problems,
            rows_without_event: self.rows_without_event,
            finished: self.is_finished,
        }
    }
}

#[derive(Serialize)]
struct Line {
    table: &'static str,
    events: u64,
    missing: usize,
    older: usize,
    wrong: usize,
    event_not_healthy: usize,
    problems: u64,
    rows_without_event: i64,
    finished: bool,
}

impl Row for Line {
    const HEADER: &'static [&'static str] = &[
        "table",
        "events",
        "rows missing",
        "too old",
        "wrong",
        "event not healthy",
        "events with a problem",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.table.to_owned(),
            self.events.to_string(),
            self.missing.to_string(),
            self.older.to_string(),
            self.wrong.to_string(),
            self.event_not_healthy.to_string(),
            self.problems.to_string(),
        ]
    }
}

pub(super) fn print(output: OutputArgs, all: &[Totals], kept: bool) -> io::Result<()> {
    let lines: Vec<Line> = all.iter().map(Totals::line).collect();
    output.print_rows(&lines)?;
    if output.json {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    for totals in all {
        let table = totals.table;
        for (webhook_id, reason) in &totals.examples {
            let (id, reason) = (printable(webhook_id, false), printable(reason, false));
            writeln!(out, "{table}: no row for {id}: {reason}")?;
        }
        let rows = totals.rows_without_event;
        if rows > 0 {
            writeln!(
                out,
                "{table}: {rows} row(s) name an event that is not there (swept, perhaps), and are \
                 left as they are"
            )?;
        }
    }
    writeln!(out, "{}", last_line(all, kept))
}

fn last_line(all: &[Totals], kept: bool) -> String {
    let changed = all.iter().any(|totals| !totals.changed.is_empty());
    if let Some(totals) = all.iter().find(|totals| !totals.is_finished) {
        let rest = match (kept, changed) {
            (true, true) => "what was written stays written",
            (true, false) => "no row is known to be written",
            (false, _) => "nothing was changed",
        };
        return format!("{}: not finished; {rest}", totals.table);
    }
    if kept && all.iter().any(|totals| totals.problems > 0) {
        return "not all rows are what their events say: see above".to_owned();
    }
    let line = match (changed, kept) {
        (true, true) => "written: the rows are what their events say",
        (true, false) => "nothing was changed; do it with --yes",
        (false, _) => "nothing to write: the rows are what their events say",
    };
    line.to_owned()
}
