use pollster::block_on;

use super::*;
use crate::testing::Random;
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

fn register(
    in_flight: &InFlight,
    batch: u64,
    fingerprints: &[ShortFingerprint],
) -> Vec<Registration> {
    let turn = block_on(in_flight.gate().enter(batch)).unwrap();
    let mut out = Vec::new();
    in_flight.register_batch(&turn, fingerprints, &mut out);
    assert_eq!(out.len(), fingerprints.len());
    out
}

fn duplicate(batch: u64, position: u32) -> Registration {
    Registration::Duplicate { batch, position }
}

#[test]
fn the_first_to_come_owns_a_block_and_everyone_else_learns_where_it_is() {
    let in_flight = InFlight::new();
    let f = Random(1).fingerprints(4);
    let owner = Registration::Owner;
    assert_eq!(
        register(&in_flight, 0, &[f[0], f[1], f[0]]),
        [owner, owner, duplicate(0, 0)],
        "a block twice in one batch"
    );
    assert_eq!(register(&in_flight, 1, &[f[2], f[1]]), [owner, duplicate(0, 1)]);
    assert_eq!(register(&in_flight, 2, &[f[2], f[3]]), [duplicate(1, 0), owner]);
}

#[test]
fn entries_outlive_their_batch_until_everyone_who_might_have_missed_it_has_passed() {
    let in_flight = InFlight::new();
    let f = Random(2).fingerprints(2);
    register(&in_flight, 0, &f[..1]);
    // Batches 1 and 2 have looked in the index by now, in vain. Batch 0 is published.
    in_flight.retire(0, 2);
    assert_eq!(register(&in_flight, 1, &f), [duplicate(0, 0), Registration::Owner]);
    assert_eq!(register(&in_flight, 2, &f), [duplicate(0, 0), duplicate(1, 1)]);
    assert_eq!(in_flight.oldest(), Some(0));
    // Batch 3 has started later, and would have found it in the index.
    assert_eq!(register(&in_flight, 3, &f), [Registration::Owner, duplicate(1, 1)]);
    assert_eq!(in_flight.oldest(), Some(1));
}

#[test]
fn a_retired_batch_that_nobody_might_miss_goes_at_once() {
    let in_flight = InFlight::new();
    let f = Random(3).fingerprints(3);
    register(&in_flight, 0, &f);
    register(&in_flight, 1, &f);
    in_flight.retire(1, 1);
    in_flight.retire(0, 1);
    assert!(in_flight.is_empty());
    assert_eq!(in_flight.oldest(), None);
}

#[test]
#[should_panic(expected = "a turn at this table's gate")]
fn a_turn_at_another_gate_does_not_let_a_batch_register() {
    let other = OrderGate::new();
    let turn = block_on(other.enter(0)).unwrap();
    InFlight::new().register_batch(&turn, &[], &mut Vec::new());
}

