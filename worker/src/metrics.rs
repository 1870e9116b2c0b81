//! The metrics of a worker. Label values come from fixed sets.

use std::time::Duration;

use chrono::TimeDelta;
use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Opts};
use shared::{
    Family, Program,
    metrics::{BATCH_BUCKETS, LATENCY_BUCKETS, ServiceMetrics},
};

use crate::store::Stored;

/// Normally milliseconds; after an outage, as long as the outage.
const END_TO_END_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0,
    7_200.0,
];

/// All metrics of one family's worker. Most have the family as a constant label.
#[derive(Clone)]
pub struct Metrics {
    /// The metrics that every service has.
    pub service: ServiceMetrics,
    events: IntCounterVec,
    batch_events: Histogram,
    batch_seconds: Histogram,
    end_to_end_seconds: Histogram,
    /// Batches that are held until Postgres works.
    pub holding: IntGauge,
    /// 1 while subscribed to the queue.
    pub consuming: IntGauge,
    /// Events that came on another family's queue, because a binding is wrong.
    pub misrouted: IntCounter,
    /// 1 while the worker can read its queue's policies.
    pub sees_policies: IntGauge,
    /// The family's rows in the spool.
    pub spool_depth: IntGauge,
    /// Seconds since the oldest of them became due.
    pub spool_oldest_due_seconds: Gauge,
}

/// The most rows of the spool or the dead letters that are counted, so that a measurement does not
/// cost more each day while nothing is repaired.
pub const MOST_COUNTED: i64 = 100_000;

impl Metrics {
    /// Registers all metrics, with a series for every outcome.
    pub fn new(family: Family) -> Self {
        let service = ServiceMetrics::new(Program::Worker(family));
        let opts =
            |name: &str, help: &str| Opts::new(name, help).const_label("family", family.name());
        let gauge = |name, help| service.gauge(opts(name, help));
        let histogram = |name, help, buckets| service.histogram(opts(name, help), buckets);
        let events = service.counters(
            opts("pleo_worker_events_total", "Events by what became of them"),
            "outcome",
        );
        for outcome in ["stored", "duplicate", "deferred", "problem"] {
            events.with_label_values(&[outcome]);
        }
        Self {
            events,
            batch_events: histogram(
                "pleo_worker_batch_events",
                "Events stored in one transaction",
                BATCH_BUCKETS,
            ),
            batch_seconds: histogram(
                "pleo_worker_batch_seconds",
                "From the beginning of a batch's transaction to its commit",
                LATENCY_BUCKETS,
            ),
            end_to_end_seconds: histogram(
                "pleo_worker_end_to_end_seconds",
                "From an event's receipt to its commit in Postgres",
                END_TO_END_BUCKETS,
            ),
            holding: gauge(
                "pleo_worker_holding_batches",
                "Batches that wait for Postgres to be well",
            ),
            consuming: gauge("pleo_worker_consuming", "1 while subscribed to the queue"),
            misrouted: service.counter(opts(
                "pleo_worker_misrouted_total",
                "Events that came by the queue of another family and were stored as dead letters",
            )),
            sees_policies: gauge(
                "pleo_worker_sees_policies",
                "1 while the worker can look at the policies of its queue; 0 where nobody looks, so \
                 that `pleo_topology_drift` says nothing about them",
            ),
            spool_depth: gauge(
                "pleo_worker_spool_events",
                "Events in the spool, of which at most 100,000 are counted",
            ),
            spool_oldest_due_seconds: service.seconds(opts(
                "pleo_worker_spool_oldest_due_seconds",
                "Seconds since the oldest event in the spool was due; 0 if none is",
            )),
            service,
        }
    }

    /// Counts a committed batch.
    pub fn batch_stored(&self, events: usize, took: Duration) {
        self.batch_events.observe(events as f64);
        self.batch_seconds.observe(took.as_secs_f64());
    }

    /// Counts an event of a committed batch.
    pub fn event_stored(&self, stored: Stored, since_received: TimeDelta) {
        let outcome = match stored {
            Stored::Healthy => "stored",
            Stored::WithProblem => "problem",
            Stored::Already => "duplicate",
        };
        self.events.with_label_values(&[outcome]).inc();
        if stored != Stored::Already {
            // The clocks of two machines may differ a little.
            self.end_to_end_seconds
                .observe(since_received.as_seconds_f64().max(0.0));
        }
    }

    /// Counts an event that went to the spool for another attempt.
    pub fn deferred(&self) {
        self.events.with_label_values(&["deferred"]).inc();
    }
}
