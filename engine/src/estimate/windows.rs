//! Windows: batches at random whose every block is followed, when not every block of the data can
//! be.
//!
//! Before the pass over all data their fingerprints are taken up; during it each gets the position
//! at which it is first seen. A block of a window is then a duplicate exactly if its fingerprint was
//! seen at an earlier position: as if everything had been remembered.

use siltstone_dedup::ShortFingerprint;
use siltstone_device::SeededRandom;
use zerocopy::FromZeros;

use crate::estimate::{
    source::{BATCH_BYTES, BLOCK},
    table::key_of,
};

/// Most windows: a GiB of them tells a share of the blocks to within a percent or two.
const MAX_WINDOWS: u64 = 1024;
/// Slots for each block of a window: linear probing wants room.
const SLOTS_A_BLOCK: usize = 2;
/// Not seen yet.
const NOWHERE: u64 = u64::MAX;

#[derive(Clone, Copy, FromZeros)]
struct Entry {
    /// Of the fingerprint; 0 is a free slot.
    key: u64,
    /// The position at which it was seen first, or [`NOWHERE`].
    first: u64,
}

/// See the module's page.
pub(super) struct Windows {
    /// Numbers of batches, ascending. Shared with whoever looks for them while they are filled.
    chosen: Vec<u64>,
    entries: Vec<Entry>,
}

impl Windows {
    /// Chooses windows among so many batches, one at random in each of as many equal stretches as
    /// `bytes` of memory have room for; `None` if the system does not give that.
    pub(super) fn choose(bytes: usize, batches: u64) -> Option<Self> {
        let blocks = (BATCH_BYTES / BLOCK) as usize;
        let window_bytes = blocks * SLOTS_A_BLOCK * size_of::<Entry>();
        let count = ((bytes / window_bytes) as u64).clamp(1, MAX_WINDOWS).min(batches);
        let mut random = SeededRandom::new(batches);
        let start = |n: u64| (u128::from(n) * u128::from(batches) / u128::from(count)) as u64;
        let chosen = (0..count).map(|n| start(n) + random.below(start(n + 1) - start(n))).collect();
        let slots = (count as usize * blocks * SLOTS_A_BLOCK).max(SLOTS_A_BLOCK);
        Some(Self { chosen, entries: Entry::new_vec_zeroed(slots).ok()? })
    }

    pub(super) fn chosen(&self) -> &[u64] {
        &self.chosen
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Takes up the blocks of a window.
    pub(super) fn watch(&mut self, fingerprints: &[ShortFingerprint]) {
        for fingerprint in fingerprints {
            let key = key_of(fingerprint);
            let at = self.slot_of(key);
            self.entries[at] = Entry { key, first: NOWHERE };
        }
    }

    /// Notes blocks that have been seen; positions come in ascending order.
    pub(super) fn enter(&mut self, positions: &[u64], fingerprints: &[ShortFingerprint]) {
        for (&position, fingerprint) in positions.iter().zip(fingerprints) {
            let at = self.slot_of(key_of(fingerprint));
            let entry = &mut self.entries[at];
            if entry.key != 0 && entry.first == NOWHERE {
                entry.first = position;
            }
        }
    }

    /// Which blocks of a window are duplicates of earlier ones.
    pub(super) fn duplicates(
        &self,
        positions: &[u64],
        fingerprints: &[ShortFingerprint],
    ) -> Vec<bool> {
        let is_duplicate = |(&position, fingerprint)| {
            // A block that is not known has changed since it was watched: it is new.
            let entry = &self.entries[self.slot_of(key_of(fingerprint))];
            entry.key != 0 && entry.first < position
        };
        positions.iter().zip(fingerprints).map(is_duplicate).collect()
    }

    /// The key's slot, or the free one where it would be.
    fn slot_of(&self, key: u64) -> usize {
        let len = self.entries.len();
        let mut at = ((u128::from(key) * len as u128) >> 64) as usize;
        while ![0, key].contains(&self.entries[at].key) {
            at = (at + 1) % len;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn fingerprint(n: u64) -> ShortFingerprint {
        let mut random = SeededRandom::new(n);
        let wide = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
        ShortFingerprint::from_bytes(wide.to_le_bytes())
    }

    #[test]
    fn windows_are_spread_over_the_data_and_keep_to_their_memory() {
        for (bytes, batches) in [(0, 1), (8 << 10, 10_000), (8 << 20, 10_000), (8 << 20, 300)] {
            let windows = Windows::choose(bytes, batches).unwrap();
            assert!(windows.bytes() <= bytes.max(8 << 10), "{} for {bytes}", windows.bytes());
            let count = windows.chosen().len() as u64;
            assert!((1..=batches.min(1024)).contains(&count));
            for (n, &chosen) in windows.chosen().iter().enumerate() {
                let stretch = n as u64 * batches / count..(n as u64 + 1) * batches / count;
                assert!(stretch.contains(&chosen), "{chosen} is not in {stretch:?}");
            }
        }
    }

    #[test]
    fn a_block_of_a_window_is_a_duplicate_exactly_if_it_was_seen_before() {
        let mut random = SeededRandom::new(1);
        let stream: Vec<_> = (0..5000).map(|_| fingerprint(random.below(2000))).collect();
        let positions: Vec<u64> = (0..5000).collect();
        let mut windows = Windows::choose(1 << 20, 100).unwrap();
        let of_windows = [300..500, 1000..1200, 4000..4256];
        for range in of_windows.clone() {
            windows.watch(&stream[range]);
        }
        for (positions, blocks) in positions.chunks(256).zip(stream.chunks(256)) {
            windows.enter(positions, blocks);
        }
        for range in of_windows {
            let mut seen: HashSet<_> = stream[..range.start].iter().collect();
            let expected: Vec<_> =
                stream[range.clone()].iter().map(|block| !seen.insert(block)).collect();
            assert_eq!(windows.duplicates(&positions[range.clone()], &stream[range]), expected);
        }
    }
}
