//! What a worker has in hand: an event, and what became of it so far.

use shared::{
    AcceptedEvent,
    message::{Delivered, Receipt},
};

use crate::problem;

/// One event to be stored.
#[derive(Clone, Debug)]
pub struct Work {
    /// The event.
    pub event: AcceptedEvent,
    /// Whether ingest recorded a receipt for it.
    pub receipt: Receipt,
    /// Failed attempts to store it so far.
    pub attempts: i32,
    /// A problem that is known before its body is looked at.
    pub problem: Option<String>,
    /// Which way it came.
    pub source: Source,
}

/// The two ways to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A queue's message, acknowledged once the event is stored or spooled.
    Queue,
    /// A row of the spool, deleted in the transaction that stores the event.
    Spool,
}

impl From<Delivered> for Work {
    fn from(delivered: Delivered) -> Self {
        Self {
            problem: problem::known_of(&delivered.event),
            event: delivered.event,
            receipt: delivered.receipt,
            attempts: 0,
            source: Source::Queue,
        }
    }
}
