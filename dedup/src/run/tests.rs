use super::*;
use crate::testing::Random;
use proptest::prelude::*;
use std::collections::HashMap;

impl Summaries for HashMap<UnitAddress, Arc<[ShortFingerprint]>> {
    fn fingerprints(&self, unit: UnitAddress) -> Option<Arc<[ShortFingerprint]>> {
        self.get(&unit).cloned()
    }
}

fn at(page: u64, ordinal: u32) -> Option<Candidate> {
    Some(Candidate { unit: UnitAddress::new(page), ordinal })
}

#[test]
fn one_candidate_is_extended_to_both_ends_of_what_agrees() {
    let f = Random(1).fingerprints(40);
    let summaries = HashMap::from([(UnitAddress::new(9), f[10..30].into())]);
    // Blocks 5 to 34 of the stream; 10 to 29 are in the unit; only block 17 was sampled.
    let stream = &f[5..35];
    let mut candidates = vec![None; 30];
    candidates[17 - 5] = at(9, 17 - 10);
    extend(stream, &mut candidates, &summaries);
    for (i, candidate) in (5..35).zip(candidates) {
        let expected = (10..30).contains(&i).then(|| at(9, i - 10)).flatten();
        assert_eq!(candidate, expected, "block {i}");
    }
}

#[test]
fn a_hint_that_the_summary_does_not_confirm_is_dropped() {
    let f = Random(2).fingerprints(8);
    let summaries = HashMap::from([(UnitAddress::new(1), f[..4].into())]);
    // Another fingerprint there, past the end of the summary, a unit that is not loaded.
    let mut candidates = [at(1, 2), at(1, 4), at(1, u32::MAX), at(2, 0)];
    extend(&f[4..8], &mut candidates, &summaries);
    assert_eq!(candidates, [None; 4]);
}

#[test]
fn a_candidate_that_continues_the_run_replaces_one_elsewhere() {
    let f = Random(3).fingerprints(5);
    let summaries = HashMap::from([
        (UnitAddress::new(1), f[..4].into()),
        (UnitAddress::new(2), f[2..3].into()),
    ]);
    let mut candidates = [at(1, 0), at(1, 1), at(2, 0), at(1, 3)];
    extend(&f[..4], &mut candidates, &summaries);
    assert_eq!(candidates, [at(1, 0), at(1, 1), at(1, 2), at(1, 3)]);
}

#[test]
fn runs_below_the_threshold_are_stored_again_and_a_gap_in_addresses_ends_a_run() {
    let targets: Vec<_> = [at(1, 0), at(1, 1), None, at(1, 2), at(1, 3), at(2, 0), at(2, 1)]
        .iter()
        .map(|candidate| candidate.map(Target::Stored))
        .collect();
    let linked = |first, len, target: usize| Run {
        first,
        len,
        kind: Kind::Link { first_target: targets[target].unwrap() },
    };
    let planned = |contiguous: [bool; 7], threshold| {
        let mut runs = Vec::new();
        plan(&targets, &contiguous, threshold, &mut runs);
        runs
    };
    let stored = |first, len| Run { first, len, kind: Kind::Store };

    assert_eq!(planned([true; 7], 3), [stored(0, 3), linked(3, 2, 3), linked(5, 2, 5)]);
    let broken = [true, true, true, true, true, true, false];
    assert_eq!(planned(broken, 3), [stored(0, 3), linked(3, 2, 3), linked(5, 1, 5), stored(6, 1)]);
    assert_eq!(planned(broken, 4), [stored(0, 7)]);
}

/// The rule as it is said: a duplicate is linked if the stretch of duplicates at consecutive
/// addresses around it is long enough.
fn is_linked(targets: &[Option<Target>], contiguous: &[bool], threshold: usize, i: usize) -> bool {
    let mut len = 1;
    let mut back = i;
    while back > 0 && contiguous[back] && targets[back - 1].is_some() {
        back -= 1;
        len += 1;
    }
    let mut forth = i + 1;
    while forth < targets.len() && contiguous[forth] && targets[forth].is_some() {
        forth += 1;
        len += 1;
    }
    targets[i].is_some() && len >= threshold
}

