//! Which patches to merge next: pure arithmetic on sizes and key ranges.
//!
//! The shape is the leveled, partitioned log-structured merge that LevelDB and RocksDB made
//! common (O'Neil et al., "The log-structured merge-tree", 1996; Dong et al., "Optimizing space
//! amplification in RocksDB", CIDR 2017). Level 0 takes memtables as they were written, so its
//! patches overlap. Each deeper level is one sorted sequence of patches that do not overlap, and
//! is `fanout` times as large as the one above it.
//!
//! - A lookup asks at most `level0_patches` + levels patches, and all levels but the last are
//!   together 1 / (`fanout` - 1) of it, so they stay cached and about one page is cold.
//! - An entry is rewritten about `fanout` / 2 to `fanout` + 1 times a level. A B-tree with 4 KiB
//!   pages writes 4,096 bytes for a random 24-byte change, 170 times its size; three levels of
//!   fanout 8 stay below 30.
//! - Every merge can stop anywhere: what it has consumed of its inputs is cut off ("drained"),
//!   so steps are bounded however large the levels are. A merge that was begun is finished before
//!   another begins, since drained pages take space until the whole patch is gone.
//! - A metadata segment is free only when no patch has a page in it, and patches are shorter or
//!   longer than segments, so merging alone leaves many segments with a few pages in use. Where
//!   too many are, the patches in the emptiest are rewritten as they are, to the open segment
//!   ([`Packing`]).
//! - What only a deleted layer or label could see is dropped by rewriting, in their level, the
//!   patches that may have it (`HeldLayer`).
//! - A patch with a damaged page is left where it is, and so is what would have to be merged with
//!   it. Newer patches of level 0 that wait for that are merged with each other, so that they do not
//!   grow in number.
//! - A patch that overlaps nothing below moves down as it is. Small patches (frequent checkpoints
//!   write them) are merged with their neighbours instead, so that patches do not grow in number.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use siltstone_device::SegmentId;

use crate::{
    extent::Key,
    patch::{HeldLayer, MAX_LEVELS, Patch, Version},
};

/// The sizes that the policy aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Level 0 is merged down when it has this many patches.
    pub level0_patches: usize,
    /// Level 1 is merged down when it has more pages than this.
    pub level1_pages: u64,
    /// How many times larger each level is than the one above.
    pub fanout: u64,
    /// The most leaf pages that a patch has.
    pub patch_pages: u32,
    /// A patch with fewer pages than this is merged with its neighbours.
    pub small_patch_pages: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            level0_patches: 4,
            level1_pages: 8192,
            fanout: 8,
            patch_pages: 2048,
            small_patch_pages: 64,
        }
    }
}

/// What to do next.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// A patch overlaps nothing below it: it becomes part of the next level as it is.
    Move(Arc<Patch>),
    /// Merge.
    Merge(Job),
}

/// A merge: patches of one level into those that they overlap in another.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// What is merged away, newest first where it overlaps.
    pub(crate) sources: Vec<Arc<Patch>>,
    /// What it is merged into, in key order: older than the sources.
    pub(crate) targets: Vec<Arc<Patch>>,
    /// Where the outcome goes.
    pub(crate) output_level: u8,
}

impl Job {
    /// Whether patches of level 0 stay there.
    pub(crate) fn gathers(&self) -> bool {
        self.output_level == 0
    }
}

/// The most urgent thing to do, or `None` if the levels are in shape and no patch has what nobody
/// can read since a layer or a label was deleted; or if patches in `damaged` are in the way.
pub(crate) fn decide(
    version: &Version,
    limits: &Limits,
    has_garbage: &dyn Fn(&HeldLayer) -> bool,
    damaged: &BTreeSet<u64>,
) -> Option<Decision> {
    if let Some(level) = begun(version, limits, damaged) {
        return merge_down(version, limits, level, damaged);
    }
    for level in full_levels(version, limits) {
        let decision = merge_down(version, limits, level, damaged);
        let decision =
            decision.or_else(|| if level == 0 { gather(version, damaged) } else { None });
        if decision.is_some() {
            return decision;
        }
    }
    let has_garbage = |patch: &&Arc<Patch>| patch.layers.iter().any(has_garbage);
    if version.newest().iter().any(|patch| has_garbage(&patch))
        && let Some(decision) = merge_down(version, limits, 0, damaged)
    {
        return Some(decision);
    }
    let mut whole = version.sorted().iter().flatten().filter(|patch| !damaged.contains(&patch.id));
    whole.find(has_garbage).map(|patch| Decision::Merge(in_place(patch)))
}

