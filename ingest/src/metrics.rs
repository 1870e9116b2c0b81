//! The metrics of ingest. Label values come from fixed sets: outcomes, layers, stores, and the
//! names of the configured secrets.

use std::time::Duration;

use chrono::Utc;
use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use shared::{
    Program,
    metrics::{BATCH_BUCKETS, LATENCY_BUCKETS, ServiceMetrics},
};

use crate::{answer::Answer, outcome::Layer, secrets::Secrets};

/// Postgres, as a label.
pub const POSTGRES: &str = "postgres";
/// RabbitMQ, as a label.
pub const RABBITMQ: &str = "rabbitmq";

/// All metrics of the ingest service.
#[derive(Clone)]
pub struct Metrics {
    /// The metrics that every service has.
    pub service: ServiceMetrics,
    requests: IntCounterVec,
    request_seconds: Histogram,
    secret_matched: IntCounterVec,
    secrets_loaded: Gauge,
    /// 1 while the content of the secrets file is refused.
    pub secrets_rejected: IntGauge,
    development_secret: IntGauge,
    dedup_hits: IntCounterVec,
    /// The number of events of a batch.
    pub batch_size: Histogram,
    /// The time from publishing a batch to its last confirm.
    pub confirm_seconds: Histogram,
    /// Events written to the spool because the broker did not confirm them.
    pub spooled: IntCounter,
    /// Batches published without dedup because Postgres did not answer.
    pub without_dedup: IntCounter,
    /// 1 while a store's breaker is open.
    pub breaker_open: IntGaugeVec,
    /// Requests being handled.
    pub in_flight: IntGauge,
    /// The limit for verified requests in flight.
    pub in_flight_limit: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers all metrics.
    pub fn new() -> Self {
        let service = ServiceMetrics::new(Program::Ingest);
        let counter = |name, help| service.counter(Opts::new(name, help));
        let counters = |name, help, label| service.counters(Opts::new(name, help), label);
        let gauge = |name, help| service.gauge(Opts::new(name, help));
        let histogram = |name, help, buckets| service.histogram(Opts::new(name, help), buckets);
        let (secrets_loaded, secrets_rejected, development_secret) = of_secrets(&service);
        Self {
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
            secrets_loaded,
            secrets_rejected,
            development_secret,
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
                "Batches published without dedup because Postgres did not answer",
            ),
            breaker_open: service.gauges(
                Opts::new(
                    "pleo_ingest_breaker_open",
                    "1 while a store is left alone after a failure",
                ),
                "store",
            ),
            in_flight: gauge("pleo_ingest_in_flight", "Requests being handled"),
            in_flight_limit: gauge(
                "pleo_ingest_in_flight_limit",
                "Verified requests that may be handled at once; past it the answer is 503",
            ),
            service,
        }
        .with_all_series()
    }

    /// Creates a series for every label value, so that rates can be computed from the first event
    /// on.
    fn with_all_series(self) -> Self {
        for label in Answer::METRIC_LABELS {
            self.requests.with_label_values(&[label]);
        }
        for store in [POSTGRES, RABBITMQ] {
            self.breaker_open.with_label_values(&[store]);
        }
        for layer in Layer::ALL {
            self.dedup_hits.with_label_values(&[layer.name()]);
        }
        self
    }

    /// Shows the secrets that are in use from now on.
    pub fn secrets_loaded(&self, secrets: &Secrets) {
        for name in secrets.names() {
            self.secret_matched.with_label_values(&[name]);
        }
        let development = secrets.development_secret().is_some();
        self.development_secret.set(i64::from(development));
        self.secrets_loaded
            .set(Utc::now().timestamp_millis() as f64 / 1_000.0);
        self.secrets_rejected.set(0);
    }

    /// Removes the series of names that are in `old` and not in `new`. A series that no longer
    /// changes would look like a secret that is configured and unused.
    pub fn forget_secrets_beyond(&self, new: &Secrets, old: &Secrets) {
        for name in old.names().filter(|&name| new.names().all(|n| n != name)) {
            // An error only means that there was no series.
            self.secret_matched.remove_label_values(&[name]).ok();
        }
    }

    /// Counts a request under one of [`Answer::METRIC_LABELS`].
    pub fn answered(&self, label: &'static str, took: Duration) {
        self.requests.with_label_values(&[label]).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Counts a request that was refused before it was read, so it has no duration.
    pub fn refused_unread(&self, answer: &Answer) {
        self.requests
            .with_label_values(&[answer.metric_label()])
            .inc();
    }

    /// Counts a duplicate.
    pub fn duplicate(&self, layer: Layer) {
        self.dedup_hits.with_label_values(&[layer.name()]).inc();
    }

    /// Counts a verified request. `name` must be the name of a configured secret.
    pub fn secret_matched(&self, name: &str) {
        self.secret_matched.with_label_values(&[name]).inc();
    }
}

/// The metrics of the secrets: when they were loaded, whether a list is refused, and whether the
/// development secret is in use.
fn of_secrets(service: &ServiceMetrics) -> (Gauge, IntGauge, IntGauge) {
    let loaded = service.seconds(Opts::new(
        "pleo_ingest_secrets_loaded_timestamp_seconds",
        "When the secrets in use were read, in unix seconds",
    ));
    let rejected = service.gauge(Opts::new(
        "pleo_ingest_secrets_rejected",
        "1 while the secrets file holds something that was refused; older secrets are in use",
    ));
    let development = service.gauge(Opts::new(
        "pleo_ingest_development_secret",
        "1 while the development secret is accepted, which everybody knows",
    ));
    (loaded, rejected, development)
}
