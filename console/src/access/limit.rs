//! How often a sign-in may fail.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures of one name in a window, after which it has to wait for the window's end.
const MOST_FAILURES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);

/// How many counts there are.
const COUNTS: u64 = 1 << 14;

/// Counts failures by a hash of the name, for names of users and others alike. So its memory is bounded,
/// and an answer does not tell which names there are. Two names rarely share a count, and which ones do
/// is another matter in each process.
#[derive(Default)]
pub(super) struct Limit {
    hasher: RandomState,
    failures: Mutex<HashMap<u64, (u32, Instant)>>,
}

impl Limit {
    /// Whether one more try is allowed. It counts as failed until [`Limit::forget`] takes that back,
    /// so that tries at the same time count as well.
    pub(super) fn try_once(&self, name: &str, now: Instant) -> bool {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = failures.entry(self.count_of(name)).or_insert((0, now));
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
        failures.remove(&self.count_of(name));
    }

    fn count_of(&self, name: &str) -> u64 {
        self.hasher.hash_one(name) % COUNTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_fails_too_often_waits_and_others_do_not() {
        let (limit, now) = (Limit::default(), Instant::now());
        for _ in 0..MOST_FAILURES {
            assert!(limit.try_once("ada", now));
        }
        assert!(!limit.try_once("ada", now));
        let others = (0..100).filter(|other| limit.try_once(&format!("user-{other}"), now));
        assert!(others.count() > 90);
        let later = now + WINDOW + Duration::from_secs(1);
        assert!(limit.try_once("ada", later));
    }

    #[test]
    fn a_good_sign_in_takes_the_failures_back() {
        let (limit, now) = (Limit::default(), Instant::now());
        for _ in 0..20 {
            assert!(limit.try_once("ada", now));
            limit.forget("ada");
        }
    }
}
