//! Accepted events on their way through RabbitMQ, one or several to a message: bodies untouched.
//!
//! One event's message is its body, with everything else in properties and headers. Several are a
//! [`bundle`]. What a foreign publisher sends is read as far as it goes and never refused.

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, Datelike, TimeZone, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use sha2::{Digest, Sha256};

use crate::{
    EventType,
    bundle::{self, Entry},
};

const RECEIVED_AT_MS: &str = "received-at-ms";
const ATTEMPTED_AT_S: &str = "attempted-at-s";
const SECRET_NAME: &str = "secret-name";
const RECEIPT: &str = "receipt";
/// How many events a bundle has.
const EVENTS: &str = "events";

/// RabbitMQ's own header on redelivered messages of a quorum queue.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// AMQP's delivery mode of a message that survives a broker's restart.
const PERSISTENT: u8 = 2;

/// A verified event, as both ways to a worker (message and spool row) carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedEvent {
    /// The `webhook-id`: the idempotency key, stable over the sender's retries.
    pub webhook_id: String,
    /// The canonical type, `unknown` where the body names none.
    pub event_type: EventType,
    /// The request's body, byte for byte.
    pub body: Bytes,
    /// SHA-256 of the body, to tell a repetition from another event under the same id.
    pub body_sha256: [u8; 32],
    /// When ingest had read the request.
    pub received_at: DateTime<Utc>,
    /// The sender's `webhook-timestamp`, absent on a message that ingest did not publish.
    pub attempted_at: Option<DateTime<Utc>>,
    /// The configured name of the secret that verified it, absent likewise.
    pub secret_name: Option<String>,
}

/// SHA-256 of a body.
pub fn body_sha256(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

/// Whether ingest recorded a receipt for what it publishes. While Postgres is away it cannot, and
/// the worker adds the receipt when it stores the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// The receipt commits together with the confirm.
    Recorded,
    /// There is none: the event was published without dedup.
    Missing,
}

/// A message to be published.
#[derive(Debug)]
pub struct Message<'e> {
    /// Of all its events.
    pub routing_key: &'e str,
    /// Persistent; see the module.
    pub properties: BasicProperties,
    /// The event's body, or the bundle.
    pub body: Cow<'e, [u8]>,
    /// The positions of its events among those that were to be published.
    pub events: Vec<usize>,
}

/// An event taken from a work queue.
#[derive(Debug)]
pub struct Delivered {
    /// The event. Under an id made from its hash where the message had none.
    pub event: AcceptedEvent,
    /// It had no id, so ingest did not publish it.
    pub unidentified: bool,
    /// Whether ingest recorded a receipt.
    pub receipt: Receipt,
    /// How many times a consumer was given it before and did not acknowledge it.
    pub redeliveries: u64,
}

impl<'e> Message<'e> {
    /// As few messages as hold these events: the broker's work is for each message, not for each
    /// event.
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
    /// The properties under which the body is published alone.
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
        BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_message_id(self.webhook_id.as_str().into())
            .with_type(self.event_type.as_str().into())
            .with_timestamp(u64::try_from(self.received_at.timestamp()).unwrap_or(0))
            .with_headers(headers)
    }
}

impl Delivered {
    /// Reads a message, which holds one event or more. What a foreign publisher left out is filled
    /// in, so that every message can be stored: `now` stands for a missing time of receipt.
    pub fn from_message(
        properties: &BasicProperties,
        redelivered: bool,
        body: Vec<u8>,
        now: DateTime<Utc>,
    ) -> Vec<Self> {
        let receipt = match header(properties, RECEIPT) {
            Some(AMQPValue::Boolean(true)) => Receipt::Recorded,
            _ => Receipt::Missing,
        };
        let redeliveries = header(properties, DELIVERY_COUNT)
            .and_then(as_integer)
            .and_then(|count| u64::try_from(count).ok())
            // A classic queue, which ours should not be, says only whether and not how often.
            .unwrap_or(if redelivered { u64::MAX } else { 0 });
        let body = Bytes::from(body);
        let entries = match bundle::unpack(properties, &body) {
            Some(entries) => entries,
            // As an event that names nothing, what is no bundle is kept as it is.
            None => vec![Entry::from_properties(properties, &body)],
        };
        entries
            .into_iter()
            .map(|entry| {
                let (event, unidentified) = entry.into_event(&body, now);
                Self {
                    event,
                    unidentified,
                    receipt,
                    redeliveries,
                }
            })
            .collect()
    }

