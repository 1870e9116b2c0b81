//! Turns at work that needs a processor for long. A fixed number run at once. The next turn goes
//! alternately to the waiter with the least work and to the one that has waited longest. So small work
//! does not wait behind large work, and large work does not starve behind small work; strangers can make
//! much of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Hands the turns out.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    /// Whether the next turn is the oldest one's.
    oldest_is_due: bool,
    /// By their numbers, the oldest first.
    waiting: BTreeMap<u64, Waiter>,
    /// The same ones, the least work first.
    by_work: BTreeSet<Place>,
}

/// The work, and the number: the order among those with as much.
type Place = (usize, u64);

#[derive(Debug)]
struct Waiter {
    work: usize,
    sender: oneshot::Sender<Turn>,
}

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Turns>);

/// Gives up its place in the line when it is dropped.
struct Waiting<'t> {
    turns: &'t Turns,
    number: u64,
}

impl Turns {
    /// So many at once.
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

    /// Passes a turn on.
    fn pass(&self) {
        let mut state = self.lock();
        while let Some(waiter) = state.next_waiter() {
            match waiter.sender.send(Turn(Some(self.clone()))) {
                Ok(()) => {
                    state.oldest_is_due = !state.oldest_is_due;
                    return;
                }
                // The waiter is gone. Without `None`, dropping the unwanted turn would pass it on again.
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
    /// The waiter's number.
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

    /// Takes the waiter that gets the next turn out of the line.
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
