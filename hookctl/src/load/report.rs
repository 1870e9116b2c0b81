//! The result of a load.

use std::{collections::BTreeMap, fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{Plan, plan::lossy};
use crate::{
    delivery::{Answer, Outcome},
    output,
};

/// The longest time that is measured exactly: an hour, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// The result of a load.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The prefix of the ids of its events.
    pub id_prefix: String,
    /// Requests that were asked for.
    pub planned: u64,
    /// Requests that were sent.
    pub sent: u64,
    /// From the start to the last answer, in seconds.
    pub took_s: f64,
    /// The planned requests per second.
    pub planned_rate: f64,
    /// The requests per second that were sent.
    pub rate: f64,
    /// How they were answered.
    pub answers: Vec<Answered>,
    /// From the time when a request was due to its 2xx.
    pub latency: Latency,
    /// From the time when a request was due to its sending, for all requests. More than a few milliseconds
    /// means that there were too few connections, or that this machine was too busy.
    pub begun_late: Latency,
}

/// One kind of answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answered {
    /// The outcome.
    pub outcome: Outcome,
    /// The HTTP status of a refusal.
    pub status: Option<u16>,
    /// The number of such answers.
    pub count: u64,
    /// The text of the first of them.
    pub detail: String,
}

/// Percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p99_9_ms: f64,
    pub max_ms: f64,
}

/// The results of one connection.
#[derive(Debug)]
pub(super) struct Tally {
    answers: BTreeMap<Outcome, (u64, Answer)>,
    latency_us: Histogram<u64>,
    late_us: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let empty = || Histogram::new_with_max(LONGEST_US, 3).expect("the bounds are good");
        Self {
            answers: BTreeMap::new(),
            latency_us: empty(),
            late_us: empty(),
        }
    }
}

impl Tally {
    /// Records a finished request.
    pub(super) fn note(&mut self, answer: Answer, late: Duration, latency: Duration) {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.late_us.saturating_record(us(late));
        // A refusal is fast because the work is not done, so it would make the latencies look better.
        if answer.outcome.is_safe() {
            self.latency_us.saturating_record(us(latency));
        }
        self.answers.entry(answer.outcome).or_insert((0, answer)).0 += 1;
    }

    /// The sum of both.
    pub(super) fn add(&mut self, other: Self) {
        let same = "the bounds are the same";
        self.latency_us.add(other.latency_us).expect(same);
        self.late_us.add(other.late_us).expect(same);
        for (outcome, (count, answer)) in other.answers {
            self.answers.entry(outcome).or_insert((0, answer)).0 += count;
        }
    }

    pub(super) fn report(self, plan: &Plan, took: Duration) -> Report {
        let answers: Vec<_> = self
            .answers
            .into_iter()
            .map(|(outcome, (count, answer))| Answered {
                outcome,
                status: answer.status,
                count,
                detail: answer.detail,
            })
            .collect();
        let sent = answers.iter().map(|answered| answered.count).sum();
        Report {
            id_prefix: plan.id_prefix(),
            planned: plan.requests,
            sent,
            took_s: took.as_secs_f64(),
            planned_rate: plan.rate,
            // The last request is due one interval before the end of its second.
            rate: lossy(sent) / took.as_secs_f64().max(1.0 / plan.rate),
            answers,
            latency: Latency::of(&self.latency_us),
            begun_late: Latency::of(&self.late_us),
        }
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |us: u64| lossy(us) / 1_000.0;
        Self {
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            p99_9_ms: ms(histogram.value_at_quantile(0.999)),
            max_ms: ms(histogram.max()),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            p50_ms,
            p99_ms,
            p99_9_ms,
            max_ms,
        } = self;
        write!(
            f,
            "p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, p99.9 {p99_9_ms:.1} ms, longest {max_ms:.1} ms"
        )
    }
}

impl Report {
    /// Whether every request was answered 2xx.
    pub fn all_safe(&self) -> bool {
        self.answers.iter().all(|a| a.outcome.is_safe())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(&["", "result"]);
        table.add_row([
            "sent".to_owned(),
            format!("{} of {}", self.sent, self.planned),
        ]);
        table.add_row([
            "rate".to_owned(),
            format!(
                "{:.1}/s over {:.1} s (asked for: {:.1}/s)",
                self.rate, self.took_s, self.planned_rate
            ),
        ]);
        for answered in &self.answers {
            let why = match &*answered.detail {
                "" => String::new(),
                detail => format!(" ({detail})"),
            };
            table.add_row([
                answered.outcome.to_string(),
                format!("{}{why}", answered.count),
            ]);
        }
        table.add_row(["latency".to_owned(), self.latency.to_string()]);
        table.add_row(["begun late".to_owned(), self.begun_late.to_string()]);
        table.add_row(["webhook-ids".to_owned(), format!("{}…", self.id_prefix)]);
        write!(f, "{table}")
    }
}
