//! The segment table: for each segment what it is used for and what is known about its contents.
//!
//! In memory the table has one owner of truth, a mutex ([`packed`]); generations alone are kept in
//! atomics, because every frame read compares one, and change under that mutex only. On disk it is an array of 4 KiB pages in a
//! region of its own, two slots a page, two copies a slot ([`pages`]). A checkpoint writes the pages
//! that changed since the last one, each into the slot that does not hold its newest durable
//! version, before the checkpoint record that makes them valid. A page's version is the number of
//! its checkpoint: opening takes, for each page, the newest whole copy whose number is not above the
//! checkpoint record's. A crash between the page writes and the record therefore leaves the old
//! table intact. The record carries a sum over all pages' versions, so that a slot of which both
//! copies are damaged or stale is not passed over for an older one: that would free what is in use.
//!
//! # Life of a segment
//! ```text
//! Free -> Frontier  a checkpoint reserves it for the sealer, with a new generation
//!      -> Data      a checkpoint finds it full and all of its units in patches
//!      -> Freeing   nothing refers to it, and no link to it can still be under way
//! Free -> Data      the collector moves blocks into it
//! Free -> Metadata  the checkpointer writes patch pages into it
//!      -> Freeing   none of its pages is in the manifest
//! Free -> IndexImage  an image of the index is being written, or is stored
//!      -> Freeing   another image is stored, or there is no room for one
//! Freeing -> Free   the checkpoint that says so is durable
//! ```
//! A segment in which damage was found is *damaged* until it is freed, and takes no new links: what
//! is written again, from a backup say, must not be taken for what cannot be read there.
//!
//! A Data segment is *condemned* when no patch refers to it; from then on reducers refuse new
//! links to it. It is freed by a later checkpoint that covers every batch which had started before
//! the condemnation, if nothing refers to it then. `references` counts the blocks that map entries
//! in patches refer to, exactly (cursor's `Edit`); it is rebuilt from nothing by `check`.

use std::collections::{BTreeMap, BTreeSet};

use siltstone_cursor::Edit;
use siltstone_device::{
    SegmentId,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{error::Result, layout::Layout, segment_count::SegmentCount};

mod generations;
mod image;
mod packed;
mod pages;
mod pretended;
mod store;
mod undiscarded;
mod usage;

use generations::Generations;
use packed::{Packed, UNUSED};
pub(crate) use pages::{COPIES, ENTRIES_PER_PAGE, SLOTS_PER_PAGE};
use pages::{NEVER_WRITTEN, Newest, inconsistent};
pub(crate) use store::{StoredPages, TableRecord};
use undiscarded::Undiscarded;

/// What a segment is used for. The discriminants are on-disk values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SegmentState {
    /// Nothing: may be taken.
    Free = 0,
    /// Reserved for or being filled by the sealer.
    Frontier = 1,
    /// Full of write units, all of them in patches.
    Data = 2,
    /// Holds pages of patches.
    Metadata = 3,
    /// Holds chunks of an image of the index.
    IndexImage = 4,
    /// Free once the next checkpoint is durable; on disk this is Free.
    Freeing = 5,
}

/// What is known of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) state: SegmentState,
    /// Which use of the segment this is; pool-wide increasing, 0 = never used.
    pub(crate) generation: u64,
    /// Blocks that map entries in patches refer to.
    pub(crate) references: u64,
    /// Blocks stored in its frames.
    pub(crate) stored_blocks: u32,
    /// Bytes of it that write units, pages or chunks fill.
    pub(crate) used_bytes: u32,
    /// Patch pages in the manifest.
    pub(crate) pages: u32,
    /// Damage was found in its write units: no new links into them.
    pub(crate) is_damaged: bool,
}

/// What a page's version adds to the sum that the checkpoint record carries: an odd multiple of
/// the version that differs from page to page, so that no single wrong version goes unnoticed.
fn version_term(page: usize, version: u64) -> u64 {
    let factor = (page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) << 1 | 1;
    version.wrapping_mul(factor)
}

fn sum_of(newest: &[Newest]) -> u64 {
    let terms = newest.iter().enumerate().map(|(page, newest)| version_term(page, newest.version));
    terms.fold(0, u64::wrapping_add)
}

/// Set in a generation's atomic while new links into its segment are refused: it is condemned, or
/// being emptied, or damaged.
const CONDEMNED: u64 = 1 << 63;

/// Sums over the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) free_segments: u64,
    pub(crate) stored_blocks: u64,
    pub(crate) data_bytes: u64,
    pub(crate) metadata_bytes: u64,
    /// Segments in which damage was found and something may still live.
    pub(crate) damaged_segments: u64,
}

