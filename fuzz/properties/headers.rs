//! What holds for the webhook headers of every request. Each rule is written down once more here,
//! in other words than the parser's.

use chrono::{DateTime, Duration, Utc};
use ingest::headers::WebhookHeaders;

use super::request::Request;

const NAMES: [[&str; 3]; 2] = [
    ["webhook-id", "webhook-timestamp", "webhook-signature"],
    ["svix-id", "svix-timestamp", "svix-signature"],
];

pub(crate) fn check(input: &[u8]) {
    let request = Request::parse(input);
    let parse = || WebhookHeaders::parse(|name| request.values(name));
    let used = usize::from(!has_any(&request, NAMES[0]) && has_any(&request, NAMES[1]));
    let [id, timestamp, signatures] =
        NAMES[used].map(|name| request.values(name).collect::<Vec<_>>());
    let acceptable = is_id(&id) && is_timestamp(&timestamp) && are_signatures(&signatures);
    let headers = match (parse(), parse()) {
        (Ok(headers), Ok(again)) => {
            assert_eq!(headers.id(), again.id());
            assert_eq!(headers.timestamp_digits(), again.timestamp_digits());
            assert_eq!(headers.signatures(), again.signatures());
            headers
        }
        (Err(error), Err(again)) => {
            assert_eq!(error, again);
            assert!(!acceptable, "{error}");
            return;
        }
        _ => panic!("the same headers were read in two ways"),
    };
    assert!(acceptable, "{headers:?}");

    // What was read is what was sent, and the moment is the one that was signed.
    assert_eq!(id, [headers.id().as_bytes()]);
    assert_eq!(timestamp, [headers.timestamp_digits().as_bytes()]);
    assert!(
        headers
            .signatures()
            .iter()
            .map(String::as_bytes)
            .eq(signatures)
    );
    let seconds = headers.timestamp().timestamp();
    assert_eq!(headers.timestamp_digits().parse(), Ok(seconds));

    // No byte of the signed content can move from one part to another.
    let signed = format!("{}.{}.a.b", headers.id(), headers.timestamp_digits());
    assert!(
        signed
            .splitn(3, '.')
            .eq([headers.id(), headers.timestamp_digits(), "a.b"])
    );
    check_freshness(&headers, seconds);
}

fn check_freshness(headers: &WebhookHeaders, seconds: i64) {
    let tolerance = std::time::Duration::from_secs(300);
    let fresh = |now: DateTime<Utc>| headers.check_fresh(now, tolerance).is_ok();
    for (offset, expected) in [(0, true), (300, true), (301, false)] {
        for offset in [offset, -offset] {
            let offset = Duration::seconds(offset);
            // A timestamp at the end of time has no future.
            if let Some(now) = headers.timestamp().checked_add_signed(offset) {
                assert_eq!(fresh(now), expected, "{seconds} at {now}");
            }
        }
    }
    for now in [
        DateTime::<Utc>::MIN_UTC,
        DateTime::UNIX_EPOCH,
        DateTime::<Utc>::MAX_UTC,
    ] {
        let distance = i128::from(now.timestamp()) - i128::from(seconds);
        assert_eq!(fresh(now), distance.abs() <= 300, "{seconds} at {now}");
    }
}

fn has_any(request: &Request<'_>, names: [&str; 3]) -> bool {
    names
        .iter()
        .any(|name| request.values(name).next().is_some())
}

fn is_id(values: &[&[u8]]) -> bool {
    matches!(values[..], [id] if (1..=200).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.'))
}

fn is_timestamp(values: &[&[u8]]) -> bool {
    let [digits] = values[..] else { return false };
    // 2^63 has 19 digits, so nothing overflows here.
    (1..=20).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_digit)
        && digits
            .iter()
            .fold(0_i128, |sum, digit| sum * 10 + i128::from(digit - b'0'))
            <= i128::from(DateTime::<Utc>::MAX_UTC.timestamp())
}

fn are_signatures(values: &[&[u8]]) -> bool {
    !values.is_empty()
        && values.concat().len() <= 4_096
        && values
            .iter()
            .all(|line| !line.is_empty() && line.iter().all(|byte| (0x20..0x7f).contains(byte)))
}
