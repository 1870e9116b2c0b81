//! The result of a drill, and whether it passed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hookctl::delivery::Outcome;
use hookctl::output;

use super::audit::Audit;
use super::sender::Sent;

/// At most one event in this many may be refused while a store is available.
const NEEDLESS_REFUSALS_ONE_IN: u64 = 200;

/// The incidents with one fault.
#[derive(Debug, Default, Clone)]
pub struct Recoveries {
    /// How many there were.
    pub incidents: u32,
    /// From the end of the last fault until every service was ready, and each replica had accepted new
    /// events of every kind which were then stored.
    pub longest: Duration,
}

/// The result of a drill.
#[derive(Debug, Default)]
pub struct Report {
    /// The seed with which it can be repeated.
    pub seed: u64,
    /// How long it took.
    pub took: Duration,
    /// What the sender counted.
    pub sent: Sent,
    /// What the stores have.
    pub audit: Audit,
    /// By the fault's name.
    pub recoveries: BTreeMap<String, Recoveries>,
    /// Numbers of events that were answered 2xx and are not stored.
    pub missing: Vec<u64>,
    /// 503s and 408s given while a store could be reached and ingest was not frozen.
    pub needless_refusals: usize,
    /// 503s without `Retry-After`.
    pub without_retry_after: usize,
    /// The slowest 503 or 408.
    pub slowest_refusal: Duration,
    /// What else was done during the drill.
    pub notes: Vec<String>,
    /// The most memory that each service had, in MiB.
    pub memory_mib: BTreeMap<String, u64>,
    /// Unexpected behaviour of services or stores.
    pub failures: Vec<String>,
}

impl Report {
    /// Why the drill failed; empty if it passed.
    pub fn verdict(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut check = |count: usize, what: &str| {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        };
        check(self.missing.len(), "accepted events are missing");
        check(as_count(self.audit.stored_twice), "events are stored twice");
        check(
            self.audit.wrong_problems.len(),
            "events have a problem and should not, or should and have none",
        );
        check(
            as_count(self.audit.unstored_receipts),
            "receipts have no event",
        );
        check(as_count(self.audit.spooled), "events are left in the spool");
        check(
            usize::try_from(self.audit.queued).unwrap_or(usize::MAX),
            "messages are left in the queues",
        );
        check(
            self.sent
                .events
                .saturating_sub(self.sent.accepted.len() as u64) as usize,
            "events were never accepted",
        );
        // When all processes compete for the processors, a deadline is missed now and then.
        if self.needless_refusals as u64 * NEEDLESS_REFUSALS_ONE_IN > self.sent.events {
            check(
                self.needless_refusals,
                "events were refused although a store was there",
            );
        }
        check(self.without_retry_after, "503s had no Retry-After");
        for (answer, count) in &self.sent.answers {
            if matches!(answer, Outcome::Refused(status) if ![503, 408].contains(status)) {
                broken.push(format!("{count} events were answered {answer}"));
            }
        }
        broken.extend(self.audit.outdated.iter().cloned());
        broken.extend(self.failures.iter().cloned());
        broken
    }
}

fn as_count(number: i64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = |header: &[&str], rows: Vec<Vec<String>>| {
            let mut table = output::table(header);
            table.add_rows(rows);
            table
        };
        let line = |what: &str, count: String| vec![what.to_owned(), count];
        let mut rows = vec![
            line("sent", self.sent.events.to_string()),
            line("answered 2xx", self.sent.accepted.len().to_string()),
            line("stored", self.audit.stored.len().to_string()),
            line(
                "  of them with a problem, as due",
                self.audit.problems.to_string(),
            ),
            line("spooled", self.audit.spooled.to_string()),
            line("queued", self.audit.queued.to_string()),
            line("missing", self.missing.len().to_string()),
            line("stored twice", self.audit.stored_twice.to_string()),
            line("outdated typed rows", self.audit.outdated.len().to_string()),
        ];
        for (answer, count) in &self.sent.answers {
            rows.push(line(
                &format!("attempts answered: {answer}"),
                count.to_string(),
            ));
        }
        rows.push(line(
            "  refused although a store was there",
            self.needless_refusals.to_string(),
        ));
        rows.push(line("  slowest refusal", seconds(self.slowest_refusal)));
        writeln!(f, "seed {}, {} s", self.seed, self.took.as_secs())?;
        writeln!(f, "{}", table(&["ledger", "events"], rows))?;
        let rows = self.recoveries.iter().map(|(fault, recoveries)| {
            vec![
                fault.clone(),
                recoveries.incidents.to_string(),
                seconds(recoveries.longest),
            ]
        });
        writeln!(
            f,
            "{}",
            table(&["fault", "incidents", "longest recovery"], rows.collect())
        )?;
        let rows = self
            .memory_mib
            .iter()
            .map(|(name, mib)| line(name, format!("{mib} MiB")));
        writeln!(f, "{}", table(&["service", "most memory"], rows.collect()))?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        match self.verdict().as_slice() {
            [] => write!(f, "passed: nothing missing, nothing stored twice"),
            broken => write!(f, "FAILED:\n  {}", broken.join("\n  ")),
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
