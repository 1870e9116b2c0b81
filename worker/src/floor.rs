//! Where a search for the oldest rows starts.
//!
//! Deleted rows leave entries in the index until vacuum removes them, and vacuum cannot do that
//! while an older transaction is open. A search from the start of the index would read all of them
//! each time. So a search starts where the last one ended, and only now and then at the start of
//! the index, to find rows that became visible late.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// A row may become visible this long after its own time, because its transaction takes that long.
/// Later ones are found from the start of the index.
const APPEARS_WITHIN: TimeDelta = TimeDelta::seconds(5);

/// The time at which the next search starts.
#[derive(Debug)]
pub struct Floor {
    reached: Option<DateTime<Utc>>,
    from_the_beginning_every: Duration,
    next_from_the_beginning: Option<Instant>,
}

impl Floor {
    /// The first search starts at the beginning, and so does one in each interval
    /// `from_the_beginning_every`.
    pub fn new(from_the_beginning_every: Duration) -> Self {
        Self {
            reached: None,
            from_the_beginning_every,
            next_from_the_beginning: None,
        }
    }

    /// Where the search at `now` starts; `None` is the beginning.
    pub fn start(&mut self, now: Instant) -> Option<DateTime<Utc>> {
        if self.next_from_the_beginning.is_none_or(|next| next <= now) {
            self.next_from_the_beginning = Some(now + self.from_the_beginning_every);
            return None;
        }
        self.reached.map(|reached| reached - APPEARS_WITHIN)
    }

    /// Records that a search has read everything up to `reached`.
    pub fn advance(&mut self, reached: DateTime<Utc>) {
        self.reached = self.reached.max(Some(reached));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_begins_where_the_last_one_ended_and_now_and_then_at_the_beginning() {
        let every = Duration::from_secs(60);
        let second = Duration::from_secs(1);
        let begun = Instant::now();
        let reached = DateTime::UNIX_EPOCH;
        let mut floor = Floor::new(every);
        assert_eq!(floor.start(begun), None, "the first");
        assert_eq!(floor.start(begun + second), None, "nothing was found yet");
        floor.advance(reached);
        let start = Some(reached - APPEARS_WITHIN);
        assert_eq!(floor.start(begun + second), start);
        // A late row that a search from the beginning found.
        floor.advance(reached - TimeDelta::days(1));
        assert_eq!(floor.start(begun + second), start, "never back");
        assert_eq!(floor.start(begun + every), None);
        assert_eq!(floor.start(begun + every + second), start);
    }
}
