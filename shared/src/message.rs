//! An accepted event on its way through RabbitMQ: the body untouched, everything else in the
//! message's properties and headers.

use bytes::Bytes;
use chrono::{DateTime, Datelike, TimeZone, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use sha2::{Digest, Sha256};

use crate::EventType;

const RECEIVED_AT_MS: &str = "received-at-ms";
const ATTEMPTED_AT_S: &str = "attempted-at-s";
const SECRET_NAME: &str = "secret-name";
const RECEIPT: &str = "receipt";

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

/// A message taken from a work queue.
#[derive(Debug)]
pub struct Delivered {
    /// The event. Under an id made from its hash where the message had none.
    pub event: AcceptedEvent,
    /// The message had no `message_id`, so ingest did not publish it.
    pub unidentified: bool,
    /// Whether ingest recorded a receipt.
    pub receipt: Receipt,
    /// How many times a consumer was given it before and did not acknowledge it.
    pub redeliveries: u64,
}

impl AcceptedEvent {
    /// The properties under which the body is published.
    pub fn to_properties(&self, receipt: Receipt) -> BasicProperties {
        let mut headers = FieldTable::default();
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
        headers.insert(
            RECEIPT.into(),
            AMQPValue::Boolean(receipt == Receipt::Recorded),
        );
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
    /// Reads a message. What a foreign publisher left out is filled in, so that every message can
    /// be stored: `now` stands for a missing time of receipt.
    pub fn from_message(
        properties: &BasicProperties,
        redelivered: bool,
        body: Vec<u8>,
        now: DateTime<Utc>,
    ) -> Self {
        let header = |name: &str| {
            properties
                .headers()
                .as_ref()
                .and_then(|table| table.inner().get(name))
        };
        let body_sha256 = body_sha256(&body);
        let message_id = properties
            .message_id()
            .as_ref()
            .map(ShortString::as_str)
            .filter(|id| !id.is_empty() && !id.contains('\0'));
        let event = AcceptedEvent {
            webhook_id: message_id.map_or_else(
                || format!("unidentified:{}", hex::encode(body_sha256)),
                str::to_owned,
            ),
            event_type: properties
                .kind()
                .as_ref()
                .and_then(|kind| EventType::parse(kind.as_str()))
                .unwrap_or_else(EventType::unknown),
            body: body.into(),
            body_sha256,
            received_at: header(RECEIVED_AT_MS)
                .and_then(as_integer)
                .and_then(|ms| Utc.timestamp_millis_opt(ms).single())
                .filter(is_plausible)
                .unwrap_or(now),
            attempted_at: header(ATTEMPTED_AT_S)
                .and_then(as_integer)
                .and_then(|s| Utc.timestamp_opt(s, 0).single())
                .filter(is_plausible),
            secret_name: header(SECRET_NAME)
                .and_then(AMQPValue::as_long_string)
                .and_then(|name| std::str::from_utf8(name.as_bytes()).ok())
                .filter(|name| !name.contains('\0'))
                .map(str::to_owned),
        };
        Self {
            event,
            unidentified: message_id.is_none(),
            receipt: match header(RECEIPT) {
                Some(AMQPValue::Boolean(true)) => Receipt::Recorded,
                _ => Receipt::Missing,
            },
            redeliveries: header(DELIVERY_COUNT)
                .and_then(as_integer)
                .and_then(|count| u64::try_from(count).ok())
                // A classic queue, which ours should not be, says only whether and not how often.
                .unwrap_or(if redelivered { u64::MAX } else { 0 }),
        }
    }
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

    #[test]
    fn an_event_comes_out_of_a_message_as_it_went_in() {
        for receipt in [Receipt::Recorded, Receipt::Missing] {
            let sent = event();
            let delivered = Delivered::from_message(
                &sent.to_properties(receipt),
                false,
                sent.body.to_vec(),
                Utc::now(),
            );
            assert_eq!(delivered.event, sent);
            assert_eq!(delivered.receipt, receipt);
            assert!(!delivered.unidentified);
            assert_eq!(delivered.redeliveries, 0);
        }
    }

    #[test]
    fn messages_are_persistent() {
        let properties = event().to_properties(Receipt::Recorded);
        assert_eq!(properties.delivery_mode(), &Some(2));
    }

    #[test]
    fn a_foreign_message_gets_an_id_from_its_body_and_the_time_of_now() {
        let now = Utc.timestamp_opt(1_700_000_000, 0).unwrap();
        let delivered =
            Delivered::from_message(&BasicProperties::default(), false, b"hello".to_vec(), now);
        assert!(delivered.unidentified);
        assert_eq!(
            delivered.event.webhook_id,
            "unidentified:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        );
        assert_eq!(delivered.event.received_at, now);
        assert_eq!(delivered.event.event_type, EventType::unknown());
        assert_eq!(delivered.receipt, Receipt::Missing);
    }

    #[test]
    fn the_brokers_delivery_count_is_read() {
        let mut headers = FieldTable::default();
        headers.insert(DELIVERY_COUNT.into(), AMQPValue::LongLongInt(3));
        let properties = BasicProperties::default().with_headers(headers);
        let delivered = Delivered::from_message(&properties, true, Vec::new(), Utc::now());
        assert_eq!(delivered.redeliveries, 3);
        let classic = BasicProperties::default();
        let delivered = Delivered::from_message(&classic, true, Vec::new(), Utc::now());
        assert_eq!(delivered.redeliveries, u64::MAX);
    }

    #[test]
    fn times_that_postgres_cannot_hold_are_not_believed() {
        let now = Utc.timestamp_opt(1_700_000_000, 0).unwrap();
        for ms in [-8_000_000_000_000_000, -1, 8_000_000_000_000_000, i64::MAX] {
            let mut headers = FieldTable::default();
            headers.insert(RECEIVED_AT_MS.into(), AMQPValue::LongLongInt(ms));
            headers.insert(ATTEMPTED_AT_S.into(), AMQPValue::LongLongInt(ms));
            let properties = BasicProperties::default().with_headers(headers);
            let delivered = Delivered::from_message(&properties, false, Vec::new(), now);
            assert_eq!(delivered.event.received_at, now);
            assert_eq!(delivered.event.attempted_at, None);
        }
    }
}
