//! Exchanges, queues and bindings, defined once for every service and declared idempotently.
//!
//! There is no dead-letter exchange and no TTL here on purpose: retries and dead letters live in
//! Postgres, where they can be queried, counted and replayed.

use std::time::Duration;

use anyhow::Context;
use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::AMQPErrorKind,
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;
use tracing::error;

use crate::Family;

/// Declaring everything, which a busy quorum may take a while for.
const DECLARE_DEADLINE: Duration = Duration::from_secs(10);

/// RabbitMQ 4 drops a message after 20 returns to the queue unless told otherwise, so a few
/// consumer crashes would lose innocents. 3.10 has no "unlimited", hence a number that is never met.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// The names of everything on the broker, under one prefix.
#[derive(Clone, Debug)]
pub struct Topology {
    prefix: String,
}

/// Something on the broker that is not as this version wants it.
#[derive(Clone, Debug)]
pub struct Drift {
    /// The queue's or exchange's name.
    pub entity: String,
    /// The broker's words: which argument, both values, or which permission is missing.
    pub reason: String,
}

/// Whether the topology is created where missing, or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declare {
    /// Create what is missing (needs `configure` permission).
    Active,
    /// Only check that it exists.
    Passive,
}

impl Topology {
    /// The type of [`Self::events_exchange`]. A topic exchange, which looks at every word of a key,
    /// would cost the broker a third more for each message.
    pub const EVENTS_KIND: ExchangeKind = ExchangeKind::Direct;

    /// A topology whose names start with `prefix` (`pleo` gives `pleo.events`, `pleo.vendor`, …).
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// The exchange that ingest publishes to, with the event's resource as routing key.
    pub fn events_exchange(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// The alternate exchange of [`Self::events_exchange`]: whatever no binding takes.
    pub fn unrouted_exchange(&self) -> String {
        format!("{}.unrouted", self.prefix)
    }

    /// The exchange, and the queue behind it, of messages that only ask whether the broker confirms.
    /// No event passes through them. Ingest may publish to the exchange.
    pub fn probe(&self) -> String {
        format!("{}.probe", self.prefix)
    }

    /// The work queue of a family.
    pub fn queue(&self, family: Family) -> String {
        format!("{}.{}", self.prefix, family.name())
    }

    /// The names of all exchanges.
    pub fn exchanges(&self) -> [String; 3] {
        [
            self.events_exchange(),
            self.unrouted_exchange(),
            self.probe(),
        ]
    }

    /// The names of all queues: those of the families, and the one for probes.
    pub fn queues(&self) -> Vec<String> {
        let families = Family::ALL.map(|family| self.queue(family));
        families.into_iter().chain([self.probe()]).collect()
    }

    /// The names of all exchanges and queues, each once.
    pub fn entities(&self) -> Vec<String> {
        let exchanges = [self.events_exchange(), self.unrouted_exchange()];
        exchanges.into_iter().chain(self.queues()).collect()
    }

    /// What the queue for probes is declared with: each goes through as many nodes as an event does,
    /// and none is kept.
    pub fn probe_queue_arguments() -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
        arguments
    }

