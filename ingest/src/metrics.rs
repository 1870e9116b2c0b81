//! What ingest counts. Labels come from fixed sets: outcomes, layers, stores, and the configured
//! secrets' names.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
};
use shared::{
    Program,
    metrics::{BATCH_BUCKETS, LATENCY_BUCKETS, ServiceMetrics},
};

use crate::{acceptor::Layer, answer::Answer, secrets::Secrets};

/// All metrics of the ingest service.
#[derive(Clone)]
pub struct Metrics {
    /// Those that every service has.
    pub service: ServiceMetrics,
    requests: IntCounterVec,
    request_seconds: Histogram,
    secret_matched: IntCounterVec,
    dedup_hits: IntCounterVec,
    /// Events that went to a batch together.
    pub batch_size: Histogram,
    /// From publishing a batch to its last confirm.
    pub confirm_seconds: Histogram,
    /// Events written to the spool because the broker did not confirm them.
    pub spooled: IntCounter,
    /// Batches that had to go without dedup because Postgres did not answer.
    pub without_dedup: IntCounter,
    /// 1 while a store is left alone after a failure.
    pub breaker_open: IntGaugeVec,
    /// Requests being handled.
    pub in_flight: IntGauge,
}

impl Metrics {
    /// Registers everything, with a series for every value that a label can take, so that a rate
    /// can be computed from the first event on.
    pub fn new(secrets: &Secrets) -> Self {
        let service = ServiceMetrics::new(Program::Ingest);
        let counters = |name: &str, help: &str, label: &str| {
            let vec = IntCounterVec::new(Opts::new(name, help), &[label])
                .expect("the metric's name and label are valid");
            service.register(vec.clone());
            vec
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("the metric's name is valid");
            service.register(counter.clone());
            counter
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options).expect("the metric's name is valid");
            service.register(histogram.clone());
            histogram
        };
        let in_flight = IntGauge::new("pleo_ingest_in_flight", "Requests being handled")
            .expect("the metric's name is valid");
        service.register(in_flight.clone());
        let breaker_open = IntGaugeVec::new(
            Opts::new(
                "pleo_ingest_breaker_open",
                "1 while a store is left alone after a failure",
            ),
            &["store"],
        )
        .expect("the metric's name and label are valid");
        service.register(breaker_open.clone());

        let this = Self {
            requests: counters(
                "pleo_ingest_requests_total",
                "Requests by how they were answered",
                "outcome",
            ),
            request_seconds: histogram(
                "pleo_ingest_request_seconds",
                "From a request's headers to its answer",
                LATENCY_BUCKETS,
            ),
            secret_matched: counters(
                "pleo_ingest_secret_matched_total",
                "Verified requests by the name of the secret that matched",
                "secret",
            ),
            dedup_hits: counters(
                "pleo_ingest_dedup_hits_total",
                "Duplicates by where they were recognised",
                "layer",
            ),
            batch_size: histogram(
                "pleo_ingest_batch_events",
                "Events that were published together",
                BATCH_BUCKETS,
            ),
            confirm_seconds: histogram(
                "pleo_ingest_confirm_seconds",
                "From publishing a batch to its last confirm",
                LATENCY_BUCKETS,
            ),
            spooled: counter(
                "pleo_ingest_spooled_total",
                "Events written to the spool because RabbitMQ did not confirm them",
            ),
            without_dedup: counter(
                "pleo_ingest_without_dedup_total",
                "Events published without dedup because Postgres did not answer",
            ),
            breaker_open,
            in_flight,
            service,
        };
        for label in Answer::METRIC_LABELS {
            this.requests.with_label_values(&[label]);
        }
        for layer in Layer::ALL {
            this.dedup_hits.with_label_values(&[layer.name()]);
        }
        for name in secrets.names() {
            this.secret_matched.with_label_values(&[name]);
        }
        this
    }

    /// Counts a request under one of [`Answer::METRIC_LABELS`].
    pub fn answered(&self, label: &'static str, took: Duration) {
        self.requests.with_label_values(&[label]).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Counts a duplicate.
    pub fn duplicate(&self, layer: Layer) {
        self.dedup_hits.with_label_values(&[layer.name()]).inc();
    }

    /// Counts a verified request. `name` must be a configured secret's.
    pub fn secret_matched(&self, name: &str) {
        self.secret_matched.with_label_values(&[name]).inc();
    }
}
