use proptest::prelude::*;
use siltstone_device::{ByteOffset, LayerId, SegmentId};

use super::*;
use crate::{
    epoch::{Epoch, Visibility},
    extent::{Extent, Target},
    patch::PageExtent,
};

const LIMITS: Limits = Limits {
    level0_patches: 4,
    level1_pages: 40,
    fanout: 4,
    patch_pages: 10,
    small_patch_pages: 2,
};

const NONE: BTreeSet<u64> = BTreeSet::new();

fn patch(id: u64, level: u8, first: u64, last: u64, pages: u32) -> Patch {
    Patch {
        id,
        level,
        draining: false,
        root_address: ByteOffset(0),
        root_checksum: 0,
        root_height: 0,
        first: Key::new(LayerId(1), first),
        last: Key::new(LayerId(1), last),
        entries: 1,
        holes: 0,
        layers: vec![HeldLayer::new(LayerId(1), Epoch::FIRST)],
        pages: vec![PageExtent { segment: SegmentId(1), first_page: 0, count: pages }],
    }
}

fn version(patches: Vec<Patch>) -> Version {
    Version::new(0, patches.into_iter().map(Arc::new))
}

fn no_garbage(_: &HeldLayer) -> bool {
    false
}

#[test]
fn a_map_in_shape_is_left_alone() {
    let calm = version(vec![patch(1, 0, 0, 100, 9), patch(2, 1, 0, 100, 40)]);
    assert!(decide(&calm, &LIMITS, &no_garbage, &NONE).is_none());
}

#[test]
fn a_full_level_0_is_merged_with_what_it_overlaps() {
    let full = version(vec![
        patch(9, 0, 50, 60, 9),
        patch(8, 0, 0, 20, 9),
        patch(7, 0, 55, 70, 9),
        patch(6, 0, 10, 15, 9),
        patch(3, 1, 0, 9, 9),
        patch(4, 1, 65, 100, 9),
        patch(5, 1, 101, 200, 9),
    ]);
    let Some(Decision::Merge(job)) = decide(&full, &LIMITS, &no_garbage, &NONE) else { panic!() };
    let ids = |patches: &[Arc<Patch>]| patches.iter().map(|patch| patch.id).collect::<Vec<_>>();
    assert_eq!(ids(&job.sources), [9, 8, 7, 6], "newest first");
    assert_eq!(ids(&job.targets), [3, 4]);
    assert_eq!(job.output_level, 1);
}

#[test]
fn what_was_begun_is_finished_first_and_newer_patches_wait() {
    let mut begun = patch(5, 0, 0, 100, 9);
    begun.draining = true;
    let state = version(vec![begun, patch(6, 0, 0, 100, 9), patch(3, 1, 0, 100, 400)]);
    let Some(Decision::Merge(job)) = decide(&state, &LIMITS, &no_garbage, &NONE) else { panic!() };
    assert_eq!(job.sources.len(), 1);
    assert_eq!(job.sources[0].id, 5);
}

#[test]
fn patches_of_dead_layers_are_rewritten_where_they_are() {
    let state = version(vec![patch(3, 2, 0, 100, 9)]);
    let Some(Decision::Merge(job)) = decide(&state, &LIMITS, &|_| true, &NONE) else { panic!() };
    assert_eq!((job.sources[0].id, job.targets.len(), job.output_level), (3, 0, 2));
}

