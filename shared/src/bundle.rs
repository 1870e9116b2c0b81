//! Several events in one message: a MessagePack array with a map for each event.
//!
//! A broker's and a client's work is for each message, almost whatever its size, and under load
//! that is most of what an event costs. So events that are published together travel together.

use std::collections::HashMap;

use bytes::Bytes;
use lapin::{BasicProperties, types::ShortString};
use serde::{Deserialize, Serialize};

use crate::{AcceptedEvent, Companies};

/// The most events of one message. With more, little is left to win, and what a worker is sent at
/// once grows.
pub const MOST_EVENTS: usize = 32;

/// The most events that are read from one message. Only a foreign publisher sends as many, and what it
/// sends has to fit into a transaction.
const MOST_READ: usize = 1_024;

/// How deep values may be nested. The reader goes down by recursion, and a foreign message without end
/// must not take the thread's stack, and with it the process. Ours need three levels.
const MOST_NESTED: usize = 32;

/// The most bytes of bodies and companies in one message, but for an event that is larger by itself.
const MOST_BYTES: usize = 64 * 1024;

/// The content type by which a bundle is known.
pub const CONTENT_TYPE: &str = "application/vnd.msgpack";

/// One event of a bundle. Fields that are missing or new do no harm.
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

/// Divides events, by their positions, into messages: each has events of one routing key.
pub(crate) fn partition(events: &[&AcceptedEvent]) -> Vec<Vec<usize>> {
    let mut messages: Vec<Vec<usize>> = Vec::new();
    // By routing key, the message that still has room, and the bytes in it.
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

/// The message's body.
pub(crate) fn pack(events: &[&AcceptedEvent]) -> Vec<u8> {
    let entries: Vec<Entry<'_>> = events.iter().map(|event| Entry::from(*event)).collect();
    rmp_serde::to_vec_named(&entries).expect("names, texts, numbers and bytes can be written")
}

/// The events of a bundle; `None` if the message is none, or none that can be read.
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
