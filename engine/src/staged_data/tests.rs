use std::{sync::Arc, time::Duration};

use pollster::block_on;
use proptest::prelude::*;
use siltstone_device::{BlockAddress, SeededRandom, sim::SimDevice};

use super::*;
use crate::{CreateOptions, EngineError, OpenOptions, Pool, Tuning, Volume, VolumeOptions};

type Block = [u8; BLOCK_BYTES];

fn noise(seed: u64) -> Block {
    let mut block = [0; BLOCK_BYTES];
    SeededRandom::new(seed).fill(&mut block);
    block
}

fn text(what: &str) -> Block {
    let mut block = [0; BLOCK_BYTES];
    let text = what.bytes().cycle();
    block.iter_mut().zip(text).for_each(|(byte, letter)| *byte = letter);
    block
}

fn flipped(mut block: Block, bit: usize) -> Block {
    block[bit / 8] ^= 1 << (bit % 8);
    block
}

#[test]
fn the_sum_of_zeros_is_what_it_is_said_to_be() {
    assert_eq!(sum(&[0; BLOCK_BYTES]), ZERO_SUM);
}

#[test]
fn every_flipped_bit_changes_the_sum() {
    for block in [[0; BLOCK_BYTES], [0xff; BLOCK_BYTES], noise(1), text("a block of text. ")] {
        let good = sum(&block);
        for bit in 0..BLOCK_BYTES * 8 {
            assert_ne!(sum(&flipped(block, bit)), good, "bit {bit}");
        }
    }
}

#[test]
fn copied_blocks_have_the_sums_of_what_was_copied() {
    let blocks = [noise(1), [0; BLOCK_BYTES], noise(2)].concat();
    let mut copy = vec![0; blocks.len()];
    let sums = BlockSums::of_copied(&blocks, &mut copy);
    assert_eq!(copy, blocks);
    assert_eq!(sums.0, BlockSums::of(&blocks).0);
}

proptest! {
    #[test]
    fn two_or_three_flipped_bits_change_the_sum(
        seed: u64,
        bits in prop::collection::btree_set(0..BLOCK_BYTES * 8, 2..=3),
    ) {
        let block = noise(seed);
        let altered = bits.into_iter().fold(block, flipped);
        prop_assert_ne!(sum(&altered), sum(&block));
    }

    #[test]
    fn any_change_within_32_bits_changes_the_sum(
        seed: u64,
        first in 0..BLOCK_BYTES * 8 - 32,
        pattern in 1u32..,
    ) {
        let block = noise(seed);
        let bits = (0..32).filter(|bit| pattern >> bit & 1 == 1);
        let altered = bits.fold(block, |block, bit| flipped(block, first + bit));
        prop_assert_ne!(sum(&altered), sum(&block));
    }

    /// Words, sectors and cache lines that change places.
    #[test]
    fn swapped_pieces_change_the_sum(
        seed: u64,
        len in prop::sample::select(vec![1usize, 4, 8, 64, 512]),
        (one, other) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        let block = noise(seed);
        let count = BLOCK_BYTES / len;
        let (one, other) = (one.index(count) * len, other.index(count) * len);
        let mut swapped = block;
        swapped[one..one + len].copy_from_slice(&block[other..other + len]);
        swapped[other..other + len].copy_from_slice(&block[one..one + len]);
        prop_assume!(swapped != block);
        prop_assert_ne!(sum(&swapped), sum(&block));
    }
}

/// Where the altered block belongs.
const ALTERED: u64 = 20;
const DISK_BLOCKS: u64 = 64;

/// A pool in which nothing leaves staging before it is asked for, and flushes of up to
/// `log_commit_bytes` go to the log.
struct Bed {
    device: Arc<SimDevice>,
    pool: Pool,
    disk: Volume,
}