/// The table. See the module's page.
pub(crate) struct SegmentTable {
    pool: u64,
    layout: Layout,
    generations: Generations,
    /// The generation that the next taken segment gets: every use that began later has at least
    /// this one.
    next_generation: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    segments: Vec<Packed>,
    free: u64,
    /// Where the search for a free segment goes on.
    search_from: usize,
    dirty_pages: BTreeSet<usize>,
    /// For each page its newest durable version, and the slot of it.
    newest: Vec<Newest>,
    /// The sum over all pages' versions as last written.
    versions_sum: u64,
    /// Data segments that nothing refers to, with the batches started when that was noticed.
    condemned: BTreeMap<SegmentId, u64>,
    /// Segments to look at for condemnation.
    suspects: BTreeSet<SegmentId>,
    /// Segments that are being emptied: whatever refers to them, no new link may.
    refused: BTreeSet<SegmentId>,
    freeing: Vec<SegmentId>,
    undiscarded: Undiscarded,
    /// Data segments that units were added to since the last stored record, and how far they were
    /// used in it. What lies behind is no part of the pool for whoever recovers from that record,
    /// so nothing that can outlive the record may link to it.
    unrecorded: BTreeMap<SegmentId, u32>,
}

impl SegmentTable {
    /// The table of a new pool: everything is free.
    pub(crate) fn new(pool: u64, layout: Layout, count: SegmentCount) -> Self {
        let segments = vec![UNUSED; count.get() as usize];
        let generations = vec![0; segments.len()];
        let pages = segments.len().div_ceil(ENTRIES_PER_PAGE);
        let newest = vec![NEVER_WRITTEN; pages];
        let mut table = Self::assemble(pool, layout, count, (segments, generations), newest, 1);
        table.inner.get_mut().dirty_pages = (0..pages).collect();
        table
    }

    fn assemble(
        pool: u64,
        layout: Layout,
        count: SegmentCount,
        (segments, generations): (Vec<Packed>, Vec<u64>),
        newest: Vec<Newest>,
        next_generation: u64,
    ) -> Self {
        let refused = segments.iter().map(|s| if s.is_damaged { CONDEMNED } else { 0 });
        let generations = generations.into_iter().zip(refused);
        let generations = Generations::new(count, generations.map(|(number, bit)| number | bit));
        let is_suspect = |s: &Packed| match s.state {
            SegmentState::Data => s.references() == 0,
            SegmentState::Metadata => s.pages() == 0,
            _ => false,
        };
        let suspects = segments.iter().enumerate().filter(|(_, s)| is_suspect(s));
        let inner = Inner {
            free: segments.iter().filter(|s| s.state == SegmentState::Free).count() as u64,
            search_from: 0,
            dirty_pages: BTreeSet::new(),
            versions_sum: sum_of(&newest),
            newest,
            condemned: BTreeMap::new(),
            suspects: suspects.map(|(id, _)| SegmentId(id as u32)).collect(),
            refused: BTreeSet::new(),
            freeing: Vec::new(),
            undiscarded: Undiscarded::default(),
            unrecorded: BTreeMap::new(),
            segments,
        };
        Self {
            pool,
            layout,
            generations,
            next_generation: AtomicU64::new(next_generation),
            inner: Mutex::new(inner),
        }
    }

    /// The generation of a segment, and whether new links into it are allowed. `None` if there is
    /// no such segment.
    pub(crate) fn generation(&self, id: SegmentId) -> Option<(u64, bool)> {
        let value = self.generations.get(id)?.load(Ordering::Acquire);
        Some((value & !CONDEMNED, value & CONDEMNED == 0))
    }

    /// Whether new links into a unit are allowed: it is of the segment's present use, the segment
    /// is not about to be freed, and the unit, which ends `end_bytes` into it, is among those that
    /// count. Behind them may stand units that recovery passed over: whole summaries of torn frames;
    /// or moved blocks that no stored record has.
    pub(crate) fn is_linkable(&self, id: SegmentId, generation: u64, end_bytes: u64) -> bool {
        if self.generation(id) != Some((generation, true)) {
            return false;
        }
        let inner = self.inner.lock();
        let Some(segment) = inner.segments.get(id.0 as usize) else { return false };
        let counts_to = inner.unrecorded.get(&id).copied().unwrap_or(segment.used_bytes);
        end_bytes <= counts_to.into()
    }

