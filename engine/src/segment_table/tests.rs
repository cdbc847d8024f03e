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

fn load(device: &SimDevice, number: u64, next_generation: u64) -> SegmentTable {
    let load = SegmentTable::load(device, POOL, layout(), number, next_generation);
    pollster::block_on(load).unwrap()
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
    table.stored(store(&table, &device, 1));

    // Takes all of the first page and some of the second, and then the power goes.
    for _ in 0..ENTRIES_PER_PAGE + 3 {
        table.take(SegmentState::Frontier).unwrap();
    }
    let _never_valid = store(&table, &device, 2);

    let table = load(&device, 1, 1);
    table.take(SegmentState::Metadata).unwrap();
    table.stored(store(&table, &device, 2));
    let reloaded = load(&device, 2, table.next_generation());
    assert_eq!(segments(&reloaded), segments(&table));
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
