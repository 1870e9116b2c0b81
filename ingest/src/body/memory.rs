//! The memory that all bodies share.
//!
//! Whether a body is signed is known only at its end, so strangers can fill any budget. Small bodies
//! still find room: when the budget is full, the largest body that is not being verified yet is
//! dropped, and among bodies of about the same size the oldest. Once its verification has begun, a
//! body keeps its memory.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// There is no room: every other body is smaller, or verified.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// What all bodies may take together.
#[derive(Debug)]
pub struct BodyMemory {
    budget: usize,
    shares: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    used: usize,
    next: u64,
    unverified: BTreeMap<Rank, Unverified>,
}

/// Whose turn it is to go: the last one's. Sizes are rounded up to a power of two, as otherwise a body
/// that is held a byte short of the limit would outlive every complete one.
type Rank = (usize, Reverse<u64>);

#[derive(Debug)]
struct Unverified {
    bytes: usize,
    revoked: CancellationToken,
}

/// One body's part. It is given back when it is dropped.
#[derive(Debug)]
pub struct Share<'m> {
    memory: &'m BodyMemory,
    number: u64,
    bytes: usize,
    revoked: CancellationToken,
    /// Whether it cannot be taken away any more.
    kept: bool,
}

impl BodyMemory {
    /// `budget` is in bytes.
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            shares: Mutex::default(),
        }
    }

    /// A new body's part, with nothing in it.
    pub fn share(&self) -> Share<'_> {
        let mut shares = self.lock();
        shares.next += 1;
        let share = Share {
            memory: self,
            number: shares.next,
            bytes: 0,
            revoked: CancellationToken::new(),
            kept: false,
        };
        shares.unverified.insert(share.rank(), share.entry());
        share
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shares {
    /// Makes room for a body that is to have this rank.
    fn make_room(&mut self, bytes: usize, budget: usize, rank: Rank) -> Result<(), Full> {
        while self.used + bytes > budget {
            let last = self.unverified.last_entry().ok_or(Full)?;
            if *last.key() < rank || last.get().bytes == 0 {
                return Err(Full);
            }
            let gone = last.remove();
            self.used -= gone.bytes;
            gone.revoked.cancel();
        }
        Ok(())
    }
}

impl Share<'_> {
    /// Takes more bytes.
    ///
    /// # Errors
    /// When there is no room for them, or the share was taken away.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let mut shares = self.memory.lock();
        shares.unverified.remove(&self.rank()).ok_or(Full)?;
        let (before, budget) = (self.bytes, self.memory.budget);
        self.bytes += bytes;
        let room = shares.make_room(bytes, budget, self.rank());
        match room {
            Ok(()) => shares.used += bytes,
            Err(Full) => self.bytes = before,
        }
        shares.unverified.insert(self.rank(), self.entry());
        room
    }

    /// Waits until the share is taken away from a body that is not verified yet.
    pub async fn revoked(&self) {
        self.revoked.cancelled().await;
    }

    /// From now on it cannot be taken away.
    ///
    /// # Errors
    /// When that has happened already.
    pub fn keep(&mut self) -> Result<(), Full> {
        let mut shares = self.memory.lock();
        shares.unverified.remove(&self.rank()).ok_or(Full)?;
        self.kept = true;
        Ok(())
    }

    fn rank(&self) -> Rank {
        (self.bytes.next_power_of_two(), Reverse(self.number))
    }

    fn entry(&self) -> Unverified {
        Unverified {
            bytes: self.bytes,
            revoked: self.revoked.clone(),
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let rank = self.rank();
        let mut shares = self.memory.lock();
        // What was taken away is counted no more.
        if self.kept || shares.unverified.remove(&rank).is_some() {
            shares.used -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(memory: &BodyMemory, bytes: usize) -> Share<'_> {
        let mut share = memory.share();
        share.grow(bytes).expect("room");
        share
    }

    fn is_revoked(share: &Share<'_>) -> bool {
        share.revoked.is_cancelled()
    }

    #[test]
    fn the_largest_goes_first() {
        let memory = BodyMemory::new(1_000);
        let (large, mut small) = (share(&memory, 600), share(&memory, 300));
        small.grow(150).expect("room");
        assert!(is_revoked(&large) && !is_revoked(&small));
        assert_eq!(memory.lock().used, 450);
    }

    #[test]
    fn of_those_that_are_about_as_large_the_oldest_goes_first() {
        let memory = BodyMemory::new(1_000);
        let (old, new) = (share(&memory, 490), share(&memory, 500));
        let newest = share(&memory, 300);
        assert!(is_revoked(&old) && !is_revoked(&new) && !is_revoked(&newest));
    }

    #[test]
    fn the_largest_itself_finds_no_room_and_takes_none_away() {
        let memory = BodyMemory::new(1_000);
        let (small, mut growing) = (share(&memory, 200), share(&memory, 400));
        assert_eq!(growing.grow(500), Err(Full));
        assert!(!is_revoked(&small) && !is_revoked(&growing));
        assert_eq!(memory.lock().used, 600);
    }

    #[test]
    fn a_verified_body_keeps_its_memory_and_one_that_has_none_takes_no_harm() {
        let memory = BodyMemory::new(1_000);
        let mut verified = share(&memory, 1_000);
        verified.keep().expect("still there");
        let empty = memory.share();
        assert_eq!(memory.share().grow(1), Err(Full));
        assert!(!is_revoked(&verified) && !is_revoked(&empty));
        drop(verified);
        memory.share().grow(1_000).expect("room");
    }

    #[test]
    fn what_was_taken_away_can_neither_grow_nor_be_kept() {
        let memory = BodyMemory::new(1_000);
        let mut large = share(&memory, 900);
        let small = share(&memory, 200);
        assert_eq!(large.grow(1), Err(Full));
        assert_eq!(large.keep(), Err(Full));
        drop(large);
        assert_eq!(memory.lock().used, 200);
        drop(small);
        assert_eq!(memory.lock().used, 0);
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_all_is_given_back(
            steps in proptest::collection::vec((0..8_usize, 0..600_usize), 0..100)
        ) {
            let memory = BodyMemory::new(1_000);
            let mut shares: Vec<_> = (0..8).map(|_| memory.share()).collect();
            for (index, bytes) in steps {
                match bytes {
                    0..100 => shares[index] = memory.share(),
                    // Either outcome is right.
                    100..150 => drop(shares[index].keep()),
                    _ => drop(shares[index].grow(bytes)),
                }
                prop_assert!(memory.lock().used <= 1_000);
            }
            drop(shares);
            let left = memory.lock();
            prop_assert_eq!((left.used, left.unverified.len()), (0, 0));
        }
    }
}