    /// What is known of one segment.
    pub(crate) fn segment(&self, id: SegmentId) -> Option<Segment> {
        let inner = self.inner.lock();
        Some(inner.segments.get(id.0 as usize)?.in_use(self.use_of(id)?))
    }

    /// What is known of all segments with data. Of a few at a time, each time as of one moment: a copy
    /// of a large table would be large, too, and holding the lock for all of it would take long.
    pub(crate) fn data_segments(&self) -> impl Iterator<Item = (SegmentId, Segment)> {
        const SEGMENTS_AT_ONCE: u32 = 1024;
        let starts = (0..self.len()).step_by(SEGMENTS_AT_ONCE as usize);
        starts.flat_map(|start| {
            let inner = self.inner.lock();
            let ids = (start..self.len().min(start + SEGMENTS_AT_ONCE)).map(SegmentId);
            let data = ids.filter_map(|id| {
                let packed = inner.segments.get(id.0 as usize)?;
                let is_data = packed.state == SegmentState::Data;
                is_data.then(|| Some((id, packed.in_use(self.use_of(id)?)))).flatten()
            });
            data.collect::<Vec<_>>()
        })
    }

    /// How many segments there are.
    pub(crate) fn len(&self) -> u32 {
        self.generations.len()
    }

    /// The pool has grown: adds segments, all of them free, until there are `count`. What says so
    /// is durable; their pages are written with the next checkpoint.
    pub(crate) fn grow_to(&self, count: u32) {
        let mut inner = self.inner.lock();
        let before = inner.segments.len();
        assert!(before <= count as usize, "segments never become fewer");
        inner.segments.resize(count as usize, UNUSED);
        inner.free += (count as usize - before) as u64;
        let (old_pages, pages) =
            (inner.newest.len(), inner.segments.len().div_ceil(ENTRIES_PER_PAGE));
        inner.newest.resize(pages, NEVER_WRITTEN);
        inner.dirty_pages.extend(old_pages..pages);
        self.generations.grow_to(count);
    }

    /// A segment's generation, whether or not new links into it are allowed.
    fn use_of(&self, id: SegmentId) -> Option<u64> {
        self.generation(id).map(|(generation, _)| generation)
    }

    /// The atomic of a segment that is in the table.
    fn generation_of(&self, id: SegmentId) -> &AtomicU64 {
        self.generations.get(id).expect("a segment in the table has a generation")
    }

    /// How many segments may be taken at once.
    pub(crate) fn free_segments(&self) -> u64 {
        self.inner.lock().free
    }

    /// The generation that the next reserved segment gets; goes into the checkpoint record.
    pub(crate) fn next_generation(&self) -> u64 {
        self.next_generation.load(Ordering::SeqCst)
    }

    /// Takes a free segment for the sealer, for patch pages, for an image of the index, or, as data,
    /// for moved blocks.
    pub(crate) fn take(&self, state: SegmentState) -> Option<(SegmentId, u64)> {
        debug_assert!(!matches!(state, SegmentState::Free | SegmentState::Freeing));
        let mut inner = self.inner.lock();
        if inner.free == 0 {
            return None;
        }
        // What was freed last first: the medium need not find room for it anew.
        let at = match inner.undiscarded.pop_newest() {
            Some(id) => id.0 as usize,
            None => inner.next_free()?,
        };
        assert_eq!(inner.segments[at].state, SegmentState::Free, "what is taken is free");
        // Before the segment can be written, and so before anything in it can be found.
        let generation = self.next_generation.fetch_add(1, Ordering::SeqCst);
        inner.free -= 1;
        inner.segments[at] = Packed::empty(state);
        if state == SegmentState::Data {
            // Nothing may ever refer to what is moved there.
            inner.suspects.insert(SegmentId(at as u32));
        }
        inner.mark_dirty(at);
        self.generation_of(SegmentId(at as u32)).store(generation, Ordering::Release);
        Some((SegmentId(at as u32), generation))
    }

    /// A write unit with `blocks` blocks in its frames has been placed in a segment.
    pub(crate) fn note_unit(&self, id: SegmentId, blocks: u32, bytes: u32) {
        let mut inner = self.inner.lock();
        let Packed { state, used_bytes, .. } = inner.segments[id.0 as usize];
        assert!(matches!(state, SegmentState::Frontier | SegmentState::Data));
        if state == SegmentState::Data {
            inner.unrecorded.entry(id).or_insert(used_bytes);
        }
        let segment = &mut inner.segments[id.0 as usize];
        segment.stored_blocks += blocks;
        segment.used_bytes += bytes;
        inner.mark_dirty(id.0 as usize);
    }

