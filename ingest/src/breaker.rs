//! A circuit breaker. After a failure, a store is not used for a while, so that requests do not
//! each wait for it. Then one batch at a time tries it, until one succeeds.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long the breaker stays open after a failure. The pause doubles with each failed trial.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Guards one store.
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
    /// When the last success or failure was reported.
    heard: Mutex<Option<Instant>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
        pause: Duration,
    },
    /// One batch is trying the store; `pause` is the last pause, doubled if the trial fails.
    Trying {
        pause: Duration,
    },
}

/// Permission to use the store. Report a success with [`Permit::succeeded`]; dropping the permit
/// reports a failure, so that no trial is left open.
#[must_use]
#[derive(Debug)]
pub struct Permit<'b> {
    breaker: &'b Breaker,
    reported: bool,
    /// Whether the store failed before. If the other store can be used instead, give this one only
    /// a short time.
    pub is_trial: bool,
}

impl Breaker {
    /// A permit, if the store may be used at `now`.
    pub fn permit(&self, now: Instant) -> Option<Permit<'_>> {
        let mut state = self.lock();
        let is_trial = match *state {
            State::Closed => false,
            State::Open { until, pause } if until <= now => {
                *state = State::Trying { pause };
                true
            }
            State::Open { .. } | State::Trying { .. } => return None,
        };
        Some(Permit {
            breaker: self,
            reported: false,
            is_trial,
        })
    }

    /// A permit even if the breaker is open, for use when the alternative is to refuse an event.
    pub fn last_resort(&self, now: Instant) -> Permit<'_> {
        self.permit(now).unwrap_or(Permit {
            breaker: self,
            reported: false,
            is_trial: true,
        })
    }

    /// As [`Self::permit`], but only if nothing was reported for `silence`. For probes.
    pub fn permit_if_silent(&self, now: Instant, silence: Duration) -> Option<Permit<'_>> {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = heard.is_none_or(|heard| heard + silence <= now);
        silent.then(|| self.permit(now)).flatten()
    }

    /// Whether the breaker is open or a trial is running.
    pub fn is_open(&self) -> bool {
        *self.lock() != State::Closed
    }

    fn failed(&self, was_trial: bool) {
        let mut state = self.lock();
        let pause = match *state {
            State::Closed => FIRST_PAUSE,
            State::Trying { pause } if was_trial => (pause * 2).min(LONGEST_PAUSE),
            // A late report of a batch that began before the breaker opened adds nothing.
            State::Open { .. } | State::Trying { .. } => return,
        };
        *state = State::Open {
            until: Instant::now() + pause,
            pause,
        };
    }

    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is a plain value, so a panic cannot leave it half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit<'_> {
    /// Reports that the store worked.
    pub fn succeeded(mut self) {
        self.reported = true;
        self.breaker.hear();
        if self.is_trial {
            *self.breaker.lock() = State::Closed;
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.breaker.hear();
            self.breaker.failed(self.is_trial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails a permit and checks that the breaker then stays open for exactly `pause`. Returns a
    /// time at which a trial is allowed.
    fn fail(breaker: &Breaker, permit: Permit<'_>, pause: Duration) -> Instant {
        let before = Instant::now();
        drop(permit);
        let after = Instant::now();
        assert!(breaker.is_open());
        let still = before + pause - Duration::from_millis(1);
        assert!(breaker.permit(still).is_none(), "left alone for {pause:?}");
        after + pause
    }

    #[test]
    fn one_failure_opens_it_and_one_successful_trial_closes_it() {
        let breaker = Breaker::default();
        let permit = breaker.permit(Instant::now()).expect("closed");
        let later = fail(&breaker, permit, FIRST_PAUSE);

        let trial = breaker.permit(later).expect("a trial");
        assert!(trial.is_trial);
        assert!(breaker.permit(later).is_none(), "only one trial");
        trial.succeeded();
        assert!(!breaker.is_open());
        let permit = breaker.permit(later).expect("closed");
        assert!(!permit.is_trial);
        permit.succeeded();
    }

    #[test]
    fn failed_trials_lengthen_the_pause_up_to_a_limit() {
        let breaker = Breaker::default();
        let mut permit = breaker.permit(Instant::now()).expect("closed");
        for pause_ms in [250, 500, 1_000, 2_000, 2_000] {
            let later = fail(&breaker, permit, Duration::from_millis(pause_ms));
            permit = breaker.permit(later).expect("a trial");
        }
        permit.succeeded();
    }

    #[test]
    fn late_reports_of_older_batches_do_not_end_a_trial() {
        let breaker = Breaker::default();
        let early = breaker.permit(Instant::now()).expect("closed");
        let late = breaker.permit(Instant::now()).expect("closed");
        let later = fail(&breaker, early, FIRST_PAUSE);
        let trial = breaker.permit(later).expect("a trial");
        late.succeeded();
        assert!(breaker.is_open(), "only the trial closes it");
        trial.succeeded();
        assert!(!breaker.is_open());
    }

    #[test]
    fn who_only_asks_waits_until_batches_are_silent() {
        let breaker = Breaker::default();
        let silence = Duration::from_secs(3);
        let now = Instant::now();
        let asked = breaker.permit_if_silent(now, silence);
        asked.expect("nothing was heard yet").succeeded();
        assert!(breaker.permit_if_silent(now, silence).is_none());
        let later = Instant::now() + silence;
        drop(breaker.permit_if_silent(later, silence).expect("silence"));
        assert!(breaker.is_open());
        let later = Instant::now() + silence;
        let trial = breaker.permit_if_silent(later, silence).expect("a trial");
        trial.succeeded();
        assert!(!breaker.is_open());
    }

    #[test]
    fn the_last_resort_is_always_there_and_may_close_it() {
        let breaker = Breaker::default();
        let permit = breaker.permit(Instant::now()).expect("closed");
        fail(&breaker, permit, FIRST_PAUSE);
        drop(breaker.last_resort(Instant::now()));
        assert!(breaker.is_open());
        breaker.last_resort(Instant::now()).succeeded();
        assert!(!breaker.is_open());
    }
}
