//! Times on the command line.

use chrono::{DateTime, Datelike, Utc};

/// Reads a time such as `2026-11-26T10:00:00Z`, of the years that the tables accept.
///
/// # Errors
/// With the format, or the allowed range.
pub(crate) fn parse(text: &str) -> Result<DateTime<Utc>, String> {
    let time: DateTime<Utc> = text
        .parse()
        .map_err(|error| format!("{error}; write it as 2026-11-26T10:00:00Z"))?;
    if !(1970..=9999).contains(&time.year()) {
        return Err("must be of the years 1970 to 9999".to_owned());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2026-11-26T10:00:00Z", true)]
    #[case("1970-01-01T00:00:00Z", true)]
    #[case("9999-12-31T23:59:59.999999999Z", true)]
    #[case("1970-01-01T00:00:00+01:00", false)]
    #[case("-4800-01-01T00:00:00Z", false)]
    #[case("+10000-01-01T00:00:00Z", false)]
    #[case("+262142-12-31T23:59:59Z", false)]
    #[case("2026-11-26", false)]
    #[case("", false)]
    fn a_time_is_of_the_tables_years(#[case] text: &str, #[case] good: bool) {
        assert_eq!(parse(text).is_ok(), good);
    }
}
