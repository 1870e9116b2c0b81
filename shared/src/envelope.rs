//! The envelope of a Pleo event: `{"data": …, "eventType": …, "eventId": …}`.
//!
//! Only the envelope is parsed here. `data` stays raw JSON; each family has its own parser for it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{error::Category, value::RawValue};
use thiserror::Error;

use crate::EventType;

/// An event's envelope, borrowed from the body.
///
/// ```
/// use shared::envelope::{Envelope, NotAnEvent};
///
/// let body = br#"{"data": {"id": "v-1"}, "eventType": "v1.vendor.created", "eventId": "e-1"}"#;
/// let envelope = Envelope::parse(body)?;
/// assert_eq!(envelope.event_type.as_str(), "v1.vendor.created");
/// assert_eq!(envelope.data.map(|data| data.get()), Some(r#"{"id": "v-1"}"#));
///
/// assert_eq!(Envelope::parse(b"{}").err(), Some(NotAnEvent::NoType));
/// # Ok::<(), NotAnEvent>(())
/// ```
#[derive(Debug)]
pub struct Envelope<'a> {
    /// The canonical type.
    pub event_type: EventType,
    /// Pleo's own id of the event (a UUID today), if there is one.
    pub event_id: Option<Cow<'a, str>>,
    /// The resource at the time of the event, as raw JSON.
    pub data: Option<&'a RawValue>,
}

/// Why a signed body is not a Pleo event. It is kept with this as its problem, so no variant quotes
/// a value.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotAnEvent {
    /// The body is empty.
    #[error("the body is empty")]
    Empty,
    /// The body is not a JSON object; says why and at which byte.
    #[error("the body is not a JSON object: {0}")]
    NotAnObject(String),
    /// A field of the envelope occurs twice or has the wrong kind.
    #[error("the body is no event: {0}")]
    WrongField(String),
    /// There is no `eventType`.
    #[error("the body has no `eventType`")]
    NoType,
    /// `eventType` has characters or a length that are not allowed.
    #[error("`eventType` is not of the form version.resource.event")]
    MalformedType,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow)]
    event_type: Option<&'a RawValue>,
    #[serde(borrow)]
    event_id: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Parses the envelope of a raw body. Pleo's documentation shows the event wrapped in
    /// `payload`; such a body is parsed as the event inside.
    pub fn parse(body: &'a [u8]) -> Result<Self, NotAnEvent> {
        let outer = Fields::parse(body)?;
        let (fields, place) = match (outer.event_type, outer.payload) {
            (None, Some(payload)) => (Fields::wrapped(payload)?, PAYLOAD),
            _ => (outer, ""),
        };
        let raw_type = match fields.event_type {
            Some(raw) => as_text(raw).ok_or_else(|| no_text(raw, place))?,
            None => return Err(NotAnEvent::NoType),
        };
        Ok(Self {
            event_type: EventType::parse(&raw_type).ok_or(NotAnEvent::MalformedType)?,
            event_id: fields.event_id.and_then(as_text),
            data: fields.data,
        })
    }
}

impl<'a> Fields<'a> {
    fn parse(json: &'a [u8]) -> Result<Self, NotAnEvent> {
        match json.iter().find(|b| !b.is_ascii_whitespace()) {
            None => return Err(NotAnEvent::Empty),
            Some(b'{') => {}
            // serde accepts an array as a struct's fields in order, which no sender means.
            Some(_) => {
                return Err(NotAnEvent::NotAnObject(
                    "it does not start with `{`".to_owned(),
                ));
            }
        }
        serde_json::from_slice(json).map_err(|error| unread(&error, json))
    }

    fn wrapped(payload: &'a RawValue) -> Result<Self, NotAnEvent> {
        let json = payload.get();
        if !json.starts_with('{') {
            let found = json_kind(json);
            return Err(NotAnEvent::WrongField(format!(
                "`payload`: expected an object, found {found}"
            )));
        }
        serde_json::from_str(json).map_err(|error| doubled(&error, PAYLOAD))
    }
}

/// The prefix of a field's name inside `payload`.
const PAYLOAD: &str = "payload.";

/// Explains why the body could not be parsed. serde's messages about syntax quote nothing of the
/// input.
fn unread(error: &serde_json::Error, json: &[u8]) -> NotAnEvent {
    match error.classify() {
        Category::Data | Category::Io => doubled(error, ""),
        Category::Eof => {
            NotAnEvent::NotAnObject(format!("it ends in the middle, after {} bytes", json.len()))
        }
        Category::Syntax => {
            let lines = json.split_inclusive(|byte| *byte == b'\n');
            let before: usize = lines.take(error.line() - 1).map(<[u8]>::len).sum();
            let words = error.to_string();
            let words = words
                .rsplit_once(" at line ")
                .map_or("it cannot be read", |(words, _)| words);
            NotAnEvent::NotAnObject(format!("{words} at byte {}", before + error.column()))
        }
    }
}

