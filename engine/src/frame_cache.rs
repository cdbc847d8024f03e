//! Decoded frames kept for reads, within a budget of bytes.
//!
//! Sharded by frame; each shard is a second-chance (CLOCK) cache: a hit sets a bit under the
//! shard's lock, eviction clears bits until it finds one that is clear. A frame may also be here
//! undecoded, as read ahead of a sequential reader; whoever asks for it first decodes it.
//!
//! A key is a frame's place with its segment's generation, so that a freed and rewritten segment
//! never answers with old contents.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use parking_lot::Mutex;
use siltstone_device::{AlignedBuffer, Place};

const SHARDS: usize = 16;

/// What a frame's bookkeeping costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Which frame: the place of its first block, and the generation of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FrameKey {
    pub(crate) frame: Place,
    pub(crate) generation: u64,
}

/// A frame's contents.
#[derive(Clone, Debug)]
pub(crate) enum CachedFrame {
    /// Verified and decoded blocks.
    Decoded(Arc<AlignedBuffer>),
    /// The frame's bytes as they came from the device, neither verified nor decoded.
    Raw(Arc<AlignedBuffer>),
}

impl CachedFrame {
    fn cost_bytes(&self) -> usize {
        let (Self::Decoded(bytes) | Self::Raw(bytes)) = self;
        ENTRY_OVERHEAD_BYTES + bytes.capacity()
    }
}

/// See the module's page.
pub(crate) struct FrameCache {
    shards: [Mutex<Shard>; SHARDS],
    shard_budget_bytes: usize,
}

#[derive(Default)]
struct Shard {
    slots: HashMap<FrameKey, usize, BuildHasherDefault<KeyHasher>>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    hand: usize,
    bytes: usize,
}

struct Entry {
    key: FrameKey,
    frame: CachedFrame,
    used: bool,
}

impl FrameCache {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            shard_budget_bytes: budget_bytes / SHARDS,
        }
    }

    fn shard(&self, key: &FrameKey) -> &Mutex<Shard> {
        &self.shards[mix(key.frame.raw()) as usize >> 60 & (SHARDS - 1)]
    }

    /// The frame, if it is here; that counts as a use.
    pub(crate) fn get(&self, key: &FrameKey) -> Option<CachedFrame> {
        let mut shard = self.shard(key).lock();
        let slot = *shard.slots.get(key)?;
        let entry = shard.entries[slot].as_mut().expect("a named slot is filled");
        entry.used = true;
        Some(entry.frame.clone())
    }

    /// Whether the frame is here; that does not count as a use.
    pub(crate) fn contains(&self, key: &FrameKey) -> bool {
        self.shard(key).lock().slots.contains_key(key)
    }

    /// Takes a frame up, in place of what was known of it, evicting others as needed. A frame
    /// larger than a shard's budget is not kept.
    pub(crate) fn insert(&self, key: FrameKey, frame: CachedFrame) {
        let cost = frame.cost_bytes();
        if cost > self.shard_budget_bytes {
            return;
        }
        let mut shard = self.shard(&key).lock();
        shard.remove(&key);
        while shard.bytes + cost > self.shard_budget_bytes {
            shard.evict_one();
        }
        shard.bytes += cost;
        let entry = Some(Entry { key, frame, used: false });
        let slot = match shard.free.pop() {
            Some(slot) => {
                shard.entries[slot] = entry;
                slot
            }
            None => {
                shard.entries.push(entry);
                shard.entries.len() - 1
            }
        };
        shard.slots.insert(key, slot);
        assert!(shard.bytes <= self.shard_budget_bytes, "the budget is never exceeded");
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }
}

impl Shard {
    fn remove(&mut self, key: &FrameKey) {
        if let Some(slot) = self.slots.remove(key) {
            self.release(slot);
        }
    }

    fn release(&mut self, slot: usize) {
        let entry = self.entries[slot].take().expect("a released slot is filled");
        self.bytes -= entry.frame.cost_bytes();
        self.free.push(slot);
    }

    /// Evicts the first entry from the hand on that was not used since the hand last passed.
    fn evict_one(&mut self) {
        loop {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let slot = self.hand;
            self.hand += 1;
            if let Some(entry) = &mut self.entries[slot] {
                if std::mem::take(&mut entry.used) {
                    continue;
                }
                let key = entry.key;
                self.slots.remove(&key);
                self.release(slot);
                return;
            }
        }
    }
}

/// Spreads a place's bits (the finaliser of splitmix64).
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Keys are places and generations: a few well-spread bits need no cryptographic hash.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0.rotate_left(29) ^ value);
    }
}

#[cfg(test)]
mod tests {
    use siltstone_device::SegmentId;

    use super::*;

    fn key(segment: u32) -> FrameKey {
        FrameKey { frame: Place::new(SegmentId(segment), 0, 0), generation: 1 }
    }

    fn frame(fill: u8) -> CachedFrame {
        let mut plain = AlignedBuffer::zeroed(4096);
        plain.fill(fill);
        CachedFrame::Decoded(Arc::new(plain))
    }

    #[test]
    fn the_budget_holds_and_what_is_in_use_stays() {
        let cache = FrameCache::new(SHARDS * 10 * (4096 + ENTRY_OVERHEAD_BYTES));
        for segment in 0..1000 {
            cache.insert(key(segment), frame(segment as u8));
            assert!(cache.get(&key(0)).is_some(), "a frame in use was evicted");
        }
        assert!(cache.bytes() <= SHARDS * 10 * (4096 + ENTRY_OVERHEAD_BYTES));
        let kept = (0..1000).filter(|&segment| cache.get(&key(segment)).is_some()).count();
        assert!((100..=160).contains(&kept), "{kept}");
    }

    #[test]
    fn another_generation_is_another_frame() {
        let cache = FrameCache::new(1 << 20);
        cache.insert(key(1), frame(1));
        assert!(cache.get(&FrameKey { generation: 2, ..key(1) }).is_none());
    }

    #[test]
    fn a_frame_that_cannot_fit_is_not_kept() {
        let cache = FrameCache::new(1024);
        cache.insert(key(1), frame(1));
        assert!(cache.get(&key(1)).is_none());
        assert_eq!(cache.bytes(), 0);
    }
}
