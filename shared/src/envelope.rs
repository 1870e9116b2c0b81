//! The outer shape of a Pleo event: `{"data": …, "eventType": …, "eventId": …}`.
//!
//! Only the envelope is read here; `data` stays as the sender wrote it until a family's parser
//! wants it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::EventType;

/// An event's envelope, borrowed from the body.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// The canonical type.
    pub event_type: EventType,
    /// Pleo's own id of the event (a UUID today), where it gives one.
    pub event_id: Option<Cow<'a, str>>,
    /// The resource as it was when the event was made, untouched JSON.
    pub data: Option<&'a RawValue>,
}

/// Why a signed body is no Pleo event. It is kept all the same, as an event with this problem.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotAnEvent {
    /// The body is empty.
    #[error("the body is empty")]
    Empty,
    /// The body is not a JSON object, with the parser's reason.
    #[error("the body is not a JSON object: {0}")]
    NotAnObject(String),
    /// There is no `eventType`, or it is not a string.
    #[error("the body has no `eventType`")]
    NoType,
    /// `eventType` has characters or a length that no event type has.
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
    /// Reads the envelope from a raw body. A body that wraps the event in `payload`, as Pleo's page
    /// prints it, is read as the event inside.
    pub fn parse(body: &'a [u8]) -> Result<Self, NotAnEvent> {
        let outer = Fields::parse(body)?;
        let fields = match (outer.event_type, outer.payload) {
            (None, Some(payload)) => Fields::parse(payload.get().as_bytes())?,
            _ => outer,
        };
        let raw_type = fields
            .event_type
            .and_then(as_text)
            .ok_or(NotAnEvent::NoType)?;
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
            // serde reads an array as a struct's fields in order, which no sender means.
            Some(_) => {
                return Err(NotAnEvent::NotAnObject(
                    "it does not start with `{`".to_owned(),
                ));
            }
        }
        serde_json::from_slice(json).map_err(|e| NotAnEvent::NotAnObject(e.to_string()))
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
    #[case(b"", NotAnEvent::Empty)]
    #[case(b"  \n", NotAnEvent::Empty)]
    #[case(b"{}", NotAnEvent::NoType)]
    #[case(br#"{"eventType":5}"#, NotAnEvent::NoType)]
    #[case(br#"{"eventType":"no spaces please"}"#, NotAnEvent::MalformedType)]
    fn what_is_no_event_is_named(#[case] body: &[u8], #[case] expected: NotAnEvent) {
        assert_eq!(Envelope::parse(body).expect_err("no event"), expected);
    }

    #[rstest]
    #[case(br#"["v1.vendor.created"]"#)]
    #[case(b"\xff\xfe")]
    #[case(br#"{"eventType":"v1.vendor.created""#)]
    #[case(br#"{"eventType":"a","eventType":"b"}"#)]
    fn what_is_no_object_is_refused(#[case] body: &[u8]) {
        assert!(matches!(
            Envelope::parse(body),
            Err(NotAnEvent::NotAnObject(_))
        ));
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
            // No input makes it panic or gives an empty type.
            if let Ok(envelope) = Envelope::parse(&body) {
                prop_assert!(!envelope.event_type.as_str().is_empty());
            }
        }
    }
}
