//! Reads every page of every patch and checks it: for the engine's `check` and `scrub`.
//!
//! Beyond what every read verifies (checksum, identity, order within the page), this checks that
//! pages hold the keys that their parents and the manifest say they hold, that the pages of a
//! patch lie where the manifest says, and recounts what the patches refer to.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use siltstone_device::{ByteOffset, SegmentId};

use crate::{
    error::{MapError, PageError},
    extent::{Key, Target, VersionKey},
    map::{Map, Shared},
    page::{Page, PageRef},
    patch::Patch,
};

/// Errors that [`Map::verify`] lists; further ones are counted.
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
    fn error(&mut self, error: MapError, max_errors: usize) {
        if self.errors.len() < max_errors {
            self.errors.push(error);
        } else {
            self.more_errors += 1;
        }
    }
}

impl Map {
    /// Reads and checks the pages of all patches of this moment.
    pub async fn verify(&self) -> VerifyReport {
        let mut verification = self.verification(MAX_ERRORS);
        while verification.step().await {}
        verification.into_report()
    }

    /// The same step by step, for a caller that counts what is read. Memory: the fence pages of
    /// one patch. The report lists up to `max_errors`. Patches may be merged meanwhile: what is wrong with one that is gone is no
    /// damage. The counts of the report are right only if none is.
    #[must_use]
    pub fn verification(&self, max_errors: usize) -> Verification {
        let patches = self.shared.snapshot().version.patches().cloned().collect();
        Verification {
            shared: self.shared.clone(),
            patches,
            patch: None,
            todo: Vec::new(),
            seen: BTreeSet::new(),
            report: VerifyReport::default(),
            max_errors,
        }
    }
}

/// A page to check, and the keys that it may hold.
struct Expected {
    page: PageRef,
    first: VersionKey,
    end: VersionKey,
    /// Whether the page's first entry is known exactly,
    exact: bool,
    /// and is an older version of what the page before ends with.
    continues: bool,
}

/// A verification under way.
pub struct Verification {
    shared: Arc<Shared>,
    /// Not begun.
    patches: VecDeque<Arc<Patch>>,
    patch: Option<Arc<Patch>>,
    /// Pages of the patch at hand, the next last, and those met so far.
    todo: Vec<Expected>,
    seen: BTreeSet<ByteOffset>,
    report: VerifyReport,
    max_errors: usize,
}

impl Verification {
    /// Checks one page; false if there is none left.
    pub async fn step(&mut self) -> bool {
        loop {
            if let (Some(expected), Some(patch)) = (self.todo.pop(), self.patch.clone()) {
                self.verify_page(&patch, expected).await;
                return true;
            }
            let Some(patch) = self.patches.pop_front() else { return false };
            self.report.patches += 1;
            self.seen.clear();
            // The first key of a patch that is drained says less than that of a whole one.
            let (first, end) = (VersionKey::first(Key::MIN), VersionKey::first(patch.end()));
            let (page, exact, continues) = (patch.root(), false, false);
            self.todo.push(Expected { page, first, end, exact, continues });
            self.patch = Some(patch);
        }
    }

    /// What was found so far.
    #[must_use]
    pub fn report(&self) -> &VerifyReport {
        &self.report
    }

    /// What was found.
    #[must_use]
    pub fn into_report(self) -> VerifyReport {
        self.report
    }

    async fn verify_page(&mut self, patch: &Patch, expected: Expected) {
        let PageRef { address, patch: id, .. } = expected.page;
        let outside = MapError::Page { patch: id, address, source: PageError::OutsideFence };
        if !lies_in(patch, &self.shared, address) || !self.seen.insert(address) {
            self.error(outside);
            return;
        }
        self.report.pages += 1;
        // From the device, whether or not it is cached: what is checked is the medium.
        let page = match self.shared.store.read_from_medium(expected.page).await {
            Ok(page) => page,
            Err(error) => {
                self.error(error);
                return;
            }
        };
        let keys_fit = if expected.page.height == 0 {
            verify_leaf(&page, patch, &expected, &mut self.report)
        } else {
            push_children(&page, &expected, &mut self.todo)
        };
        if !keys_fit {
            self.error(outside);
        }
    }

    /// Reports an error of the patch at hand, if that is still part of the map: otherwise its
    /// pages may hold anything by now.
    fn error(&mut self, error: MapError) {
        let id = self.patch.as_ref().map(|patch| patch.id);
        let version = self.shared.snapshot().version.clone();
        if version.patches().any(|patch| Some(patch.id) == id) {
            self.report.error(error, self.max_errors);
        } else {
            self.todo.clear();
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

fn fits(expected: &Expected, first: VersionKey, continues: bool) -> bool {
    let starts = if expected.exact { first == expected.first } else { first >= expected.first };
    starts && continues == expected.continues
}

fn verify_leaf(page: &Page, patch: &Patch, expected: &Expected, report: &mut VerifyReport) -> bool {
    let entries = page.leaf();
    for entry in entries.iter() {
        let Some(extent) = entry.extent().clip(patch.first, patch.end()) else { continue };
        report.entries += 1;
        if let Target::Stored(place) = extent.target {
            *report.data_references.entry(place.segment()).or_default() +=
                u64::from(extent.len_blocks);
        }
    }
    // Versions of the last run of blocks may go on in the next page.
    let (first, last, end) = (entries.get(0), entries.last(), expected.end.key);
    let ends = last.version() < expected.end && (last.extent().end() <= end || last.key() == end);
    fits(expected, first.version(), first.is_older()) && ends
}

fn push_children(page: &Page, expected: &Expected, todo: &mut Vec<Expected>) -> bool {
    let entries = page.fence();
    for (index, entry) in entries.iter().enumerate().rev() {
        let end = entries.get(index + 1).map_or(expected.end, |next| next.version());
        let (page, first, continues) = (page.child(index), entry.version(), entry.continues());
        todo.push(Expected { page, first, end, exact: true, continues });
    }
    let last = &entries[entries.len() - 1];
    fits(expected, entries[0].version(), entries[0].continues()) && last.version() < expected.end
}