/// What a patch remembers is enough to tell when it may hold what nobody can read, and a patch is
/// not rewritten for labels that have nothing to do with it.
#[test]
fn a_deleted_label_concerns_patches_with_versions_that_were_there_for_it() {
    let stack = |epochs: &[u32]| -> Vec<Extent> {
        let version = |&epoch| Extent {
            layer: LayerId(1),
            epoch: Epoch(epoch),
            address: siltstone_device::BlockAddress(0),
            len_blocks: 1,
            target: Target::Hole,
        };
        epochs.iter().map(version).collect()
    };
    let live =
        |labels: &[u32]| Visibility::new(true, false, labels.iter().copied().map(Epoch).collect());
    let mut held = HeldLayer::new(LayerId(1), Epoch(4));
    held.note(&stack(&[4]));
    assert_eq!(held.older_from, held.older_to, "nothing older is held");
    held.note(&stack(&[8, 5]));
    held.note(&stack(&[7, 6]));
    held.note(&stack(&[9]));
    assert_eq!((held.newest, held.older_from, held.older_to), (Epoch(9), Epoch(5), Epoch(8)));
    held.labels = live(&[3, 5, 7, 8, 9]).labels_in(held.older_from, held.older_to) as u32;
    assert_eq!(held.labels, 2);
    for labels in [&[3, 5, 7, 8, 9][..], &[5, 7], &[5, 7, 10, 11]] {
        assert!(!held.has_garbage(&live(labels)), "{labels:?}");
    }
    for labels in [&[3, 5, 8, 9][..], &[7], &[]] {
        assert!(held.has_garbage(&live(labels)), "{labels:?}");
    }
    // Of a layer that is live no more, what is newer than every label is garbage as well.
    let gone =
        |labels: &[u32]| Visibility::new(false, false, labels.iter().copied().map(Epoch).collect());
    assert!(!held.has_garbage(&gone(&[5, 7, 9])));
    assert!(held.has_garbage(&gone(&[5, 7, 8])));
    assert!(held.has_garbage(&Visibility::dead()));
}

#[test]
fn small_neighbours_are_merged_along() {
    let mut source = patch(9, 1, 50, 60, 50);
    source.holes = 1;
    let state = version(vec![
        source,
        patch(1, 2, 0, 10, 9),
        patch(2, 2, 20, 30, 1),
        patch(3, 2, 70, 80, 1),
        patch(4, 2, 90, 99, 1),
    ]);
    let Some(Decision::Merge(job)) = decide(&state, &LIMITS, &no_garbage, &NONE) else { panic!() };
    assert_eq!(job.targets.iter().map(|patch| patch.id).collect::<Vec<_>>(), [2, 3]);
}

/// Merging that had begun took the last step's output, a small neighbour, for a target again, and
/// with steps no longer than that patch it never came to the sources.
#[test]
fn a_merge_under_way_takes_no_neighbours() {
    let mut source = patch(9, 1, 50, 60, 50);
    source.draining = true;
    let state = version(vec![source, patch(2, 2, 20, 30, 1), patch(3, 2, 55, 80, 1)]);
    let Some(Decision::Merge(job)) = decide(&state, &LIMITS, &no_garbage, &NONE) else { panic!() };
    assert_eq!(job.targets.iter().map(|patch| patch.id).collect::<Vec<_>>(), [3]);
}

/// Carries a decision out on key ranges alone: everything before the cut becomes patches.
fn simulate(state: &Version, decision: Decision, next: &mut u64, cut: u64) -> Version {
    let job = match decision {
        Decision::Move(patch) => return state.with_moved(&patch),
        Decision::Merge(job) => job,
    };
    let inputs = || job.sources.iter().chain(&job.targets);
    let first = inputs().map(|patch| patch.first.address.0).min().unwrap();
    let end = inputs().map(|patch| patch.end().address.0).max().unwrap();
    let cut = (first + 1 + cut).min(end);
    let pages: u64 = inputs().map(|patch| patch.page_count()).sum();
    let written = (pages * (cut - first) / (end - first)).max(1);
    let count = written.div_ceil(u64::from(LIMITS.patch_pages)).min(cut - first);
    let outputs = (0..count).map(|i| {
        *next += 1;
        let from = first + (cut - first) * i / count;
        let to = first + (cut - first) * (i + 1) / count;
        patch(*next, job.output_level, from, to - 1, (written / count).max(1) as u32)
    });
    let cut = (cut < end).then(|| Key::new(LayerId(1), cut));
    apply(state, &job, cut, outputs.collect())
}

