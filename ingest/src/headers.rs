//! Strict parsing of the three headers of a Standard Webhooks request. It verifies no signature.

use std::time::Duration;

use chrono::{DateTime, TimeZone, Utc};
use thiserror::Error;

/// The header sets that a sender may use: the specification's names, and the names of a Svix sender
/// without white-labelling. All three headers must come from one set.
const SETS: [[&str; 3]; 2] = [
    ["webhook-id", "webhook-timestamp", "webhook-signature"],
    ["svix-id", "svix-timestamp", "svix-signature"],
];

const MAX_ID_LEN: usize = 200;
const MAX_SIGNATURES_LEN: usize = 4_096;

/// Why a request's headers are refused, in words for the sender.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The header is absent.
    #[error("the header `{0}` is missing")]
    Missing(&'static str),
    /// The header occurs more than once, so it is unclear which value was signed.
    #[error("the header `{0}` is there more than once")]
    Doubled(&'static str),
    /// The header has no value.
    #[error("the header `{0}` is empty")]
    Empty(&'static str),
    /// The value is longer than any sender needs.
    #[error("the header `{0}` is longer than {1} bytes")]
    TooLong(&'static str, usize),
    /// The value has a byte outside printable ASCII.
    #[error("the header `{0}` has characters other than printable ASCII")]
    NotAscii(&'static str),
    /// The id has a `.`, which could shift bytes between the parts of the signed content, or a
    /// space.
    #[error("the header `{0}` must not contain `.` or spaces")]
    BadId(&'static str),
    /// The timestamp is not a number of seconds.
    #[error("the header `{0}` is not a whole number of seconds since 1970")]
    BadTimestamp(&'static str),
}

/// The attempt's timestamp is too far from the current time.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the timestamp is more than {tolerance_s} s away from this server's clock")]
pub struct Stale {
    tolerance_s: u64,
}

/// A request's webhook headers: well formed, not yet verified.
#[derive(Debug)]
pub struct WebhookHeaders {
    id: String,
    timestamp_digits: String,
    timestamp: DateTime<Utc>,
    signatures: Vec<String>,
}

impl WebhookHeaders {
    /// Parses the headers. `values` returns all values of a header, by its lower-case name.
    pub fn parse<'v, I>(values: impl Fn(&'static str) -> I) -> Result<Self, HeaderError>
    where
        I: Iterator<Item = &'v [u8]>,
    {
        let [id_name, timestamp_name, signature_name] = *SETS
            .iter()
            .find(|set| set.iter().any(|name| values(name).next().is_some()))
            .unwrap_or(&SETS[0]);

        let id = text(id_name, only(id_name, values(id_name))?, MAX_ID_LEN)?;
        if id.contains(['.', ' ']) {
            return Err(HeaderError::BadId(id_name));
        }

        let digits = only(timestamp_name, values(timestamp_name))?;
        let digits = text(timestamp_name, digits, 20)?;
        let bad_timestamp = HeaderError::BadTimestamp(timestamp_name);
        let timestamp = Some(&digits)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .and_then(|seconds| Utc.timestamp_opt(seconds, 0).single())
            .ok_or(bad_timestamp)?;

        let signatures = values(signature_name)
            .map(|line| text(signature_name, line, MAX_SIGNATURES_LEN))
            .collect::<Result<Vec<_>, _>>()?;
        if signatures.is_empty() {
            return Err(HeaderError::Missing(signature_name));
        }
        if signatures.iter().map(String::len).sum::<usize>() > MAX_SIGNATURES_LEN {
            return Err(HeaderError::TooLong(signature_name, MAX_SIGNATURES_LEN));
        }

        Ok(Self {
            id,
            timestamp_digits: digits,
            timestamp,
            signatures,
        })
    }

    /// The idempotency key: 1 to 200 bytes of printable ASCII without `.` and space.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The timestamp as the sender wrote and signed it.
    pub fn timestamp_digits(&self) -> &str {
        &self.timestamp_digits
    }

    /// When the sender made this attempt.
    pub fn timestamp(&self) -> DateTime<Utc> {
        self.timestamp
    }

    /// The values of all signature header lines.
    pub fn signatures(&self) -> &[String] {
        &self.signatures
    }

    /// Checks that the attempt is at most `tolerance` in the past or future.
    pub fn check_fresh(&self, now: DateTime<Utc>, tolerance: Duration) -> Result<(), Stale> {
        let tolerance_s = tolerance.as_secs();
        if now.timestamp().abs_diff(self.timestamp.timestamp()) > tolerance_s {
            return Err(Stale { tolerance_s });
        }
        Ok(())
    }
}

fn only<'v>(
    name: &'static str,
    mut values: impl Iterator<Item = &'v [u8]>,
) -> Result<&'v [u8], HeaderError> {
    let value = values.next().ok_or(HeaderError::Missing(name))?;
    match values.next() {
        None => Ok(value),
        Some(_) => Err(HeaderError::Doubled(name)),
    }
}

fn text(name: &'static str, value: &[u8], max_len: usize) -> Result<String, HeaderError> {
    if value.is_empty() {
        return Err(HeaderError::Empty(name));
    }
    if value.len() > max_len {
        return Err(HeaderError::TooLong(name, max_len));
    }
    str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|b| matches!(b, b' '..=b'~')))
        .map(str::to_owned)
        .ok_or(HeaderError::NotAscii(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    type Lines = Vec<(&'static str, Vec<u8>)>;

    fn parse(lines: &Lines) -> Result<WebhookHeaders, HeaderError> {
        WebhookHeaders::parse(|wanted| {
            lines
                .iter()
                .filter(move |(name, _)| *name == wanted)
                .map(|(_, value)| value.as_slice())
        })
    }

    fn lines(id: &str, timestamp: &str, signature: &str) -> Lines {
        vec![
            ("webhook-id", id.into()),
            ("webhook-timestamp", timestamp.into()),
            ("webhook-signature", signature.into()),
        ]
    }

    #[rstest]
    #[case("", "1", "s", HeaderError::Empty("webhook-id"))]
    #[case("a.b", "1", "s", HeaderError::BadId("webhook-id"))]
    #[case("a b", "1", "s", HeaderError::BadId("webhook-id"))]
    #[case("é", "1", "s", HeaderError::NotAscii("webhook-id"))]
    #[case(&"a".repeat(201), "1", "s", HeaderError::TooLong("webhook-id", 200))]
    #[case("a", "", "s", HeaderError::Empty("webhook-timestamp"))]
    #[case("a", "1.5", "s", HeaderError::BadTimestamp("webhook-timestamp"))]
    #[case("a", "-1", "s", HeaderError::BadTimestamp("webhook-timestamp"))]
    #[case("a", "+1", "s", HeaderError::BadTimestamp("webhook-timestamp"))]
    #[case("a", "123abc", "s", HeaderError::BadTimestamp("webhook-timestamp"))]
    #[case(
        "a",
        "9223372036854775807",
        "s",
        HeaderError::BadTimestamp("webhook-timestamp")
    )]
    #[case(
        "a",
        "99999999999999999999",
        "s",
        HeaderError::BadTimestamp("webhook-timestamp")
    )]
    #[case("a", "1", "", HeaderError::Empty("webhook-signature"))]
    #[case("a", "1", &"s".repeat(4_097), HeaderError::TooLong("webhook-signature", 4_096))]
    fn malformed_headers_are_named(
        #[case] id: &str,
        #[case] timestamp: &str,
        #[case] signature: &str,
        #[case] expected: HeaderError,
    ) {
        assert_eq!(
            parse(&lines(id, timestamp, signature)).expect_err("refused"),
            expected
        );
    }

    #[test]
    fn each_missing_or_doubled_header_is_named() {
        for missing in 0..3 {
            let mut lines = lines("a", "1", "s");
            let (name, _) = lines.remove(missing);
            assert_eq!(
                parse(&lines).expect_err("refused"),
                HeaderError::Missing(name)
            );
        }
        for doubled in 0..2 {
            let mut lines = lines("a", "1", "s");
            let name = lines[doubled].0;
            lines.push(lines[doubled].clone());
            assert_eq!(
                parse(&lines).expect_err("refused"),
                HeaderError::Doubled(name)
            );
        }
    }

    #[test]
    fn several_signature_lines_are_kept() {
        let mut lines = lines("a", "1", "v1,x");
        lines.push(("webhook-signature", b"v1,y".to_vec()));
        assert_eq!(parse(&lines).expect("valid").signatures(), ["v1,x", "v1,y"]);
    }

    #[test]
    fn the_svix_set_is_read_but_never_mixed_in() {
        let mut svix: Lines = vec![
            ("svix-id", b"a".to_vec()),
            ("svix-timestamp", b"1".to_vec()),
            ("svix-signature", b"s".to_vec()),
        ];
        assert_eq!(parse(&svix).expect("valid").id(), "a");
        svix[0].0 = "webhook-id";
        assert_eq!(
            parse(&svix).expect_err("mixed"),
            HeaderError::Missing("webhook-timestamp")
        );
    }

    #[rstest]
    #[case(1_000, true)]
    #[case(1_300, true)]
    #[case(700, true)]
    #[case(1_301, false)]
    #[case(699, false)]
    #[case(0, false)]
    fn freshness_is_checked_both_ways(#[case] timestamp: i64, #[case] fresh: bool) {
        let headers = parse(&lines("a", &timestamp.to_string(), "s")).expect("valid");
        let now = Utc.timestamp_opt(1_000, 0).unwrap();
        let outcome = headers.check_fresh(now, Duration::from_secs(300));
        assert_eq!(outcome.is_ok(), fresh);
    }

    proptest! {
        #[test]
        fn no_input_panics(
            id in proptest::collection::vec(any::<u8>(), 0..20),
            timestamp in proptest::collection::vec(any::<u8>(), 0..25),
            signature in proptest::collection::vec(any::<u8>(), 0..80),
            now in any::<i32>(),
        ) {
            let lines = vec![
                ("webhook-id", id),
                ("webhook-timestamp", timestamp),
                ("webhook-signature", signature),
            ];
            if let Ok(headers) = parse(&lines) {
                prop_assert!(!headers.id().is_empty() && !headers.id().contains('.'));
                let now = Utc.timestamp_opt(now.into(), 0).unwrap();
                // Extreme timestamps do not overflow the comparison.
                prop_assert!(headers.check_fresh(now, Duration::MAX).is_ok());
            }
        }
    }
}
