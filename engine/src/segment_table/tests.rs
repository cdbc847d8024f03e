#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use siltstone_device::{
    BLOCK_BYTES,
    header::{self, Identity, Kind},
    sim::SimDevice,
};

use super::{pages::slot_offset, store::StoredPages, *};
use crate::{config::CreateOptions, repair::Repair};

const POOL: u64 = 7;

/// A pool whose table takes two pages.
fn layout() -> Layout {
    let options = CreateOptions { segment_bytes: Some(256 << 10), ..CreateOptions::default() };
    let layout = Layout::new(64 << 20, &options).unwrap();
    assert!(layout.segment_count(64 << 20) as usize > ENTRIES_PER_PAGE);
    layout
}

fn count() -> SegmentCount {
    SegmentCount::new(layout().segment_count(64 << 20))
}

fn store(table: &SegmentTable, device: &SimDevice, number: u64) -> StoredPages {
    pollster::block_on(table.store_changes(device, number)).unwrap()
}

fn load_with_repairs(
    device: &SimDevice,
    number: u64,
    like: &SegmentTable,
    sum: u64,
) -> Result<(SegmentTable, Vec<Repair>)> {
    let generation = like.next_generation();
    let record = TableRecord { number, segment_count: like.len(), versions_sum: sum };
    let now = SegmentCount::new(like.len());
    pollster::block_on(SegmentTable::load(device, POOL, layout(), record, generation, now))
}

/// Loads a table of which every copy that counts is whole.
fn load(device: &SimDevice, number: u64, like: &SegmentTable, sum: u64) -> Result<SegmentTable> {
    let (table, repairs) = load_with_repairs(device, number, like, sum)?;
    assert!(repairs.is_empty(), "{repairs:?}");
    Ok(table)
}

fn segments(table: &SegmentTable) -> Vec<Segment> {
    (0..table.len()).map(|id| table.segment(SegmentId(id)).unwrap()).collect()
}

/// A checkpoint whose record was never stored leaves pages that bear the number of the next one.
/// They must not count when that one is stored without writing the same pages.
#[test]
fn pages_of_a_checkpoint_that_never_was_do_not_count_later() {
    let device = SimDevice::new(64 << 20);
    let table = SegmentTable::new(POOL, layout(), count());
    let first = store(&table, &device, 1);
    let sum = first.versions_sum;
    table.stored(first);

    // Takes all of the first page and some of the second, and then the power goes.
    for _ in 0..ENTRIES_PER_PAGE + 3 {
        table.take(SegmentState::Frontier).unwrap();
    }
    let _never_valid = store(&table, &device, 2);

    let table = load(&device, 1, &table, sum).unwrap();
    table.take(SegmentState::Metadata).unwrap();
    let second = store(&table, &device, 2);
    let sum = second.versions_sum;
    table.stored(second);
    let reloaded = load(&device, 2, &table, sum).unwrap();
    assert_eq!(segments(&reloaded), segments(&table));
}

/// A table after four checkpoints: the sum, and for each checkpoint where the copies of the first
/// page were written, with their contents.
type Written = Vec<[(u64, Vec<u8>); COPIES as usize]>;

fn after_four_checkpoints(device: &SimDevice) -> (SegmentTable, u64, Written) {
    let table = SegmentTable::new(POOL, layout(), count());
    let mut written = Vec::new();
    let mut sum = 0;
    for number in 1..=4 {
        table.take(SegmentState::Frontier).unwrap();
        let stored = store(&table, device, number);
        sum = stored.versions_sum;
        table.stored(stored);
        let slot = table.inner.lock().newest[0].slot;
        written.push([0, 1].map(|copy| {
            let start = slot_offset(&layout(), 0, slot, copy).0;
            (start, device.peek(start, BLOCK_BYTES))
        }));
    }
    (table, sum, written)
}

/// One damaged or stale copy is made up for by the other one, named, and written anew by the next
/// checkpoint.
#[test]
fn one_bad_copy_is_corrected_and_named() {
    let device = SimDevice::new(64 << 20);
    let (table, sum, written) = after_four_checkpoints(&device);
    let reloaded = load(&device, 4, &table, sum).unwrap();
    assert_eq!(segments(&reloaded), segments(&table));
    for copy in 0..COPIES as usize {
        let (start, newest) = &written[3][copy];
        let mut contents = vec![vec![0; BLOCK_BYTES], written[1][copy].1.clone()];
        contents.push(written[3][1 - copy].1.clone());
        contents.push(written[2][copy].1.clone());
        for at in 0..BLOCK_BYTES {
            let mut flipped = newest.clone();
            flipped[at] ^= 1 << (at % 8);
            contents.push(flipped);
        }
        for (number, bytes) in contents.iter().enumerate() {
            let device = device.snapshot();
            device.corrupt(*start, bytes);
            let (corrected, repairs) = load_with_repairs(&device, 4, &table, sum).unwrap();
            assert_eq!(segments(&corrected), segments(&table), "contents {number}");
            let [Repair::Table { page: 0, offset, .. }] = repairs[..] else {
                panic!("contents {number}: {repairs:?}")
            };
            assert_eq!(offset.0, *start, "contents {number}");
            if number > 100 {
                continue;
            }
            let stored = store(&corrected, &device, 5);
            let sum = stored.versions_sum;
            corrected.stored(stored);
            load(&device, 5, &table, sum).unwrap();
        }
    }
}

