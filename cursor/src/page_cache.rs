//! A cache of verified pages within a fixed budget.
//!
//! Thread safety: sharded by page address, one short lock for each access. Replacement is CLOCK:
//! a hit sets a bit, the hand clears it, and takes the first page that was not hit since it came
//! by last. Pages enter with the bit clear, so that a page read once goes first.
//!
//! Invariant: no shard ever holds more pages than its share of the budget.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use parking_lot::Mutex;
use siltstone_device::ByteOffset;

use crate::page::{PAGE_BYTES, Page, PageRef};

/// What a cached page takes: itself, its bookkeeping, its slot and its place in the table.
pub(crate) const PAGE_COST_BYTES: usize = PAGE_BYTES + 160;
const MAX_SHARDS: usize = 64;
/// A shard has at least this many pages, so that CLOCK has something to choose from.
const MIN_SHARD_PAGES: usize = 64;

pub(crate) struct PageCache {
    /// A power of two.
    shards: Box<[Mutex<Shard>]>,
    shard_pages: usize,
}

#[derive(Default)]
struct Shard {
    by_address: HashMap<u64, usize, BuildHasherDefault<AddressHasher>>,
    slots: Vec<Slot>,
    hand: usize,
}

struct Slot {
    page: Arc<Page>,
    hit: bool,
}

/// Spreads page addresses: one multiplication, its high bits folded down.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte) ^ self.0));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = spread(value);
    }
}

fn spread(value: u64) -> u64 {
    let product = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

impl PageCache {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        let pages = budget_bytes / PAGE_COST_BYTES;
        let shards = (pages / MIN_SHARD_PAGES).clamp(1, MAX_SHARDS);
        let shards = if shards.is_power_of_two() { shards } else { shards.next_power_of_two() / 2 };
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_pages: pages / shards,
        }
    }

    #[inline]
    fn shard(&self, address: ByteOffset) -> &Mutex<Shard> {
        // The table inside the shard uses the same hash's other bits.
        let hash = spread(address.0) >> 48;
        &self.shards[hash as usize & (self.shards.len() - 1)]
    }

    /// The page, if it is here.
    #[inline]
    pub(crate) fn get(&self, page: &PageRef) -> Option<Arc<Page>> {
        let mut shard = self.shard(page.address).lock();
        let slot = *shard.by_address.get(&page.address.0)?;
        let slot = &mut shard.slots[slot];
        if slot.page.reference() != page {
            return None;
        }
        slot.hit = true;
        Some(slot.page.clone())
    }

    /// Keeps a page, in place of another if need be.
    pub(crate) fn insert(&self, page: &Arc<Page>) {
        if self.shard_pages == 0 {
            return;
        }
        let address = page.reference().address;
        let mut guard = self.shard(address).lock();
        let shard = &mut *guard;
        let slot = Slot { page: page.clone(), hit: false };
        let at = if let Some(&at) = shard.by_address.get(&address.0) {
            shard.slots[at] = slot;
            at
        } else if shard.slots.len() < self.shard_pages {
            shard.slots.push(slot);
            shard.slots.len() - 1
        } else {
            let at = shard.advance_hand();
            let evicted = std::mem::replace(&mut shard.slots[at], slot);
            shard.by_address.remove(&evicted.page.reference().address.0);
            at
        };
        shard.by_address.insert(address.0, at);
        assert!(shard.slots.len() <= self.shard_pages, "the page cache's budget is exceeded");
    }

    /// Bytes that cached pages take at this moment.
    pub(crate) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().slots.len()).sum::<usize>() * PAGE_COST_BYTES
    }
}

impl Shard {
    /// The next slot to reuse. Ends within two rounds: the first clears every bit.
    fn advance_hand(&mut self) -> usize {
        loop {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[at].hit) {
                return at;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        epoch::Epoch,
        extent::{Extent, Target},
        leaf::{LeafBuilder, LeafEntry},
        page,
    };
    use siltstone_device::{AlignedBuffer, BlockAddress, LayerId};

    fn page(number: u64, patch: u64) -> Arc<Page> {
        let extent = Extent {
            layer: LayerId(1),
            epoch: Epoch::FIRST,
            address: BlockAddress(number),
            len_blocks: 1,
            target: Target::Hole,
        };
        let leaf = LeafBuilder::of(&[LeafEntry::new(extent, false)]);
        let mut bytes = AlignedBuffer::zeroed(PAGE_BYTES);
        let reference =
            PageRef { address: ByteOffset(number * 4096), patch, checksum: 0, height: 0 };
        let checksum = page::build_leaf(&mut bytes, &leaf, 1, reference);
        Arc::new(Page::new(bytes, PageRef { checksum, ..reference }, 1).unwrap())
    }

    #[test]
    fn the_budget_is_never_exceeded() {
        for budget in [0, PAGE_COST_BYTES - 1, 10 * PAGE_COST_BYTES, 300 * PAGE_COST_BYTES] {
            let cache = PageCache::new(budget);
            for number in 0..1000 {
                cache.insert(&page(number, 1));
                assert!(cache.bytes() <= budget);
            }
            assert!(cache.bytes() + 4 * PAGE_COST_BYTES > budget, "the budget is used");
        }
    }

    #[test]
    fn pages_in_use_outlive_pages_read_once() {
        let cache = PageCache::new(20 * PAGE_COST_BYTES);
        let hot = page(7, 1);
        cache.insert(&hot);
        for number in 100..1000 {
            assert!(cache.get(hot.reference()).is_some(), "page {number}");
            cache.insert(&page(number, 1));
        }
    }

    #[test]
    fn a_recycled_address_is_not_mistaken_for_the_old_page() {
        let cache = PageCache::new(20 * PAGE_COST_BYTES);
        let (old, new) = (page(7, 1), page(7, 2));
        cache.insert(&old);
        assert!(cache.get(new.reference()).is_none());
        cache.insert(&new);
        assert!(cache.get(old.reference()).is_none());
        assert!(cache.get(new.reference()).is_some());
    }
}