impl Bed {
    /// All blocks of the disk have old contents, published.
    fn new(log_commit_bytes: usize) -> Self {
        let device = SimDevice::new(16 << 20);
        let options = CreateOptions {
            segment_bytes: Some(256 << 10),
            nvram_bytes: Some(1 << 20),
            index_memory_bytes: 64 << 10,
            ..CreateOptions::default()
        };
        Pool::create_on(device.clone(), None, &options).unwrap();
        let hour = Duration::from_secs(3600);
        let tuning = Tuning {
            linger: hour,
            checkpoint_interval: hour,
            reducers: 1,
            log_commit_bytes,
            ..Tuning::default()
        };
        let options = OpenOptions { tuning, ..OpenOptions::default() };
        let pool = Pool::open_on(device.clone(), None, &options).unwrap();
        let size = VolumeOptions::new(DISK_BLOCKS * BLOCK_BYTES as u64);
        let disk = pool.create_volume("disk", &size).unwrap();
        for address in 0..DISK_BLOCKS {
            disk.write_at(address * BLOCK_BYTES as u64, &old(address)).unwrap();
        }
        pool.flush().unwrap();
        pool.checkpoint().unwrap();
        Self { device, pool, disk }
    }

    /// Admits blocks of which memory holds other contents than were received.
    fn admit(&self, address: u64, received: &[Block], now: &[Block]) {
        let mut memory = self.disk.core.buffers.take(now.len() * BLOCK_BYTES);
        memory.copy_from_slice(now.as_flattened());
        let data = StagedData::new(memory, BlockSums::of(received.as_flattened()));
        let end_bytes = (address + now.len() as u64) * BLOCK_BYTES as u64;
        block_on(self.disk.admit_blocks(BlockAddress(address), data, end_bytes)).unwrap();
    }

    fn read(&self, address: u64) -> crate::Result<Block> {
        let mut block = [0; BLOCK_BYTES];
        self.disk.read_at(address * BLOCK_BYTES as u64, &mut block)?;
        Ok(block)
    }

    /// The fault was found: the pool has failed with it and says so, what was damaged cannot be
    /// read, everything else can, and after opening again the old contents are there.
    fn expect_fault(self, what: &str) {
        let flushed = self.pool.flush().expect_err(what);
        assert_names_the_block(&flushed, what);
        let stat = self.pool.stat();
        assert!(stat.counters.staging_faults > 0, "{what}");
        assert!(stat.failure.is_some_and(|failure| failure.contains("memory fault")), "{what}");
        assert_names_the_block(&self.disk.write_at(0, &[1; 10]).expect_err(what), what);
        assert_names_the_block(&self.read(ALTERED).expect_err(what), what);
        for address in (0..10).chain(DISK_BLOCKS - 10..DISK_BLOCKS) {
            assert_eq!(self.read(address).expect(what), old(address), "{what}");
        }
        assert_names_the_block(&self.pool.close().expect_err(what), what);

        let pool = Pool::open_on(self.device, None, &OpenOptions::default()).unwrap();
        let disk = pool.volume("disk").unwrap();
        let mut block = [0; BLOCK_BYTES];
        for address in 0..DISK_BLOCKS {
            disk.read_at(address * BLOCK_BYTES as u64, &mut block).unwrap();
            assert_eq!(block, old(address), "{what}: block {address} after opening again");
        }
        pool.close().unwrap();
    }
}

fn old(address: u64) -> Block {
    text(&format!("old contents of block {address}. "))
}

fn assert_names_the_block(error: &EngineError, what: &str) {
    let cause = match error {
        EngineError::Failed { cause } => cause,
        error => error,
    };
    let EngineError::StagingDamaged { volume, address } = cause else { panic!("{what}: {error}") };
    assert_eq!((volume.as_str(), *address), ("disk", BlockAddress(ALTERED)), "{what}");
}

/// Whatever the pipeline makes of a block, it notices that it is not what was received.
#[test]
fn an_altered_block_is_not_stored() {
    let good = [text("new contents. "), noise(7)];
    for (kind, block) in ["compressed", "plain"].into_iter().zip(good) {
        for bit in [0, 12_345, BLOCK_BYTES * 8 - 1] {
            let bed = Bed::new(0);
            bed.admit(ALTERED, &[block], &[flipped(block, bit)]);
            bed.expect_fault(&format!("{kind}, bit {bit}"));
        }
    }
}

#[test]
fn an_altered_block_is_not_stored_among_good_ones() {
    let good = [noise(1), noise(2), noise(3), [0; BLOCK_BYTES], noise(4), noise(5)];
    for altered in [0, 2, 4, 5] {
        let mut now = good;
        now[altered] = flipped(now[altered], 99);
        let bed = Bed::new(0);
        bed.admit(ALTERED - altered as u64, &good, &now);
        bed.expect_fault(&format!("block {altered} of a change"));
    }
}

