//! Checks whether Postgres' `jsonb` can store a body.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The body as text, if it is JSON that `jsonb` can store: valid UTF-8, at most 128 levels deep,
/// without `\u0000`, without half a surrogate pair, and without numbers beyond a double's range.
pub fn as_jsonb(body: &[u8]) -> Option<&str> {
    let text = str::from_utf8(body).ok()?;
    serde_json::from_str::<Storable>(text).ok()?;
    Some(text)
}

/// Any JSON value, checked and discarded. serde_json itself refuses too deep nesting, half a
/// surrogate pair and numbers out of range, so only NUL is checked here.
struct Storable;

impl<'de> Deserialize<'de> for Storable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StorableVisitor)
    }
}

struct StorableVisitor;

impl<'de> Visitor<'de> for StorableVisitor {
    type Value = Storable;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without \\u0000")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Storable, E> {
        if text.contains('\0') {
            return Err(E::custom("a string contains \\u0000"));
        }
        Ok(Storable)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Storable, A::Error> {
        while let Some(Storable) = items.next_element()? {}
        Ok(Storable)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Storable, A::Error> {
        while let Some((Storable, Storable)) = entries.next_entry()? {}
        Ok(Storable)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Storable, E> {
        Ok(Storable)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Storable, E> {
        Ok(Storable)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Storable, E> {
        Ok(Storable)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Storable, E> {
        Ok(Storable)
    }

    fn visit_unit<E>(self) -> Result<Storable, E> {
        Ok(Storable)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(br#"{"a":[1,-2,3.5,null,true,"x"],"b":{}}"#)]
    #[case(br#""\ud83d\ude00""#)]
    #[case(b"12345678901234567890123456789")]
    fn ordinary_json_can_be_held(#[case] body: &[u8]) {
        assert!(as_jsonb(body).is_some());
    }

    #[rstest]
    #[case(b"")]
    #[case(b"not json")]
    #[case(b"\"\xff\"")]
    #[case(br#""\u0000""#)]
    #[case(br#"{"\u0000":1}"#)]
    #[case(br#"["\ud83d"]"#)]
    #[case(b"1e400")]
    fn what_jsonb_refuses_is_recognised(#[case] body: &[u8]) {
        assert_eq!(as_jsonb(body), None);
    }

    #[test]
    fn deep_nesting_is_refused_without_overflowing_the_stack() {
        let body = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(as_jsonb(body.as_bytes()), None);
    }
}
