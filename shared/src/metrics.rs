//! The metrics that every service has, and the buckets of their histograms.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, core::Collector, process_collector::ProcessCollector,
};

use crate::{
    Program, panics,
    topology::{Drift, Topology},
};

/// Buckets in seconds, from 0.25 ms (a local confirm) to 10 s (longer than every request's
/// deadline).
pub const LATENCY_BUCKETS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
];

/// Buckets in events per batch.
pub const BATCH_BUCKETS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0,
];

/// The metrics that all services have.
#[derive(Clone)]
pub struct ServiceMetrics {
    /// The registry that the private port serves.
    pub registry: Registry,
    topology_drift: IntGaugeVec,
    drifting: Arc<Mutex<Drifting>>,
}

/// The exchanges and queues that differ, by how this was detected.
#[derive(Default)]
struct Drifting {
    /// By the last declaration of the topology.
    declared: HashSet<String>,
    /// By RabbitMQ's management: queues that may drop messages.
    losing: HashSet<String>,
}

impl ServiceMetrics {
    /// Creates a registry with the build information and the process's metrics.
    pub fn new(program: Program) -> Self {
        let registry = Registry::new();
        let topology_drift = IntGaugeVec::new(
            Opts::new(
                "pleo_topology_drift",
                "1 for each exchange and queue that differs on the broker from what this version wants, else 0",
            ),
            &["entity"],
        );
        let topology_drift = register(&registry, topology_drift);
        let build_info = IntGaugeVec::new(
            Opts::new(
                "pleo_build_info",
                "Always 1; the labels tell which build runs",
            ),
            &["service", "version"],
        );
        register(&registry, build_info)
            .with_label_values(&[program.name(), env!("CARGO_PKG_VERSION")])
            .set(1);
        register(&registry, Ok(panics::counter()));
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect("it is registered once");
        Self {
            registry,
            topology_drift,
            drifting: Arc::default(),
        }
    }

    /// Registers a counter.
    pub fn counter(&self, opts: Opts) -> IntCounter {
        register(&self.registry, IntCounter::with_opts(opts))
    }

    /// Registers counters that differ in one label.
    pub fn counters(&self, opts: Opts, label: &str) -> IntCounterVec {
        register(&self.registry, IntCounterVec::new(opts, &[label]))
    }

    /// Registers a gauge of whole numbers.
    pub fn gauge(&self, opts: Opts) -> IntGauge {
        register(&self.registry, IntGauge::with_opts(opts))
    }

    /// Registers gauges of whole numbers that differ in one label.
    pub fn gauges(&self, opts: Opts, label: &str) -> IntGaugeVec {
        register(&self.registry, IntGaugeVec::new(opts, &[label]))
    }

    /// Registers a gauge of seconds.
    pub fn seconds(&self, opts: Opts) -> Gauge {
        register(&self.registry, Gauge::with_opts(opts))
    }

    /// Registers a histogram with these upper bounds.
    pub fn histogram(&self, opts: Opts, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts).buckets(buckets.to_vec());
        register(&self.registry, Histogram::with_opts(opts))
    }

    /// Registers histograms with these upper bounds that differ in one label.
    pub fn histograms(&self, opts: Opts, buckets: &[f64], label: &str) -> HistogramVec {
        let opts = HistogramOpts::from(opts).buckets(buckets.to_vec());
        register(&self.registry, HistogramVec::new(opts, &[label]))
    }

    /// Sets the drift metric from the last declaration of the topology.
    pub fn set_drift(&self, topology: &Topology, drifts: &[Drift]) {
        let mut drifting = self.drifting.lock().unwrap_or_else(PoisonError::into_inner);
        drifting.declared = drifts.iter().map(|drift| drift.entity.clone()).collect();
        for entity in topology.entities() {
            self.show_drift(&drifting, &entity);
        }
    }

    /// Sets the drift metric of a queue that may drop confirmed messages, or no longer may.
    pub fn set_losing(&self, queue: &str, loses: bool) {
        let mut drifting = self.drifting.lock().unwrap_or_else(PoisonError::into_inner);
        if loses {
            drifting.losing.insert(queue.to_owned());
        } else {
            drifting.losing.remove(queue);
        }
        self.show_drift(&drifting, queue);
    }

    fn show_drift(&self, drifting: &Drifting, entity: &str) {
        let differs = drifting.declared.contains(entity) || drifting.losing.contains(entity);
        self.topology_drift
            .with_label_values(&[entity])
            .set(i64::from(differs));
    }
}

/// Names and labels are constants, so any error here is a bug that appears at the first start.
fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("the metric's name and labels are valid");
    registry
        .register(Box::new(collector.clone()))
        .expect("each metric is registered once, under its own name");
    collector
}
