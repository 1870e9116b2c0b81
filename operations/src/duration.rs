//! Durations on the command line.

use std::time::Duration;

use shared::config;

/// Longer ones reach beyond what the stores' times can hold, or are slips.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Reads a duration with its unit, such as `10m`, of more than zero and at most ten years.
///
/// # Errors
/// With how it is written, or what it may be.
pub fn parse(text: &str) -> Result<Duration, String> {
    let duration = config::parse_duration(text)?;
    if duration > LONGEST {
        return Err("must be at most ten years".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10m", true)]
    #[case("10years", true)]
    #[case("11years", false)]
    #[case("100000years", false)]
    #[case("0s", false)]
    #[case("10", false)]
    fn a_duration_has_a_unit_and_limits(#[case] text: &str, #[case] good: bool) {
        assert_eq!(parse(text).is_ok(), good);
    }
}
