//! Reads a sequence of patches in key order, ahead of the reader, within a memory limit.
//!
//! Leaf pages that the fence pages name one after another are usually adjacent on the device, so
//! they are read together. The window of pages held or under way starts small and doubles up to
//! its limit, so that a short scan reads little more than it returns.

use std::{collections::VecDeque, sync::Arc};

use siltstone_device::{AlignedBuffer, request::Pending};

use crate::{
    epoch::MAX_LABELS,
    error::{MapError, PageError},
    extent::{Extent, Key},
    leaf::{LeafEntries, LeafEntry, LeafShape},
    page::{self, Contents, ENTRIES_PER_PAGE, PAGE_BYTES, Page, PageRef},
    page_store::PageStore,
    patch::Patch,
};

/// The most pages in one device read.
const MAX_READ_PAGES: usize = 64;
/// The most leaves that begin among versions of the same blocks: more than labels can account for.
/// Bounds the memory that a stack takes.
const MAX_STACK_LEAVES: usize = MAX_LABELS.div_ceil(ENTRIES_PER_PAGE) + 1;
/// The window at the start of a scan.
const FIRST_WINDOW_PAGES: usize = 2;

/// The extents of `patches` (in key order, not overlapping) in a range of keys.
pub(crate) struct PatchReader {
    store: Arc<PageStore>,
    patches: VecDeque<Arc<Patch>>,
    from: Key,
    to: Key,
    window_pages: usize,
    max_window_pages: usize,
    /// The way from the root of the patch being read to the next leaf: fence pages, each with the
    /// position of the next child.
    path: Vec<(Arc<Page>, usize)>,
    /// The range of the patch being read.
    clip: (Key, Key),
    /// A leaf that was found but did not fit into the last read.
    next_leaf: Option<Leaf>,
    queue: VecDeque<Batch>,
    queued_pages: usize,
    current: Option<Current>,
    /// The patch of the last leaf, and its last entry: the patch goes on from there.
    last: Option<(u64, LeafEntry)>,
    /// How many leaves in a row began among versions of the same blocks.
    stack_leaves: usize,
    pages_consumed: u64,
}

/// A leaf to read, and the range in which its entries count.
#[derive(Clone, Copy)]
struct Leaf {
    page: PageRef,
    clip: (Key, Key),
}

enum Batch {
    Cached(Arc<Page>, Leaf),
    Reading(Pending<AlignedBuffer>, Vec<Leaf>),
}

impl Batch {
    fn pages(&self) -> usize {
        match self {
            Self::Cached(..) => 1,
            Self::Reading(_, leaves) => leaves.len(),
        }
    }
}

/// The batch whose entries are being returned.
struct Current {
    bytes: Bytes,
    leaves: Vec<Leaf>,
    /// The leaf being returned, once it has been verified.
    leaf: usize,
    /// How it is packed, if it was read.
    shape: Option<LeafShape>,
    /// Its next entry.
    next: usize,
}

enum Bytes {
    Cached(Arc<Page>),
    Read(AlignedBuffer),
}

impl PatchReader {
    /// A reader of `[from, to)` that holds at most `window_pages` leaf pages (at least one).
    pub(crate) fn new(
        store: Arc<PageStore>,
        patches: impl Iterator<Item = Arc<Patch>>,
        from: Key,
        to: Key,
        window_pages: usize,
    ) -> Self {
        let max_window_pages = window_pages.max(1);
        Self {
            store,
            patches: patches.collect(),
            from,
            to,
            window_pages: max_window_pages.min(FIRST_WINDOW_PAGES),
            max_window_pages,
            path: Vec::new(),
            clip: (from, to),
            next_leaf: None,
            queue: VecDeque::new(),
            queued_pages: 0,
            current: None,
            last: None,
            stack_leaves: 0,
            pages_consumed: 0,
        }
    }

    /// Leaf pages whose entries have all been returned. The current one does not count: a merge
    /// that stops at a number of pages must get past one of them, however many inputs it has.
    pub(crate) fn pages_consumed(&self) -> u64 {
        self.pages_consumed
    }

    /// Bytes of pages held or being read.
    pub(crate) fn memory_bytes(&self) -> usize {
        let current = self.current.as_ref().map_or(0, |current| current.leaves.len());
        (current + self.queued_pages + self.path.len()) * PAGE_BYTES
    }

    /// The next extent if it is in memory; otherwise [`refill`](Self::refill), then ask again.
    #[inline]
    pub(crate) fn buffered(&mut self) -> Option<Extent> {
        let current = self.current.as_mut()?;
        let (from, to) = current.leaves[current.leaf].clip;
        let count = current.entries().len();
        while current.next < count {
            let extent = current.entries().get(current.next).extent();
            current.next += 1;
            if extent.start() >= to {
                current.next = count;
            } else if let Some(extent) = extent.clip(from, to) {
                return Some(extent);
            }
        }
        None
    }

