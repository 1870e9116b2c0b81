//! Times and the differences between them, in words.

use chrono::{DateTime, TimeDelta, Utc};

/// A time to the millisecond, in UTC.
pub fn exact(at: &DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string()
}

/// A time to the second, in UTC, without saying so: headings do.
pub fn short(at: &DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// As machines read it.
pub fn machine(at: &DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// How long ago it was, or will be, by this machine's clock.
pub fn ago(at: &DateTime<Utc>) -> String {
    ago_at(*at, Utc::now())
}

fn ago_at(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let passed = now - at;
    if passed.abs() < TimeDelta::seconds(1) {
        "just now".to_owned()
    } else if passed > TimeDelta::zero() {
        format!("{} ago", words(passed))
    } else {
        format!("in {}", words(-passed))
    }
}

/// The two largest units of a difference, with fractions below ten seconds.
pub fn words(difference: TimeDelta) -> String {
    let sign = if difference < TimeDelta::zero() {
        "−"
    } else {
        ""
    };
    let difference = difference.abs();
    let milliseconds = difference.num_milliseconds();
    if milliseconds < 1_000 {
        return format!("{sign}{milliseconds} ms");
    }
    if milliseconds < 10_000 {
        return format!("{sign}{:.1} s", milliseconds as f64 / 1_000.0);
    }
    const UNITS: [(&str, i64); 5] = [
        ("y", 31_536_000),
        ("d", 86_400),
        ("h", 3_600),
        ("min", 60),
        ("s", 1),
    ];
    let mut rest = difference.num_seconds();
    let mut parts = Vec::new();
    for (unit, length) in UNITS {
        if rest >= length {
            parts.push(format!("{} {unit}", rest / length));
            rest %= length;
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.truncate(2);
    format!("{sign}{}", parts.join(" "))
}

/// Reads what a browser's field for a date and a time gives, or RFC 3339; without an offset it is UTC.
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some(at.to_utc());
    }
    [
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%dT%H:%M",
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%d %H:%M",
    ]
    .iter()
    .find_map(|format| chrono::NaiveDateTime::parse_from_str(text, format).ok())
    .map(|at| at.and_utc())
    // Beyond these Postgres has no time.
    .filter(|at| (1..=9_999).contains(&chrono::Datelike::year(at)))
}

/// What a field of the address with this name says, in words if it is no time. Empty is none.
pub fn parse_field(name: &str, text: &str) -> Result<Option<DateTime<Utc>>, String> {
    match text {
        "" => Ok(None),
        _ => parse(text)
            .map(Some)
            .ok_or_else(|| format!("`{name}` is no time: write it as 2026-11-26T17:30, in UTC")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0 ms")]
    #[case(420, "420 ms")]
    #[case(-1_500, "−1.5 s")]
    #[case(59_999, "59 s")]
    #[case(61_000, "1 min 1 s")]
    #[case(3_601_000, "1 h")]
    #[case(100_000_000, "1 d 3 h")]
    #[case(40_000_000_000, "1 y 97 d")]
    fn a_difference_has_at_most_two_units(#[case] milliseconds: i64, #[case] expected: &str) {
        assert_eq!(words(TimeDelta::milliseconds(milliseconds)), expected);
    }

    #[test]
    fn times_before_and_after_now_are_told_apart() {
        let now = DateTime::UNIX_EPOCH;
        assert_eq!(ago_at(now - TimeDelta::minutes(3), now), "3 min ago");
        assert_eq!(ago_at(now + TimeDelta::hours(2), now), "in 2 h");
        assert_eq!(ago_at(now, now), "just now");
    }

    #[rstest]
    #[case("2026-11-26T17:30", Some("2026-11-26T17:30:00Z"))]
    #[case(" 2026-11-26 17:30:01.5 ", Some("2026-11-26T17:30:01.5Z"))]
    #[case("2026-11-26T17:30:00+01:00", Some("2026-11-26T16:30:00Z"))]
    #[case("yesterday", None)]
    #[case("99999-01-01T00:00", None)]
    #[case("", None)]
    fn a_time_is_utc_unless_it_says_otherwise(#[case] text: &str, #[case] expected: Option<&str>) {
        let expected = expected.map(|text| text.parse().expect("a time"));
        assert_eq!(parse(text), expected);
    }
}