    /// How many events a message says that it holds, at least 1: enough to plan with, while only
    /// [reading](Self::from_message) tells for certain.
    pub fn announced_by(properties: &BasicProperties) -> usize {
        header(properties, EVENTS)
            .and_then(as_integer)
            .and_then(|events| usize::try_from(events).ok())
            .map_or(1, |events| events.clamp(1, bundle::MOST_EVENTS))
    }
}

impl<'m> Entry<'m> {
    fn from_properties(properties: &'m BasicProperties, body: &'m [u8]) -> Self {
        Self {
            webhook_id: properties.message_id().as_ref().map(ShortString::as_str),
            event_type: properties.kind().as_ref().map(ShortString::as_str),
            received_at_ms: header(properties, RECEIVED_AT_MS).and_then(as_integer),
            attempted_at_s: header(properties, ATTEMPTED_AT_S).and_then(as_integer),
            secret_name: header(properties, SECRET_NAME)
                .and_then(AMQPValue::as_long_string)
                .and_then(|name| std::str::from_utf8(name.as_bytes()).ok()),
            body,
        }
    }

    /// The event in a form that can be stored, and whether it came without an id. `message` is what
    /// the entry's body is a part of.
    fn into_event(self, message: &Bytes, now: DateTime<Utc>) -> (AcceptedEvent, bool) {
        let body_sha256 = body_sha256(self.body);
        let webhook_id = self
            .webhook_id
            .filter(|id| !id.is_empty() && !id.contains('\0'));
        let event = AcceptedEvent {
            webhook_id: webhook_id.map_or_else(
                || format!("unidentified:{}", hex::encode(body_sha256)),
                str::to_owned,
            ),
            event_type: self
                .event_type
                .and_then(EventType::parse)
                .unwrap_or_else(EventType::unknown),
            body: message.slice_ref(self.body),
            body_sha256,
            received_at: self
                .received_at_ms
                .and_then(|ms| Utc.timestamp_millis_opt(ms).single())
                .filter(is_plausible)
                .unwrap_or(now),
            attempted_at: self
                .attempted_at_s
                .and_then(|s| Utc.timestamp_opt(s, 0).single())
                .filter(is_plausible),
            secret_name: self
                .secret_name
                .filter(|name| !name.contains('\0'))
                .map(str::to_owned),
        };
        (event, webhook_id.is_none())
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

fn header<'m>(properties: &'m BasicProperties, name: &str) -> Option<&'m AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// A time that Postgres can hold: chrono's range is the wider one.
fn is_plausible(time: &DateTime<Utc>) -> bool {
    (1970..10_000).contains(&time.year())
}

/// Any of AMQP's integer types: brokers and tools choose the width themselves.
fn as_integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(v) => Some((*v).into()),
        AMQPValue::ShortShortUInt(v) => Some((*v).into()),
        AMQPValue::ShortInt(v) => Some((*v).into()),
        AMQPValue::ShortUInt(v) => Some((*v).into()),
        AMQPValue::LongInt(v) => Some((*v).into()),
        AMQPValue::LongUInt(v) => Some((*v).into()),
        AMQPValue::LongLongInt(v) => Some(*v),
        AMQPValue::Timestamp(v) => i64::try_from(*v).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
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

