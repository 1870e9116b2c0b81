//! The memory budget that all bodies share.
//!
//! A signature can be checked only when the whole body is there, so unauthenticated clients can
//! fill any budget. To leave room for small bodies, a full budget evicts the largest body that is
//! not being verified yet; among bodies of about the same size, the oldest. A body whose
//! verification has begun is never evicted.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// There is no room: every other body is smaller or is already being verified.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// The budget and what is used of it.
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

/// The order of eviction: the greatest rank goes first. Sizes are rounded up to a power of two.
/// Otherwise a body that is held one byte below the limit would outlive every complete one.
type Rank = (usize, Reverse<u64>);

#[derive(Debug)]
struct Unverified {
    bytes: usize,
    revoked: CancellationToken,
}

/// One body's share of the budget, released on drop.
#[derive(Debug)]
pub struct Share<'m> {
    memory: &'m BodyMemory,
    number: u64,
    bytes: usize,
    revoked: CancellationToken,
    /// Whether it can no longer be evicted.
    pinned: bool,
}

impl BodyMemory {
    /// `budget` is in bytes.
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            shares: Mutex::default(),
        }
    }

    /// An empty share for a new body.
    pub fn share(&self) -> Share<'_> {
        let mut shares = self.lock();
        shares.next += 1;
        let share = Share {
            memory: self,
            number: shares.next,
            bytes: 0,
            revoked: CancellationToken::new(),
            pinned: false,
        };
        shares.unverified.insert(share.rank(), share.entry());
        share
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shares {
    /// Evicts bodies of a greater rank until `bytes` more fit.
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
    /// Adds bytes to the share.
    ///
    /// # Errors
    /// If there is no room for them, or the share was evicted.
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

    /// Waits until the share is evicted.
    pub async fn revoked(&self) {
        self.revoked.cancelled().await;
    }

    /// Protects the share from eviction, from the start of its verification.
    ///
    /// # Errors
    /// If it was evicted already.
    pub fn pin(&mut self) -> Result<(), Full> {
        let mut shares = self.memory.lock();
        shares.unverified.remove(&self.rank()).ok_or(Full)?;
        self.pinned = true;
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
        // The eviction already subtracted an evicted share.
        if self.pinned || shares.unverified.remove(&rank).is_some() {
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
        verified.pin().expect("still there");
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
        assert_eq!(large.pin(), Err(Full));
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
                    // Both results are right.
                    100..150 => drop(shares[index].pin()),
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
