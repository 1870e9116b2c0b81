//! Reads the messages of a queue, including those of foreign publishers. Each becomes one or more
//! events that can be stored.

use bytes::Bytes;
use chrono::{DateTime, Datelike, TimeZone, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, ShortString},
};

use super::{
    ATTEMPTED_AT_S, AcceptedEvent, EVENTS, RECEIPT, RECEIVED_AT_MS, Receipt, SECRET_COMPANIES,
    SECRET_NAME, body_sha256,
};
use crate::{
    Companies, EventType,
    bundle::{self, Entry},
};

/// RabbitMQ's header on redelivered messages of a quorum queue: how often a consumer failed with
/// the message.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// The counter of RabbitMQ 4.3 and later for every return, including those without a failure.
const ACQUIRED_COUNT: &str = "x-acquired-count";

/// The longest id or name, in bytes, as in AMQP's own properties. It is far below the limit of a
/// Postgres index.
const LONGEST_TEXT: usize = 255;

/// An event taken from a work queue.
#[derive(Debug)]
pub struct Delivered {
    /// The event; see [`AcceptedEvent::is_unidentified`].
    pub event: AcceptedEvent,
    /// Whether ingest recorded a receipt.
    pub receipt: Receipt,
    /// How many earlier deliveries failed.
    pub redeliveries: u64,
}

impl Delivered {
    /// Reads the events of a message. Values that a foreign publisher left out are filled in, so
    /// that every message can be stored: `now` replaces a missing time of receipt.
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
        let redeliveries = redeliveries(properties, redelivered);
        let body = Bytes::from(body);
        let entries = match bundle::unpack(properties, &body) {
            Some(entries) => entries,
            // A message that is not a valid bundle is kept as one event with that body.
            None => vec![Entry::from_properties(properties, &body)],
        };
        entries
            .into_iter()
            .map(|entry| Self {
                event: entry.into_event(&body, now),
                receipt,
                redeliveries,
            })
            .collect()
    }

    /// The number of events that a message's header announces, at least 1. It is good enough for
    /// planning; only [`from_message`](Self::from_message) is exact.
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
            secret_name: header(properties, SECRET_NAME).and_then(as_text),
            // If the header cannot be read, the secret is tied to no company that exists.
            secret_companies: header(properties, SECRET_COMPANIES)
                .map(|companies| as_text(companies).unwrap_or_default()),
            body,
        }
    }

    /// Converts the entry to an event that can be stored. `message` is the buffer that contains the
    /// entry's body.
    fn into_event(self, message: &Bytes, now: DateTime<Utc>) -> AcceptedEvent {
        let body_sha256 = body_sha256(self.body);
        AcceptedEvent {
            webhook_id: (self.webhook_id)
                .filter(|id| (1..=LONGEST_TEXT).contains(&id.len()) && !id.contains('\0'))
                .map_or_else(|| unidentified_id(&body_sha256), str::to_owned),
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
                .filter(|name| name.len() <= LONGEST_TEXT && !name.contains('\0'))
                .map(str::to_owned),
            secret_companies: self.secret_companies.map(Companies::read),
        }
    }
}

/// The id of an event that came without a usable id.
pub fn unidentified_id(body_sha256: &[u8; 32]) -> String {
    format!("unidentified:{}", hex::encode(body_sha256))
}

/// How often consumers failed with the message.
fn redeliveries(properties: &BasicProperties, redelivered: bool) -> u64 {
    let failed = header(properties, DELIVERY_COUNT)
        .and_then(as_integer)
        .and_then(|count| u64::try_from(count).ok());
    match failed {
        Some(failed) => failed,
        // RabbitMQ 4.3 sends the failure count only if it is not zero.
        None if header(properties, ACQUIRED_COUNT).is_some() => 0,
        // A classic queue, which ours should not be, says only that the message was redelivered,
        // not how often.
        None if redelivered => u64::MAX,
        None => 0,
    }
}