/// The level in which a merge was begun that can go on.
fn begun(version: &Version, limits: &Limits, damaged: &BTreeSet<u64>) -> Option<usize> {
    // One merge is begun at a time, but those that met damage stay as they are.
    let levels = version.levels().iter().enumerate();
    let mut begun = levels.filter(|(_, level)| level.iter().any(|patch| patch.draining));
    begun.find_map(|(level, _)| {
        let Decision::Merge(job) = merge_down(version, limits, level, damaged)? else {
            return None;
        };
        job.sources.iter().any(|patch| patch.draining).then_some(level)
    })
}

/// Merges the patches of level 0 into one sequence, those aside that a damaged one is newer than:
/// for when they cannot be merged down. `None` if they are one.
fn gather(version: &Version, damaged: &BTreeSet<u64>) -> Option<Decision> {
    let mut sources = above_damage(version, damaged);
    sources.sort_by_key(|patch| patch.first);
    let overlap = sources.windows(2).any(|pair| pair[1].first <= pair[0].last);
    overlap.then(|| Decision::Merge(gathering(above_damage(version, damaged))))
}

fn gathering(sources: Vec<Arc<Patch>>) -> Job {
    Job { sources, targets: Vec::new(), output_level: 0 }
}

/// The patches of level 0, newest first, before the first damaged one.
fn above_damage(version: &Version, damaged: &BTreeSet<u64>) -> Vec<Arc<Patch>> {
    let newest = version.newest().iter();
    newest.take_while(|patch| !damaged.contains(&patch.id)).cloned().collect()
}

/// What to do next to bring all patches into one level, where nothing superseded is left: merge
/// the uppermost level down. `None` once there is only one, but for what damage keeps where it is.
pub(crate) fn decide_compaction(
    version: &Version,
    limits: &Limits,
    damaged: &BTreeSet<u64>,
) -> Option<Decision> {
    if let Some(level) = begun(version, limits, damaged) {
        return merge_down(version, limits, level, damaged);
    }
    let filled = |level: &Vec<Arc<Patch>>| !level.is_empty();
    let deepest = version.levels().iter().rposition(filled)?;
    let mut levels = 0..deepest.max(1);
    let down = levels.find_map(|level| merge_down(version, limits, level, damaged));
    down.or_else(|| gather(version, damaged))
}

/// Finishes the merge that was begun, or else merges level 0 down, as long as it has patches with
/// numbers below `made_before`. If that cannot be done, rewrites them where they are.
pub(crate) fn decide_emptying(
    version: &Version,
    limits: &Limits,
    made_before: u64,
    damaged: &BTreeSet<u64>,
) -> Option<Decision> {
    if let Some(level) = begun(version, limits, damaged) {
        return merge_down(version, limits, level, damaged);
    }
    let is_old = |patch: &Arc<Patch>| patch.id < made_before;
    if !version.newest().iter().any(is_old) {
        return None;
    }
    merge_down(version, limits, 0, damaged).or_else(|| {
        let sources = above_damage(version, damaged);
        sources.iter().any(is_old).then(|| Decision::Merge(gathering(sources)))
    })
}

/// Rewrites a patch in its own level.
pub(crate) fn in_place(patch: &Arc<Patch>) -> Job {
    let sources = vec![Arc::clone(patch)];
    Job { sources, targets: Vec::new(), output_level: patch.level }
}

