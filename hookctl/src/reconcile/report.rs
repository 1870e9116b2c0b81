//! The verdict on the ledger, and how it is shown.

use std::time::Duration;

use serde::Serialize;
use shared::bundle;

use super::{
    ledger::{Ledger, WrittenOff},
    queues::Queues,
    typed_rows::Differing,
    typed_tables::Agreement,
};
use crate::{age, printable::printable};

/// The findings.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    verdict: Finding,
    /// At least this many accepted events are neither stored nor spooled nor in RabbitMQ.
    missing: i64,
    missing_after_s: u64,
    #[serde(flatten)]
    ledger: Ledger,
    queues: Queues,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Finding {
    Fine,
    /// Accepted events are missing.
    Missing,
    /// No event is missing, but a typed table does not agree.
    Disagreement,
}

impl Report {
    pub(super) fn new(queues: Queues, ledger: Ledger, missing_after: Duration) -> Self {
        let hold = i64::try_from(queues.hold()).unwrap_or(i64::MAX);
        let missing = ledger.late.saturating_sub(hold).max(0);
        let verdict = if missing > 0 {
            Finding::Missing
        } else if ledger.typed_tables.iter().all(Agreement::is_complete) {
            Finding::Fine
        } else {
            Finding::Disagreement
        };
        Self {
            verdict,
            missing,
            missing_after_s: missing_after.as_secs(),
            ledger,
            queues,
        }
    }

    pub(super) fn is_fine(&self) -> bool {
        self.verdict == Finding::Fine
    }

    pub(super) fn text(&self) -> String {
        let mut lines = self.state();
        lines.push(String::new());
        lines.extend(self.findings());
        lines.join("\n")
    }

    fn state(&self) -> Vec<String> {
        let ledger = &self.ledger;
        let events = &ledger.events;
        let queues: Vec<_> = self
            .queues
            .iter()
            .map(|queue| match (queue.exists, queue.unacknowledged) {
                (false, _) => format!("{} does not exist", queue.name),
                (true, Some(0)) => format!("{} {}", queue.name, queue.ready),
                (true, Some(taken)) => {
                    format!("{} {} and {taken} with a worker", queue.name, queue.ready)
                }
                (true, None) => format!("{} {} and what workers have", queue.name, queue.ready),
            })
            .collect();
        let ages: Vec<_> = ledger
            .unstored_by_age
            .iter()
            .filter(|bucket| bucket.count > 0)
            .map(|bucket| format!("{} aged {}", bucket.count, bucket.age))
            .collect();
        let ages = if ages.is_empty() {
            String::new()
        } else {
            format!(": {}", ages.join(", "))
        };
        vec![
            format!("receipts    {}", ledger.receipts),
            format!(
                "stored      {}: {} healthy, {} open dead letters, {} dismissed",
                events.stored, events.healthy, events.dead_letters, events.dismissed
            ),
            format!(
                "            {} were accepted while Postgres was away; of {} the receipt is gone",
                events.without_dedup, events.receipt_swept
            ),
            format!("spooled     {}", ledger.spooled),
            format!(
                "in queues   messages of 1 to {} events: {}",
                bundle::MOST_EVENTS,
                queues.join(", ")
            ),
            format!("unstored    {} receipts{ages}", ledger.unstored),
            format!("written off {} receipts", ledger.written_off),
        ]
    }

