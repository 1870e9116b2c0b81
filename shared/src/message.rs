//! The messages that carry accepted events through RabbitMQ, one or several events each. Bodies
//! stay unchanged.
//!
//! The message of one event is its body, with everything else in properties and headers. Several
//! events form a [`bundle`]. Messages of foreign publishers are read as far as possible and never
//! refused.

mod delivered;

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use sha2::{Digest, Sha256};

pub use self::delivered::{Delivered, unidentified_id};
use crate::{Companies, EventType, bundle};

const RECEIVED_AT_MS: &str = "received-at-ms";
const ATTEMPTED_AT_S: &str = "attempted-at-s";
const SECRET_NAME: &str = "secret-name";
const SECRET_COMPANIES: &str = "secret-companies";
const RECEIPT: &str = "receipt";
/// The number of events in a bundle.
const EVENTS: &str = "events";

/// AMQP's delivery mode for a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A verified event, as messages and spool rows carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedEvent {
    /// The `webhook-id`: the idempotency key, stable over the sender's retries.
    pub webhook_id: String,
    /// The canonical type, or `unknown` if the body has none.
    pub event_type: EventType,
    /// The request's body, byte for byte.
    pub body: Bytes,
    /// SHA-256 of the body, to distinguish a repetition from another event under the same id.
    pub body_sha256: [u8; 32],
    /// When ingest had read the request.
    pub received_at: DateTime<Utc>,
    /// The sender's `webhook-timestamp`, absent on a message that ingest did not publish.
    pub attempted_at: Option<DateTime<Utc>>,
    /// The configured name of the secret that verified it, also absent on a message that ingest did
    /// not publish.
    pub secret_name: Option<String>,
    /// The companies that the secret is tied to, if any.
    pub secret_companies: Option<Companies>,
}

impl AcceptedEvent {
    /// The event's own id if another body has the id `taken`.
    pub fn conflict_id(&self, taken: &str) -> String {
        format!("{taken}{CONFLICT}{}", self.conflict_mark())
    }

    /// The same event under its [`conflict_id`](Self::conflict_id).
    pub fn into_conflict(self) -> Self {
        Self {
            webhook_id: self.conflict_id(&self.webhook_id),
            ..self
        }
    }

    /// Whether its id was made by [`into_conflict`](Self::into_conflict).
    pub fn is_conflict(&self) -> bool {
        let mark = self.webhook_id.rsplit_once(CONFLICT);
        mark.is_some_and(|(_, mark)| mark == self.conflict_mark())
    }

    fn conflict_mark(&self) -> String {
        hex::encode(&self.body_sha256[..8])
    }
}

/// In the id of a conflict: between the original id and the hash of the body.
const CONFLICT: &str = "#conflict-";

/// SHA-256 of a body.
pub fn body_sha256(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

/// Whether ingest recorded a receipt for a published event. While Postgres is down it cannot, and
/// the worker adds the receipt when it stores the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// The receipt is committed after the confirm.
    Recorded,
    /// There is none, because the event was published without dedup.
    Missing,
}

/// A message to be published.
#[derive(Debug)]
pub struct Message<'e> {
    /// The routing key that all its events have.
    pub routing_key: &'e str,
    /// The properties, with persistent delivery.
    pub properties: BasicProperties,
    /// The event's body, or the bundle.
    pub body: Cow<'e, [u8]>,
    /// The positions of its events in the published list.
    pub events: Vec<usize>,
}