/// The error for a duplicate field, the only error that valid JSON can cause here.
fn doubled(error: &serde_json::Error, place: &str) -> NotAnEvent {
    let words = error.to_string();
    let field = words
        .strip_prefix("duplicate field `")
        .and_then(|rest| rest.split('`').next());
    NotAnEvent::WrongField(match field {
        Some(field) => format!("duplicate field `{place}{field}`"),
        None => "it cannot be read".to_owned(),
    })
}

fn no_text(value: &RawValue, place: &str) -> NotAnEvent {
    let found = match json_kind(value.get()) {
        "a string" => "one with half a character",
        kind => kind,
    };
    NotAnEvent::WrongField(format!(
        "`{place}eventType`: expected a string, found {found}"
    ))
}

/// The kind of a JSON value, for people.
pub fn json_kind(json: &str) -> &'static str {
    match json.trim_start().bytes().next() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn as_text(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(value.get())
        .ok()
        .map(|text| text.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_wrapped_form_is_read_as_the_event_inside() {
        let body =
            br#"{"payload":{"data":{"id":"1"},"eventId":"e","eventType":"v1.vendor.created"}}"#;
        let envelope = Envelope::parse(body).expect("an event");
        assert_eq!(envelope.event_type.as_str(), "v1.vendor.created");
        assert_eq!(envelope.event_id.as_deref(), Some("e"));
        assert_eq!(envelope.data.map(RawValue::get), Some(r#"{"id":"1"}"#));
    }

    #[test]
    fn key_order_unknown_keys_and_escapes_do_not_matter() {
        let body = br#" {"x":[1,{}],"eventType":"v1.export\u002djob.created","data":null} "#;
        let envelope = Envelope::parse(body).expect("an event");
        assert_eq!(envelope.event_type.as_str(), "v1.export-job.created");
        assert!(envelope.event_id.is_none());
        assert!(envelope.data.is_none());
    }

    #[rstest]
    #[case(b"", "the body is empty")]
    #[case(b"  \n", "the body is empty")]
    #[case(b"{}", "the body has no `eventType`")]
    #[case(br#"{"payload":{}}"#, "the body has no `eventType`")]
    #[case(
        br#"{"eventType":"v1.card.created""#,
        "the body is not a JSON object: it ends in the middle, after 30 bytes"
    )]
    #[case(
        br#"["v1.card.created"]"#,
        "the body is not a JSON object: it does not start with `{`"
    )]
    #[case(
        b"\xff\xfe",
        "the body is not a JSON object: it does not start with `{`"
    )]
    #[case(
        b"{\"hunter2\xff\":1}",
        "the body is not a JSON object: invalid unicode code point at byte 10"
    )]
    #[case(
        b"{\"hunter2\":\n nope}",
        "the body is not a JSON object: expected ident at byte 15"
    )]
    #[case(
        b"{\"a\":1}\n\n hunter2",
        "the body is not a JSON object: trailing characters at byte 11"
    )]
    #[case(
        b"{hunter2}",
        "the body is not a JSON object: key must be a string at byte 2"
    )]
    #[case(
        br#"{"hunter2" 1}"#,
        "the body is not a JSON object: expected `:` at byte 12"
    )]
    #[case(
        br#"{"data":1,"data":"hunter2"}"#,
        "the body is no event: duplicate field `data`"
    )]
    #[case(
        br#"{"eventType":"a","eventType":"b"}"#,
        "the body is no event: duplicate field `eventType`"
    )]
    #[case(
        br#"{"payload":{"eventId":1,"eventId":2}}"#,
        "the body is no event: duplicate field `payload.eventId`"
    )]
    #[case(
        br#"{"payload":"hunter2"}"#,
        "the body is no event: `payload`: expected an object, found a string"
    )]
    #[case(
        br#"{"eventType":5}"#,
        "the body is no event: `eventType`: expected a string, found a number"
    )]
    #[case(
        br#"{"eventType":["hunter2"]}"#,
        "the body is no event: `eventType`: expected a string, found an array"
    )]
    #[case(
        br#"{"payload":{"eventType":true}}"#,
        "the body is no event: `payload.eventType`: expected a string, found a boolean"
    )]
    #[case(
        br#"{"eventType":"\ud800"}"#,
        "the body is no event: `eventType`: expected a string, found one with half a character"
    )]
    #[case(
        br#"{"eventType":"hunter2 or so"}"#,
        "`eventType` is not of the form version.resource.event"
    )]
    fn what_is_no_event_names_its_place_and_no_value(#[case] body: &[u8], #[case] expected: &str) {
        let error = Envelope::parse(body).expect_err("no event");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn deep_nesting_is_read_without_recursion() {
        let depth = 100_000;
        let body = format!(
            r#"{{"eventType":"v1.vendor.created","data":{}{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        );
        assert!(Envelope::parse(body.as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn no_input_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            // No input causes a panic or an empty type.
            if let Ok(envelope) = Envelope::parse(&body) {
                prop_assert!(!envelope.event_type.as_str().is_empty());
            }
        }
    }
}
