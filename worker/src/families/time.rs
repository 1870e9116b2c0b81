//! Times that Postgres can hold.

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Deserializer, de::Error};

/// The first year that lies in Postgres' `timestamptz` as a whole, which begins in November of 4714
/// before Christ. Its last year is later than any that is read here.
const FIRST_YEAR: i32 = -4_712;

/// A time that Postgres' `timestamptz` can hold. Refusing others while parsing gives the event a
/// readable problem, which no later attempt would change.
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
