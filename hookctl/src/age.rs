//! How long ago something was, in words.

/// Seconds in the two largest units that they fill, such as `3d 4h` or `12s`. A negative time, from two
/// machines with different clocks, counts as zero.
pub fn words(seconds: f64) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let mut rest = seconds.max(0.0) as u64;
    let mut parts = Vec::new();
    for (unit, length) in UNITS {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.truncate(2);
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::words;

    #[rstest]
    #[case(-1.0, "0s")]
    #[case(0.9, "0s")]
    #[case(59.0, "59s")]
    #[case(61.0, "1m 1s")]
    #[case(3_600.0, "1h")]
    #[case(3_601.0, "1h")]
    #[case(100_000.0, "1d 3h")]
    fn an_age_has_at_most_two_units(#[case] seconds: f64, #[case] expected: &str) {
        assert_eq!(words(seconds), expected);
    }
}
