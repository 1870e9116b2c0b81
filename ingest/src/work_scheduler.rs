//! Limits how many expensive verifications run at once and decides which one runs next.
//!
//! The next permit goes alternately to the waiter with the least work and to the one that has waited
//! longest. So small work does not wait behind large work, and large work does not starve, even if
//! clients send much of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Gives out work permits. Clones share their state.
#[derive(Clone, Debug)]
pub struct WorkScheduler(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    /// Whether the oldest waiter is next, and not the one with the least work.
    oldest_is_due: bool,
    /// All waiters by number, the oldest first.
    waiting: BTreeMap<u64, Waiter>,
    /// The same waiters, the one with the least work first.
    by_work: BTreeSet<WorkAndNumber>,
}

/// The work and the waiter's number; for equal work the older waiter is first.
type WorkAndNumber = (usize, u64);

#[derive(Debug)]
struct Waiter {
    work: usize,
    sender: oneshot::Sender<WorkPermit>,
}

/// Permission to work, passed on when it is dropped.
#[derive(Debug)]
pub struct WorkPermit(Option<WorkScheduler>);

/// Removes a waiter from the queue if its future is dropped.
struct QueueEntry<'s> {
    scheduler: &'s WorkScheduler,
    number: u64,
}

impl WorkScheduler {
    /// Gives out at most `at_once` permits at the same time.
    pub fn new(at_once: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: at_once,
            next: 0,
            oldest_is_due: false,
            waiting: BTreeMap::new(),
            by_work: BTreeSet::new(),
        })))
    }

    /// Waits for a permit. `work` is in any unit.
    pub async fn acquire(&self, work: usize) -> WorkPermit {
        let (receiver, number) = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return WorkPermit(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            (receiver, state.enter(Waiter { work, sender }))
        };
        let _entry = QueueEntry {
            scheduler: self,
            number,
        };
        receiver
            .await
            .expect("a waiter is removed only when it gets a permit")
    }

    /// Gives the permit of finished work to the next waiter, if there is one.
    fn release(&self) {
        let mut state = self.lock();
        while let Some(waiter) = state.next_waiter() {
            match waiter.sender.send(WorkPermit(Some(self.clone()))) {
                Ok(()) => {
                    state.oldest_is_due = !state.oldest_is_due;
                    return;
                }
                // The waiter is gone. Dropping the returned permit would call `release`
                // again, so it is emptied first.
                Err(mut unwanted) => unwanted.0 = None,
            }
        }
        state.free += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enter(&mut self, waiter: Waiter) -> u64 {
        let number = self.next;
        self.next += 1;
        self.by_work.insert((waiter.work, number));
        self.waiting.insert(number, waiter);
        number
    }

    fn leave(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&number)?;
        self.by_work.remove(&(waiter.work, number));
        Some(waiter)
    }

    fn next_waiter(&mut self) -> Option<Waiter> {
        let number = if self.oldest_is_due {
            *self.waiting.first_key_value()?.0
        } else {
            self.by_work.first()?.1
        };
        self.leave(number)
    }
}

impl Drop for WorkPermit {
    fn drop(&mut self) {
        if let Some(scheduler) = self.0.take() {
            scheduler.release();
        }
    }
}

impl Drop for QueueEntry<'_> {
    fn drop(&mut self) {
        self.scheduler.lock().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_least_work_is_done_first() {
        let scheduler = WorkScheduler::new(1);
        let permit = scheduler.acquire(1).now_or_never().expect("a permit");
        let (mut large, mut small) = (
            Box::pin(scheduler.acquire(9)),
            Box::pin(scheduler.acquire(3)),
        );
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none());
        drop(permit);
        assert!((&mut large).now_or_never().is_none());
        let permit = (&mut small).now_or_never().expect("its permit");
        drop(permit);
        (&mut large).now_or_never().expect("its permit");
    }

    #[test]
    fn a_large_one_is_not_starved_while_small_ones_keep_coming() {
        let scheduler = WorkScheduler::new(1);
        let waiting = |work| {
            let mut waiting = Box::pin(scheduler.acquire(work));
            assert!((&mut waiting).now_or_never().is_none());
            waiting
        };
        let mut permit = scheduler.acquire(1).now_or_never().expect("a permit");
        for _ in 0..3 {
            let large = waiting(9);
            let (first, _second) = (waiting(1), waiting(1));
            drop(permit);
            permit = first.now_or_never().expect("the permit for the least work");
            let _third = waiting(1);
            drop(permit);
            permit = large.now_or_never().expect("the permit for the oldest");
        }
    }

    #[test]
    fn a_permit_for_a_dropped_waiter_is_not_lost() {
        let scheduler = WorkScheduler::new(1);
        let permit = scheduler.acquire(1).now_or_never().expect("a permit");
        let mut left = Box::pin(scheduler.acquire(1));
        let mut given = Box::pin(scheduler.acquire(2));
        assert!((&mut left).now_or_never().is_none());
        assert!((&mut given).now_or_never().is_none());
        drop(left);
        assert_eq!(scheduler.lock().waiting.len(), 1);
        drop(permit);
        drop(given);
        scheduler.acquire(3).now_or_never().expect("a permit");
        let state = scheduler.lock();
        assert_eq!((state.waiting.len(), state.by_work.len()), (0, 0));
    }
}
