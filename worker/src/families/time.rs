//! Times that Postgres can store.

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// The first year that is completely in the range of Postgres' `timestamptz`, which starts in
/// November 4714 BC. The end of the range is later than any time parsed here.
const FIRST_YEAR: i32 = -4_712;

/// The epoch of Postgres.
const EPOCH: DateTime<Utc> = DateTime::from_timestamp(946_684_800, 0).expect("2000-01-01");

/// A time that Postgres' `timestamptz` can store. Refusing others while parsing gives the event a
/// readable problem at once, as no later attempt would succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(DateTime<Utc>);

impl Time {
    /// The time of an optional field.
    pub fn of(time: Option<Self>) -> Option<DateTime<Utc>> {
        time.map(|time| time.0)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let time = DateTime::deserialize(deserializer)?;
        if time.year() < FIRST_YEAR {
            return Err(D::Error::custom(
                "a time so early that Postgres cannot hold it",
            ));
        }
        Ok(Self(time))
    }
}

/// In Postgres' format, with the microseconds that a column keeps, rounded as sqlx does: towards
/// the beginning of 2000.
impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let since = self.0 - EPOCH;
        let kept = since.num_microseconds().map(TimeDelta::microseconds);
        let time = EPOCH + kept.unwrap_or(since);
        let (is_ad, year) = time.year_ce();
        let era = if is_ad { "" } else { " BC" };
        let rest = time.format("%m-%dT%H:%M:%S%.6fZ");
        serializer.serialize_str(&format!("{year:04}-{rest}{era}"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2025-02-21T10:05:43.530450712+01:00", "2025-02-21T09:05:43.530450Z")]
    #[case("1999-12-31T23:59:59.9999995Z", "2000-01-01T00:00:00.000000Z")]
    #[case("0000-01-02T00:00:00Z", "0001-01-02T00:00:00.000000Z BC")]
    fn a_time_is_written_as_postgres_reads_it(#[case] read: &str, #[case] written: &str) {
        let time: Time = serde_json::from_value(read.into()).expect("a time");
        let json = serde_json::to_value(time).expect("JSON");
        assert_eq!(json, written);
    }
}
