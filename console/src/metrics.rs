//! What the console counts.

use prometheus::{HistogramTimer, HistogramVec, IntCounterVec, Opts};
use shared::{
    Program,
    metrics::{LATENCY_BUCKETS, ServiceMetrics},
};

use crate::{pages::replay::PATH as REPLAY, server::ACT};

/// The pages, as labels, by the patterns of their addresses.
const PAGES: [(&str, &str); 18] = [
    ("/", "overview"),
    ("/overview/figures", "figures"),
    ("/events", "events"),
    ("/events/export", "export"),
    ("/events/live", "live"),
    ("/event", "event"),
    ("/event/body", "body"),
    ("/resource", "resource"),
    ("/dead-letters", "dead-letters"),
    (ACT, "act"),
    ("/dead-letters/try", "try"),
    (REPLAY, "replay"),
    ("/replays", "replays"),
    ("/replays/{id}", "replay-progress"),
    ("/replays/{id}/progress", "replay-progress"),
    ("/receipts", "receipts"),
    ("/record", "record"),
    ("/sign-in", "sign-in"),
];

/// All other addresses.
const OTHER: &str = "other";

/// How a sign-in ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Outcome {
    Accepted,
    Refused,
    Limited,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Accepted, Self::Refused, Self::Limited];

    const fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Limited => "limited",
        }
    }
}

/// All metrics of the console.
#[derive(Clone)]
pub struct Metrics {
    /// Those that every service has.
    pub service: ServiceMetrics,
    requests: HistogramVec,
    sign_ins: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything, with a series for every value that a label can take.
    pub fn new() -> Self {
        let service = ServiceMetrics::new(Program::Console);
        let requests = Opts::new(
            "pleo_console_request_seconds",
            "From a request for a page to its answer",
        );
        let sign_ins = Opts::new("pleo_console_sign_ins_total", "Tries to sign in");
        let this = Self {
            requests: service.histograms(requests, LATENCY_BUCKETS, "page"),
            sign_ins: service.counters(sign_ins, "outcome"),
            service,
        };
        for page in PAGES.iter().map(|(_, page)| *page).chain([OTHER]) {
            this.requests.with_label_values(&[page]);
        }
        for outcome in Outcome::ALL {
            this.sign_ins.with_label_values(&[outcome.label()]);
        }
        this
    }

    /// Measures a request until the timer is dropped.
    pub fn start(&self, pattern: Option<&str>) -> HistogramTimer {
        let page = PAGES.iter().find(|(known, _)| Some(*known) == pattern);
        let page = page.map_or(OTHER, |(_, page)| page);
        self.requests.with_label_values(&[page]).start_timer()
    }

    /// Somebody tried to sign in.
    pub fn sign_in(&self, outcome: Outcome) {
        self.sign_ins.with_label_values(&[outcome.label()]).inc();
    }
}