    fn findings(&self) -> Vec<String> {
        let ledger = &self.ledger;
        let mut lines = Vec::new();
        let after = age::words(self.missing_after_s as f64);
        if self.missing > 0 {
            lines.push(format!(
                "missing: {} events were accepted more than {after} ago and are neither stored nor \
                 spooled, and the queues cannot hold more than {}",
                ledger.late,
                self.queues.hold()
            ));
            lines.push(
                "ask Pleo to send them again; ingest accepts them now, or from the time that is \
                 given:"
                    .to_owned(),
            );
        } else if ledger.late > 0 {
            lines.push(format!(
                "late: {} events were accepted more than {after} ago; the queues may hold them",
                ledger.late
            ));
        }
        for receipt in &ledger.late_receipts {
            let at = receipt.received_at.format("%F %T");
            let age = age::words(receipt.age_s);
            let id = printable(&receipt.webhook_id, false);
            let until = receipt.duplicate_until.map_or_else(String::new, |until| {
                format!(
                    ", a repetition counts as a duplicate until {} UTC",
                    until.format("%F %T")
                )
            });
            lines.push(format!("  {id}  accepted {at} UTC, {age} ago{until}"));
        }
        lines.extend(more(ledger.late, ledger.late_receipts.len()));
        if ledger.written_off > 0 {
            lines.push(format!("{} receipts were written off:", ledger.written_off));
            lines.extend(ledger.written_off_receipts.iter().map(written_off));
            let shown = ledger.written_off_receipts.len();
            lines.extend(more(ledger.written_off, shown));
        }
        for table in &ledger.typed_tables {
            disagreement(table, &mut lines);
        }
        if ledger.events.second_bodies > 0 {
            lines.push(format!(
                "{} second bodies came under an id that was taken:",
                ledger.events.second_bodies
            ));
            lines.extend(ids(&ledger.second_bodies));
            lines.extend(more(
                ledger.events.second_bodies,
                ledger.second_bodies.len(),
            ));
        }
        lines.push(match self.verdict {
            Finding::Fine => "fine: whatever was accepted is stored or on its way".to_owned(),
            Finding::Missing => format!("at least {} accepted events are missing", self.missing),
            Finding::Disagreement => "the typed tables do not agree with events".to_owned(),
        });
        lines
    }
}

fn written_off(receipt: &WrittenOff) -> String {
    let text = |text: &Option<String>| printable(text.as_deref().unwrap_or_default(), false);
    format!(
        "  {}  accepted {} UTC, written off {} UTC by {}: {}",
        printable(&receipt.webhook_id, false),
        receipt.received_at.format("%F %T"),
        receipt.written_off_at.format("%F %T"),
        text(&receipt.written_off_by),
        text(&receipt.write_off_reason)
    )
}

fn disagreement(table: &Agreement, lines: &mut Vec<String>) {
    let name = table.table;
    if table.events_without_row > 0 {
        lines.push(format!(
            "{} healthy events have no row in {name}:",
            table.events_without_row
        ));
        lines.extend(ids(&table.such_events));
        lines.extend(more(table.events_without_row, table.such_events.len()));
    }
    if table.rows_without_event > 0 {
        lines.push(format!(
            "{} rows of {name} have no healthy event:",
            table.rows_without_event
        ));
        lines.extend(ids(&table.such_rows));
        lines.extend(more(table.rows_without_event, table.such_rows.len()));
    }
    if table.differing_rows > 0 {
        lines.push(format!(
            "{} rows of {name} are not what their event says:",
            table.differing_rows
        ));
        lines.extend(table.such_differing_rows.iter().map(differing));
        lines.extend(more(table.differing_rows, table.such_differing_rows.len()));
    }
    if table.outdated_rows > 0 {
        lines.push(format!(
            "{} rows of {name} have an older state than a healthy event:",
            table.outdated_rows
        ));
        lines.extend(ids(&table.such_outdated_rows));
        lines.extend(more(table.outdated_rows, table.such_outdated_rows.len()));
    }
}

fn differing(row: &Differing) -> String {
    let what = match &row.problem {
        Some(problem) => printable(problem, false),
        None => row.columns.join(", "),
    };
    format!(
        "  {}  event {}: {what}",
        printable(&row.id, false),
        printable(&row.webhook_id, false)
    )
}

fn ids(ids: &[String]) -> impl Iterator<Item = String> {
    ids.iter().map(|id| format!("  {}", printable(id, false)))
}

fn more(all: i64, shown: usize) -> Option<String> {
    let rest = all - i64::try_from(shown).unwrap_or(i64::MAX);
    (rest > 0).then(|| format!("  and {rest} more; see them with --limit"))
}
