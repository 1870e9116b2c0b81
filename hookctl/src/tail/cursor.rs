//! The position of a tail.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

/// `stored_at` is the time when a worker's transaction began, and a row becomes visible when it commits: a
/// row that becomes visible later may have an earlier time. Workers end a transaction after 30 s.
const LATE: TimeDelta = TimeDelta::seconds(60);

/// The position of a tail: each poll reads again all events that were stored since some time before the
/// newest one, and remembers which it has shown.
#[derive(Debug)]
pub(super) struct Cursor {
    newest: DateTime<Utc>,
    seen: HashMap<String, DateTime<Utc>>,
}

impl Cursor {
    /// All events that were stored from this time on are new.
    pub(super) fn from(time: DateTime<Utc>) -> Self {
        Self::after(time + LATE)
    }

    /// All events are new that become visible after this time, so they may have been stored a little
    /// earlier.
    pub(super) fn after(time: DateTime<Utc>) -> Self {
        Self {
            newest: time,
            seen: HashMap::new(),
        }
    }

    /// The earliest time from which on something may be new.
    pub(super) fn lower_bound(&self) -> DateTime<Utc> {
        self.newest - LATE
    }

    /// Remembers an event; returns whether it was new.
    pub(super) fn pass(&mut self, webhook_id: String, stored_at: DateTime<Utc>) -> bool {
        self.newest = self.newest.max(stored_at);
        self.seen.insert(webhook_id, stored_at).is_none()
    }

    /// Forgets events that no later poll reads. Not during a poll, whose lower bound is older.
    pub(super) fn forget(&mut self) {
        let bound = self.lower_bound();
        self.seen.retain(|_, stored_at| *stored_at >= bound);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).expect("a time")
    }

    #[test]
    fn an_event_is_new_once_also_where_it_shows_late() {
        let mut cursor = Cursor::after(at(1_000));
        assert!(cursor.pass("b".into(), at(1_100)));
        cursor.forget();
        assert_eq!(cursor.lower_bound(), at(1_040));
        assert!(
            cursor.pass("a".into(), at(1_050)),
            "began before, shows after"
        );
        assert!(!cursor.pass("b".into(), at(1_100)));
        assert!(!cursor.pass("a".into(), at(1_050)));
    }

    #[test]
    fn what_is_out_of_sight_is_forgotten() {
        let mut cursor = Cursor::from(at(1_000));
        assert_eq!(cursor.lower_bound(), at(1_000));
        for second in 1_000..2_000 {
            cursor.pass(second.to_string(), at(second));
        }
        cursor.forget();
        assert_eq!(cursor.seen.len(), 61);
    }
}
