//! How many messages the queues hold.

use std::time::Duration;

use anyhow::Context;
use lapin::{
    Connection, ErrorKind, options::QueueDeclareOptions, protocol::AMQPErrorKind, types::FieldTable,
};
use serde::Serialize;
use shared::{
    Family,
    broker::{self, BrokerUrl},
    bundle,
    topology::Topology,
};
use tokio::time::timeout;

use crate::management::{Management, encode};

const DEADLINE: Duration = Duration::from_secs(20);

/// The work queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Queues(Vec<Queue>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Queue {
    pub(super) name: String,
    /// Nobody has deleted it.
    pub(super) exists: bool,
    /// Messages that no worker has.
    pub(super) ready: u64,
    /// Messages that workers have in hand; `None` where the management was not asked.
    pub(super) unacknowledged: Option<u64>,
}

impl Queues {
    /// As the queues themselves have them now; what workers have in hand they do not tell.
    pub(super) async fn count(broker: &BrokerUrl, topology: &Topology) -> anyhow::Result<Self> {
        let connection = broker::connect(broker, "hookctl").await?;
        let mut queues = Vec::new();
        for family in Family::ALL {
            let name = topology.queue(family);
            let ready = timeout(DEADLINE, count(&connection, &name))
                .await
                .context("RabbitMQ did not answer in time")?
                .with_context(|| format!("cannot look at the queue {name}"))?;
            queues.push(Queue {
                name,
                exists: ready.is_some(),
                ready: ready.unwrap_or(0),
                unacknowledged: None,
            });
        }
        Ok(Self(queues))
    }

    /// Adds what workers have in hand. The management's sample is up to 5 s old: what has been taken
    /// from a queue since then is in it, and what has come since is among the ready ones.
    pub(super) async fn add_unacknowledged(
        &mut self,
        management: &Management,
        vhost: &str,
    ) -> anyhow::Result<()> {
        let sampled = management
            .get(&format!("/api/queues/{}", encode(vhost)))
            .await?;
        let sampled = sampled
            .as_array()
            .context("the management lists no queues")?;
        for queue in &mut self.0 {
            let found = sampled.iter().find(|sample| sample["name"] == *queue.name);
            // A queue that was made just now has no figures yet.
            let all = found.and_then(|s| s["messages"].as_u64()).unwrap_or(0);
            queue.unacknowledged = Some(all.saturating_sub(queue.ready));
        }
        Ok(())
    }

    /// The most events that can be in RabbitMQ: how many a message holds can only be seen in it.
    pub(super) fn hold(&self) -> u64 {
        let messages: u64 = self
            .0
            .iter()
            .map(|queue| queue.ready + queue.unacknowledged.unwrap_or(0))
            .sum();
        messages.saturating_mul(bundle::MOST_EVENTS as u64)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Queue> {
        self.0.iter()
    }
}

/// A queue's ready messages; `None` if it does not exist.
async fn count(connection: &Connection, name: &str) -> Result<Option<u64>, lapin::Error> {
    // A refusal closes the channel, so each queue has one of its own.
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await;
    match declared {
        Ok(queue) => Ok(Some(queue.message_count().into())),
        Err(error) => match error.kind() {
            ErrorKind::ProtocolError(refusal)
                if matches!(refusal.kind(), AMQPErrorKind::Soft(_)) && refusal.get_id() == 404 =>
            {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}