/// The pipeline in small: many threads take batches in order, look in the index, register, publish
/// in any order, retire. No block may ever be stored twice, and the table must come out empty.
#[test]
fn concurrent_batches_never_store_a_block_twice() {
    const BATCHES: u64 = 600;
    const THREADS: usize = 8;
    let universe = Random(4).fingerprints(300);
    let in_flight = InFlight::new();
    let started = Mutex::new(0);
    let newest_started = AtomicU64::new(0);
    // Exact, and told before the batch retires.
    let index = Mutex::new(HashSet::new());
    let stored = Mutex::new(HashSet::new());
    let linked = Mutex::new(HashSet::new());

    std::thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            let (in_flight, started, newest_started) = (&in_flight, &started, &newest_started);
            let (index, stored, linked, universe) = (&index, &stored, &linked, &universe);
            scope.spawn(move || {
                let mut random = Random(100 + thread);
                loop {
                    let batch = {
                        let mut started = started.lock();
                        let batch = *started;
                        if batch == BATCHES {
                            return;
                        }
                        *started += 1;
                        newest_started.store(batch, Ordering::SeqCst);
                        batch
                    };
                    if random.below(10) == 0 {
                        in_flight.gate().skip(batch);
                        continue;
                    }
                    let blocks: Vec<_> =
                        (0..8).map(|_| universe[random.below(300) as usize]).collect();
                    let known: Vec<bool> = {
                        let index = index.lock();
                        blocks.iter().map(|block| index.contains(block)).collect()
                    };
                    let unknown: Vec<_> = blocks
                        .iter()
                        .zip(known)
                        .filter(|(_, known)| !known)
                        .map(|b| *b.0)
                        .collect();
                    (0..random.below(4)).for_each(|_| std::thread::yield_now());
                    let registrations = register(in_flight, batch, &unknown);
                    for (registration, block) in registrations.iter().zip(&unknown) {
                        match registration {
                            Registration::Owner => {
                                assert!(stored.lock().insert(*block), "{block} stored twice");
                            }
                            Registration::Duplicate { batch: owner, .. } => {
                                assert!(*owner <= batch);
                                linked.lock().insert(*block);
                            }
                        }
                    }
                    (0..random.below(4)).for_each(|_| std::thread::yield_now());
                    index.lock().extend(unknown);
                    in_flight.retire(batch, newest_started.load(Ordering::SeqCst));
                    assert!(in_flight.len() <= 2 * THREADS * 8, "entries pile up");
                }
            });
        }
    });
    assert_eq!(in_flight.gate().next(), BATCHES);
    assert!(linked.into_inner().is_subset(&stored.into_inner()), "a link to what nobody stored");
    let turn = block_on(in_flight.gate().enter(BATCHES)).unwrap();
    in_flight.register_batch(&turn, &[], &mut Vec::new());
    assert!(in_flight.is_empty(), "{} entries left behind", in_flight.len());
}

#[test]
fn a_shutdown_in_the_middle_leaves_no_thread_waiting() {
    let in_flight = InFlight::new();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let (in_flight, next) = (&in_flight, &next);
            scope.spawn(move || {
                loop {
                    let batch = next.fetch_add(1, Ordering::SeqCst);
                    // This one's thread goes away without passing: everyone after it waits.
                    if batch == 50 {
                        in_flight.gate().close();
                        return;
                    }
                    match block_on(in_flight.gate().enter(batch)) {
                        Ok(turn) => in_flight.register_batch(&turn, &[], &mut Vec::new()),
                        Err(closed) => return assert_eq!(closed.batch, batch),
                    }
                }
            });
        }
    });
    assert!(in_flight.gate().next() <= 50);
}

proptest! {
    #[test]
    fn registrations_and_retirements_match_a_list_of_batches(
        batches in prop::collection::vec(
            (prop::collection::vec(0..20_usize, 0..10), prop::option::of((0..30_u64, 0..4_u64))),
            1..40,
        ),
    ) {
        let universe = Random(5).fingerprints(20);
        let in_flight = InFlight::new();
        // batch, block, position, and until which batch it stays
        let mut model: Vec<(u64, usize, u32, u64)> = Vec::new();
        for (batch, (members, retire)) in (0..).zip(batches) {
            let blocks: Vec<_> = members.iter().map(|&i| universe[i]).collect();
            let found = register(&in_flight, batch, &blocks);
            model.retain(|(_, _, _, until)| *until >= batch);
            for ((position, member), found) in (0..).zip(members).zip(found) {
                match model.iter().find(|(_, held, _, _)| *held == member) {
                    Some(&(owner, _, position, _)) => {
                        prop_assert_eq!(found, duplicate(owner, position));
                    }
                    None => {
                        prop_assert_eq!(found, Registration::Owner);
                        model.push((batch, member, position, u64::MAX));
                    }
                }
            }
            if let Some((back, ahead)) = retire {
                let retired = batch.saturating_sub(back);
                let newest_started = batch + ahead;
                in_flight.retire(retired, newest_started);
                for entry in model.iter_mut().filter(|entry| entry.0 == retired) {
                    entry.3 = newest_started;
                }
                model.retain(|(_, _, _, until)| *until > batch);
            }
            prop_assert_eq!(in_flight.len(), model.len());
            prop_assert_eq!(in_flight.oldest(), model.iter().map(|entry| entry.0).min());
        }
    }
}