impl<'e> Message<'e> {
    /// Packs the events into as few messages as possible, because the broker's cost is per message,
    /// not per event.
    pub fn of(events: &[&'e AcceptedEvent], receipt: Receipt) -> Vec<Self> {
        bundle::partition(events)
            .into_iter()
            .map(|positions| match positions[..] {
                [only] => Self {
                    routing_key: events[only].event_type.routing_key(),
                    properties: events[only].to_properties(receipt),
                    body: Cow::Borrowed(&events[only].body),
                    events: positions,
                },
                _ => Self::bundle(events, receipt, positions),
            })
            .collect()
    }

    fn bundle(events: &[&'e AcceptedEvent], receipt: Receipt, positions: Vec<usize>) -> Self {
        let bundled: Vec<&AcceptedEvent> = positions.iter().map(|&i| events[i]).collect();
        let mut headers = receipt_header(receipt);
        headers.insert(
            EVENTS.into(),
            AMQPValue::LongLongInt(i64::try_from(bundled.len()).unwrap_or(i64::MAX)),
        );
        Self {
            routing_key: bundled[0].event_type.routing_key(),
            properties: BasicProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type(bundle::CONTENT_TYPE.into())
                .with_headers(headers),
            body: Cow::Owned(bundle::pack(&bundled)),
            events: positions,
        }
    }
}

impl AcceptedEvent {
    /// Whether it came in a message without a usable id, so ingest did not publish it. The id that
    /// replaced the missing one shows this, also after the spool.
    pub fn is_unidentified(&self) -> bool {
        self.webhook_id == unidentified_id(&self.body_sha256)
    }

    /// The properties of a message with this event alone.
    pub fn to_properties(&self, receipt: Receipt) -> BasicProperties {
        let mut headers = receipt_header(receipt);
        headers.insert(
            RECEIVED_AT_MS.into(),
            AMQPValue::LongLongInt(self.received_at.timestamp_millis()),
        );
        if let Some(attempted_at) = self.attempted_at {
            headers.insert(
                ATTEMPTED_AT_S.into(),
                AMQPValue::LongLongInt(attempted_at.timestamp()),
            );
        }
        if let Some(secret_name) = &self.secret_name {
            headers.insert(
                SECRET_NAME.into(),
                AMQPValue::LongString(secret_name.as_str().into()),
            );
        }
        if let Some(companies) = &self.secret_companies {
            headers.insert(
                SECRET_COMPANIES.into(),
                AMQPValue::LongString(companies.as_str().into()),
            );
        }
        BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_message_id(self.webhook_id.as_str().into())
            .with_type(self.event_type.as_str().into())
            .with_timestamp(u64::try_from(self.received_at.timestamp()).unwrap_or(0))
            .with_headers(headers)
    }
}

fn receipt_header(receipt: Receipt) -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert(
        RECEIPT.into(),
        AMQPValue::Boolean(receipt == Receipt::Recorded),
    );
    headers
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    fn event() -> AcceptedEvent {
        let body = Bytes::from_static(br#"{"eventType":"v1.vendor.created"}"#);
        AcceptedEvent {
            webhook_id: "msg_1".to_owned(),
            event_type: EventType::parse("v1.vendor.created").expect("well formed"),
            body_sha256: body_sha256(&body),
            body,
            received_at: Utc.timestamp_millis_opt(1_700_000_000_123).unwrap(),
            attempted_at: Utc.timestamp_opt(1_700_000_000, 0).single(),
            secret_name: Some("current".to_owned()),
            secret_companies: Some(Companies::read("c1 c2")),
        }
    }

    fn events(count: usize, body_bytes: usize) -> Vec<AcceptedEvent> {
        (0..count)
            .map(|number| {
                let body = Bytes::from(vec![b'0' + number as u8; body_bytes]);
                AcceptedEvent {
                    webhook_id: format!("msg_{number}"),
                    body_sha256: body_sha256(&body),
                    body,
                    ..event()
                }
            })
            .collect()
    }

    fn deliver(properties: &BasicProperties, body: &[u8]) -> Vec<Delivered> {
        Delivered::from_message(properties, false, body.to_vec(), now())
    }

    fn now() -> DateTime<Utc> {
        Utc.timestamp_opt(1_700_000_000, 0).unwrap()
    }

    /// Packs and reads the events. Returns them in the order of their messages, and the number of
    /// events of each message.
    fn travel(sent: &[AcceptedEvent], receipt: Receipt) -> (Vec<AcceptedEvent>, Vec<usize>) {
        let messages = Message::of(&sent.iter().collect::<Vec<_>>(), receipt);
        let mut arrived = Vec::new();
        for message in &messages {
            let delivered = deliver(&message.properties, &message.body);
            assert_eq!(delivered.len(), message.events.len());
            let announced = Delivered::announced_by(&message.properties);
            assert_eq!(announced, message.events.len());
            for (delivered, &position) in delivered.into_iter().zip(&message.events) {
                let key = sent[position].event_type.routing_key();
                assert_eq!(message.routing_key, key);
                assert_eq!(delivered.event, sent[position]);
                assert_eq!(delivered.receipt, receipt);
                assert!(!delivered.event.is_unidentified());
                assert_eq!(delivered.redeliveries, 0);
                arrived.push(delivered.event);
            }
        }
        (arrived, messages.iter().map(|m| m.events.len()).collect())
    }

    #[test]
    fn events_come_out_of_messages_as_they_went_in() {
        for receipt in [Receipt::Recorded, Receipt::Missing] {
            for (count, messages) in [(1, vec![1]), (2, vec![2]), (70, vec![32, 32, 6])] {
                let sent = events(count, 500);
                assert_eq!(travel(&sent, receipt), (sent, messages));
            }
            let bare = AcceptedEvent {
                body: Bytes::new(),
                body_sha256: body_sha256(b""),
                attempted_at: None,
                secret_name: None,
                secret_companies: None,
                ..event()
            };
            let sent = vec![bare.clone(), bare];
            assert_eq!(travel(&sent, receipt), (sent, vec![2]));
        }
    }

    #[test]
    fn large_events_travel_in_smaller_companies() {
        assert_eq!(travel(&events(5, 30_000), Receipt::Recorded).1, [2, 2, 1]);
        assert_eq!(travel(&events(3, 262_144), Receipt::Recorded).1, [1, 1, 1]);
    }

    #[test]
    fn only_events_of_one_routing_key_share_a_message() {
        let mut sent = events(6, 10);
        for (event, event_type) in sent.iter_mut().zip([
            "v1.vendor.created",
            "v1.export-job.created",
            "v1.vendor.updated",
            "unknown",
            "v1.export-job.created",
            "v1.vendor.created",
        ]) {
            event.event_type = EventType::parse(event_type).expect("well formed");
        }
        let (arrived, messages) = travel(&sent, Receipt::Recorded);
        assert_eq!(messages, [3, 2, 1]);
        let ids: Vec<_> = arrived.iter().map(|e| e.webhook_id.as_str()).collect();
        assert_eq!(ids, ["msg_0", "msg_2", "msg_5", "msg_1", "msg_4", "msg_3"]);
    }

    #[test]
    fn messages_are_persistent() {
        for count in [1, 2] {
            let sent = events(count, 10);
            let messages = Message::of(&sent.iter().collect::<Vec<_>>(), Receipt::Recorded);
            assert_eq!(messages[0].properties.delivery_mode(), &Some(2));
        }
    }
}
