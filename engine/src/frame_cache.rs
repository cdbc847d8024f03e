//! Frames kept for reads, as they are stored or decoded ([`fetch`](crate::fetch) has why), within a
//! budget of bytes.
//!
//! Sharded by frame; each shard is a second-chance (CLOCK) cache that counts: an entry is passed by so many
//! times before it is evicted, none if it was used once, some if it was used again. What was read ahead of a
//! reader is spared more often, until its reader comes: that was its first use.
//!
//! A key is a frame's place with its segment's generation, so that a freed and rewritten segment
//! never answers with old contents.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use parking_lot::Mutex;
use siltstone_device::{AlignedBuffer, BufferPool, Place};

use crate::{
    error::FrameError,
    frame::{self, FrameIdentity, HeaderBytes, VerifiedFrame},
    health::Milestone,
};

const SHARDS: usize = 16;

/// What a frame's bookkeeping costs beside its bytes, its header included.
const ENTRY_OVERHEAD_BYTES: usize = 192;

/// How often the hand passes by a frame that was used again.
const SPARED_IN_USE: u8 = 1;
/// The same of one that was read ahead and is yet to be used: in that time its reader comes, or does not come
/// any more.
const SPARED_AHEAD: u8 = 4;

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
    /// As it came from the device; to be verified.
    Stored(Arc<StoredFrame>),
    /// On its way from the device. Then it is here as it is stored, or it is not.
    Coming(Arc<Milestone>),
}

impl CachedFrame {
    fn cost_bytes(&self) -> usize {
        ENTRY_OVERHEAD_BYTES
            + match self {
                Self::Decoded(plain) => plain.capacity(),
                Self::Stored(stored) => stored.payload.capacity(),
                Self::Coming(_) => 0,
            }
    }
}

/// A frame as it is stored. The header stands apart: with it, a frame of incompressible blocks would
/// need twice the memory.
#[derive(Debug)]
pub(crate) struct StoredFrame {
    header: HeaderBytes,
    payload: AlignedBuffer,
}

impl StoredFrame {
    /// A copy of a frame.
    pub(crate) fn of(frame: &VerifiedFrame<'_>, buffers: &BufferPool) -> Self {
        Self::copy_of(frame.header, frame.payload, buffers)
    }

    /// A copy of the frame that may be at the start of `bytes`, without what follows it.
    pub(crate) fn unverified(bytes: &[u8], buffers: &BufferPool) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk()?;
        let payload = rest.get(..frame::peek_stored_bytes(header))?;
        Some(Self::copy_of(header, payload, buffers))
    }

    fn copy_of(header: &HeaderBytes, payload: &[u8], buffers: &BufferPool) -> Self {
        let mut own = buffers.take(payload.len());
        own.copy_from_slice(payload);
        Self { header: *header, payload: own }
    }

    /// Checks all of it.
    pub(crate) fn verify(&self, expected: &FrameIdentity) -> Result<VerifiedFrame<'_>, FrameError> {
        frame::verify_parts(&self.header, &self.payload, expected)
    }
}

/// A frame that is in the cache.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) frame: CachedFrame,
    /// It was read ahead, and nobody has asked for it before.
    pub(crate) is_first_use: bool,
}

/// Frames that are being read ahead of a reader.
pub(crate) struct Coming {
    cache: Arc<FrameCache>,
    keys: Vec<FrameKey>,
    arrived: Arc<Milestone>,
}

impl Coming {
    /// Takes up what was read of the device: `frames` has the bytes of each that was announced, in that order.
    pub(crate) fn arrive<'a>(&self, frames: impl Iterator<Item = &'a [u8]>, buffers: &BufferPool) {
        for (key, bytes) in self.keys.iter().zip(frames) {
            // Who could not wait may have put it there.
            if self.cache.is_here(key) {
                continue;
            }
            if let Some(stored) = StoredFrame::unverified(bytes, buffers) {
                self.cache.insert_ahead(*key, CachedFrame::Stored(Arc::new(stored)));
            }
        }
    }
}

