//! How many messages are in the queues.

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

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Queue {
    pub(super) name: String,
    /// The queue exists.
    pub(super) exists: bool,
    /// Messages that no worker has fetched.
    pub(super) ready: u64,
    /// Messages that workers have not acked yet; `None` if the management API was not asked.
    pub(super) unacknowledged: Option<u64>,
}

impl Queues {
    /// Counts the ready messages at this moment, from the queues themselves. AMQP does not tell the number
    /// of unacked messages.
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

    /// Adds the unacked messages. The management API's sample is up to 5 s old: messages that were fetched
    /// from a queue since then are in the sample, and messages that arrived since then are among the ready
    /// ones.
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
            // A queue that was created just now has no figures yet.
            let all = found.and_then(|s| s["messages"].as_u64()).unwrap_or(0);
            queue.unacknowledged = Some(all.saturating_sub(queue.ready));
        }
        Ok(())
    }

    /// The most events that can be in RabbitMQ: the number of events in a message is not visible from
    /// outside.
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
    // An error closes the channel, so each queue gets a channel of its own.
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
