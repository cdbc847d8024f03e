//! Reads every page of every patch and checks it: for the engine's `check`.
//!
//! Beyond what every read verifies (checksum, identity, order within the page), this checks that
//! pages hold the keys that their parents and the manifest say they hold, that the pages of a
//! patch lie where the manifest says, and recounts what the patches refer to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use siltstone_device::{ByteOffset, SegmentId};

use crate::{
    error::{MapError, PageError},
    extent::{Key, Target},
    map::{Map, Shared},
    page::{PAGE_BYTES, Page, PageRef},
    patch::Patch,
};

/// Errors that are kept in full; further ones are counted.
const MAX_ERRORS: usize = 1000;

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Patches read.
    pub patches: u64,
    /// Pages read.
    pub pages: u64,
    /// Entries that are part of the map.
    pub entries: u64,
    /// By data segment: the blocks that entries in patches refer to. This is the sum of
    /// [`Edit::data_references`](crate::Edit::data_references) since the pool was created.
    pub data_references: BTreeMap<SegmentId, u64>,
    /// What is wrong.
    pub errors: Vec<MapError>,
    /// Errors beyond those in `errors`.
    pub more_errors: u64,
}

impl VerifyReport {
    fn error(&mut self, error: MapError) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        } else {
            self.more_errors += 1;
        }
    }
}

impl Map {
    /// Reads and checks the pages of all patches of this moment. No merge may run meanwhile that
    /// frees them (or its edit has to wait). Memory: the fence pages of one patch.
    pub async fn verify(&self) -> VerifyReport {
        let mut report = VerifyReport::default();
        for patch in self.shared.snapshot().version.patches() {
            report.patches += 1;
            verify_patch(&self.shared, patch, &mut report).await;
        }
        report
    }
}

/// A page to check, and the keys that it may hold.
struct Expected {
    page: PageRef,
    first: Key,
    end: Key,
    /// Whether the page's first key is known exactly.
    exact: bool,
}

async fn verify_patch(shared: &Shared, patch: &Patch, report: &mut VerifyReport) {
    let mut seen = BTreeSet::new();
    // The first key of a patch that is drained says less than that of a whole one.
    let root = Expected { page: patch.root(), first: Key::MIN, end: patch.end(), exact: false };
    let mut todo = vec![root];
    while let Some(expected) = todo.pop() {
        let PageRef { address, patch: id, .. } = expected.page;
        let outside = MapError::Page { patch: id, address, source: PageError::OutsideFence };
        if !lies_in(patch, shared, address) || !seen.insert(address) {
            report.error(outside);
            continue;
        }
        report.pages += 1;
        let page = match read_page(shared, expected.page).await {
            Ok(page) => page,
            Err(error) => {
                report.error(error);
                continue;
            }
        };
        let keys_fit = if expected.page.height == 0 {
            verify_leaf(&page, patch, &expected, report)
        } else {
            push_children(&page, &expected, &mut todo)
        };
        if !keys_fit {
            report.error(outside);
        }
    }
}

/// Whether a page is one of those that the manifest gives to the patch.
fn lies_in(patch: &Patch, shared: &Shared, address: ByteOffset) -> bool {
    let geometry = &shared.store.geometry;
    patch.pages.iter().any(|extent| {
        let start = geometry.page(extent.segment, extent.first_page);
        let end = geometry.page(extent.segment, extent.first_page.saturating_add(extent.count));
        (start..end).contains(&address)
    })
}

/// Reads a page from the device, whether or not it is cached: what is checked is the medium.
async fn read_page(shared: &Shared, page: PageRef) -> Result<Arc<Page>, MapError> {
    let PageRef { patch, address, .. } = page;
    let bytes = shared.store.start_read(address, 1).await;
    let bytes = bytes.map_err(|source| MapError::Read { patch, address, source })?;
    debug_assert_eq!(bytes.len(), PAGE_BYTES);
    Page::new(bytes, page, shared.store.pool).map(Arc::new).map_err(|source| MapError::Page {
        patch,
        address,
        source,
    })
}

fn fits(expected: &Expected, first: Key) -> bool {
    if expected.exact { first == expected.first } else { first >= expected.first }
}

fn verify_leaf(page: &Page, patch: &Patch, expected: &Expected, report: &mut VerifyReport) -> bool {
    let entries = page.leaf();
    for entry in entries {
        let Some(extent) = entry.extent().clip(patch.first, patch.end()) else { continue };
        report.entries += 1;
        if let Target::Stored(place) = extent.target {
            *report.data_references.entry(place.segment()).or_default() +=
                u64::from(extent.len_blocks);
        }
    }
    let last = entries.last().map(|entry| entry.extent().end());
    fits(expected, entries[0].key()) && last.is_some_and(|last| last <= expected.end)
}

fn push_children(page: &Page, expected: &Expected, todo: &mut Vec<Expected>) -> bool {
    let entries = page.fence();
    for (index, entry) in entries.iter().enumerate().rev() {
        let end = entries.get(index + 1).map_or(expected.end, |next| next.key());
        todo.push(Expected { page: page.child(index), first: entry.key(), end, exact: true });
    }
    fits(expected, entries[0].key()) && entries[entries.len() - 1].key() < expected.end
}
