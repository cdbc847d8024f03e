//! Reading the table when a pool is opened, and writing what changed in it with each checkpoint.

use std::collections::BTreeSet;

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, Device, Durability, SegmentId, header::HeaderError, request,
    salvage, sync::atomic::Ordering,
};

use super::{
    CONDEMNED, Inner, Segment, SegmentTable, UNUSED,
    pages::{
        COPIES, ENTRIES_PER_PAGE, FoundPage, NEVER_WRITTEN, Newest, SLOTS_PER_PAGE, decode_page,
        encode_page, inconsistent, slot_offset,
    },
    sum_of, version_term,
};
use crate::{
    error::{MetadataError, Result},
    layout::Layout,
    repair::Repair,
    segment_count::SegmentCount,
};

/// What a checkpoint record says of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableRecord {
    /// The checkpoint's number.
    pub(crate) number: u64,
    /// How many segments the pool had: only these have pages in the table.
    pub(crate) segment_count: u32,
    /// Over the versions of those pages.
    pub(crate) versions_sum: u64,
}

impl SegmentTable {
    /// Reads the table as of a checkpoint. A pool that has grown since has more segments: they were
    /// never used, and what stands in their pages does not count. Returns also
    /// the copies that the other copy made up for; the next checkpoint writes their pages anew.
    pub(crate) async fn load(
        device: &dyn Device,
        pool: u64,
        layout: Layout,
        record: TableRecord,
        next_generation: u64,
        count_now: SegmentCount,
    ) -> Result<(Self, Vec<Repair>)> {
        let TableRecord { number, segment_count, versions_sum } = record;
        const PAGES_PER_READ: usize = 128;
        const SLOTS_BYTES: usize = SLOTS_PER_PAGE as usize * BLOCK_BYTES;
        let count = segment_count as usize;
        let pages = count.div_ceil(ENTRIES_PER_PAGE);
        let mut segments = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut newest = Vec::with_capacity(pages);
        let mut suspect: Option<HeaderError> = None;
        let mut repairs = Vec::new();
        let mut dirty_pages = BTreeSet::new();
        for first in (0..pages).step_by(PAGES_PER_READ) {
            let chunk = PAGES_PER_READ.min(pages - first);
            let read = |copy| {
                let start = slot_offset(&layout, first, 0, copy);
                salvage::read(device, start, AlignedBuffer::zeroed(chunk * SLOTS_BYTES))
            };
            // Both under way before either is awaited.
            let (first_copies, second_copies) = (read(0), read(1));
            let copies = [first_copies.await?, second_copies.await?];
            for page in first..first + chunk {
                let at = (page - first) * SLOTS_BYTES;
                let slots = copies.each_ref().map(|copy| {
                    [at, at + BLOCK_BYTES].map(|slot| copy.part(slot..slot + BLOCK_BYTES))
                });
                let FoundPage { newest: found, repair, passed_over, has_later_slot } =
                    decode_page(slots, pool, &layout, page, number, &mut segments, count)?;
                newest.push(found);
                suspect = suspect.or(passed_over);
                if has_later_slot || repair.is_some() {
                    dirty_pages.insert(page);
                }
                repairs.extend(repair);
            }
        }
        let sum = sum_of(&newest);
        if sum != versions_sum {
            // A copy that was passed over is the likely one; else one holds an older version.
            return Err(match suspect {
                Some(error) => MetadataError::Header(error).into(),
                None => inconsistent("sum of versions", sum),
            });
        }
        let now = count_now.get() as usize;
        if now < count {
            return Err(inconsistent("segment count", segment_count.into()));
        }
        segments.0.resize(now, UNUSED);
        segments.1.resize(now, 0);
        let pages_now = now.div_ceil(ENTRIES_PER_PAGE);
        newest.resize(pages_now, NEVER_WRITTEN);
        dirty_pages.extend(pages..pages_now);
        let mut table = Self::assemble(pool, layout, count_now, segments, newest, next_generation);
        table.inner.get_mut().dirty_pages = dirty_pages;
        Ok((table, repairs))
    }

    /// Writes the changed pages as of checkpoint `number`. Not durable until the device is flushed,
    /// not valid until the record is stored; then call [`stored`](Self::stored).
    pub(crate) async fn store_changes(
        &self,
        device: &dyn Device,
        number: u64,
    ) -> Result<StoredPages> {
        let mut writes = Vec::new();
        let mut pages = Vec::new();
        // Freed now, at the moment at which the pages say so.
        let (versions_sum, segment_count, freeing);
        {
            let mut inner = self.inner.lock();
            segment_count = inner.segments.len() as u32;
            for page in std::mem::take(&mut inner.dirty_pages) {
                let Newest { version, slot } = inner.newest[page];
                let slot = 1 - slot;
                let change = version_term(page, number).wrapping_sub(version_term(page, version));
                inner.versions_sum = inner.versions_sum.wrapping_add(change);
                for copy in 0..COPIES {
                    let address = slot_offset(&self.layout, page, slot, copy);
                    let buffer = encode_page(self.page(&inner, page), self.pool, address, number);
                    writes.push((address, buffer));
                }
                pages.push((page, Newest { version: number, slot }));
            }
            versions_sum = inner.versions_sum;
            freeing = std::mem::take(&mut inner.freeing);
        }
        let mut pending = Vec::with_capacity(writes.len());
        for (address, buffer) in writes {
            pending.push(request::write(device, address, buffer, Durability::Flush));
        }
        for write in pending {
            write.await?;
        }
        Ok(StoredPages { pages, freeing, versions_sum, segment_count })
    }

    /// The segments of a page.
    fn page(&self, inner: &Inner, page: usize) -> impl Iterator<Item = Segment> {
        let first = page * ENTRIES_PER_PAGE;
        let ids = (first as u32..).map(SegmentId).take(ENTRIES_PER_PAGE);
        ids.zip(&inner.segments[first..])
            .filter_map(|(id, packed)| Some(packed.in_use(self.use_of(id)?)))
    }

    /// The checkpoint record is durable: the written pages are the newest, and what it lets go of
    /// is free.
    pub(crate) fn stored(&self, stored: StoredPages) {
        let mut inner = self.inner.lock();
        // Units are added by the checkpointer alone, before it writes the table's pages.
        inner.unrecorded.clear();
        for (page, newest) in stored.pages {
            inner.newest[page] = newest;
        }
        for &id in &stored.freeing {
            inner.set_free(id);
            self.generation_of(id).fetch_and(!CONDEMNED, Ordering::Release);
        }
        inner.undiscarded.extend(&stored.freeing);
    }
}

impl StoredPages {
    /// What was written to the device for them.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.pages.len() as u64 * COPIES * BLOCK_BYTES as u64
    }
}

/// Pages that are written but not yet valid, and segments that are free once they are.
#[must_use]
pub(crate) struct StoredPages {
    pages: Vec<(usize, Newest)>,
    /// The sum over all pages' versions with these, for the record.
    pub(crate) versions_sum: u64,
    /// How many segments they are pages of, for the record: the pool may grow meanwhile.
    pub(crate) segment_count: u32,
    /// Nothing on disk refers to these any more once the record is stored.
    pub(crate) freeing: Vec<SegmentId>,
}
