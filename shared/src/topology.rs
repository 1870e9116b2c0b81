//! Exchanges, queues and bindings, defined once for all services and declared idempotently.
//!
//! There is deliberately no dead-letter exchange and no TTL: retries and dead letters are rows in
//! Postgres, where they can be queried, counted and replayed.

mod declare;

use lapin::{
    ExchangeKind,
    types::{AMQPValue, FieldTable},
};

use crate::{Family, Program};

/// By default RabbitMQ 4 drops a message after 20 returns to the queue, so a few crashes of a
/// consumer would lose events that did not cause them. 3.10 has no value for "unlimited", so this
/// is a number that is never reached.
pub const DELIVERY_LIMIT: i64 = 1_000_000;

/// What a full queue does, if a policy limits its length. By default it would drop its oldest
/// messages, which are already confirmed. With this it refuses new ones, and ingest spools them.
const OVERFLOW: (&str, &str) = ("x-overflow", "reject-publish");

/// The names of everything on the broker, under one prefix.
#[derive(Clone, Debug)]
pub struct Topology {
    prefix: String,
}

/// An exchange or queue that differs from what this version declares.
#[derive(Clone, Debug)]
pub struct Drift {
    /// The queue's or exchange's name.
    pub entity: String,
    /// What differs, in the broker's words if it gives any.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Whether missing entities are created or only reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declare {
    /// Create what is missing (needs `configure` permission).
    Active,
    /// Only check that it exists.
    Passive,
}

/// What is checked if nothing is created. RabbitMQ 4.2 and later refuse to tell an account about
/// exchanges and queues on which it has no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Everything.
    All,
    /// Only the entities on which this program has a right.
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
    /// The type of [`Self::events_exchange`]. With a topic exchange, which matches each word of the
    /// key, a message would cost the broker a third more.
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

    /// The alternate exchange of [`Self::events_exchange`], for messages that match no binding.
    pub fn unrouted_exchange(&self) -> String {
        format!("{}.unrouted", self.prefix)
    }

    /// The exchange for probes, and the queue bound to it. Probes are messages that only test
    /// whether the broker confirms; no event passes through them. Ingest may publish to the
    /// exchange.
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

    /// The arguments of the queue for probes. A probe is replicated like an event, and then
    /// dropped.
    pub fn probe_queue_arguments() -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
        arguments
    }

    /// The arguments of every family's queue.
    pub fn queue_arguments() -> FieldTable {
        let mut arguments = Self::earlier_queue_arguments();
        let (name, value) = OVERFLOW;
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        arguments
    }

    /// The arguments that earlier versions used. Such a queue works too, but with a policy that
    /// limits its length it drops messages.
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
