//! Consumes a family's queue, and reconnects to RabbitMQ as often as necessary.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use lapin::{
    Channel, Connection, Consumer as Deliveries,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use shared::{
    Family, Program,
    broker::{self, BrokerConnection, BrokerUrl, Reconnects},
    topology::{Declare, Sight, Topology},
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    metrics::Metrics,
    persistence::Persistence,
    subscription::{Batching, Ended, Subscription},
};

/// The time to subscribe on a new connection.
const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(10);

/// The time to close a connection; the broker may be gone.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Consumes one family's queue.
pub struct Consumer {
    /// The broker's address.
    pub url: BrokerUrl,
    /// The topology to declare.
    pub topology: Topology,
    /// Whether to create the topology or only to check it.
    pub declare: Declare,
    /// The family whose queue is consumed.
    pub family: Family,
    /// Stores the events.
    pub persistence: Arc<Persistence>,
    /// The worker's metrics.
    pub metrics: Metrics,
    /// How deliveries are collected into batches.
    pub batching: Batching,
}

impl Consumer {
    /// Consumes until `stop`, and reconnects if the connection is lost. After `stop` it finishes
    /// what was delivered, until `abandon`.
    pub async fn run(self, stop: CancellationToken, abandon: CancellationToken) {
        let mut reconnects = Reconnects::default();
        while !stop.is_cancelled() {
            let started = Instant::now();
            match self.consume_on_one_connection(&stop, &abandon).await {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Lost(reason)) => {
                    warn!(family = %self.family, reason, "the connection to RabbitMQ ended; connecting again");
                }
                // It subscribes again immediately, so it still counts as subscribed.
                Ok(Ended::Idle) => continue,
                Ok(Ended::Unstorable) => {
                    warn!(family = %self.family, "the messages are back in the queue until postgres is well");
                }
                Err(error) => {
                    let error = shared::reason::one_line(&error);
                    warn!(family = %self.family, error, "cannot consume");
                }
            }
            self.metrics.consuming.set(0);
            let delay = reconnects.delay_after(started.elapsed());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    async fn consume_on_one_connection(
        &self,
        stop: &CancellationToken,
        abandon: &CancellationToken,
    ) -> anyhow::Result<Ended> {
        let Some(subscribed) = stop.run_until_cancelled(self.subscribe()).await else {
            return Ok(Ended::Stopped);
        };
        let (connection, channel, deliveries) = subscribed?;
        if self.metrics.consuming.get() == 0 {
            info!(family = %self.family, "consuming");
        }
        self.metrics.consuming.set(1);
        let mut subscription = Subscription::new(
            &channel,
            deliveries,
            &self.persistence,
            self.batching,
            abandon,
        );
        let ended = tokio::select! {
            ended = subscription.run(stop) => ended,
            reason = broker::ended(&connection) => Ended::Lost(reason),
        };
        if !matches!(ended, Ended::Idle) {
            self.metrics.consuming.set(0);
        }
        subscription.abandon().await;
        // Best effort: if this fails, the broken connection requeues unacknowledged messages as
        // well.
        timeout(CLOSE_DEADLINE, connection.close(200, "done".into()))
            .await
            .ok();
        Ok(ended)
    }

    async fn subscribe(&self) -> anyhow::Result<(BrokerConnection, Channel, Deliveries)> {
        // While events cannot be stored, messages should stay in the queue.
        self.persistence
            .probe()
            .await
            .map_err(|reason| anyhow!("postgres is not ready: {reason}"))?;
        let connection = broker::connect(&self.url, &format!("{}-worker", self.family)).await?;
        let drifts = self
            .topology
            .declare(
                &connection,
                self.declare,
                Sight::Of(Program::Worker(self.family)),
            )
            .await?;
        self.metrics.service.set_drift(&self.topology, &drifts);
        let (channel, deliveries) = timeout(SUBSCRIBE_DEADLINE, self.open(&connection))
            .await
            .context("RabbitMQ did not answer in time")??;
        Ok((connection, channel, deliveries))
    }

    async fn open(&self, connection: &Connection) -> anyhow::Result<(Channel, Deliveries)> {
        let channel = connection.create_channel().await?;
        // The prefetch counts messages, and under load most have several events. It is large enough
        // that the next batch has arrived when one is finished, and small enough for the memory.
        let prefetch = self.batching.size;
        channel
            .basic_qos(
                u16::try_from(prefetch).unwrap_or(u16::MAX),
                BasicQosOptions::default(),
            )
            .await?;
        let queue = self.topology.queue(self.family);
        let deliveries = channel
            .basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .with_context(|| format!("cannot consume {queue}"))?;
        Ok((channel, deliveries))
    }
}
