//! Writes sorted extents as patches: pages appended to metadata segments, large writes, several
//! in flight.
//!
//! A patch is written leaf by leaf, then its fence pages bottom-up, the root last. Nothing is
//! flushed: who stores the manifest flushes the device first.
//!
//! Who writes a patch either [`finish`](PatchWriter::finish)es or
//! [`abandon`](PatchWriter::abandon)s. Abandoning waits for what is in flight, so that the space
//! can be written again.

use std::collections::VecDeque;

use siltstone_device::{
    AlignedBuffer, DeviceError, Durability, SegmentId,
    request::{self, Pending},
};

use crate::{
    error::MapError,
    extent::{Extent, Key, Target, VersionKey},
    fence::FenceEntry,
    leaf::{LeafBuilder, LeafEntry},
    manifest::Tail,
    page::{self, ENTRIES_PER_PAGE, PAGE_BYTES, PageRef},
    page_store::PageStore,
    patch::{HeldLayer, PageExtent, Patch},
    space::SegmentSource,
};

/// Pages in one device write.
const WRITE_PAGES: usize = 64;
/// Device writes under way at once.
const MAX_WRITES_IN_FLIGHT: usize = 4;

/// Where patches are appended, and under which number the next one goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct AppendPoint {
    pub(crate) tail: Tail,
    pub(crate) next_patch: u64,
    /// Segments that abandoned operations were given and did not use.
    pub(crate) spares: Vec<SegmentId>,
}

pub(crate) struct PatchWriter<'a> {
    store: &'a PageStore,
    source: &'a mut (dyn SegmentSource + Send),
    before: AppendPoint,
    at: AppendPoint,
    /// Segments taken from `source` by this writer.
    taken: Vec<SegmentId>,
    level: u8,
    max_leaves: u32,
    batch: Option<Batch>,
    in_flight: VecDeque<Pending<AlignedBuffer>>,
    leaf: LeafBuilder,
    /// The current patch, once it has an entry.
    current: Option<Current>,
    finished: Vec<Patch>,
    pages_written: u64,
}

/// Adjacent pages that will be one device write.
struct Batch {
    buffer: AlignedBuffer,
    segment: SegmentId,
    first_page: u32,
    count: u32,
}

struct Current {
    patch: Patch,
    /// The leaves written so far.
    fences: Vec<FenceEntry>,
    /// Where the leaf that is being filled begins, and whether with an older version.
    leaf_first: (VersionKey, bool),
}

/// What a writer wrote.
pub(crate) struct Written {
    pub(crate) patches: Vec<Patch>,
    pub(crate) at: AppendPoint,
    pub(crate) pages: u64,
}

impl<'a> PatchWriter<'a> {
    pub(crate) fn new(
        store: &'a PageStore,
        source: &'a mut (dyn SegmentSource + Send),
        at: AppendPoint,
        level: u8,
        max_leaves: u32,
    ) -> Self {
        Self {
            store,
            source,
            before: at.clone(),
            at,
            taken: Vec::new(),
            level,
            max_leaves: max_leaves.max(1),
            batch: None,
            in_flight: VecDeque::new(),
            leaf: LeafBuilder::new(),
            current: None,
            finished: Vec::new(),
            pages_written: 0,
        }
    }

    pub(crate) fn pages_written(&self) -> u64 {
        self.pages_written
    }