    /// Gets the next leaf into memory; false if there is none.
    pub(crate) async fn refill(&mut self) -> Result<bool, MapError> {
        if let Some(current) = &mut self.current {
            assert_eq!(current.next, current.entries().len(), "the current leaf is used up");
            self.pages_consumed += 1;
            if current.leaf + 1 < current.leaves.len() {
                current.leaf += 1;
                self.verify_current()?;
                return Ok(true);
            }
        }
        self.current = None;
        self.read_ahead().await?;
        let Some(batch) = self.queue.pop_front() else { return Ok(false) };
        self.queued_pages -= batch.pages();
        let (bytes, leaves) = match batch {
            Batch::Cached(page, leaf) => (Bytes::Cached(page), vec![leaf]),
            Batch::Reading(read, leaves) => {
                let PageRef { patch, address, .. } = leaves[0].page;
                let bytes =
                    read.await.map_err(|source| MapError::Read { patch, address, source })?;
                (Bytes::Read(bytes), leaves)
            }
        };
        self.current = Some(Current { bytes, leaves, leaf: 0, shape: None, next: 0 });
        self.verify_current()?;
        Ok(true)
    }

    /// Checks the leaf that comes next in the current batch and finds its first entry in range.
    fn verify_current(&mut self) -> Result<(), MapError> {
        let current = self.current.as_mut().expect("called with a current batch");
        let Leaf { page, clip } = current.leaves[current.leaf];
        if let Bytes::Read(bytes) = &current.bytes {
            let bytes = &bytes[current.leaf * PAGE_BYTES..][..PAGE_BYTES];
            let verified = page::verify(bytes, &page, self.store.pool);
            let (patch, address) = (page.patch, page.address);
            let contents = verified.map_err(|source| MapError::Page { patch, address, source })?;
            let Contents::Leaf(shape) = contents else { unreachable!("its height is 0") };
            current.shape = Some(shape);
        }
        // Whole pages in a wrong order, or without their beginning: merges rely on order.
        let entries = current.entries();
        let (first, last) = (entries.get(0), entries.last());
        let before = self.last.filter(|(patch, _)| *patch == page.patch);
        let in_order = before.map_or(!first.is_older(), |(_, before)| first.follows(&before));
        self.stack_leaves = if first.is_older() { self.stack_leaves + 1 } else { 0 };
        if !in_order || self.stack_leaves > MAX_STACK_LEAVES {
            let (patch, address, source) = (page.patch, page.address, PageError::OutsideFence);
            return Err(MapError::Page { patch, address, source });
        }
        self.last = Some((page.patch, last));
        current.next = entries.partition_point(|entry| entry.extent().end() <= clip.0);
        Ok(())
    }

    /// Starts reads until the window is full.
    async fn read_ahead(&mut self) -> Result<(), MapError> {
        let read_pages = (self.window_pages / 2).clamp(1, MAX_READ_PAGES);
        // A read that fits only in part would be a small one: it waits for room.
        while self.queued_pages == 0 || self.queued_pages + read_pages <= self.window_pages {
            let Some(first) = self.next_leaf().await? else { return Ok(()) };
            if let Some(page) = self.store.cache.get(&first.page) {
                self.queued_pages += 1;
                self.queue.push_back(Batch::Cached(page, first));
                continue;
            }
            let mut leaves = vec![first];
            while leaves.len() < read_pages {
                let Some(leaf) = self.next_leaf().await? else { break };
                let adjacent = first.page.address.plus((leaves.len() * PAGE_BYTES) as u64);
                if leaf.page.address != adjacent {
                    self.next_leaf = Some(leaf);
                    break;
                }
                leaves.push(leaf);
            }
            self.queued_pages += leaves.len();
            let read = self.store.start_read(first.page.address, leaves.len());
            self.queue.push_back(Batch::Reading(read, leaves));
        }
        self.window_pages = (self.window_pages * 2).min(self.max_window_pages);
        Ok(())
    }

    /// Finds the next leaf in range.
    async fn next_leaf(&mut self) -> Result<Option<Leaf>, MapError> {
        if let Some(leaf) = self.next_leaf.take() {
            return Ok(Some(leaf));
        }
        loop {
            let Some((fence, next)) = self.path.last_mut() else {
                let Some(patch) = self.patches.pop_front() else { return Ok(None) };
                self.clip = (self.from.max(patch.first), self.to.min(patch.end()));
                if self.clip.0 < self.clip.1
                    && let Some(leaf) = self.descend(patch.root()).await?
                {
                    return Ok(Some(leaf));
                }
                continue;
            };
            let entries = fence.fence();
            if *next >= entries.len() {
                self.path.pop();
            } else if entries[*next].key() >= self.clip.1 {
                self.path.clear();
            } else {
                let child = fence.child(*next);
                *next += 1;
                if let Some(leaf) = self.descend(child).await? {
                    return Ok(Some(leaf));
                }
            }
        }
    }

