//! Turns at work that takes a processor for long: so many at once, and of those that wait the one with
//! the least work first. What strangers can make of their requests is large work, so that of good
//! senders is not behind it.

use std::{
    collections::BTreeMap,
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
    waiting: BTreeMap<Place, oneshot::Sender<Turn>>,
}

/// The work, and the order among those with as much.
type Place = (usize, u64);

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Turns>);

/// Leaves its place when nobody waits there any more.
struct Waiting<'t> {
    turns: &'t Turns,
    place: Place,
}

impl Turns {
    /// So many at once.
    pub fn new(at_once: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: at_once,
            next: 0,
            waiting: BTreeMap::new(),
        })))
    }

    /// Waits for a turn. `work` is in any unit.
    pub async fn take(&self, work: usize) -> Turn {
        let (receiver, place) = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            let place = (work, state.next);
            state.next += 1;
            state.waiting.insert(place, sender);
            (receiver, place)
        };
        let _waiting = Waiting { turns: self, place };
        receiver.await.expect("who waits is given a turn")
    }

    /// Passes a turn on.
    fn pass(&self) {
        let mut state = self.lock();
        while let Some((_, sender)) = state.waiting.pop_first() {
            match sender.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // Nobody waits there any more. This turn is no turn that would be passed on in its turn.
                Err(mut unwanted) => unwanted.0 = None,
            }
        }
        state.free += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.turns.lock().waiting.remove(&self.place);
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
        assert_eq!(turns.lock().waiting.len(), 0);
    }
}
