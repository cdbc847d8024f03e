#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use siltstone_device::sim::SimDevice;

use super::*;
use crate::config::CreateOptions;

const POOL: u64 = 7;

/// A pool whose table takes two pages.
fn layout() -> Layout {
    let options = CreateOptions { segment_bytes: Some(256 << 10), ..CreateOptions::default() };
    let layout = Layout::new(64 << 20, &options).unwrap();
    assert!(layout.segment_count() as usize > ENTRIES_PER_PAGE);
    layout
}

fn store(table: &SegmentTable, device: &SimDevice, number: u64) -> StoredPages {
    pollster::block_on(table.store_changes(device, number)).unwrap()
}

fn load(device: &SimDevice, number: u64, like: &SegmentTable, sum: u64) -> Result<SegmentTable> {
    let generation = like.next_generation();
    pollster::block_on(SegmentTable::load(device, POOL, layout(), number, generation, sum))
}

fn segments(table: &SegmentTable) -> Vec<Segment> {
    table.inner.lock().segments.clone()
}

/// A checkpoint whose record was never stored leaves pages that bear the number of the next one.
/// They must not count when that one is stored without writing the same pages.
#[test]
fn pages_of_a_checkpoint_that_never_was_do_not_count_later() {
    let device = SimDevice::new(64 << 20);
    let table = SegmentTable::new(POOL, layout());
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

/// The slot that is passed over for damage must not be the one that counts: an older table would
/// have segments for free that are in use.
#[test]
fn a_damaged_or_stale_page_is_reported_and_not_replaced_by_an_older_one() {
    let device = SimDevice::new(64 << 20);
    let table = SegmentTable::new(POOL, layout());
    let mut slots = Vec::new();
    let mut sum = 0;
    for number in 1..=4 {
        table.take(SegmentState::Frontier).unwrap();
        let stored = store(&table, &device, number);
        sum = stored.versions_sum;
        table.stored(stored);
        let slot = table.inner.lock().newest[0].slot;
        let start = slot_offset(&layout(), 0, slot).0;
        slots.push((start, device.peek(start, BLOCK_BYTES)));
    }
    let reloaded = load(&device, 4, &table, sum).unwrap();
    assert_eq!(segments(&reloaded), segments(&table));
    let (newest, other) = (slots[3].0, slots[2].0);

    let damaged = device.snapshot();
    damaged.flip_bit(newest + 100, 3);
    assert!(load(&damaged, 4, &table, sum).is_err(), "the newest slot is damaged");
    let stale = device.snapshot();
    stale.corrupt(newest, &slots[1].1);
    assert!(load(&stale, 4, &table, sum).is_err(), "the newest slot is an older version");
    let harmless = device.snapshot();
    harmless.flip_bit(other + 100, 3);
    assert!(load(&harmless, 4, &table, sum).is_ok(), "the other slot does not matter");
}

/// A link that was under way when its segment was condemned keeps the segment.
#[test]
fn a_segment_is_freed_only_after_the_batches_that_could_still_link_to_it() {
    let table = SegmentTable::new(POOL, layout());
    let (id, generation) = table.take(SegmentState::Frontier).unwrap();
    table.note_unit(id, 1, 4096);
    table.settle(id);
    // Two batches had started by the time that the segment was condemned, one is in patches.
    table.reclaim(1, || {
        assert!(!table.is_linkable(id, generation, 4096), "condemned before batches are counted");
        2
    });
    table.reclaim(1, || 2);
    assert_eq!(table.segment(id).unwrap().state, SegmentState::Data);
    table.reclaim(2, || 2);
    assert_eq!(table.segment(id).unwrap().state, SegmentState::Freeing);
}
