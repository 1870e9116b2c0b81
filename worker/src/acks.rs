//! Decides which deliveries of a channel may be acknowledged.

use std::collections::BTreeSet;

/// The finished deliveries of one channel. Batches finish in any order, but an acknowledgement with
/// `multiple` includes all earlier tags. So only the last tag of the contiguous prefix of finished
/// deliveries may be acknowledged.
///
/// Delivery tags belong to a channel, so a new channel needs a new value of this type.
#[derive(Debug, Default)]
pub struct Acks {
    /// The last tag of the contiguous prefix. Tags start at 1.
    prefix: u64,
    /// The finished tags after the prefix.
    beyond: BTreeSet<u64>,
}

impl Acks {
    /// Records finished deliveries. If the prefix has grown, returns its last tag, to be
    /// acknowledged with `multiple`.
    pub fn finish(&mut self, tags: impl IntoIterator<Item = u64>) -> Option<u64> {
        self.beyond.extend(tags);
        let before = self.prefix;
        while self.beyond.first() == Some(&(self.prefix + 1)) {
            self.beyond.pop_first();
            self.prefix += 1;
        }
        (self.prefix > before).then_some(self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_beyond_a_gap_is_acknowledged() {
        let mut acks = Acks::default();
        assert_eq!(acks.finish([2, 3]), None);
        assert_eq!(acks.finish([5]), None);
        assert_eq!(acks.finish([1]), Some(3));
        assert_eq!(acks.finish([4]), Some(5));
        assert_eq!(acks.finish([]), None);
    }

    proptest! {
        #[test]
        fn only_what_is_finished_is_acknowledged(
            order in Just((1..=40_u64).collect::<Vec<_>>()).prop_shuffle(),
            batch in 1_usize..10,
        ) {
            let mut acks = Acks::default();
            let mut finished = BTreeSet::new();
            let mut last = 0;
            for tags in order.chunks(batch) {
                finished.extend(tags.iter().copied());
                if let Some(tag) = acks.finish(tags.iter().copied()) {
                    prop_assert!((1..=tag).all(|t| finished.contains(&t)));
                    prop_assert!(tag > last);
                    last = tag;
                }
            }
            prop_assert_eq!(last, 40, "in the end everything is acknowledged");
        }
    }
}