    /// Goes down to a page: a leaf is returned, a fence page becomes the end of the path.
    async fn descend(&mut self, page: PageRef) -> Result<Option<Leaf>, MapError> {
        if page.height == 0 {
            return Ok(Some(Leaf { page, clip: self.clip }));
        }
        let fence = self.store.read_once(page).await?;
        let first = fence.child_index(self.clip.0);
        self.path.push((fence, first));
        Ok(None)
    }
}

impl Current {
    #[inline]
    fn entries(&self) -> LeafEntries<'_> {
        match &self.bytes {
            Bytes::Cached(page) => page.leaf(),
            Bytes::Read(bytes) => {
                let shape = self.shape.as_ref().expect("the leaf has been verified");
                let bytes = &bytes[self.leaf * PAGE_BYTES..][..PAGE_BYTES];
                LeafEntries::new(page::whole(bytes), shape)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pollster::block_on;
    use siltstone_device::{BlockAddress, ByteOffset, LayerId, SegmentId, sim::SimDevice};

    use super::*;
    use crate::{
        epoch::Epoch,
        extent::{Target, VersionKey},
        fence::FenceEntry,
        leaf::LeafBuilder,
        patch::{HeldLayer, PageExtent},
        space::SegmentGeometry,
    };

    /// Reads a patch of two leaves, whose root says that they begin at 0 and 100.
    fn read(firsts: [u64; 2]) -> Result<Vec<u64>, MapError> {
        let key = |address| Key::new(LayerId(1), address);
        let device = SimDevice::new(1 << 20);
        let put = |number: u64, height, build: &dyn Fn(&mut [u8], PageRef) -> u32| {
            let address = ByteOffset(number * PAGE_BYTES as u64);
            let page = PageRef { address, patch: 7, checksum: 0, height };
            let mut bytes = vec![0; PAGE_BYTES];
            let checksum = build(&mut bytes, page);
            device.corrupt(address.0, &bytes);
            PageRef { checksum, ..page }
        };
        let fences = [0, 1].map(|at| {
            let entries: Vec<_> = (firsts[at]..firsts[at] + 3)
                .map(|address| Extent {
                    layer: LayerId(1),
                    epoch: Epoch::FIRST,
                    address: BlockAddress(address),
                    len_blocks: 1,
                    target: Target::Hole,
                })
                .map(|extent| LeafEntry::new(extent, false))
                .collect();
            let entries = LeafBuilder::of(&entries);
            let leaf = put(at as u64, 0, &|bytes, page| page::build_leaf(bytes, &entries, 5, page));
            let first = VersionKey::new(key(at as u64 * 100), Epoch::FIRST);
            FenceEntry::new(first, false, leaf.address, leaf.checksum)
        });
        let root = put(2, 1, &|bytes, page| page::build_fence(bytes, &fences, 5, page));
        let patch = Patch {
            id: 7,
            level: 0,
            draining: false,
            root_address: root.address,
            root_checksum: root.checksum,
            root_height: 1,
            first: key(0),
            last: key(200),
            entries: 6,
            holes: 6,
            layers: vec![HeldLayer::new(LayerId(1), Epoch::FIRST)],
            pages: vec![PageExtent { segment: SegmentId(0), first_page: 0, count: 3 }],
        };
        let geometry = SegmentGeometry { data_start: ByteOffset(0), segment_bytes: 1 << 20 };
        let store = Arc::new(PageStore::new(device.clone(), 5, geometry, 0));
        let patches = [Arc::new(patch)].into_iter();
        let mut reader = PatchReader::new(store, patches, Key::MIN, key(1000), 8);
        let mut found = Vec::new();
        while block_on(reader.refill())? {
            while let Some(extent) = reader.buffered() {
                found.push(extent.address.0);
            }
        }
        Ok(found)
    }

    #[test]
    fn whole_leaves_in_a_wrong_order_are_an_error() {
        assert_eq!(read([0, 100]).unwrap(), [0, 1, 2, 100, 101, 102]);
        assert_eq!(read([0, 3]).unwrap(), [0, 1, 2, 3, 4, 5]);
        for firsts in [[100, 0], [50, 50], [0, 2]] {
            let error = read(firsts).unwrap_err();
            let MapError::Page { patch: 7, address, source: PageError::OutsideFence } = error
            else {
                panic!("{error}")
            };
            assert_eq!(address.0, PAGE_BYTES as u64);
        }
    }
}
