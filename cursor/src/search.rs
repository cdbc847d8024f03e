//! Searching a page: guesses from the keys' range where an entry is, then gallops.
//!
//! A lookup in a large map spends its time waiting for the cache lines that a search touches.
//! Halving 4 KiB touches six or seven, far apart; keys are spread evenly enough over a page that
//! a guess is right within a few entries, which are neighbours in memory. Where the guess is bad,
//! galloping costs at most about twice as many steps as halving.

use crate::{
    epoch::Epoch,
    extent::{Extent, VersionKey},
    fence::FenceEntry,
    leaf::LeafEntries,
};

/// Entries first looked at around the guess.
const FIRST_STEP: usize = 4;

/// Sorted entries.
pub(crate) trait Sorted {
    /// How many.
    fn len(&self) -> usize;
    /// The position of one of them.
    fn version(&self, index: usize) -> VersionKey;
}

impl Sorted for LeafEntries<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.len()
    }

    #[inline]
    fn version(&self, index: usize) -> VersionKey {
        self.version(index)
    }
}

impl Sorted for [FenceEntry] {
    #[inline]
    fn len(&self) -> usize {
        self.len()
    }

    #[inline]
    fn version(&self, index: usize) -> VersionKey {
        self[index].version()
    }
}

/// The number of `entries` in `low..high` whose position is at most `key`, and those before `low`,
/// by halving.
#[inline]
fn halve<S: Sorted + ?Sized>(entries: &S, key: VersionKey, low: usize, high: usize) -> usize {
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = usize::midpoint(low, high);
        if entries.version(middle) <= key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// The number of `entries` (sorted) whose position is at most `key`. The closer all keys spread evenly
/// over `[from, to)`, the faster; the outcome does not depend on it.
#[inline]
pub(crate) fn count_up_to<S: Sorted + ?Sized>(
    entries: &S,
    key: VersionKey,
    from: VersionKey,
    to: VersionKey,
) -> usize {
    if entries.len() == 0 {
        return 0;
    }
    let guess = guess(entries.len(), key, from, to);
    let (mut low, mut high) = (0, entries.len());
    let mut step = FIRST_STEP;
    if entries.version(guess) <= key {
        low = guess + 1;
        while low + step < high {
            if entries.version(low + step) > key {
                high = low + step;
            } else {
                low += step + 1;
                step *= 2;
            }
        }
    } else {
        high = guess;
        while low + step < high {
            if entries.version(high - step) <= key {
                low = high - step + 1;
            } else {
                high -= step;
                step *= 2;
            }
        }
    }
    halve(entries, key, low, high)
}

/// The child in which a search for a position ends: the last that starts at or before it, or the
/// next one if that begins with the newest version of the very block; the first if all start later.
#[inline]
pub(crate) fn child(
    fences: &[FenceEntry],
    at: VersionKey,
    from: VersionKey,
    to: VersionKey,
) -> usize {
    let after = count_up_to(fences, at, from, to);
    match fences.get(after) {
        Some(next) if next.key() == at.key && !next.continues() => after,
        _ => after.saturating_sub(1),
    }
}

/// What a leaf says of a position.
pub(crate) enum InLeaf {
    /// Of what is seen, this comes first: it covers the position or lies behind it.
    Found(Extent),
    /// Nothing is seen before this position.
    NotBefore(VersionKey),
    /// Versions of a run of blocks that covers the position; newer ones, which may be what is
    /// seen, are in leaves before.
    Among(Extent),
}

/// Looks for what is seen as of an epoch at or after a position of that epoch (or an earlier one, if
/// no version of the block is between them), in the entries of the leaf that answers for
/// `[from, to)`.
#[inline]
pub(crate) fn look(
    entries: &LeafEntries<'_>,
    at: VersionKey,
    as_of: Epoch,
    from: VersionKey,
    to: VersionKey,
) -> InLeaf {
    let after = count_up_to(entries, at, from, to);
    if let Some(before) = after.checked_sub(1).map(|index| entries.get(index)) {
        let extent = before.extent();
        if extent.version() == at {
            return InLeaf::Found(extent);
        }
        if extent.start() < at.key && extent.end() > at.key {
            return look_among(&entries.first(after), as_of);
        }
    }
    match (after < entries.len()).then(|| entries.get(after)) {
        Some(next) if next.version().epoch() <= as_of => InLeaf::Found(next.extent()),
        Some(next) => InLeaf::NotBefore(VersionKey::new(next.key(), as_of)),
        None => InLeaf::NotBefore(to.max(VersionKey::new(to.key, as_of))),
    }
}

/// Looks for what is seen among the versions of a run of blocks, the oldest of which is the last
/// entry.
#[inline]
fn look_among(entries: &LeafEntries<'_>, as_of: Epoch) -> InLeaf {
    let last = entries.last();
    let oldest = last.extent();
    if oldest.epoch > as_of {
        return InLeaf::NotBefore(VersionKey::new(oldest.end(), as_of));
    }
    if !last.is_older() {
        return InLeaf::Found(oldest);
    }
    let seen = VersionKey::new(oldest.start(), as_of);
    let first = entries.partition_point(|entry| entry.version() < seen);
    let found = entries.get(first);
    if first == 0 && found.is_older() && found.version() != seen {
        return InLeaf::Among(oldest);
    }
    InLeaf::Found(found.extent())
}

/// Where among `count` evenly spread keys `key` would be.
#[inline]
fn guess(count: usize, key: VersionKey, from: VersionKey, to: VersionKey) -> usize {
    let (key, from, to) = (key.key, from.key, to.key);
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
    use crate::{epoch::Epoch, extent::Key};
    use proptest::prelude::*;
    use siltstone_device::LayerId;

    impl Sorted for [VersionKey] {
        fn len(&self) -> usize {
            self.len()
        }

        fn version(&self, index: usize) -> VersionKey {
            self[index]
        }
    }

    fn any_key() -> impl Strategy<Value = VersionKey> {
        (0..3u32, prop_oneof![0..300u64, 0..1u64 << 48], 0..3u32).prop_map(
            |(layer, address, epoch)| {
                VersionKey::new(Key::new(LayerId(layer), address), Epoch(epoch))
            },
        )
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
                prop_assert_eq!(count_up_to(keys.as_slice(), key, bounds.0, bounds.1), expected);
                if let (Some(first), Some(last)) = (keys.first(), keys.last()) {
                    prop_assert_eq!(count_up_to(keys.as_slice(), key, *first, VersionKey::first(last.key.next())), expected);
                }
            }
        }
    }
}
