//! What holds for every signed body: how it is classified, how it travels, what it becomes.

use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use serde_json::Value;
use shared::{
    AcceptedEvent, EventType, Family, bundle,
    envelope::{Envelope, NotAnEvent},
    message::{Delivered, Message, Receipt, body_sha256},
};
use worker::{
    families::{Resource, Row, Text, Typed},
    jsonb,
    problem::{Kind, Problem},
    record::{Body, Record},
    work::{Source, Work},
};

const ID: &str = "msg_1";

pub(crate) fn check(body: &[u8]) {
    // Another parser's view; it refuses more than the envelope's.
    let value: Option<Value> = serde_json::from_slice(body).ok();
    check_envelope(body, value.as_ref());
    check_jsonb(body, value.as_ref());
    let mut work = work(body);
    check_message(&work);
    check_record(&mut work);
}

fn check_envelope(body: &[u8], value: Option<&Value>) {
    let event = value.map(|value| match (&value["eventType"], &value["payload"]) {
        (Value::Null, wrapped @ Value::Object(_)) => wrapped,
        _ => value,
    });
    match Envelope::parse(body) {
        Ok(envelope) => {
            check_type(&envelope.event_type);
            let Some(event) = event else { return };
            let named = event["eventType"].as_str().and_then(EventType::parse);
            assert_eq!(named, Some(envelope.event_type));
            assert_eq!(event["eventId"].as_str(), envelope.event_id.as_deref());
            let data = envelope.data.map(|data| {
                let data: Value = serde_json::from_str(data.get()).expect("part of the whole");
                data
            });
            assert_eq!(data.as_ref().unwrap_or(&Value::Null), &event["data"]);
        }
        // Only the other parser takes the last of two fields with one name.
        Err(NotAnEvent::WrongField(reason)) if reason.contains("duplicate field") => {}
        Err(_) => {
            let named = event.and_then(|event| event["eventType"].as_str());
            assert_eq!(named.and_then(EventType::parse), None);
        }
    }
}

/// Is short and plain, has one spelling, and goes where the broker's bindings send it.
fn check_type(event_type: &EventType) {
    let text = event_type.as_str();
    assert!((1..=128).contains(&text.len()), "{text}");
    assert!(
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    );
    assert_eq!(EventType::parse(text).as_ref(), Some(event_type));
    let words: Vec<&str> = text.split('.').collect();
    let bound = match words[..] {
        [_, "export-job", _] => Family::ExportJob,
        [_, "vendor", _] => Family::Vendor,
        _ => Family::Other,
    };
    assert_eq!(event_type.family(), bound);
}