    /// What every family's queue is declared with.
    pub fn queue_arguments() -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        arguments.insert(
            "x-delivery-limit".into(),
            AMQPValue::LongLongInt(DELIVERY_LIMIT),
        );
        arguments
    }

    /// Brings the broker to this topology. What differs on the broker is logged and returned, and
    /// the rest is declared all the same; an error means that the connection is of no use.
    pub async fn declare(
        &self,
        connection: &Connection,
        mode: Declare,
    ) -> anyhow::Result<Vec<Drift>> {
        let drifts = timeout(DECLARE_DEADLINE, self.declare_all(connection, mode))
            .await
            .context("RabbitMQ did not answer in time")?
            .context("cannot declare the topology")?;
        for drift in &drifts {
            error!(
                entity = drift.entity,
                reason = drift.reason,
                "the broker's topology differs; compare the entity's arguments with the \
                 topology in the documentation, then delete and re-create it when it is empty"
            );
        }
        Ok(drifts)
    }

    async fn declare_all(
        &self,
        connection: &Connection,
        mode: Declare,
    ) -> Result<Vec<Drift>, lapin::Error> {
        let mut drifts = Vec::new();
        self.declare_exchanges(connection, mode, &mut drifts)
            .await?;
        for family in Family::ALL {
            self.declare_queue(connection, mode, family, &mut drifts)
                .await?;
        }
        self.declare_probe(connection, mode, &mut drifts).await?;
        Ok(drifts)
    }

    async fn declare_exchanges(
        &self,
        connection: &Connection,
        mode: Declare,
        drifts: &mut Vec<Drift>,
    ) -> Result<(), lapin::Error> {
        let options = ExchangeDeclareOptions {
            passive: mode == Declare::Passive,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let unrouted = self.unrouted_exchange();
        let channel = connection.create_channel().await?;
        let declared = channel
            .exchange_declare(
                unrouted.as_str().into(),
                ExchangeKind::Fanout,
                options,
                FieldTable::default(),
            )
            .await;
        note_drift(declared, &unrouted, drifts)?;

        let mut arguments = FieldTable::default();
        arguments.insert(
            "alternate-exchange".into(),
            AMQPValue::LongString(unrouted.as_str().into()),
        );
        let events = self.events_exchange();
        let channel = connection.create_channel().await?;
        let declared = channel
            .exchange_declare(
                events.as_str().into(),
                Self::EVENTS_KIND,
                options,
                arguments,
            )
            .await;
        note_drift(declared, &events, drifts)
    }

    async fn declare_queue(
        &self,
        connection: &Connection,
        mode: Declare,
        family: Family,
        drifts: &mut Vec<Drift>,
    ) -> Result<(), lapin::Error> {
        let queue = self.queue(family);
        // A refused declaration closes its channel, so each entity has one of its own.
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions {
            passive: mode == Declare::Passive,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel
            .queue_declare(queue.as_str().into(), options, Self::queue_arguments())
            .await
            .map(|_| ());
        let existed_differently = declared.is_err();
        note_drift(declared, &queue, drifts)?;
        if mode == Declare::Passive {
            return Ok(());
        }
        // The queue is there, if with other arguments: events must still reach it.
        let channel = if existed_differently {
            connection.create_channel().await?
        } else {
            channel
        };
        let bound = self.bind(&channel, family, &queue).await;
        note_drift(bound, &queue, drifts)
    }

    async fn declare_probe(
        &self,
        connection: &Connection,
        mode: Declare,
        drifts: &mut Vec<Drift>,
    ) -> Result<(), lapin::Error> {
        let name = self.probe();
        let channel = connection.create_channel().await?;
        let options = ExchangeDeclareOptions {
            passive: mode == Declare::Passive,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let declared = channel
            .exchange_declare(
                name.as_str().into(),
                ExchangeKind::Fanout,
                options,
                FieldTable::default(),
            )
            .await;
        note_drift(declared, &name, drifts)?;
        // Whether there is a queue shows by a probe; a service has no right to look at it.
        if mode == Declare::Passive {
            return Ok(());
        }
        let channel = connection.create_channel().await?;
        let made = async {
            channel
                .queue_declare(
                    name.as_str().into(),
                    QueueDeclareOptions::durable(),
                    Self::probe_queue_arguments(),
                )
                .await?;
            channel
                .queue_bind(
                    name.as_str().into(),
                    name.as_str().into(),
                    "".into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
        };
        note_drift(made.await, &name, drifts)
    }

    async fn bind(
        &self,
        channel: &Channel,
        family: Family,
        queue: &str,
    ) -> Result<(), lapin::Error> {
        let (exchange, key) = match family.resource() {
            Some(resource) => (self.events_exchange(), resource),
            None => (self.unrouted_exchange(), ""),
        };
        channel
            .queue_bind(
                queue.into(),
                exchange.as_str().into(),
                key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
    }
}

/// A refusal by the broker (406 other arguments, 403 not allowed, 404 not there) is drift; anything
/// else is a broken connection.
fn note_drift(
    declared: Result<(), lapin::Error>,
    entity: &str,
    drifts: &mut Vec<Drift>,
) -> Result<(), lapin::Error> {
    let Err(error) = declared else { return Ok(()) };
    match error.kind() {
        ErrorKind::ProtocolError(refusal) if matches!(refusal.kind(), AMQPErrorKind::Soft(_)) => {
            drifts.push(Drift {
                entity: entity.to_owned(),
                reason: refusal.get_message().to_string(),
            });
            Ok(())
        }
        _ => Err(error),
    }
}