fn header<'m>(properties: &'m BasicProperties, name: &str) -> Option<&'m AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// Whether Postgres can store the time; chrono's range is wider.
fn is_plausible(time: &DateTime<Utc>) -> bool {
    (1970..10_000).contains(&time.year())
}

fn as_text(value: &AMQPValue) -> Option<&str> {
    std::str::from_utf8(value.as_long_string()?.as_bytes()).ok()
}

/// Any of AMQP's integer types, because brokers and tools choose the width.
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
    use lapin::types::FieldTable;
    use rstest::rstest;

    use super::*;
    use crate::message::Message;

    fn event(body: &'static str) -> AcceptedEvent {
        AcceptedEvent {
            webhook_id: "msg_1".to_owned(),
            event_type: EventType::parse("v1.vendor.created").expect("well formed"),
            body_sha256: body_sha256(body.as_bytes()),
            body: body.into(),
            received_at: now(),
            attempted_at: None,
            secret_name: None,
            secret_companies: None,
        }
    }

    fn deliver(properties: &BasicProperties, body: &[u8]) -> Vec<Delivered> {
        Delivered::from_message(properties, false, body.to_vec(), now())
    }

    fn now() -> DateTime<Utc> {
        Utc.timestamp_opt(1_700_000_000, 0).unwrap()
    }

    #[test]
    fn what_claims_to_be_a_bundle_and_is_none_is_kept_whole() {
        let sent = event("{}");
        let message = &Message::of(&[&sent, &sent], Receipt::Recorded)[0];
        let cut = &message.body[..message.body.len() - 1];
        // An empty array, an array of numbers, invalid MessagePack, nothing, and a truncated
        // bundle.
        for body in [&b"\x90"[..], b"\x92\x01\x02", b"\xc1", b"", cut] {
            let delivered = deliver(&message.properties, body);
            assert_eq!(delivered.len(), 1);
            assert_eq!(delivered[0].event.body, body);
            assert!(delivered[0].event.is_unidentified());
        }
    }

    #[test]
    fn what_a_bundle_leaves_out_is_filled_in() {
        let properties = BasicProperties::default().with_content_type(bundle::CONTENT_TYPE.into());
        // [{"body": "hello" as bytes, "new": 1}]
        let delivered = deliver(&properties, b"\x91\x82\xa4body\xc4\x05hello\xa3new\x01");
        assert_eq!(delivered.len(), 1);
        assert!(delivered[0].event.is_unidentified());
        assert_eq!(delivered[0].event.body, "hello");
        assert_eq!(delivered[0].event.received_at, now());
        assert_eq!(delivered[0].receipt, Receipt::Missing);
    }

    /// A bundle of a version without companies, and one of a version with more fields.
    #[test]
    fn bundles_of_older_and_newer_versions_are_read() {
        let properties = BasicProperties::default().with_content_type(bundle::CONTENT_TYPE.into());
        let with = |fields: &[u8]| [b"\x91", fields].concat();
        let cases = [
            (with(b"\x81\xa4body\xc4\x00"), None),
            (with(b"\x82\xa4body\xc4\x00\xb0secret_companies\xc0"), None),
            (
                with(b"\x82\xa4body\xc4\x00\xb0secret_companies\xa5c1 c2"),
                Some("c1 c2"),
            ),
            (
                with(b"\x83\xa4body\xc4\x00\xa3new\x91\x01\xb0secret_companies\xa5c1\0c2"),
                Some(""),
            ),
        ];
        for (body, expected) in cases {
            let delivered = deliver(&properties, &body);
            assert_eq!(delivered.len(), 1);
            assert_eq!(delivered[0].event.body, "");
            let companies = delivered[0].event.secret_companies.as_ref();
            assert_eq!(companies.map(Companies::as_str), expected);
        }
    }

    #[rstest]
    #[case(AMQPValue::LongString("c1 c2".into()), "c1 c2")]
    #[case(AMQPValue::LongString("".into()), "")]
    #[case(AMQPValue::LongString("c1 c1".into()), "")]
    #[case(AMQPValue::LongString(vec![0xff, 0xfe].into()), "")]
    #[case(AMQPValue::Void, "")]
    #[case(AMQPValue::LongLongInt(1), "")]
    fn companies_that_cannot_be_read_are_none_at_all(
        #[case] value: AMQPValue,
        #[case] expected: &str,
    ) {
        let mut headers = FieldTable::default();
        headers.insert(SECRET_COMPANIES.into(), value);
        let properties = BasicProperties::default().with_headers(headers);
        let companies = deliver(&properties, b"{}").remove(0).event.secret_companies;
        assert_eq!(companies.as_ref().map(Companies::as_str), Some(expected));
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
    fn a_foreign_message_gets_an_id_from_its_body_and_the_time_of_now() {
        let delivered = &deliver(&BasicProperties::default(), b"hello")[0];
        assert!(delivered.event.is_unidentified());
        assert_eq!(
            delivered.event.webhook_id,
            "unidentified:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        );
        assert_eq!(delivered.event.received_at, now());
        assert_eq!(delivered.event.event_type, EventType::unknown());
        assert_eq!(delivered.receipt, Receipt::Missing);
    }

    #[rstest]
    #[case(&[], false, 0)]
    #[case(&[(DELIVERY_COUNT, 3)], true, 3)]
    #[case(&[(DELIVERY_COUNT, 3), (ACQUIRED_COUNT, 9)], true, 3)]
    // RabbitMQ 4.3, no failure.
    #[case(&[(ACQUIRED_COUNT, 9)], true, 0)]
    // A classic queue.
    #[case(&[], true, u64::MAX)]
    #[case(&[(DELIVERY_COUNT, -1)], true, u64::MAX)]
    fn only_failed_deliveries_are_counted(
        #[case] headers: &[(&str, i64)],
        #[case] redelivered: bool,
        #[case] expected: u64,
    ) {
        let mut table = FieldTable::default();
        for (name, count) in headers {
            table.insert((*name).into(), AMQPValue::LongLongInt(*count));
        }
        let properties = BasicProperties::default().with_headers(table);
        let delivered = Delivered::from_message(&properties, redelivered, Vec::new(), now());
        assert_eq!(delivered[0].redeliveries, expected);
    }

    #[rstest]
    #[case("a".repeat(LONGEST_TEXT), true)]
    #[case("a".repeat(LONGEST_TEXT + 1), false)]
    #[case("a".repeat(4_000), false)]
    #[case(String::new(), false)]
    #[case("a\0b".to_owned(), false)]
    fn an_id_that_postgres_cannot_index_is_none(#[case] id: String, #[case] kept: bool) {
        let sent = AcceptedEvent {
            webhook_id: id.clone(),
            ..event("{}")
        };
        let other = event("[]");
        let message = &Message::of(&[&sent, &other], Receipt::Recorded)[0];
        let delivered = deliver(&message.properties, &message.body);
        assert_eq!(delivered.len(), 2);
        assert_eq!(delivered[0].event.webhook_id == id, kept);
        assert_eq!(delivered[0].event.is_unidentified(), !kept);
        assert_eq!(delivered[1].event, other);
    }

    #[test]
    fn a_bundle_without_end_is_kept_whole() {
        let properties = BasicProperties::default().with_content_type(bundle::CONTENT_TYPE.into());
        // [{"body": ""}, …], 65,535 of them.
        let body = [
            &b"\xdc\xff\xff"[..],
            &b"\x81\xa4body\xc4\x00".repeat(65_535),
        ]
        .concat();
        let delivered = deliver(&properties, &body);
        assert_eq!(delivered.len(), 1);
        assert_eq!(delivered[0].event.body, body);
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