impl Drop for Coming {
    /// Whether or not they have arrived, nobody is to wait any longer.
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.cache.forget_coming(key));
        self.arrived.set();
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
    /// Read ahead, and not asked for yet.
    is_ahead: bool,
    /// How often the hand passes it by.
    spared: u8,
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

    /// The frame, if it is here or on its way; that counts as a use if it is here.
    pub(crate) fn get(&self, key: &FrameKey) -> Option<Found> {
        let mut shard = self.shard(key).lock();
        let slot = *shard.slots.get(key)?;
        let entry = shard.entries[slot].as_mut().expect("a named slot is filled");
        if matches!(entry.frame, CachedFrame::Coming(_)) {
            return Some(Found { frame: entry.frame.clone(), is_first_use: true });
        }
        let is_first_use = std::mem::take(&mut entry.is_ahead);
        entry.spared = if is_first_use { 0 } else { SPARED_IN_USE };
        Some(Found { frame: entry.frame.clone(), is_first_use })
    }

    /// Whether the frame is here or on its way; that does not count as a use.
    pub(crate) fn contains(&self, key: &FrameKey) -> bool {
        self.shard(key).lock().slots.contains_key(key)
    }

    fn is_here(&self, key: &FrameKey) -> bool {
        self.shard(key).lock().is_here(key)
    }

    /// Takes up a frame that was just used for the first time, in place of what was known of it, evicting
    /// others as needed. A frame larger than a shard's budget is not kept.
    pub(crate) fn insert(&self, key: FrameKey, frame: CachedFrame) {
        self.insert_entry(Entry { key, frame, is_ahead: false, spared: 0 });
    }

    /// The same of one that was used before, or will be.
    pub(crate) fn insert_in_use(&self, key: FrameKey, frame: CachedFrame) {
        self.insert_entry(Entry { key, frame, is_ahead: false, spared: SPARED_IN_USE });
    }

    /// Announces frames that are about to be read ahead of a reader. Until what is returned is dropped, who
    /// asks for them can wait for them.
    pub(crate) fn announce(self: &Arc<Self>, keys: Vec<FrameKey>) -> Coming {
        let coming = Coming { cache: Arc::clone(self), keys, arrived: Arc::default() };
        for key in &coming.keys {
            self.insert_ahead(*key, CachedFrame::Coming(Arc::clone(&coming.arrived)));
        }
        coming
    }

    /// Takes up what a reader will come for, unless it is here already.
    fn insert_ahead(&self, key: FrameKey, frame: CachedFrame) {
        let mut shard = self.shard(&key).lock();
        if !shard.is_here(&key) {
            let entry = Entry { key, frame, is_ahead: true, spared: SPARED_AHEAD };
            shard.insert(entry, self.shard_budget_bytes);
        }
    }

    /// Forgets a frame that does not come.
    fn forget_coming(&self, key: &FrameKey) {
        let mut shard = self.shard(key).lock();
        if !shard.is_here(key) {
            shard.remove(key);
        }
    }

    fn insert_entry(&self, entry: Entry) {
        self.shard(&entry.key).lock().insert(entry, self.shard_budget_bytes);
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }
}

impl Shard {
    /// Whether the frame is here, not only on its way.
    fn is_here(&self, key: &FrameKey) -> bool {
        let Some(&slot) = self.slots.get(key) else { return false };
        let entry = self.entries[slot].as_ref().expect("a named slot is filled");
        !matches!(entry.frame, CachedFrame::Coming(_))
    }

    fn insert(&mut self, entry: Entry, budget_bytes: usize) {
        let (key, cost) = (entry.key, entry.frame.cost_bytes());
        if cost > budget_bytes {
            return;
        }
        self.remove(&key);
        while self.bytes + cost > budget_bytes {
            self.evict_one();
        }
        self.bytes += cost;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        };
        self.slots.insert(key, slot);
        assert!(self.bytes <= budget_bytes, "the budget is never exceeded");
    }

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

    /// Evicts the first entry from the hand on that is not spared.
    fn evict_one(&mut self) {
        loop {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let slot = self.hand;
            self.hand += 1;
            if let Some(entry) = &mut self.entries[slot] {
                if let Some(spared) = entry.spared.checked_sub(1) {
                    entry.spared = spared;
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
    use crate::frame::FRAME_HEADER_BYTES;

    /// Where a header says how long the frame is.
    const STORED_BYTES_AT: usize = 16;

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
    fn what_was_read_ahead_is_spared_until_it_is_used() {
        let buffers = BufferPool::new(1 << 20);
        let cache = FrameCache::new(SHARDS * 10 * (4096 + ENTRY_OVERHEAD_BYTES));
        let stored = Arc::new(StoredFrame::copy_of(&[0; FRAME_HEADER_BYTES], &[1; 4096], &buffers));
        for segment in 0..16 {
            cache.insert_ahead(key(segment), CachedFrame::Stored(Arc::clone(&stored)));
        }
        for segment in 1000..1160 {
            cache.insert(key(segment), frame(2));
        }
        for segment in 0..16 {
            let found = cache.get(&key(segment)).expect("it is yet to be used");
            assert!(found.is_first_use);
        }
        assert!(!cache.get(&key(15)).unwrap().is_first_use);
        for segment in 2000..2160 {
            cache.insert(key(segment), frame(3));
        }
        let kept = (0..15).filter(|&segment| cache.contains(&key(segment))).count();
        assert!(kept <= 3, "{kept} that were used once were spared");
    }

    #[test]
    fn what_is_put_in_to_be_used_again_outlives_what_was_used_once() {
        let cache = FrameCache::new(SHARDS * 10 * (4096 + ENTRY_OVERHEAD_BYTES));
        for segment in 0..16 {
            cache.insert_in_use(key(segment), frame(1));
        }
        for segment in 1000..1160 {
            cache.insert(key(segment), frame(2));
        }
        let kept = (0..16).filter(|&segment| cache.contains(&key(segment))).count();
        assert!(kept >= 14, "{kept} of those in use were kept");
    }

    #[test]
    fn only_a_whole_frame_is_copied_before_it_is_verified() {
        let buffers = BufferPool::new(1 << 20);
        let mut bytes = vec![0; FRAME_HEADER_BYTES + 100];
        for (stored_bytes, is_there) in
            [(0_u32, true), (100, true), (101, false), (u32::MAX, false)]
        {
            bytes[STORED_BYTES_AT..][..4].copy_from_slice(&stored_bytes.to_le_bytes());
            assert_eq!(StoredFrame::unverified(&bytes, &buffers).is_some(), is_there);
        }
        assert!(StoredFrame::unverified(&bytes[..FRAME_HEADER_BYTES - 1], &buffers).is_none());
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