fn check_jsonb(body: &[u8], value: Option<&Value>) {
    match jsonb::as_jsonb(body) {
        Some(text) => {
            assert_eq!(text.as_bytes(), body, "kept as it came");
            assert!(!has_nul(value.expect("JSON")));
        }
        // The other parser forgets the first of two fields with one name, and a NUL in it.
        None => assert!(value.is_none() || body.windows(6).any(|six| six == br"\u0000")),
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn check_record(work: &mut Work) {
    let body = work.event.body.clone();
    let record = Record::new(work);
    check_columns(&record);
    match &record.body {
        Body::Json(text) => assert_eq!(Some(text.as_str()), jsonb::as_jsonb(&body)),
        Body::Raw(raw) => {
            assert_eq!(*raw, body);
            assert_eq!(jsonb::as_jsonb(&body), None);
        }
    }
    let is_event = Envelope::parse(&body).is_ok();
    assert!(is_event || record.problem.is_some(), "kept without a word");
    // Ingest and the worker agree.
    assert_eq!(record.event_type, work.event.event_type);
    if record.problem.is_none() {
        let family = record.event_type.family();
        assert_eq!(record.typed.is_some(), family != Family::Other);
    }

    // Attempts change nothing about how it is read.
    work.attempts = 1;
    let retried = Record::new(work);
    assert_eq!(retried.body, record.body);
    assert_eq!(retried.problem, record.problem);
    assert_eq!(retried.typed, record.typed);

    // A dead letter says why, and changes no typed table.
    let dead = record.with_refusal(work, &String::from_utf8_lossy(&body));
    check_columns(&dead);
    assert!(dead.typed.is_none());

    // What stopped a worker is stored without being read.
    work.problem = Some(Problem::new(Kind::StoppedWorker, "stopped"));
    let unread = Record::new(work);
    assert_eq!(unread.body, Body::Raw(body));
    assert!(unread.typed.is_none() && unread.company_id.is_none() && unread.resource_id.is_none());
}

/// What a `text` column can hold, and no more than people want to read.
fn check_columns(record: &Record) {
    assert_eq!(record.webhook_id, ID);
    check_type(&record.event_type);
    let ids = [&record.event_id, &record.company_id, &record.resource_id];
    assert!(ids.iter().all(|id| id.as_ref().is_none_or(is_an_id)));
    let problem = record.problem.as_ref().map_or("", |problem| &problem.text);
    assert!(!problem.contains('\0') && problem.chars().count() <= 1_001);
    assert!(record.problem.is_none() || record.typed.is_none());
    match &record.typed {
        Some(Typed::ExportJob(row)) => check_row(row, Family::ExportJob, record),
        Some(Typed::Vendor(row)) => check_row(row, Family::Vendor, record),
        None => {}
    }
}

fn check_row<R: Resource>(row: &Row<R>, family: Family, record: &Record) {
    assert_eq!(family, record.event_type.family());
    assert_eq!(row.webhook_id, ID);
    assert_eq!(row.sort_key.as_bytes().len(), 8 + 1 + ID.len());
    assert!(is_an_id(row.resource.id()));
    assert_eq!(Some(row.resource.id()), record.resource_id.as_ref());
}

fn is_an_id(text: &Text) -> bool {
    !text.as_str().contains('\0') && !text.is_blank()
}

/// The broker gives back what was published, and anything from anybody else can be stored as well.
fn check_message(work: &Work) {
    let body = &work.event.body;
    let now = DateTime::<Utc>::UNIX_EPOCH;
    for count in [1, 2] {
        let sent = vec![&work.event; count];
        let mut arrived = 0;
        for message in Message::of(&sent, Receipt::Recorded) {
            let bytes = message.body.to_vec();
            for delivered in Delivered::from_message(&message.properties, false, bytes, now) {
                assert_eq!(delivered.event, work.event);
                assert_eq!(delivered.receipt, Receipt::Recorded);
                assert!(!delivered.event.is_unidentified());
                arrived += 1;
            }
        }
        assert_eq!(arrived, count);
    }

    let text = String::from_utf8_lossy(&body[..body.len().min(80)]);
    let foreign = BasicProperties::default()
        .with_message_id(text.as_ref().into())
        .with_type(text.as_ref().into());
    let delivered = Delivered::from_message(&foreign, false, body.to_vec(), now);
    assert_eq!(delivered.len(), 1);
    let usable = !text.is_empty() && !text.contains('\0');
    assert_eq!(delivered[0].event.is_unidentified(), !usable);
    delivered.iter().for_each(check_delivered);

    let bundle = BasicProperties::default().with_content_type(bundle::CONTENT_TYPE.into());
    let delivered = Delivered::from_message(&bundle, false, body.to_vec(), now);
    assert!(!delivered.is_empty());
    delivered.iter().for_each(check_delivered);
}

fn check_delivered(delivered: &Delivered) {
    assert!(!delivered.event.webhook_id.is_empty());
    assert!(!delivered.event.webhook_id.contains('\0'));
    check_type(&delivered.event.event_type);
    assert_eq!(delivered.receipt, Receipt::Missing);
}

fn work(body: &[u8]) -> Work {
    Work {
        event: AcceptedEvent {
            webhook_id: ID.to_owned(),
            event_type: Envelope::parse(body)
                .map_or_else(|_| EventType::unknown(), |envelope| envelope.event_type),
            body: body.to_vec().into(),
            body_sha256: body_sha256(body),
            received_at: DateTime::UNIX_EPOCH,
            attempted_at: Some(DateTime::UNIX_EPOCH),
            secret_name: Some("current".to_owned()),
            secret_companies: None,
        },
        receipt: Receipt::Recorded,
        attempts: 0,
        problem: None,
        source: Source::Queue,
    }
}
