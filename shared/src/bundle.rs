//! Packs several events into one message: a MessagePack array with a map for each event.
//!
//! The broker's and the clients' cost is per message, almost independent of its size, and under
//! load it is most of the cost of an event. So events that are published together share messages.

use std::collections::HashMap;

use bytes::Bytes;
use lapin::{BasicProperties, types::ShortString};
use serde::{Deserialize, Serialize};

use crate::{AcceptedEvent, Companies};

/// The most events in one message. More would save little, and a worker would get too much at once.
pub const MOST_EVENTS: usize = 32;

/// The most events read from one message. Only a foreign publisher sends so many, and they must fit
/// into one transaction.
const MOST_READ: usize = 1_024;

/// The deepest nesting of values. The reader is recursive, and an endless foreign message must not
/// overflow the thread's stack, which would end the process. Our messages need three levels.
const MOST_NESTED: usize = 32;

/// The most bytes of bodies and companies in one message. A larger event has a message of its own.
const MOST_BYTES: usize = 64 * 1024;

/// The content type of a bundle.
pub const CONTENT_TYPE: &str = "application/vnd.msgpack";

/// One event of a bundle. Missing and unknown fields are accepted, except a missing body.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry<'m> {
    #[serde(borrow, default)]
    pub(crate) webhook_id: Option<&'m str>,
    #[serde(borrow, default)]
    pub(crate) event_type: Option<&'m str>,
    #[serde(default)]
    pub(crate) received_at_ms: Option<i64>,
    #[serde(default)]
    pub(crate) attempted_at_s: Option<i64>,
    #[serde(borrow, default)]
    pub(crate) secret_name: Option<&'m str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret_companies: Option<&'m str>,
    #[serde(with = "serde_bytes")]
    pub(crate) body: &'m [u8],
}

/// Groups events, by their positions, into messages with one routing key each.
pub(crate) fn partition(events: &[&AcceptedEvent]) -> Vec<Vec<usize>> {
    let mut messages: Vec<Vec<usize>> = Vec::new();
    // For each routing key: the message that still has room, and its bytes so far.
    let mut open: HashMap<&str, (usize, usize)> = HashMap::new();
    for (position, event) in events.iter().enumerate() {
        let companies = event.secret_companies.as_ref();
        let bytes = event.body.len() + companies.map_or(0, |companies| companies.as_str().len());
        match open.get_mut(event.event_type.routing_key()) {
            Some((message, filled))
                if messages[*message].len() < MOST_EVENTS && *filled + bytes <= MOST_BYTES =>
            {
                messages[*message].push(position);
                *filled += bytes;
            }
            _ => {
                open.insert(event.event_type.routing_key(), (messages.len(), bytes));
                messages.push(vec![position]);
            }
        }
    }
    messages
}

pub(crate) fn pack(events: &[&AcceptedEvent]) -> Vec<u8> {
    let entries: Vec<Entry<'_>> = events.iter().map(|event| Entry::from(*event)).collect();
    rmp_serde::to_vec_named(&entries).expect("names, texts, numbers and bytes can be written")
}

/// The events of a bundle; `None` if the message is no bundle or cannot be read.
pub(crate) fn unpack<'m>(
    properties: &BasicProperties,
    message: &'m Bytes,
) -> Option<Vec<Entry<'m>>> {
    let content_type = properties.content_type().as_ref().map(ShortString::as_str);
    if content_type != Some(CONTENT_TYPE) {
        return None;
    }
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(&message[..]);
    deserializer.set_max_depth(MOST_NESTED);
    let entries = Vec::<Entry<'m>>::deserialize(&mut deserializer).ok()?;
    (1..=MOST_READ).contains(&entries.len()).then_some(entries)
}

impl<'e> From<&'e AcceptedEvent> for Entry<'e> {
    fn from(event: &'e AcceptedEvent) -> Self {
        Self {
            webhook_id: Some(&event.webhook_id),
            event_type: Some(event.event_type.as_str()),
            received_at_ms: Some(event.received_at.timestamp_millis()),
            attempted_at_s: event.attempted_at.map(|at| at.timestamp()),
            secret_name: event.secret_name.as_deref(),
            secret_companies: event.secret_companies.as_ref().map(Companies::as_str),
            body: &event.body,
        }
    }
}
