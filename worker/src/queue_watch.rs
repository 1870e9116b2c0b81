//! Watches whether a policy or an argument lets the family's queue drop confirmed messages. AMQP
//! shows neither, so the worker queries RabbitMQ's management.
//!
//! It affects nothing else: while the management does not answer, the last state stays, and one log
//! line says so.

use std::time::Duration;

use anyhow::Context;
use prometheus::IntGauge;
use rand::RngExt;
use serde_json::Value;
use shared::{metrics::ServiceMetrics, topology::Drift};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::{
    management::{Management, encode},
    metrics::Metrics,
    queue_losses::Queue,
};

/// The interval between two queries. The management updates its figures every few seconds; an alert
/// may take a minute more.
pub const EVERY: Duration = Duration::from_secs(60);

/// The deadline of a query, over all nodes.
const DEADLINE: Duration = Duration::from_secs(30);

const BY_POLICY: &str = "take the queue out of the policy, or what drops messages out of it: `rabbitmqctl \
                         list_policies` and `list_operator_policies` show it; then `hookctl reconcile` \
                         tells whether something is missing";

const BY_ARGUMENT: &str = "let the queue run empty, delete it and run `hookctl setup`";

/// Watches one queue.
pub struct QueueWatch {
    management: Management,
    path: String,
    queue: String,
    metrics: ServiceMetrics,
    sees_policies: IntGauge,
    every: Duration,
    losing: Option<String>,
    is_blind: bool,
}

impl QueueWatch {
    /// Queries `queue` about once in each interval `every`.
    pub fn new(
        management: Management,
        vhost: &str,
        queue: String,
        metrics: &Metrics,
        every: Duration,
    ) -> Self {
        Self {
            management,
            path: format!("/api/queues/{}/{}", encode(vhost), encode(&queue)),
            queue,
            metrics: metrics.service.clone(),
            sees_policies: metrics.sees_policies.clone(),
            every,
            losing: None,
            is_blind: false,
        }
    }

    /// Queries until it is cancelled, which is possible at any point.
    pub async fn run(mut self) {
        loop {
            self.look().await;
            // Jitter, so that replicas that start together do not query together.
            let part = rand::rng().random_range(0.8..1.2);
            sleep(self.every.mul_f64(part)).await;
        }
    }

    /// Queries once.
    pub async fn look(&mut self) {
        let found = timeout(DEADLINE, self.management.find(&self.path)).await;
        let found = found.context("it takes too long").flatten();
        self.sees_policies.set(i64::from(found.is_ok()));
        match found {
            Ok(queue) => {
                if self.is_blind {
                    self.is_blind = false;
                    info!("RabbitMQ's management answers again");
                }
                // A missing queue is reported by the consumer.
                self.show(queue.as_ref().and_then(|queue| self.judge(queue)));
            }
            Err(error) if !self.is_blind => {
                self.is_blind = true;
                let error = shared::reason::one_line(&error);
                warn!(
                    queue = self.queue,
                    error,
                    "cannot see the policies of the queue; what is drift stays as it was last seen"
                );
            }
            Err(_) => {}
        }
    }

    fn judge(&self, queue: &Value) -> Option<Drift> {
        let queue = Queue::new(queue);
        let (by_policy, by_argument) = (queue.losses_by_policy(), queue.losses_by_argument());
        let mut reasons = Vec::new();
        if !by_policy.is_empty() {
            let policies = queue.policies().join(" and ");
            reasons.push(format!(
                "{policies} lets it drop messages that were confirmed: {}",
                by_policy.join(", ")
            ));
        }
        if !by_argument.is_empty() {
            reasons.push(format!(
                "its arguments let it drop messages that were confirmed: {}",
                by_argument.join(", ")
            ));
        }
        (!reasons.is_empty()).then(|| Drift {
            entity: self.queue.clone(),
            reason: reasons.join("; "),
            remedy: if by_policy.is_empty() {
                BY_ARGUMENT
            } else {
                BY_POLICY
            },
        })
    }

    /// Logs one line when a problem begins, changes or ends.
    fn show(&mut self, drift: Option<Drift>) {
        self.metrics.set_losing(&self.queue, drift.is_some());
        let reason = drift.as_ref().map(|drift| drift.reason.clone());
        if reason == self.losing {
            return;
        }
        match drift {
            Some(drift) => drift.log(),
            None => info!(
                queue = self.queue,
                "nothing lets the queue drop messages any more"
            ),
        }
        self.losing = reason;
    }
}