    /// Publishes and delivers: the events in the order of their messages, and the messages' sizes.
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
                assert!(!delivered.unidentified);
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
    fn what_claims_to_be_a_bundle_and_is_none_is_kept_whole() {
        let sent = events(2, 10);
        let message = &Message::of(&[&sent[0], &sent[1]], Receipt::Recorded)[0];
        let cut = &message.body[..message.body.len() - 1];
        // An empty array, an array of numbers, no MessagePack at all, and a bundle that was cut off.
        for body in [&b"\x90"[..], b"\x92\x01\x02", b"\xc1", b"", cut] {
            let delivered = deliver(&message.properties, body);
            assert_eq!(delivered.len(), 1);
            assert_eq!(delivered[0].event.body, body);
            assert!(delivered[0].unidentified);
        }
    }

    #[test]
    fn what_a_bundle_leaves_out_is_filled_in() {
        let properties = BasicProperties::default().with_content_type(bundle::CONTENT_TYPE.into());
        // [{"body": "hello" as bytes, "new": 1}]
        let delivered = deliver(&properties, b"\x91\x82\xa4body\xc4\x05hello\xa3new\x01");
        assert_eq!(delivered.len(), 1);
        assert!(delivered[0].unidentified);
        assert_eq!(delivered[0].event.body, "hello");
        assert_eq!(delivered[0].event.received_at, now());
        assert_eq!(delivered[0].receipt, Receipt::Missing);
    }

    #[test]
    fn a_false_announcement_is_kept_in_bounds() {
        for (announced, believed) in [(-1, 1), (0, 1), (7, 7), (i64::MAX, bundle::MOST_EVENTS)] {
            let mut headers = FieldTable::default();
            headers.insert(EVENTS.into(), AMQPValue::LongLongInt(announced));
            let properties = BasicProperties::default().with_headers(headers);
            assert_eq!(Delivered::announced_by(&properties), believed);
        }
    }

    #[test]
    fn messages_are_persistent() {
        for count in [1, 2] {
            let sent = events(count, 10);
            let messages = Message::of(&sent.iter().collect::<Vec<_>>(), Receipt::Recorded);
            assert_eq!(messages[0].properties.delivery_mode(), &Some(2));
        }
    }

    #[test]
    fn a_foreign_message_gets_an_id_from_its_body_and_the_time_of_now() {
        let delivered = &deliver(&BasicProperties::default(), b"hello")[0];
        assert!(delivered.unidentified);
        assert_eq!(
            delivered.event.webhook_id,
            "unidentified:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        );
        assert_eq!(delivered.event.received_at, now());
        assert_eq!(delivered.event.event_type, EventType::unknown());
        assert_eq!(delivered.receipt, Receipt::Missing);
    }

    #[test]
    fn the_brokers_delivery_count_is_read() {
        let mut headers = FieldTable::default();
        headers.insert(DELIVERY_COUNT.into(), AMQPValue::LongLongInt(3));
        let counted = BasicProperties::default().with_headers(headers);
        for (properties, redeliveries) in [(counted, 3), (BasicProperties::default(), u64::MAX)] {
            let delivered = Delivered::from_message(&properties, true, Vec::new(), now());
            assert_eq!(delivered[0].redeliveries, redeliveries);
        }
    }

    #[test]
    fn times_that_postgres_cannot_hold_are_not_believed() {
        for ms in [-8_000_000_000_000_000, -1, 8_000_000_000_000_000, i64::MAX] {
            let mut headers = FieldTable::default();
            headers.insert(RECEIVED_AT_MS.into(), AMQPValue::LongLongInt(ms));
            headers.insert(ATTEMPTED_AT_S.into(), AMQPValue::LongLongInt(ms));
            let properties = BasicProperties::default().with_headers(headers);
            let delivered = &deliver(&properties, b"")[0];
            assert_eq!(delivered.event.received_at, now());
            assert_eq!(delivered.event.attempted_at, None);
        }
    }
}