/// How much of the metadata segments may be dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Half of them: every page that is rewritten frees at least another one.
    Loose,
    /// An eighth: space is wanted back.
    Tight,
}

impl Packing {
    /// Whether `held` segments are too many for pages that would fill `needed`.
    fn is_exceeded(self, held: u64, needed: u64) -> bool {
        match self {
            Self::Loose => held > 2 * needed + 4,
            Self::Tight => held > needed + needed / 8 + 1,
        }
    }
}

/// The patch to rewrite next so that a segment becomes free: one in the emptiest segment. The open
/// segment stays as it is, and so do patches numbered `made_before` or higher, so that this comes
/// to an end; and those of level 0, whose numbers are their order, and which soon are merged anyway.
pub(crate) fn decide_relocation(
    version: &Version,
    packing: Packing,
    open: Option<SegmentId>,
    segment_pages: u32,
    made_before: u64,
    damaged: &BTreeSet<u64>,
) -> Option<Decision> {
    struct Held<'a> {
        pages: u64,
        /// A patch with pages in it; `None` if any of them has to stay.
        movable: Option<&'a Arc<Patch>>,
    }
    let mut segments: BTreeMap<SegmentId, Held<'_>> = BTreeMap::new();
    for patch in version.patches() {
        let is_whole = !damaged.contains(&patch.id);
        let movable = (patch.level > 0 && patch.id < made_before && is_whole).then_some(patch);
        for extent in patch.pages.iter().filter(|extent| Some(extent.segment) != open) {
            let empty = Held { pages: 0, movable };
            let held = segments.entry(extent.segment).or_insert(empty);
            held.pages += u64::from(extent.count);
            held.movable = held.movable.and(movable);
        }
    }
    let pages: u64 = segments.values().map(|held| held.pages).sum();
    let needed = pages.div_ceil(segment_pages.into());
    if !packing.is_exceeded(segments.len() as u64, needed) {
        return None;
    }
    let movable = segments.values().filter_map(|held| Some((held.pages, held.movable?)));
    let (_, patch) = movable.min_by_key(|&(pages, _)| pages)?;
    Some(Decision::Merge(in_place(patch)))
}

/// The levels that exceed their limits, that with the largest factor first.
fn full_levels(version: &Version, limits: &Limits) -> Vec<usize> {
    // Factors in thousandths; 1000 or more is over the limit.
    let level0 = version.newest().len() as u64 * 1000 / limits.level0_patches.max(1) as u64;
    let mut target = limits.level1_pages;
    let mut full = vec![(level0, 0)];
    for (index, level) in version.sorted().iter().enumerate().take(MAX_LEVELS - 2) {
        let pages: u64 = level.iter().map(|patch| patch.page_count()).sum();
        let fill = if pages > target { pages.saturating_mul(1000) / target.max(1) } else { 0 };
        full.push((fill, index + 1));
        target = target.saturating_mul(limits.fanout);
    }
    full.retain(|&(fill, _)| fill >= 1000);
    full.sort_by_key(|&(fill, level)| (std::cmp::Reverse(fill), level));
    full.into_iter().map(|(_, level)| level).collect()
}

/// Merges patches of a level down; `None` if there are none for which nothing damaged is needed.
fn merge_down(
    version: &Version,
    limits: &Limits,
    level: usize,
    damaged: &BTreeSet<u64>,
) -> Option<Decision> {
    let is_whole = |decision: &Decision| match decision {
        Decision::Move(patch) => !damaged.contains(&patch.id),
        Decision::Merge(job) => {
            !job.sources.iter().chain(&job.targets).any(|patch| damaged.contains(&patch.id))
        }
    };
    if version.levels().get(level).is_none_or(Vec::is_empty) {
        return None;
    }
    if level == 0 {
        return Some(merge_of(version, limits, 0, level0_sources(version), damaged))
            .filter(is_whole);
    }
    let merge =
        |patch: &Arc<Patch>| merge_of(version, limits, level, vec![Arc::clone(patch)], damaged);
    if damaged.is_empty() {
        return cheapest_first(version, level).first().map(merge);
    }
    cheapest_first(version, level).iter().map(merge).find(is_whole)
}

