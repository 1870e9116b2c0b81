//! Limits how many expensive verifications run at once and decides which one runs next.
//!
//! The next turn goes alternately to the waiter with the least work and to the one that has waited
//! longest. So small work does not wait behind large work, and large work does not starve, even if
//! clients send much of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The scheduler. Clones share their state.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    /// Whether the oldest waiter is next, and not the one with the least work.
    oldest_is_due: bool,
    /// All waiters by number, the oldest first.
    waiting: BTreeMap<u64, Waiter>,
    /// The same waiters, the one with the least work first.
    by_work: BTreeSet<Place>,
}

/// The work and the waiter's number; for equal work the older waiter is first.
type Place = (usize, u64);

#[derive(Debug)]
struct Waiter {
    work: usize,
    sender: oneshot::Sender<Turn>,
}

/// Permission to work, passed on when it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Turns>);

/// Removes a waiter from the queue if its future is dropped.
struct Waiting<'t> {
    turns: &'t Turns,
    number: u64,
}

impl Turns {
    /// At most `at_once` turns are taken at the same time.
    pub fn new(at_once: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: at_once,
            next: 0,
            oldest_is_due: false,
            waiting: BTreeMap::new(),
            by_work: BTreeSet::new(),
        })))
    }

    /// Waits for a turn. `work` is in any unit.
    pub async fn take(&self, work: usize) -> Turn {
        let (receiver, number) = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            (receiver, state.enter(Waiter { work, sender }))
        };
        let _waiting = Waiting {
            turns: self,
            number,
        };
        receiver.await.expect("who waits is given a turn")
    }

    /// Gives a turn to the next waiter, or back.
    fn pass(&self) {
        let mut state = self.lock();
        while let Some(waiter) = state.next_waiter() {
            match waiter.sender.send(Turn(Some(self.clone()))) {
                Ok(()) => {
                    state.oldest_is_due = !state.oldest_is_due;
                    return;
                }
                // The waiter is gone. Dropping the returned turn would call `pass` again, so it is
                // emptied first.
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
    /// Adds a waiter and returns its number.
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

    /// Removes the waiter that gets the next turn.
    fn next_waiter(&mut self) -> Option<Waiter> {
        let number = if self.oldest_is_due {
            *self.waiting.first_key_value()?.0
        } else {
            self.by_work.first()?.1
        };
        self.leave(number)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.turns.lock().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_least_work_is_done_first() {
        let turns = Turns::new(1);
        let turn = turns.take(1).now_or_never().expect("a turn");
        let (mut large, mut small) = (Box::pin(turns.take(9)), Box::pin(turns.take(3)));
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none());
        drop(turn);
        assert!((&mut large).now_or_never().is_none());
        let turn = (&mut small).now_or_never().expect("its turn");
        drop(turn);
        (&mut large).now_or_never().expect("its turn");
    }

    #[test]
    fn a_large_one_is_not_starved_while_small_ones_keep_coming() {
        let turns = Turns::new(1);
        let waiting = |work| {
            let mut waiting = Box::pin(turns.take(work));
            assert!((&mut waiting).now_or_never().is_none());
            waiting
        };
        let mut turn = turns.take(1).now_or_never().expect("a turn");
        for _ in 0..3 {
            let large = waiting(9);
            let (first, _second) = (waiting(1), waiting(1));
            drop(turn);
            turn = first.now_or_never().expect("the turn of the least work");
            let _third = waiting(1);
            drop(turn);
            turn = large.now_or_never().expect("the turn of the oldest");
        }
    }

    #[test]
    fn a_turn_of_whoever_has_left_is_not_lost() {
        let turns = Turns::new(1);
        let turn = turns.take(1).now_or_never().expect("a turn");
        let mut left = Box::pin(turns.take(1));
        let mut given = Box::pin(turns.take(2));
        assert!((&mut left).now_or_never().is_none());
        assert!((&mut given).now_or_never().is_none());
        drop(left);
        assert_eq!(turns.lock().waiting.len(), 1);
        drop(turn);
        drop(given);
        turns.take(3).now_or_never().expect("a turn");
        let state = turns.lock();
        assert_eq!((state.waiting.len(), state.by_work.len()), (0, 0));
    }
}
