//! Searching a page: guesses from the keys' range where an entry is, then gallops.
//!
//! A lookup in a large map spends its time waiting for the cache lines that a search touches.
//! Halving 4 KiB touches six or seven, far apart; keys are spread evenly enough over a page that
//! a guess is right within a few entries, which are neighbours in memory. Where the guess is bad,
//! galloping costs at most about twice as many steps as halving.

use crate::{
    entry::{FenceEntry, LeafEntry},
    extent::Key,
};

/// Entries first looked at around the guess.
const FIRST_STEP: usize = 4;

/// An entry that has a key.
pub(crate) trait Keyed {
    /// Its key.
    fn key(&self) -> Key;
}

impl Keyed for LeafEntry {
    #[inline]
    fn key(&self) -> Key {
        self.key()
    }
}

impl Keyed for FenceEntry {
    #[inline]
    fn key(&self) -> Key {
        self.key()
    }
}

/// The number of `entries` (sorted) whose key is at most `key`. The closer all keys spread evenly
/// over `[from, to)`, the faster; the outcome does not depend on it.
#[inline]
pub(crate) fn count_up_to<E: Keyed>(entries: &[E], key: Key, from: Key, to: Key) -> usize {
    if entries.is_empty() {
        return 0;
    }
    let guess = guess(entries.len(), key, from, to);
    let (mut low, mut high) = (0, entries.len());
    let mut step = FIRST_STEP;
    if entries[guess].key() <= key {
        low = guess + 1;
        while low + step < high {
            if entries[low + step].key() > key {
                high = low + step;
            } else {
                low += step + 1;
                step *= 2;
            }
        }
    } else {
        high = guess;
        while low + step < high {
            if entries[high - step].key() <= key {
                low = high - step + 1;
            } else {
                high -= step;
                step *= 2;
            }
        }
    }
    low + entries[low..high].partition_point(|entry| entry.key() <= key)
}

/// Where among `count` evenly spread keys `key` would be.
#[inline]
fn guess(count: usize, key: Key, from: Key, to: Key) -> usize {
    if from.layer != to.layer || key < from || key >= to {
        return count / 2;
    }
    let range = to.address.0 - from.address.0;
    let offset = key.address.0 - from.address.0;
    // Addresses have 48 bits and pages few entries, so this does not overflow.
    ((offset.saturating_mul(count as u64) / range) as usize).min(count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use siltstone_device::LayerId;

    impl Keyed for Key {
        fn key(&self) -> Key {
            *self
        }
    }

    fn any_key() -> impl Strategy<Value = Key> {
        (0..3u32, prop_oneof![0..300u64, 0..1u64 << 48])
            .prop_map(|(layer, address)| Key::new(LayerId(layer), address))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_count_is_that_of_a_plain_search(
            mut keys in prop::collection::vec(any_key(), 0..200),
            key in any_key(),
            bounds in (any_key(), any_key()),
        ) {
            keys.sort();
            keys.dedup();
            for key in keys.iter().copied().chain([key]) {
                let expected = keys.partition_point(|other| *other <= key);
                prop_assert_eq!(count_up_to(&keys, key, bounds.0, bounds.1), expected);
                if let (Some(first), Some(last)) = (keys.first(), keys.last()) {
                    prop_assert_eq!(count_up_to(&keys, key, *first, last.next()), expected);
                }
            }
        }
    }
}