/// A slot that is passed over for damage of both copies must not be the one that counts: an older
/// table would have segments for free that are in use.
#[test]
fn two_bad_copies_are_reported_and_not_replaced_by_an_older_slot() {
    let device = SimDevice::new(64 << 20);
    let (table, sum, written) = after_four_checkpoints(&device);
    let damaged = device.snapshot();
    let stale = device.snapshot();
    let harmless = device.snapshot();
    let [_, older, other, newest] = &written[..] else { panic!("four checkpoints") };
    for ((newest, older), other) in newest.iter().zip(older).zip(other) {
        damaged.flip_bit(newest.0 + 100, 3);
        stale.corrupt(newest.0, &older.1);
        harmless.flip_bit(other.0 + 100, 3);
    }
    assert!(load(&damaged, 4, &table, sum).is_err(), "the newest slot is damaged");
    assert!(load(&stale, 4, &table, sum).is_err(), "the newest slot is an older version");
    assert!(load(&harmless, 4, &table, sum).is_ok(), "the other slot does not matter");
}

/// It may be the newest.
#[test]
fn a_page_of_a_newer_version_is_not_passed_over() {
    let device = SimDevice::new(64 << 20);
    let (table, sum, written) = after_four_checkpoints(&device);
    for (start, mut bytes) in written[2..].iter().flatten().cloned() {
        let device = device.snapshot();
        let (kind, address_bytes) = (Kind::SegmentTable, start);
        let identity = Identity { kind, version: 9, pool: POOL, address_bytes };
        header::seal(&mut bytes, &identity, 5);
        device.corrupt(start, &bytes);
        assert!(load(&device, 4, &table, sum).is_err());
    }
}

/// A link that was under way when its segment was condemned keeps the segment.
#[test]
fn a_segment_is_freed_only_after_the_batches_that_could_still_link_to_it() {
    let table = SegmentTable::new(POOL, layout(), count());
    let (id, generation) = table.take(SegmentState::Frontier).unwrap();
    table.note_unit(id, 1, 4096);
    table.settle(id);
    // Two batches had started by the time that the segment was condemned, one is in patches.
    table.reclaim(
        1,
        || {
            assert!(
                !table.is_linkable(id, generation, 4096),
                "condemned before batches are counted"
            );
            2
        },
        &BTreeSet::new(),
    );
    table.reclaim(1, || 2, &BTreeSet::new());
    assert_eq!(table.segment(id).unwrap().state, SegmentState::Data);
    table.reclaim(2, || 2, &BTreeSet::new());
    assert_eq!(table.segment(id).unwrap().state, SegmentState::Freeing);
}

/// Clients' changes are recovered from units that follow a record, so they must not link to what
/// only a later record knows.
#[test]
fn what_no_record_knows_is_not_linked_to() {
    let device = SimDevice::new(64 << 20);
    let table = SegmentTable::new(POOL, layout(), count());
    let (id, generation) = table.take(SegmentState::Data).unwrap();
    table.note_unit(id, 1, 4096);
    assert!(!table.is_linkable(id, generation, 4096), "no record has the segment");
    let first = store(&table, &device, 1);
    assert!(!table.is_linkable(id, generation, 4096), "the record is not stored yet");
    table.stored(first);
    assert!(table.is_linkable(id, generation, 4096));
    table.note_unit(id, 1, 4096);
    table.note_unit(id, 1, 4096);
    assert!(table.is_linkable(id, generation, 4096));
    assert!(!table.is_linkable(id, generation, 8192), "no record has the unit");
    let second = store(&table, &device, 2);
    table.stored(second);
    assert!(table.is_linkable(id, generation, 12_288));
}

