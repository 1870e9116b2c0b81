//! What every service reports about itself, and the buckets that their histograms share.

use prometheus::{IntGaugeVec, Opts, Registry, process_collector::ProcessCollector};

use crate::{
    Program, panics,
    topology::{Drift, Topology},
};

/// Buckets in seconds, from a quarter of a millisecond (a local confirm) to ten seconds (past every
/// deadline of a request).
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
    /// Where a service registers its own.
    pub registry: Registry,
    topology_drift: IntGaugeVec,
}

impl ServiceMetrics {
    /// A registry with build information and the process's own figures in it.
    pub fn new(program: Program) -> Self {
        let registry = Registry::new();
        let build_info = IntGaugeVec::new(
            Opts::new(
                "pleo_build_info",
                "Always 1; the labels tell which build runs",
            ),
            &["service", "version"],
        )
        .expect("the metric's name and labels are valid");
        build_info
            .with_label_values(&[program.name(), env!("CARGO_PKG_VERSION")])
            .set(1);
        let topology_drift = IntGaugeVec::new(
            Opts::new(
                "pleo_topology_drift",
                "1 for each exchange and queue that differs on the broker from what this version wants, else 0",
            ),
            &["entity"],
        )
        .expect("the metric's name and labels are valid");
        let this = Self {
            registry,
            topology_drift,
        };
        this.register(build_info);
        this.register(this.topology_drift.clone());
        this.register(panics::counter());
        this.register(ProcessCollector::for_self());
        this
    }

    /// Adds a metric under a name that nothing else has.
    pub fn register(&self, collector: impl prometheus::core::Collector + 'static) {
        self.registry
            .register(Box::new(collector))
            .expect("each metric is registered once, under its own name");
    }

    /// Shows what the last declaration of the topology found.
    pub fn set_drift(&self, topology: &Topology, drifts: &[Drift]) {
        for entity in topology.entities() {
            let differs = drifts.iter().any(|drift| drift.entity == entity);
            self.topology_drift
                .with_label_values(&[entity.as_str()])
                .set(i64::from(differs));
        }
    }
}