    /// A frontier segment is full and in patches: from now on it is data.
    pub(crate) fn settle(&self, id: SegmentId) {
        let mut inner = self.inner.lock();
        let segment = &mut inner.segments[id.0 as usize];
        assert_eq!(segment.state, SegmentState::Frontier, "{id} settles once");
        segment.state = SegmentState::Data;
        inner.suspects.insert(id);
        inner.mark_dirty(id.0 as usize);
    }

    /// A frontier segment that nothing was written to is not wanted: it is free once a record without
    /// it is stored.
    pub(crate) fn give_back(&self, id: SegmentId) {
        let mut inner = self.inner.lock();
        let segment = inner.segments[id.0 as usize];
        assert_eq!(segment.state, SegmentState::Frontier, "{id} is given back once");
        assert_eq!(segment.used_bytes, 0, "{id} is in use");
        inner.free_later(id);
    }

    /// Applies what writing or merging patches changed.
    ///
    /// # Errors
    /// If the change does not fit the table: the pool's metadata contradict each other.
    pub(crate) fn apply(&self, edit: &Edit) -> Result<()> {
        let mut inner = self.inner.lock();
        for (&id, &change) in &edit.data_references {
            let segment = inner.segments.get_mut(id.0 as usize);
            let counted = segment.and_then(|segment| {
                let references = segment.references().checked_add_signed(change)?;
                *segment = segment.with_references(references)?;
                Some(references)
            });
            let references = counted.ok_or_else(|| inconsistent("reference count", id.0.into()))?;
            if references == 0 {
                inner.suspects.insert(id);
            }
            inner.mark_dirty(id.0 as usize);
        }
        for (&id, &change) in &edit.pages {
            let segment = inner.segments.get_mut(id.0 as usize);
            let counted = segment.and_then(|segment| {
                *segment = segment.with_more_pages(change)?;
                Some(segment.pages())
            });
            let pages = counted.ok_or_else(|| inconsistent("page count", id.0.into()))?;
            if pages == 0 {
                inner.suspects.insert(id);
            }
            inner.mark_dirty(id.0 as usize);
        }
        Ok(())
    }

    /// Finds what can be freed, but for `keep`, which are being filled. `covered` counts the batches
    /// that patches cover, `count_started` those that any reducer has begun: it is asked after
    /// segments are condemned, for a batch that begins before that may still link to them.
    pub(crate) fn reclaim(
        &self,
        covered: u64,
        count_started: impl FnOnce() -> u64,
        keep: &BTreeSet<SegmentId>,
    ) {
        let mut inner = self.inner.lock();
        let condemned = std::mem::take(&mut inner.condemned);
        for (id, started_then) in condemned {
            if inner.segments[id.0 as usize].references() != 0 {
                // A link that was under way has arrived after all.
                self.allow_links_again(&inner, id);
            } else if started_then <= covered {
                inner.free_later(id);
            } else {
                inner.condemned.insert(id, started_then);
            }
        }
        let mut newly_condemned = Vec::new();
        // Until it is known how many had started.
        let not_yet = u64::MAX;
        for id in std::mem::take(&mut inner.suspects) {
            let segment = inner.segments[id.0 as usize];
            match segment.state {
                _ if keep.contains(&id) => {
                    inner.suspects.insert(id);
                }
                SegmentState::Data if segment.references() == 0 => {
                    let already = inner.condemned.contains_key(&id);
                    if !already {
                        self.generation_of(id).fetch_or(CONDEMNED, Ordering::AcqRel);
                        inner.condemned.insert(id, not_yet);
                        newly_condemned.push(id);
                    }
                }
                SegmentState::Metadata if segment.pages() == 0 => inner.free_later(id),
                _ => {}
            }
        }
        drop(inner);
        let started = count_started();
        self.inner.lock().condemned.extend(newly_condemned.into_iter().map(|id| (id, started)));
    }

    /// Refuses new links into segments that are being emptied, until they are free or
    /// [`allow_links`](Self::allow_links).
    pub(crate) fn refuse_links(&self, ids: impl Iterator<Item = SegmentId>) {
        let mut inner = self.inner.lock();
        for id in ids {
            inner.refused.insert(id);
            self.generation_of(id).fetch_or(CONDEMNED, Ordering::AcqRel);
        }
    }

