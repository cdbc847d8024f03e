//! Promises: what is read ahead of a sequential reader is there when the reader comes, also for several
//! readers and in a small cache; what readers pass by once does not drive out what is read again and again.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::sync::Arc;

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Tuning, VolumeOptions};

const DATA_BYTES: usize = 32 << 20;
const BLOCK: usize = 4096;
const FRAME_BYTES: usize = 8 * BLOCK;
const FRAMES: u64 = (DATA_BYTES / FRAME_BYTES) as u64;

/// Blocks of which `random_bytes` are like nothing else.
fn data(random_bytes: usize) -> Vec<u8> {
    let mut data = vec![0; DATA_BYTES];
    let mut random = SeededRandom::new(1);
    data.chunks_exact_mut(BLOCK).for_each(|block| random.fill(&mut block[..random_bytes]));
    data
}

/// A pool that holds the data in its volume `v`, just opened.
fn pool(data: &[u8], frame_cache_bytes: usize) -> Pool {
    let device: Arc<SimDevice> = SimDevice::new(1 << 30);
    Pool::create_on(device.clone(), None, &CreateOptions::default()).unwrap();
    let tuning = Tuning { frame_cache_bytes, ..Tuning::default() };
    let options = OpenOptions { tuning, ..OpenOptions::default() };
    let pool = Pool::open_on(device.clone(), None, &options).unwrap();
    let volume = pool.create_volume("v", &VolumeOptions::new(DATA_BYTES as u64)).unwrap();
    for (at, piece) in data.chunks(1 << 20).enumerate() {
        volume.write_at((at << 20) as u64, piece).unwrap();
    }
    drop(volume);
    pool.close().unwrap();
    Pool::open_on(device, None, &options).unwrap()
}

/// Frames that were read from the device, beside those that were read ahead, for readers of a part each
/// that take turns.
fn frame_reads(pool: &Pool, data: &[u8], readers: usize, read_bytes: usize) -> u64 {
    let volume = pool.volume("v").unwrap();
    let before = pool.counters().frame_reads;
    let part_bytes = DATA_BYTES / readers;
    let mut back = vec![0; read_bytes];
    for at in (0..part_bytes).step_by(read_bytes) {
        for start in (0..readers).map(|reader| reader * part_bytes + at) {
            volume.read_at(start as u64, &mut back).unwrap();
            assert!(back == data[start..start + read_bytes], "what was written at {start}");
        }
    }
    pool.counters().frame_reads - before
}

#[test]
fn what_is_read_ahead_is_still_there_when_the_reader_comes() {
    let ways = [(1, BLOCK), (1, 1 << 20), (2, 1 << 20), (4, 128 << 10)];
    for (random_bytes, cache_mib) in [(1024, 4), (1024, 64), (BLOCK, 8), (BLOCK, 64)] {
        let data = data(random_bytes);
        for (readers, read_bytes) in ways {
            let pool = pool(&data, cache_mib << 20);
            let read = frame_reads(&pool, &data, readers, read_bytes);
            // Nothing is ahead of a reader's first two reads.
            let first = (readers * (2 * read_bytes).div_ceil(FRAME_BYTES)) as u64;
            let most = first + FRAMES / 16;
            assert!(
                read <= most,
                "{readers} readers of {read_bytes} bytes: {read} of {FRAMES} frames, cache of {cache_mib} MiB"
            );
        }
    }
}

#[test]
fn readers_that_pass_by_do_not_drive_out_what_is_in_use() {
    let data = data(1024);
    let pool = pool(&data, 8 << 20);
    let volume = pool.volume("v").unwrap();
    // 2 MiB of frames, all over the volume.
    let hot: Vec<u64> = (0..FRAMES).step_by(16).map(|frame| frame * FRAME_BYTES as u64).collect();
    let mut block = [0; BLOCK];
    let mut read_hot = |round: u64| {
        let before = pool.counters().frame_reads;
        for (at, start) in (0..).zip(&hot) {
            let offset = start + (round + at) % 8 * BLOCK as u64;
            volume.read_at(offset, &mut block).unwrap();
            assert!(block == data[offset as usize..][..BLOCK]);
        }
        pool.counters().frame_reads - before
    };
    read_hot(0);
    read_hot(1);
    let mut passing = vec![0; 1 << 20];
    let mut again = 0;
    for round in 0..DATA_BYTES >> 20 {
        volume.read_at((round << 20) as u64, &mut passing).unwrap();
        again += read_hot(round as u64);
    }
    assert!(again <= hot.len() as u64, "{again} frames in use were read again");
}

#[test]
fn a_frame_is_kept_as_it_is_stored_until_it_is_asked_for_again() {
    let data = data(1024);
    let pool = pool(&data, 64 << 20);
    let volume = pool.volume("v").unwrap();
    let frames = 64_u64;
    // One block of each, in an order that nobody would read ahead of.
    let read = || {
        for frame in (0..frames).map(|frame| frame * 37 % frames) {
            let (offset, mut block) = (frame * FRAME_BYTES as u64 + BLOCK as u64, [0; BLOCK]);
            volume.read_at(offset, &mut block).unwrap();
            assert!(block == data[offset as usize..][..BLOCK]);
        }
        let stat = pool.quick_stat();
        (stat.frame_cache_bytes, stat.counters.frame_reads)
    };
    let ((stored, first), (decoded, second), (third, last)) = (read(), read(), read());
    assert_eq!(
        (first, second, last),
        (frames, frames, frames),
        "each is read from the device once"
    );
    assert!(decoded >= frames * FRAME_BYTES as u64, "they are decoded: {decoded} bytes");
    assert!(stored <= decoded / 3 * 2, "{stored} bytes first, then {decoded}");
    assert_eq!(third, decoded);
}