fn target() -> impl Strategy<Value = Option<Target>> {
    prop_oneof![
        2 => Just(None),
        4 => (0..2_u64, 0..6_u32).prop_map(|(page, ordinal)| at(page, ordinal).map(Target::Stored)),
        1 => (0..2_u64, 0..3_u32)
            .prop_map(|(batch, position)| Some(Target::InFlight { batch, position })),
    ]
}

proptest! {
    #[test]
    fn a_plan_covers_the_batch_and_links_what_the_rule_says(
        blocks in prop::collection::vec((target(), prop::bool::weighted(0.85)), 0..80),
        threshold in 1..9_usize,
    ) {
        let (targets, contiguous): (Vec<_>, Vec<_>) = blocks.into_iter().unzip();
        let mut runs = Vec::new();
        plan(&targets, &contiguous, threshold, &mut runs);
        let mut covered = 0;
        for (n, run) in runs.iter().enumerate() {
            prop_assert_eq!(run.first, covered);
            prop_assert!(run.len >= 1);
            for i in run.first..run.first + run.len {
                let linked = run.kind != Kind::Store;
                prop_assert_eq!(linked, is_linked(&targets, &contiguous, threshold, i));
            }
            if let Kind::Link { first_target } = run.kind {
                prop_assert_eq!(Some(first_target), targets[run.first]);
                for i in run.first + 1..run.first + run.len {
                    prop_assert!(contiguous[i]);
                    prop_assert!(targets[i].unwrap().follows(&targets[i - 1].unwrap()));
                }
            }
            // No piece could have been longer.
            if let Some(next) = runs.get(n + 1) {
                match (run.kind, next.kind) {
                    (Kind::Store, Kind::Store) => prop_assert!(false, "two stores in a row"),
                    (Kind::Link { .. }, Kind::Link { first_target }) => prop_assert!(
                        !contiguous[next.first]
                            || !first_target.follows(&targets[next.first - 1].unwrap())
                    ),
                    _ => {}
                }
            }
            covered += run.len;
        }
        prop_assert_eq!(covered, targets.len());
    }

    #[test]
    fn extending_only_ever_adds_confirmed_duplicates_and_stops_where_nothing_agrees(
        seed: u64,
        stream in prop::collection::vec(0..12_usize, 0..60),
        units in prop::collection::vec(prop::collection::vec(0..12_usize, 0..30), 1..4),
        hints in prop::collection::vec((0..60_usize, 0..4_u64, 0..30_u32), 0..12),
    ) {
        let universe = Random(seed).fingerprints(12);
        let pick = |members: &[usize]| -> Vec<_> { members.iter().map(|&i| universe[i]).collect() };
        let summaries: HashMap<UnitAddress, Arc<[ShortFingerprint]>> = (0..)
            .zip(&units)
            .map(|(page, members)| (UnitAddress::new(page), pick(members).into()))
            .collect();
        let stream = pick(&stream);
        let mut hinted = vec![None; stream.len()];
        for (i, page, ordinal) in hints {
            if let Some(hint) = hinted.get_mut(i) {
                *hint = at(page, ordinal);
            }
        }
        let holds = |i: usize, unit: UnitAddress, ordinal: i64| {
            let held = summaries.get(&unit);
            let ordinal = usize::try_from(ordinal).ok();
            ordinal.and_then(|ordinal| held?.get(ordinal)) == Some(&stream[i])
        };
        let mut extended = hinted.clone();
        extend(&stream, &mut extended, &summaries);
        for i in 0..stream.len() {
            if let Some(found) = extended[i] {
                prop_assert!(holds(i, found.unit, found.ordinal.into()));
                continue;
            }
            if let Some(hint) = hinted[i] {
                prop_assert!(!holds(i, hint.unit, hint.ordinal.into()), "a true hint was lost");
            }
            // No neighbour's run reaches here.
            let before = i.checked_sub(1).and_then(|before| extended[before]);
            let after = extended.get(i + 1).copied().flatten();
            for (neighbour, step) in [(before, 1), (after, -1)] {
                if let Some(found) = neighbour {
                    prop_assert!(!holds(i, found.unit, i64::from(found.ordinal) + step));
                }
            }
        }
    }
}