    /// Allows links again into those of `ids` that something still refers to.
    pub(crate) fn allow_links(&self, ids: impl Iterator<Item = SegmentId>) {
        let mut inner = self.inner.lock();
        for id in ids {
            inner.refused.remove(&id);
            let segment = inner.segments[id.0 as usize];
            if segment.state == SegmentState::Data && segment.references() > 0 {
                self.allow_links_again(&inner, id);
            }
        }
    }

    /// After a reason to refuse links into a segment has gone: unless there is another one. One that
    /// is condemned, and was linked to late, is for the next checkpoint to pardon.
    fn allow_links_again(&self, inner: &Inner, id: SegmentId) {
        let is_damaged = inner.segments[id.0 as usize].is_damaged;
        if !is_damaged && !inner.refused.contains(&id) && !inner.condemned.contains_key(&id) {
            self.generation_of(id).fetch_and(!CONDEMNED, Ordering::AcqRel);
        }
    }

    /// A segment in which damage was found has been read and is whole: the device would not read
    /// it for a while.
    pub(crate) fn forget_damage(&self, id: SegmentId, generation: u64) {
        let mut inner = self.inner.lock();
        if self.use_of(id) != Some(generation) {
            return;
        }
        let Some(segment) = inner.segments.get_mut(id.0 as usize) else { return };
        if segment.is_damaged {
            segment.is_damaged = false;
            inner.mark_dirty(id.0 as usize);
            self.allow_links_again(&inner, id);
        }
    }

    /// Damage was found in a segment's units, in this use of it. Returns whether that is new.
    pub(crate) fn note_damage(&self, id: SegmentId, generation: u64) -> bool {
        let mut inner = self.inner.lock();
        let is_same_use = self.use_of(id) == Some(generation);
        let Some(segment) = inner.segments.get_mut(id.0 as usize) else { return false };
        let holds_units = matches!(segment.state, SegmentState::Frontier | SegmentState::Data);
        if !is_same_use || !holds_units || segment.is_damaged {
            return false;
        }
        segment.is_damaged = true;
        self.generation_of(id).fetch_or(CONDEMNED, Ordering::AcqRel);
        inner.mark_dirty(id.0 as usize);
        true
    }

    /// Sums over all segments.
    pub(crate) fn totals(&self) -> Totals {
        let inner = self.inner.lock();
        let mut totals = Totals { free_segments: inner.free, ..Totals::default() };
        for segment in &inner.segments {
            match segment.state {
                SegmentState::Free | SegmentState::Freeing => {}
                SegmentState::Frontier | SegmentState::Data => {
                    totals.stored_blocks += u64::from(segment.stored_blocks);
                    totals.data_bytes += u64::from(segment.used_bytes);
                    totals.damaged_segments += u64::from(segment.is_damaged);
                }
                SegmentState::Metadata | SegmentState::IndexImage => {
                    totals.metadata_bytes += u64::from(segment.used_bytes);
                }
            }
        }
        totals
    }

    /// Recovery only: a frontier segment that turned out to hold nothing that counts.
    pub(crate) fn recover_unused(&self, id: SegmentId) {
        let mut inner = self.inner.lock();
        let at = id.0 as usize;
        assert_eq!(inner.segments[at].state, SegmentState::Frontier, "{id} was in the frontier");
        // The generation stays: stale units of it must not pass for those of a later use.
        inner.segments[at] = UNUSED;
        inner.free += 1;
        inner.mark_dirty(at);
    }

    /// Recovery only: what a scan found in a frontier segment, in place of what the table says.
    pub(crate) fn recover_contents(&self, id: SegmentId, blocks: u32, bytes: u32) {
        let mut inner = self.inner.lock();
        let segment = &mut inner.segments[id.0 as usize];
        segment.stored_blocks = blocks;
        segment.used_bytes = bytes;
        inner.mark_dirty(id.0 as usize);
    }
}

impl Inner {
    fn mark_dirty(&mut self, at: usize) {
        self.dirty_pages.insert(at / ENTRIES_PER_PAGE);
    }

    /// The next free segment, round and round.
    fn next_free(&mut self) -> Option<usize> {
        let (from, count) = (self.search_from, self.segments.len());
        let mut order = (from..count).chain(0..from);
        let at = order.find(|&at| self.segments[at].state == SegmentState::Free)?;
        self.search_from = at + 1;
        Some(at)
    }

    fn free_later(&mut self, id: SegmentId) {
        let at = id.0 as usize;
        self.segments[at] = Packed::empty(SegmentState::Freeing);
        self.refused.remove(&id);
        self.freeing.push(id);
        self.mark_dirty(at);
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
#[path = "segment_table/tests.rs"]
mod tests;
