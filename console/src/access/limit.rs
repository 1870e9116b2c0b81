//! How often a sign-in may fail.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures of one name in a window, after which it has to wait for the window's end.
const MOST_FAILURES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);

/// Counts failures by name. All names that nobody has share one count, so that the memory it takes is
/// bounded by the users file, and an answer does not tell which names there are.
#[derive(Default)]
pub(super) struct Limit {
    failures: Mutex<HashMap<Option<String>, (u32, Instant)>>,
}

impl Limit {
    /// Whether one more try is allowed. It counts as failed until [`Limit::forget`] takes that back,
    /// so that tries at the same time count as well.
    pub(super) fn try_once(&self, name: Option<&str>, now: Instant) -> bool {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = failures.entry(name.map(str::to_owned)).or_insert((0, now));
        if now - entry.1 > WINDOW {
            *entry = (0, now);
        }
        if entry.0 >= MOST_FAILURES {
            return false;
        }
        entry.0 += 1;
        true
    }

    /// The name has signed in.
    pub(super) fn forget(&self, name: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&Some(name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_fails_too_often_waits_and_others_do_not() {
        let (limit, now) = (Limit::default(), Instant::now());
        for _ in 0..MOST_FAILURES {
            assert!(limit.try_once(Some("ada"), now));
        }
        assert!(!limit.try_once(Some("ada"), now));
        assert!(limit.try_once(Some("bob"), now) && limit.try_once(None, now));
        let later = now + WINDOW + Duration::from_secs(1);
        assert!(limit.try_once(Some("ada"), later));
    }

    #[test]
    fn a_good_sign_in_takes_the_failures_back() {
        let (limit, now) = (Limit::default(), Instant::now());
        for _ in 0..20 {
            assert!(limit.try_once(Some("ada"), now));
            limit.forget("ada");
        }
    }
}
