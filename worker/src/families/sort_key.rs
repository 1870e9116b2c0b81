//! Decides which of two states of one resource is newer.

use chrono::{DateTime, Utc};

/// Bytes that compare like the states: by the latest time that the state gives, in nanoseconds,
/// then the status' rank, then the webhook id, so that two different events are never equal. The
/// attempt's time does not count, because a late retry of an old event has a new one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SortKey(Vec<u8>);

impl SortKey {
    /// `latest` is the latest time that the state gives. A state without a time is older than all
    /// states with one.
    pub fn new(latest: Option<DateTime<Utc>>, rank: u8, webhook_id: &str) -> Self {
        let nanoseconds = latest.map_or(i64::MIN, |at| {
            // A time outside the years 1677 to 2262 is clamped; no resource changed then.
            at.timestamp_nanos_opt()
                .unwrap_or(if at < DateTime::UNIX_EPOCH {
                    i64::MIN
                } else {
                    i64::MAX
                })
        });
        // With the sign bit flipped, big-endian bytes compare like the signed numbers.
        let mut key = (nanoseconds ^ i64::MIN).to_be_bytes().to_vec();
        key.push(rank);
        key.extend_from_slice(webhook_id.as_bytes());
        Self(key)
    }

    /// The key as stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_compare_as_time_then_rank_then_id(
            a in (any::<Option<i64>>(), 0_u8..5, "[a-z]{1,3}"),
            b in (any::<Option<i64>>(), 0_u8..5, "[a-z]{1,3}"),
        ) {
            let key = |(ns, rank, id): &(Option<i64>, u8, String)| {
                SortKey::new(ns.map(DateTime::from_timestamp_nanos), *rank, id)
            };
            let expected = |(ns, rank, id): &(Option<i64>, u8, String)| {
                (ns.unwrap_or(i64::MIN), *rank, id.clone())
            };
            prop_assert_eq!(key(&a).cmp(&key(&b)), expected(&a).cmp(&expected(&b)));
        }
    }

    #[test]
    fn times_out_of_range_are_clamped() {
        let key = |text: &str| SortKey::new(text.parse().ok(), 0, "");
        assert!(key("0001-01-01T00:00:00Z") < key("2025-01-01T00:00:00Z"));
        assert!(key("9999-01-01T00:00:00Z") > key("2025-01-01T00:00:00Z"));
    }
}