#[test]
fn a_block_that_became_zero_is_no_hole() {
    let bed = Bed::new(0);
    bed.admit(ALTERED, &[flipped([0; BLOCK_BYTES], 77)], &[[0; BLOCK_BYTES]]);
    bed.expect_fault("one bit became zero");
}

#[test]
fn a_block_of_zeros_that_got_a_bit_is_not_stored() {
    let bed = Bed::new(0);
    bed.admit(ALTERED, &[[0; BLOCK_BYTES]], &[flipped([0; BLOCK_BYTES], 77)]);
    bed.expect_fault("one bit of zeros was set");
}

/// By the one bit in which a published block differs, a block becomes its duplicate.
#[test]
fn a_block_that_became_a_published_one_is_not_linked() {
    let bed = Bed::new(0);
    bed.admit(ALTERED, &[flipped(old(3), 1234)], &[old(3)]);
    bed.expect_fault("became a duplicate of what is published");
}

#[test]
fn a_block_that_became_one_under_way_is_not_linked() {
    let bed = Bed::new(0);
    let block = noise(9);
    bed.admit(ALTERED + 1, &[block], &[block]);
    bed.admit(ALTERED, &[flipped(block, 4321)], &[block]);
    bed.expect_fault("became a duplicate of what is under way");
}

#[test]
fn an_altered_block_is_not_logged() {
    for before in [0, 3] {
        let bed = Bed::new(256 << 10);
        for address in 0..before {
            bed.disk.write_zeroes(address * BLOCK_BYTES as u64, 1).unwrap();
            bed.admit(address, &[old(address)], &[old(address)]);
        }
        let good = [noise(1), noise(2), noise(3)];
        let now = [noise(1), flipped(noise(2), 5), noise(3)];
        bed.admit(ALTERED - 1, &good, &now);
        bed.expect_fault(&format!("{before} good changes before it in the record"));
    }
}

/// What was logged before its memory went bad is replayed as it was received.
#[test]
fn a_logged_block_outlives_its_memory() {
    let bed = Bed::new(256 << 10);
    let logged = noise(1);
    bed.disk.write_at(5 * BLOCK_BYTES as u64, &logged).unwrap();
    bed.disk.flush().unwrap();
    bed.admit(ALTERED, &[noise(2)], &[flipped(noise(2), 6)]);
    bed.pool.flush().unwrap_err();
    bed.pool.close().unwrap_err();
    let pool = Pool::open_on(bed.device, None, &OpenOptions::default()).unwrap();
    let mut block = [0; BLOCK_BYTES];
    pool.volume("disk").unwrap().read_at(5 * BLOCK_BYTES as u64, &mut block).unwrap();
    assert_eq!(block, logged);
    pool.close().unwrap();
}

#[test]
fn an_altered_block_is_not_read() {
    for first in [ALTERED - 2, ALTERED] {
        let bed = Bed::new(0);
        bed.admit(ALTERED, &[noise(1), noise(2)], &[flipped(noise(1), 7), noise(2)]);
        let mut out = vec![0; 3 * BLOCK_BYTES];
        let read = bed.disk.read_at(first * BLOCK_BYTES as u64, &mut out).unwrap_err();
        assert!(matches!(read, EngineError::StagingDamaged { .. }), "{read}");
        assert_names_the_block(&read, "a read");
        assert_eq!(bed.read(ALTERED + 1).unwrap(), noise(2), "its good neighbour in the change");
        bed.expect_fault("after a read");
    }
}

/// A write of part of a block would give the rest a new sum.
#[test]
fn an_altered_block_is_not_merged() {
    let bed = Bed::new(0);
    bed.admit(ALTERED, &[noise(1)], &[flipped(noise(1), 30_000)]);
    let written = bed.disk.write_at(ALTERED * BLOCK_BYTES as u64 + 10, b"part").unwrap_err();
    assert!(matches!(written, EngineError::StagingDamaged { .. }), "{written}");
    assert_names_the_block(&written, "a write of part of it");
    bed.expect_fault("after a write of part of it");
}