proptest! {
    /// Wherever merges stop, levels stay free of overlap (which `Version::new` asserts), newer
    /// patches of level 0 never overtake older ones (which `decide` asserts), and work ends.
    #[test]
    fn merging_settles_with_every_level_within_its_limit(
        writes in prop::collection::vec((0..2000u64, 1..500u64, 1..20u32), 1..40),
        cuts in prop::collection::vec(20..1000u64, 1..20),
    ) {
        let (mut state, mut next, mut cut) = (version(vec![]), 0, cuts.iter().cycle());
        for (first, len, pages) in writes {
            next += 1;
            let new = Arc::new(patch(next, 0, first, first + len, pages));
            state = Version::new(state.number + 1, state.patches().cloned().chain([new]));
            // Sometimes merging lags behind.
            for _ in 0..*cut.next().unwrap() % 5 {
                let Some(decision) = decide(&state, &LIMITS, &no_garbage, &NONE) else { break };
                state = simulate(&state, decision, &mut next, *cut.next().unwrap());
            }
        }
        let mut steps = 0;
        while let Some(decision) = decide(&state, &LIMITS, &no_garbage, &NONE) {
            state = simulate(&state, decision, &mut next, *cut.next().unwrap());
            steps += 1;
            prop_assert!(steps < 5000, "merging never settles");
        }
        prop_assert!(state.newest().len() < LIMITS.level0_patches);
        prop_assert!(state.patches().all(|patch| !patch.draining));
        let mut target = LIMITS.level1_pages;
        for level in state.sorted().iter().take(MAX_LEVELS - 2) {
            let pages: u64 = level.iter().map(|patch| patch.page_count()).sum();
            prop_assert!(pages <= target);
            target *= LIMITS.fanout;
        }
    }
}

/// Nothing that would have to read a damaged patch is begun, and everything else is.
#[test]
fn what_needs_a_damaged_patch_is_left_alone() {
    let level1 = [patch(4, 1, 0, 9, 30), patch(5, 1, 20, 29, 30)];
    let below = [patch(2, 2, 0, 9, 30), patch(3, 2, 20, 29, 30)];
    let full = version(level1.into_iter().chain(below).collect());
    for (damaged, expected) in [(4, Some(5)), (2, Some(5)), (5, Some(4)), (3, Some(4))] {
        let decision = decide(&full, &LIMITS, &no_garbage, &[damaged].into());
        let Some(Decision::Merge(job)) = decision else { panic!("nothing beside {damaged}") };
        assert_eq!(job.sources.first().map(|patch| patch.id), expected);
    }
    assert!(decide(&full, &LIMITS, &no_garbage, &[2, 3].into()).is_none());
    assert!(decide_compaction(&full, &LIMITS, &[2, 3].into()).is_none());
    let garbage = decide(&full, &LIMITS, &|_| true, &[2, 3, 4].into());
    let Some(Decision::Merge(job)) = garbage else { panic!("patch 5 can be rewritten") };
    assert_eq!((job.sources[0].id, job.targets.len(), job.output_level), (5, 0, 1));
}

/// Level 0 waits for a damaged patch below it and does not grow meanwhile.
#[test]
fn level_0_above_damage_becomes_one_patch() {
    let mut patches: Vec<_> = (6..10).map(|id| patch(id, 0, 0, 50, 9)).collect();
    patches[0].draining = true;
    patches.push(patch(1, 1, 10, 20, 9));
    let state = version(patches);
    let damaged = [1].into();
    let Some(Decision::Merge(job)) = decide(&state, &LIMITS, &no_garbage, &damaged) else {
        panic!("four patches are too many")
    };
    assert!(job.gathers() && job.targets.is_empty());
    let ids: Vec<u64> = job.sources.iter().map(|patch| patch.id).collect();
    assert_eq!(ids, [9, 8, 7, 6]);
    let after = apply(&state, &job, None, vec![patch(10, 0, 0, 50, 20)]);
    assert_eq!(after.newest().len(), 1);
    assert!(decide(&after, &LIMITS, &no_garbage, &damaged).is_none());
    assert!(decide_compaction(&after, &LIMITS, &damaged).is_none());
    assert!(decide_emptying(&after, &LIMITS, 10, &damaged).is_none());
}

/// What is older than a damaged patch of level 0 must not overtake it.
#[test]
fn only_what_is_newer_than_a_damaged_patch_of_level_0_is_gathered() {
    let state = version((6..12).map(|id| patch(id, 0, 0, 50, 9)).collect());
    let Some(Decision::Merge(job)) = decide(&state, &LIMITS, &no_garbage, &[8].into()) else {
        panic!("three patches can become one")
    };
    let ids: Vec<u64> = job.sources.iter().map(|patch| patch.id).collect();
    assert_eq!((ids, job.output_level), (vec![11, 10, 9], 0));
    // Those below the damaged one stay old for ever: a sweep passes over them.
    let after = apply(&state, &job, None, vec![patch(12, 0, 0, 50, 20)]);
    assert!(decide_emptying(&after, &LIMITS, 12, &[8].into()).is_none());
}
