//! What holds for every message in a queue, also for those of foreign publishers: it is read as one or
//! more events, and each of them can be stored.

use chrono::{DateTime, Datelike, TimeZone, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString},
};
use shared::{
    Companies, bundle,
    message::{Delivered, body_sha256},
};
use worker::{record::Record, work::Work};

/// The most bytes that an index of Postgres is sure to hold is 2,700.
const LONGEST_ID: usize = 255;
/// A hundred ids.
const LONGEST_COMPANIES: usize = 6_500;
const HEADERS: [&str; 8] = [
    "received-at-ms",
    "attempted-at-s",
    "secret-name",
    "secret-companies",
    "receipt",
    "events",
    "x-delivery-count",
    "x-acquired-count",
];

/// A message as a consumer gets it.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) properties: BasicProperties,
    pub(crate) redelivered: bool,
    pub(crate) body: Vec<u8>,
}

/// Takes any bytes for a message: its first byte says which parts follow.
pub(crate) fn message(input: &[u8]) -> Message {
    let mut input = Input(input);
    let parts = input.byte();
    let has = |bit: u8| parts & (1 << bit) != 0;
    let mut properties = BasicProperties::default();
    if has(0) {
        properties = properties.with_message_id(input.text().as_str().into());
    }
    if has(1) {
        properties = properties.with_type(input.text().as_str().into());
    }
    if has(2) {
        properties = properties.with_content_type(input.text().as_str().into());
    }
    if has(3) {
        properties = properties.with_content_type(bundle::CONTENT_TYPE.into());
    }
    if has(4) {
        let mut headers = FieldTable::default();
        for _ in 0..input.byte() % 8 {
            let name = HEADERS[usize::from(input.byte()) % HEADERS.len()];
            headers.insert(name.into(), input.value());
        }
        properties = properties.with_headers(headers);
    }
    Message {
        properties,
        redelivered: has(5),
        body: if has(6) {
            input.bundle()
        } else {
            input.0.to_vec()
        },
    }
}

/// The message's events, after a look at each.
pub(crate) fn check(message: &Message, now: DateTime<Utc>) -> Vec<Work> {
    let read = || {
        let body = message.body.clone();
        Delivered::from_message(&message.properties, message.redelivered, body, now)
    };
    let delivered = read();
    assert!(!delivered.is_empty(), "every message is something");
    assert!(Delivered::announced_by(&message.properties) > 0);
    let bytes: usize = delivered.iter().map(|d| d.event.body.len()).sum();
    assert!(bytes <= message.body.len(), "nothing is made up");
    for (one, again) in delivered.iter().zip(read()) {
        let event = &one.event;
        assert_eq!(event, &again.event, "read in one way only");
        assert!((1..=LONGEST_ID).contains(&event.webhook_id.len()));
        assert!(!event.webhook_id.contains('\0'));
        assert_eq!(event.body_sha256, body_sha256(&event.body));
        let name = event.secret_name.as_deref().unwrap_or_default();
        assert!(name.len() <= LONGEST_ID && !name.contains('\0'));
        let companies = event.secret_companies.as_ref().map(Companies::as_str);
        let companies = companies.unwrap_or_default();
        assert!(companies.len() <= LONGEST_COMPANIES && !companies.contains('\0'));
        for time in [Some(event.received_at), event.attempted_at]
            .into_iter()
            .flatten()
        {
            assert!((1970..10_000).contains(&time.year()), "{time}");
        }
    }
    let works: Vec<Work> = delivered.into_iter().map(Work::from).collect();
    for work in &works {
        let record = Record::new(work);
        assert_eq!(record.webhook_id, work.event.webhook_id);
        let problem = record.problem.as_ref();
        assert!(problem.is_none_or(|problem| !problem.text.contains('\0')));
        let is_marked = record.problem.is_some() && record.typed.is_none();
        assert!(is_marked || !work.event.is_unidentified());
    }
    works
}

/// The time that stands for a missing one.
pub(crate) fn now() -> DateTime<Utc> {
    Utc.timestamp_opt(1_700_000_000, 0)
        .single()
        .expect("a time")
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }

    /// At most as long as AMQP's short strings are.
    fn text(&mut self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes()).into_owned();
        while text.len() > 255 {
            text.pop();
        }
        text
    }

    fn number(&mut self) -> i64 {
        i64::from_be_bytes([(); 8].map(|()| self.byte()))
    }

    fn value(&mut self) -> AMQPValue {
        match self.byte() % 8 {
            0 => AMQPValue::LongLongInt(self.number()),
            1 => AMQPValue::Boolean(self.byte().is_multiple_of(2)),
            2 => AMQPValue::LongString(LongString::from(self.bytes())),
            3 => AMQPValue::Timestamp(self.number().unsigned_abs()),
            4 => AMQPValue::ShortShortInt(-1),
            5 => AMQPValue::Double(f64::from(self.byte())),
            6 => AMQPValue::FieldTable(FieldTable::default()),
            _ => AMQPValue::Void,
        }
    }

    /// MessagePack of nearly the right form: its texts may be far too long.
    fn bundle(&mut self) -> Vec<u8> {
        let events = self.byte() % 16;
        let mut packed = vec![0x90 | events];
        for _ in 0..events {
            packed.push(0x84);
            pack_text(&mut packed, "webhook_id");
            let id = self.text().repeat(usize::from(self.byte() % 64));
            pack_text(&mut packed, &id);
            pack_text(&mut packed, "event_type");
            pack_text(&mut packed, &self.text());
            pack_text(&mut packed, "secret_companies");
            let companies = self.text().repeat(usize::from(self.byte() % 64));
            pack_text(&mut packed, &companies);
            pack_text(&mut packed, "body");
            let body = self.bytes();
            packed.extend([0xc4, u8::try_from(body.len()).expect("a byte counts it")]);
            packed.extend(body);
        }
        packed
    }
}

fn pack_text(packed: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("at most 64 times 255");
    packed.push(0xda);
    packed.extend(length.to_be_bytes());
    packed.extend(text.as_bytes());
}