/// A link that was under way when a segment was condemned saves it; one that is being emptied still
/// takes no more, or its emptying would never end.
#[test]
fn a_segment_that_is_being_emptied_takes_no_links_whatever_arrives() {
    let table = SegmentTable::new(POOL, layout(), count());
    let (id, generation) = table.take(SegmentState::Frontier).unwrap();
    table.note_unit(id, 1, 4096);
    table.settle(id);
    let link = |sign| Edit { data_references: [(id, sign)].into(), ..Edit::default() };
    for is_emptied in [false, true] {
        if is_emptied {
            table.refuse_links([id].into_iter());
        }
        table.reclaim(0, || 1, &BTreeSet::new());
        table.apply(&link(1)).unwrap();
        table.reclaim(1, || 1, &BTreeSet::new());
        assert_eq!(table.is_linkable(id, generation, 4096), !is_emptied);
        table.allow_links([id].into_iter());
        assert!(table.is_linkable(id, generation, 4096), "something refers to it");
        table.apply(&link(-1)).unwrap();
    }
}

/// Whatever else refuses or allows links to it meanwhile, and through a restart.
#[test]
fn a_damaged_segment_takes_no_links_until_it_is_freed_or_found_whole() {
    let device = SimDevice::new(64 << 20);
    let table = SegmentTable::new(POOL, layout(), count());
    let (id, generation) = table.take(SegmentState::Frontier).unwrap();
    table.note_unit(id, 1, 4096);
    table.settle(id);
    let link = |sign| Edit { data_references: [(id, sign)].into(), ..Edit::default() };
    table.apply(&link(1)).unwrap();
    assert!(!table.note_damage(id, generation + 1), "that is another use of it");
    assert!(table.note_damage(id, generation) && !table.note_damage(id, generation));
    table.refuse_links([id].into_iter());
    table.allow_links([id].into_iter());
    assert!(!table.is_linkable(id, generation, 4096));
    // A late link pardons it, and it is damaged still.
    table.apply(&link(-1)).unwrap();
    table.reclaim(0, || 1, &BTreeSet::new());
    table.apply(&link(1)).unwrap();
    table.reclaim(1, || 1, &BTreeSet::new());
    assert!(!table.is_linkable(id, generation, 4096));

    let stored = store(&table, &device, 1);
    let again = load(&device, 1, &table, stored.versions_sum).unwrap();
    assert!(!again.is_linkable(id, generation, 4096));
    assert_eq!(again.totals().damaged_segments, 1);
    again.forget_damage(id, generation);
    assert!(again.is_linkable(id, generation, 4096));

    table.apply(&link(-1)).unwrap();
    table.reclaim(1, || 1, &BTreeSet::new());
    table.reclaim(1, || 1, &BTreeSet::new());
    let stored = store(&table, &device, 2);
    table.stored(stored);
    assert_eq!(table.totals().damaged_segments, 0, "it is free");
}

/// A pool grows before a checkpoint has written the pages of its new segments.
#[test]
fn segments_beyond_those_of_the_record_were_never_used_whatever_their_pages_say() {
    let device = SimDevice::new(64 << 20);
    let table = SegmentTable::new(POOL, layout(), count());
    let first = store(&table, &device, 1);
    let (sum, old_count) = (first.versions_sum, first.segment_count);
    table.stored(first);
    let new_count = old_count + 2 * ENTRIES_PER_PAGE as u32;
    table.grow_to(new_count);
    assert_eq!((table.len(), table.free_segments()), (new_count, new_count.into()));
    for _ in 0..new_count {
        table.take(SegmentState::Frontier).unwrap();
    }
    let _never_valid = store(&table, &device, 2);

    let now = SegmentCount::new(new_count);
    let record = TableRecord { number: 1, segment_count: old_count, versions_sum: sum };
    let load = |record: TableRecord, now: &SegmentCount| {
        pollster::block_on(SegmentTable::load(&*device, POOL, layout(), record, 9, now.clone()))
    };
    let (again, repairs) = load(record, &now).unwrap();
    assert_eq!((again.free_segments(), repairs.len()), (new_count.into(), 0));
    // A superblock that is older than the record is not this pool's.
    let too_new = TableRecord { segment_count: new_count + 1, ..record };
    assert!(load(too_new, &now).is_err());

    let taken = again.take(SegmentState::Frontier).unwrap();
    let second = store(&again, &device, 2);
    let record =
        TableRecord { number: 2, segment_count: new_count, versions_sum: second.versions_sum };
    again.stored(second);
    let (third, repairs) = load(record, &now).unwrap();
    assert_eq!((third.free_segments(), repairs.len()), (u64::from(new_count) - 1, 0));
    assert_eq!(third.segment(taken.0).unwrap().generation, taken.1);
    // Now that the record has them, a page that is gone is damaged and not new.
    let last = new_count as usize / ENTRIES_PER_PAGE;
    for copy in 0..COPIES {
        let address = slot_offset(&layout(), last, 0, copy);
        device.corrupt(address.0, &[0; BLOCK_BYTES]);
    }
    assert!(load(record, &now).is_err());
}