    /// Appends the next stack: versions of the same blocks, newest first, which start at or after
    /// the end of the last one. It is all in one patch, and in one leaf if it fits there, so that
    /// a lookup finds what it wants in one leaf. A longer one has its leaves alone: those that
    /// begin with an older version need not be read for any other blocks.
    pub(crate) async fn push(&mut self, stack: &[Extent]) -> Result<(), MapError> {
        let Some(newest) = stack.first() else { return Ok(()) };
        let versions =
            stack.iter().enumerate().map(|(at, version)| LeafEntry::new(*version, at > 0));
        let is_full = !self.leaf.fits(versions);
        let ends_a_stack = self.current.as_ref().is_some_and(|current| current.leaf_first.1);
        if !self.leaf.is_empty() && (is_full || ends_a_stack) {
            self.write_leaf().await?;
        }
        if self.leaf.is_empty() {
            let leaves = self.current.as_ref().map_or(0, |current| current.fences.len());
            if leaves >= self.max_leaves as usize {
                self.finish_patch().await?;
            }
        }
        self.begin_stack(newest, stack);
        let mut before: Option<&Extent> = None;
        for version in stack {
            let ordered = |before: &Extent| {
                before.is_same_run(version) && before.version() < version.version()
            };
            assert!(before.is_none_or(ordered), "versions arrive from the newest to the oldest");
            let is_older = before.replace(version).is_some();
            let entry = LeafEntry::new(*version, is_older);
            if !self.leaf.fits(std::iter::once(entry)) {
                self.write_leaf().await?;
            }
            let current = self.current.as_mut().expect("a stack belongs to a patch");
            if self.leaf.is_empty() {
                current.leaf_first = (version.version(), is_older);
            }
            current.patch.entries += 1;
            current.patch.holes += u64::from(version.target == Target::Hole);
            self.leaf.push(entry);
        }
        Ok(())
    }

    /// Makes a stack part of the current patch, or of a new one.
    fn begin_stack(&mut self, newest: &Extent, stack: &[Extent]) {
        let (level, at) = (self.level, &mut self.at);
        let current = self.current.get_or_insert_with(|| {
            let id = at.next_patch;
            at.next_patch += 1;
            let patch = Patch {
                id,
                level,
                draining: false,
                root_address: Default::default(),
                root_checksum: 0,
                root_height: 0,
                first: newest.start(),
                last: newest.start(),
                entries: 0,
                holes: 0,
                layers: Vec::new(),
                pages: Vec::new(),
            };
            Current { patch, fences: Vec::new(), leaf_first: (newest.version(), false) }
        });
        let patch = &mut current.patch;
        assert!(patch.entries == 0 || patch.last < newest.start(), "extents arrive in order");
        patch.last = Key::new(newest.layer, newest.end_address() - 1);
        if patch.layers.last().is_none_or(|held| held.layer != newest.layer) {
            patch.layers.push(HeldLayer::new(newest.layer, newest.epoch));
        }
        patch.layers.last_mut().expect("one was just made").note(stack);
    }

    async fn write_leaf(&mut self) -> Result<(), MapError> {
        let leaf = std::mem::replace(&mut self.leaf, LeafBuilder::new());
        let written =
            self.append(0, |bytes, pool, page| page::build_leaf(bytes, &leaf, pool, page)).await?;
        self.leaf = leaf;
        self.leaf.clear();
        let current = self.current.as_mut().expect("a leaf belongs to a patch");
        let (first, continues) = current.leaf_first;
        current.fences.push(FenceEntry::new(first, continues, written.address, written.checksum));
        set_root(&mut current.patch, written);
        Ok(())
    }