fn merge_of(
    version: &Version,
    limits: &Limits,
    level: usize,
    sources: Vec<Arc<Patch>>,
    damaged: &BTreeSet<u64>,
) -> Decision {
    let first = sources.iter().map(|patch| patch.first).min().expect("a merge has sources");
    let end = sources.iter().map(|patch| patch.end()).max().expect("a merge has sources");
    let below = version.levels().get(level + 1).map_or(&[][..], Vec::as_slice);
    let overlapping = Version::overlapping(below, first, end);
    let small = |patch: &Arc<Patch>| {
        patch.page_count() < limits.small_patch_pages && !damaged.contains(&patch.id)
    };
    if let [source] = sources.as_slice()
        && overlapping.is_empty()
        && source.holes == 0
        && !small(source)
        && !source.draining
    {
        return Decision::Move(source.clone());
    }
    let start = below.partition_point(|patch| patch.last < first);
    let mut range = start..start + overlapping.len();
    // Only when a merge begins: later, the neighbour would be what the last step wrote, and steps
    // shorter than a small patch would rewrite that for ever and never come to the sources.
    let begins = !sources.iter().any(|patch| patch.draining);
    if begins && range.start > 0 && small(&below[range.start - 1]) {
        range.start -= 1;
    }
    if begins && range.end < below.len() && small(&below[range.end]) {
        range.end += 1;
    }
    Decision::Merge(Job { sources, targets: below[range].to_vec(), output_level: level as u8 + 1 })
}

/// The patches of level 0 whose merge was begun, or else all of them. Those begun are the oldest:
/// newer ones came later and have to wait, or they would be overtaken.
fn level0_sources(version: &Version) -> Vec<Arc<Patch>> {
    let level0 = version.newest();
    let begun: Vec<_> = level0.iter().filter(|patch| patch.draining).cloned().collect();
    assert!(
        level0.iter().rev().take(begun.len()).all(|patch| patch.draining),
        "a patch of level 0 was overtaken by a newer one"
    );
    if begun.is_empty() { level0.to_vec() } else { begun }
}

/// The patch that is being drained, then those that overlap the least below for their size.
fn cheapest_first(version: &Version, level: usize) -> Vec<Arc<Patch>> {
    let mut patches = version.levels()[level].clone();
    let below = version.levels().get(level + 1).map_or(&[][..], Vec::as_slice);
    let cost = |patch: &Arc<Patch>| {
        let overlapping = Version::overlapping(below, patch.first, patch.end());
        let pages: u64 = overlapping.iter().map(|patch| patch.page_count()).sum();
        (!patch.draining, pages.saturating_mul(1000) / patch.page_count().max(1), patch.first)
    };
    patches.sort_by_cached_key(cost);
    patches
}

/// The version after `job` has consumed all input before `cut` (all of it, if `None`) and written
/// `outputs`.
pub(crate) fn apply(
    version: &Version,
    job: &Job,
    cut: Option<Key>,
    outputs: Vec<Patch>,
) -> Version {
    let rest = |patch: &Arc<Patch>, draining: bool| {
        let mut rest = patch.drained_to(cut?)?;
        rest.draining |= draining;
        Some(Arc::new(rest))
    };
    let is_input = |patch: &Arc<Patch>| {
        job.sources.iter().chain(&job.targets).any(|input| input.id == patch.id)
    };
    let kept = version.patches().filter(|patch| !is_input(patch)).cloned();
    // A patch that is rewritten in its own level stays there, whole or not.
    let draining = |patch: &Patch| patch.level != job.output_level;
    let sources = job.sources.iter().filter_map(|patch| rest(patch, draining(patch)));
    let targets = job.targets.iter().filter_map(|patch| rest(patch, false));
    let outputs = outputs.into_iter().map(Arc::new);
    Version::new(version.number + 1, kept.chain(sources).chain(targets).chain(outputs))
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
