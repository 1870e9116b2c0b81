//! Exchanges, queues and bindings, defined once for every service and declared idempotently.
//!
//! There is no dead-letter exchange and no TTL here on purpose: retries and dead letters live in
//! Postgres, where they can be queried, counted and replayed.

mod declare;

use lapin::{
    ExchangeKind,
    types::{AMQPValue, FieldTable},
};

use crate::{Family, Program};

/// RabbitMQ 4 drops a message after 20 returns to the queue unless told otherwise, so a few
/// consumer crashes would lose innocents. 3.10 has no "unlimited", hence a number that is never met.
pub const DELIVERY_LIMIT: i64 = 1_000_000;

/// What a queue does that a policy has given a greatest length, when it is full. Without this it
/// would drop its oldest messages, which the broker has confirmed; with it, it refuses new ones, and
/// ingest spools them.
const OVERFLOW: (&str, &str) = ("x-overflow", "reject-publish");

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
    /// What differs, in the broker's words where it has some.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Whether the topology is created where missing, or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declare {
    /// Create what is missing (needs `configure` permission).
    Active,
    /// Only check that it exists.
    Passive,
}

/// What is looked at where nothing is created. RabbitMQ 4.2 and later refuse to tell an account
/// about exchanges and queues on which it has no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Everything.
    All,
    /// Only what this service has a right on.
    Of(Program),
}

impl Sight {
    fn has_exchanges(self) -> bool {
        matches!(self, Self::All | Self::Of(Program::Ingest))
    }

    fn has_queue(self, family: Family) -> bool {
        self == Self::All || self == Self::Of(Program::Worker(family))
    }
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

    /// The alternate exchange of [`Self::events_exchange`]: what no binding takes.
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
        let mut arguments = Self::earlier_queue_arguments();
        let (name, value) = OVERFLOW;
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        arguments
    }

    /// What earlier versions declared every queue with. Such a queue works as well, but a policy
    /// that limits its length lets it drop messages.
    pub fn earlier_queue_arguments() -> FieldTable {
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
}