    /// Completes the current patch with its fence pages.
    async fn finish_patch(&mut self) -> Result<(), MapError> {
        if !self.leaf.is_empty() {
            self.write_leaf().await?;
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        let mut children = std::mem::take(&mut current.fences);
        let mut height = 0;
        while children.len() > 1 {
            height += 1;
            let mut parents = Vec::with_capacity(children.len().div_ceil(ENTRIES_PER_PAGE));
            for chunk in children.chunks(ENTRIES_PER_PAGE) {
                let written = self
                    .append(height, |bytes, pool, page| page::build_fence(bytes, chunk, pool, page))
                    .await?;
                let (first, continues) = (chunk[0].version(), chunk[0].continues());
                parents.push(FenceEntry::new(first, continues, written.address, written.checksum));
                set_root(&mut self.current.as_mut().expect("checked above").patch, written);
            }
            children = parents;
        }
        self.finished.extend(self.current.take().map(|current| current.patch));
        Ok(())
    }

    /// Appends one page of the current patch.
    async fn append(
        &mut self,
        height: u8,
        build: impl FnOnce(&mut [u8], u64, PageRef) -> u32,
    ) -> Result<PageRef, MapError> {
        let (segment, page_number) = self.next_page().await?;
        let address = self.store.geometry.page(segment, page_number);
        let current = self.current.as_mut().expect("a page belongs to a patch");
        let mut page = PageRef { address, patch: current.patch.id, checksum: 0, height };
        match current.patch.pages.last_mut() {
            Some(last)
                if last.segment == segment && last.first_page + last.count == page_number =>
            {
                last.count += 1;
            }
            _ => {
                current.patch.pages.push(PageExtent { segment, first_page: page_number, count: 1 });
            }
        }
        let batch = self.batch.get_or_insert_with(|| Batch {
            buffer: self.store.buffers.take(WRITE_PAGES * PAGE_BYTES),
            segment,
            first_page: page_number,
            count: 0,
        });
        let bytes = &mut batch.buffer[batch.count as usize * PAGE_BYTES..][..PAGE_BYTES];
        page.checksum = build(bytes, self.store.pool, page);
        batch.count += 1;
        self.pages_written += 1;
        if batch.count as usize == WRITE_PAGES {
            self.submit_batch().await?;
        }
        Ok(page)
    }

    /// Takes the next free page, from a new segment if the open one is full.
    async fn next_page(&mut self) -> Result<(SegmentId, u32), MapError> {
        let tail = self.at.tail;
        let (segment, page) = match tail.segment {
            Some(segment) if tail.next_page < self.store.geometry.pages_per_segment() => {
                (segment, tail.next_page)
            }
            _ => {
                self.submit_batch().await?;
                let segment = match self.at.spares.pop() {
                    Some(spare) => spare,
                    None => {
                        let segment = self.source.allocate().ok_or(MapError::NoSpace)?;
                        self.taken.push(segment);
                        segment
                    }
                };
                (segment, 0)
            }
        };
        self.at.tail = Tail { segment: Some(segment), next_page: page + 1 };
        Ok((segment, page))
    }

    async fn submit_batch(&mut self) -> Result<(), MapError> {
        let Some(batch) = self.batch.take() else { return Ok(()) };
        while self.in_flight.len() >= MAX_WRITES_IN_FLIGHT {
            self.await_oldest().await?;
        }
        let Batch { mut buffer, segment, first_page, count } = batch;
        buffer.set_len(count as usize * PAGE_BYTES);
        let offset = self.store.geometry.page(segment, first_page);
        self.in_flight.push_back(request::write(
            &*self.store.device,
            offset,
            buffer,
            Durability::Flush,
        ));
        Ok(())
    }

    async fn await_oldest(&mut self) -> Result<(), MapError> {
        if let Some(oldest) = self.in_flight.pop_front() {
            oldest.await.map_err(|source: DeviceError| MapError::Write { source })?;
        }
        Ok(())
    }

    /// Completes the last patch and waits for every write.
    pub(crate) async fn complete(&mut self) -> Result<(), MapError> {
        self.finish_patch().await?;
        self.submit_batch().await?;
        while !self.in_flight.is_empty() {
            self.await_oldest().await?;
        }
        Ok(())
    }

    /// What was written, after [`complete`](Self::complete) has succeeded.
    pub(crate) fn finish(self) -> Written {
        assert!(self.in_flight.is_empty() && self.batch.is_none() && self.current.is_none());
        Written { patches: self.finished, at: self.at, pages: self.pages_written }
    }

    /// Waits for what is in flight and gives the space up; where the next writer may begin.
    pub(crate) async fn abandon(mut self) -> AppendPoint {
        for write in self.in_flight.drain(..) {
            // Whether it succeeded makes no difference: nothing refers to what it wrote.
            let _ = write.await;
        }
        let mut at = self.before;
        at.spares.append(&mut self.taken);
        at
    }
}

/// The page written last is the root, so far.
fn set_root(patch: &mut Patch, page: PageRef) {
    patch.root_address = page.address;
    patch.root_checksum = page.checksum;
    patch.root_height = page.height;
}
