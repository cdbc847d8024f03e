use pollster::block_on;
use siltstone_device::{
    SeededRandom,
    sim::{CrashPolicy, SimDevice},
};

use super::*;

const POOL: u64 = 77;
const PAGES: [ByteOffset; 2] = [ByteOffset(8192), ByteOffset(65536)];

fn open(device: &Arc<SimDevice>) -> MarkStore {
    block_on(MarkStore::open(device.clone(), PAGES, POOL)).unwrap()
}

fn mark(number: u64) -> Mark {
    Mark {
        record: number * 3,
        unit: number * 2,
        sequence: Sequence(number * 7),
        checkpoint: number,
    }
}

/// A device with marks 1 to 5.
fn marked() -> Arc<SimDevice> {
    let device = SimDevice::new(1 << 20);
    device.corrupt(0, &vec![0xa5; 1 << 20]);
    block_on(MarkStore::format(&*device, PAGES)).unwrap();
    let store = open(&device);
    assert_eq!(store.newest(), Mark::default());
    assert_eq!(store.damaged_pages(), []);
    for number in 1..=5 {
        block_on(store.write(mark(number))).unwrap();
        assert_eq!(store.newest(), mark(number));
        assert_eq!(open(&device).newest(), mark(number));
    }
    device
}

#[test]
fn marks_go_on_after_an_opening() {
    let device = marked();
    let store = open(&device);
    block_on(store.write(mark(6))).unwrap();
    assert_eq!(open(&device).newest(), mark(6));
}

/// A mark that says more than was written would have undamaged pools refused.
#[test]
fn whatever_is_damaged_no_mark_says_more_than_was_written() {
    let device = marked();
    for page in PAGES {
        for bit in 0..MARK_BYTES as u64 * 8 {
            let damaged = device.snapshot();
            damaged.flip_bit(page.0 + bit / 8, (bit % 8) as u8);
            let store = open(&damaged);
            // Number 5 is in the second page.
            let expected = if page == PAGES[1] { mark(4) } else { mark(5) };
            assert_eq!(store.newest(), expected, "bit {bit}");
            assert_eq!(store.damaged_pages().len(), 1, "bit {bit}");
            for number in 6..8 {
                block_on(store.write(mark(number))).unwrap();
                assert_eq!(open(&damaged).newest(), mark(number));
            }
            assert_eq!(open(&damaged).damaged_pages(), []);
        }
        let swapped = device.snapshot();
        let other = if page == PAGES[0] { PAGES[1] } else { PAGES[0] };
        swapped.corrupt(page.0, &device.peek(other.0, BLOCK_BYTES));
        assert!(open(&swapped).newest().checkpoint >= 4);
        assert_eq!(open(&swapped).damaged_pages().len(), 1);
    }
}

#[test]
fn a_page_that_cannot_be_read_is_a_damaged_one() {
    let device = marked();
    for page in PAGES {
        let damaged = device.snapshot();
        damaged.fail_reads(page.0..page.0 + 1);
        let store = open(&damaged);
        assert_eq!(store.newest(), if page == PAGES[1] { mark(4) } else { mark(5) });
        let [HeaderError::Unreadable { address_bytes, .. }] = store.damaged_pages() else {
            panic!("{:?}", store.damaged_pages())
        };
        assert_eq!(*address_bytes, page.0);
        // The next mark goes there, and cures it, here.
        damaged.clear_faults();
        block_on(store.write(mark(6))).unwrap();
        assert!(damaged.peek(page.0, BLOCK_BYTES) != device.peek(page.0, BLOCK_BYTES));
        assert_eq!(open(&damaged).newest(), mark(6));
        assert_eq!(open(&damaged).damaged_pages(), []);
    }
}

#[test]
fn a_cut_leaves_a_mark_that_was_written() {
    let device = SimDevice::new(1 << 20);
    block_on(MarkStore::format(&*device, PAGES)).unwrap();
    device.forget_history();
    let store = open(&device);
    for number in 1..=5 {
        block_on(store.write(mark(number))).unwrap();
    }
    let mut random = SeededRandom::new(5);
    for event in 0..=device.history_len() {
        for policy in [CrashPolicy::LoseAll, CrashPolicy::KeepAll, CrashPolicy::Random] {
            let found = open(&device.crash_with(event, policy, &mut random));
            assert_eq!(found.damaged_pages(), [], "a mark is not torn");
            let begun = event.div_ceil(2) as u64;
            assert!(found.newest().checkpoint <= begun, "{:?} at {event}", found.newest());
            assert_eq!(found.newest(), mark(found.newest().checkpoint));
        }
    }
}

#[test]
fn a_mark_of_another_pool_is_none_and_one_of_a_newer_version_is_an_error() {
    let device = marked();
    let store = block_on(MarkStore::open(device.clone(), PAGES, POOL + 1)).unwrap();
    assert_eq!(store.newest(), Mark::default());
    let mut bytes = device.peek(PAGES[0].0, MARK_BYTES);
    let identity = Identity { version: MARK_VERSION + 1, ..identity(POOL, PAGES[0]) };
    header::seal(&mut bytes, &identity, 4);
    device.corrupt(PAGES[0].0, &bytes);
    let error = block_on(MarkStore::open(device, PAGES, POOL)).err().unwrap();
    assert!(matches!(error, MarkError::Newer(_)), "{error}");
}
