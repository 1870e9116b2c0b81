//! An event that a worker is processing, with what is known of it so far.

use shared::{
    AcceptedEvent,
    message::{Delivered, Receipt},
};

use crate::problem::{self, Problem};

/// One event to be stored.
#[derive(Clone, Debug)]
pub struct Work {
    /// The event.
    pub event: AcceptedEvent,
    /// Whether ingest recorded a receipt for it.
    pub receipt: Receipt,
    /// Failed attempts to store it so far.
    pub attempts: i32,
    /// A problem that is known before its body is parsed.
    pub problem: Option<Problem>,
    /// Where it came from.
    pub source: Source,
}

/// The two sources of a worker's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A queue's message, which is acknowledged once the event is stored or spooled.
    Queue,
    /// A row of the spool, which is deleted in the transaction that stores the event.
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
