//! A pool does what a disk does: what was written is read back, through every path a block can
//! take, before and after it is reopened.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::{collections::BTreeMap, sync::Arc};

use siltstone_device::sim::SimDevice;
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, Tuning, VolumeOptions};

const MIB: u64 = 1 << 20;

fn small_tuning() -> OpenOptions {
    let tuning = Tuning { memtable_entries: 500, ..Tuning::default() };
    OpenOptions { tuning, ..OpenOptions::default() }
}

fn pool(size_bytes: u64) -> (Arc<SimDevice>, Pool) {
    let device = SimDevice::new(size_bytes);
    let options = CreateOptions { index_memory_bytes: 1 << 20, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let pool = Pool::open_on(device.clone(), None, &small_tuning()).unwrap();
    (device, pool)
}

/// Bytes that look different at every offset and for every seed, and compress about 2:1.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
        out.extend_from_slice(&seed.to_le_bytes());
    }
    out.truncate(len);
    out
}

#[test]
fn what_is_written_is_read_back_before_and_after_reopening() {
    let (device, pool) = pool(256 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(64 * MIB)).unwrap();
    let mut model = vec![0u8; 64 * MIB as usize];
    let mut state = 1u64;
    let mut next = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..600 {
        let len = match next(4) {
            0 => 512 * (1 + next(16)),
            1 => 4096 * (1 + next(8)),
            2 => 1 + next(200_000),
            _ => 65536 * (1 + next(8)),
        };
        let at = next(64 * MIB - len);
        let at = if next(2) == 0 { at - at % 4096 } else { at };
        let range = at as usize..(at + len) as usize;
        match next(10) {
            0 => {
                disk.write_zeroes(at, len).unwrap();
                model[range].fill(0);
            }
            1 => {
                let (start, end) = (at.next_multiple_of(4096), (at + len) / 4096 * 4096);
                disk.discard(at, len).unwrap();
                if start < end {
                    model[start as usize..end as usize].fill(0);
                }
            }
            _ => {
                let data = pattern(next(40), len as usize);
                disk.write_at(at, &data).unwrap();
                model[range].copy_from_slice(&data);
            }
        }
        if step % 50 == 7 {
            disk.flush().unwrap();
        }
        if step % 9 == 0 {
            let len = 1 + next(300_000);
            let at = next(64 * MIB - len);
            let mut back = vec![0; len as usize];
            disk.read_at(at, &mut back).unwrap();
            assert!(back == model[at as usize..(at + len) as usize], "step {step} at {at}+{len}");
        }
    }
    let mut back = vec![1; model.len()];
    disk.read_at(0, &mut back).unwrap();
    assert!(back == model);
    pool.close().unwrap();

    let pool = Pool::open_on(device, None, &small_tuning()).unwrap();
    let disk = pool.volume("disk").unwrap();
    back.fill(1);
    disk.read_at(0, &mut back).unwrap();
    assert!(back == model, "after reopening");
}

#[test]
fn how_long_changes_wait_for_a_checkpoint_can_be_asked() {
    let (_device, pool) = pool(128 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(64 * MIB)).unwrap();
    pool.checkpoint().unwrap();
    let checkpointed = std::time::Instant::now();
    assert_eq!(pool.quick_stat().checkpoint_lag_ms, 0);
    disk.write_at(0, &[7; 4096]).unwrap();
    let stat = loop {
        let stat = pool.quick_stat();
        if stat.checkpoint_lag_ms > 0 {
            break stat;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(stat.checkpoint_lag_ms <= stat.checkpoint_age_ms, "it came after the checkpoint");
    pool.checkpoint().unwrap();
    let stat = pool.quick_stat();
    assert_eq!(stat.checkpoint_lag_ms, 0);
    assert!(u128::from(stat.checkpoint_age_ms) <= checkpointed.elapsed().as_millis());
    assert!(stat.nvram_used_bytes <= stat.nvram_bytes && stat.nvram_bytes > 0);
    assert!(stat.page_cache_bytes <= stat.page_cache_limit_bytes);
    assert!(stat.unit_buffers_bytes <= stat.unit_buffers_limit_bytes);
}

#[test]
fn many_clients_at_once_see_their_own_writes() {
    let (_device, pool) = pool(512 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(64 * MIB)).unwrap();
    std::thread::scope(|scope| {
        for client in 0..8u64 {
            let disk = disk.clone();
            scope.spawn(move || {
                let base = client * 8 * MIB;
                let mut written = BTreeMap::new();
                for round in 0..200u64 {
                    let at = base + round * 7919 % 2000 * 4096;
                    let data = pattern(client << 32 | round, 4096 * (1 + round as usize % 3));
                    disk.write_at(at, &data).unwrap();
                    for (block, bytes) in data.chunks(4096).enumerate() {
                        written.insert(at + block as u64 * 4096, bytes.to_vec());
                    }
                    if round % 20 == 3 {
                        disk.flush().unwrap();
                    }
                }
                for (at, bytes) in written {
                    let mut back = vec![0; bytes.len()];
                    disk.read_at(at, &mut back).unwrap();
                    assert!(back == bytes, "client {client} at {at}");
                }
            });
        }
    });
}

#[test]
fn partial_writes_of_one_block_from_many_threads_all_survive() {
    let (_device, pool) = pool(256 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(MIB)).unwrap();
    for round in 0..20u8 {
        std::thread::scope(|scope| {
            for sector in 0..8u64 {
                let disk = disk.clone();
                scope.spawn(move || {
                    disk.write_at(sector * 512, &[round * 8 + sector as u8; 512]).unwrap();
                });
            }
        });
        let mut back = [0; 4096];
        disk.read_at(0, &mut back).unwrap();
        for (sector, bytes) in back.chunks(512).enumerate() {
            assert!(bytes.iter().all(|&byte| byte == round * 8 + sector as u8), "{round} {sector}");
        }
    }
}

#[test]
fn a_partial_write_never_undoes_a_whole_one_beside_it() {
    let (_device, pool) = pool(256 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(MIB)).unwrap();
    let start = std::sync::Barrier::new(2);
    for round in 0..2000u32 {
        let fill = (round % 250) as u8 + 1;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                disk.write_at(0, &[fill; 4096]).unwrap();
            });
            start.wait();
            disk.write_at(0, &[0xff; 512]).unwrap();
        });
        let mut back = [0; 4096];
        disk.read_at(0, &mut back).unwrap();
        assert!(back[512..].iter().all(|&byte| byte == fill), "round {round}");
    }
}

#[test]
fn duplicates_are_stored_once() {
    let (_device, pool) = pool(512 * MIB);
    let one = pool.create_volume("one", &VolumeOptions::new(64 * MIB)).unwrap();
    let two = pool.create_volume("two", &VolumeOptions::new(64 * MIB)).unwrap();
    let data = pattern(5, 16 * MIB as usize);
    one.write_at(0, &data).unwrap();
    two.write_at(MIB, &data).unwrap();
    pool.checkpoint().unwrap();
    one.write_at(32 * MIB, &data).unwrap();
    pool.checkpoint().unwrap();
    let content = pool.stat().content.unwrap();
    assert_eq!(content.unique_bytes, data.len() as u64);
    assert_eq!(content.logical_bytes, 3 * data.len() as u64);
    let mut back = vec![0; data.len()];
    for (volume, at) in [(&one, 0), (&two, MIB), (&one, 32 * MIB)] {
        volume.read_at(at, &mut back).unwrap();
        assert!(back == data);
    }
}

#[test]
fn a_full_pool_says_so_keeps_everything_and_recovers_by_trimming() {
    let (_device, pool) = pool(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(256 * MIB)).unwrap();
    let noise = |seed: u64| {
        let mut random = siltstone_device::SeededRandom::new(seed);
        let mut data = vec![0; 256 << 10];
        random.fill(&mut data);
        data
    };
    let mut written = 0;
    let full = loop {
        match disk.write_at(written * (256 << 10), &noise(written)) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "a 64 MiB pool cannot hold 256 MiB of noise");
    };
    assert!(matches!(full, EngineError::NoSpace { .. }), "{full}");
    assert!(written * (256 << 10) > 16 * MIB, "{written} pieces");
    disk.flush().unwrap();
    let check = |from: u64, to: u64| {
        for piece in from..to {
            let mut back = vec![0; 256 << 10];
            disk.read_at(piece * (256 << 10), &mut back).unwrap();
            assert!(back == noise(piece), "piece {piece}");
        }
    };
    check(0, written);
    disk.discard(0, written / 2 * (256 << 10)).unwrap();
    for piece in 0..written / 4 {
        disk.write_at(200 * MIB + piece * (256 << 10), &noise(1000 + piece)).unwrap();
    }
    check(written / 2, written);
}

/// Many links make a map that outweighs what it maps: overwriting them in a small pool ends in
/// ENOSPC, and trimming in room again, however little room merges have.
#[test]
fn a_pool_full_of_map_says_so_and_recovers() {
    let (_device, pool) = pool(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(4 << 30)).unwrap();
    let same = [7; 4096].repeat(256);
    for piece in 0..2000u64 {
        disk.write_at(piece * MIB, &same).unwrap();
    }
    let mut random = siltstone_device::SeededRandom::new(3);
    let mut refused = 0;
    for _ in 0..12_000 {
        let at = random.below(512_000) * 4096;
        let fill = random.below(2) as u8 + 8;
        match disk.write_at(at, &[fill; 4096]) {
            Ok(()) => {}
            Err(EngineError::NoSpace { .. }) => {
                refused += 1;
                if refused > 3 {
                    break;
                }
            }
            Err(other) => panic!("{other}"),
        }
    }
    disk.flush().unwrap();
    disk.discard(0, 4 << 30).unwrap();
    disk.flush().unwrap();
    for piece in 0..20u64 {
        disk.write_at(piece * MIB, &pattern(piece, MIB as usize)).unwrap();
    }
    pool.close().unwrap();
}

/// An opening goes on in the segment that was written last.
#[test]
fn openings_use_no_space_up() {
    let (device, pool) = pool(64 * MIB);
    pool.create_volume("disk", &VolumeOptions::new(8 * MIB)).unwrap();
    pool.checkpoint().unwrap();
    let free = pool.free_bytes();
    pool.close().unwrap();
    for round in 0..40 {
        let pool = Pool::open_on(device.clone(), None, &OpenOptions::default()).unwrap();
        let disk = pool.volume("disk").unwrap();
        disk.write_at(round * 4096, &pattern(round, 4096)).unwrap();
        pool.close().unwrap();
    }
    let pool = Pool::open_on(device, None, &OpenOptions::default()).unwrap();
    let left = pool.free_bytes();
    let segment = 2 * MIB;
    assert!(left + 3 * segment >= free, "40 openings took {} bytes", free - left);
}

/// Holes cost space, too, and a pool that loses power with holes in its log must find some again.
#[test]
fn a_full_pool_takes_trims_and_power_cuts_without_end() {
    let (device, pool) = pool(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(128 * MIB)).unwrap();
    let mut random = siltstone_device::SeededRandom::new(5);
    let mut noise = vec![0; 64 << 10];
    for piece in 0.. {
        random.fill(&mut noise);
        match disk.write_at(piece * noise.len() as u64, &noise) {
            Ok(()) => {}
            Err(EngineError::NoSpace { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    pool.close().unwrap();
    let mut device = device;
    for _ in 0..60 {
        let pool = Pool::open_on(device.clone(), None, &OpenOptions::default()).unwrap();
        let disk = pool.volume("disk").unwrap();
        for _ in 0..4 {
            match disk.discard(random.below(8000) * 4096, 4096) {
                Ok(()) => disk.flush().unwrap(),
                Err(EngineError::NoSpace { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        device.cut_power();
        drop((disk, pool));
        let lost = device.crash_at(device.history_len(), &mut random);
        device = lost;
    }
    let pool = Pool::open_on(device, None, &OpenOptions::default()).unwrap();
    let disk = pool.volume("disk").unwrap();
    disk.discard(0, 128 * MIB).unwrap();
    for piece in 0..16 * MIB / noise.len() as u64 {
        random.fill(&mut noise);
        disk.write_at(piece * noise.len() as u64, &noise).unwrap();
    }
}

#[test]
fn a_device_that_holds_something_is_not_overwritten_unasked() {
    let device = SimDevice::new(64 * MIB);
    // Where ext4 keeps its magic number.
    device.corrupt(1080, &[0x53, 0xef]);
    let options = CreateOptions::default();
    let refused = Pool::create_on(device.clone(), None, &options);
    assert!(matches!(refused, Err(EngineError::NotEmpty)), "{refused:?}");
    let forced = CreateOptions { overwrite: true, ..options.clone() };
    Pool::create_on(device.clone(), None, &forced).unwrap();
    let refused = Pool::create_on(device.clone(), None, &options);
    assert!(matches!(refused, Err(EngineError::PoolExists)), "{refused:?}");
    Pool::create_on(device, None, &forced).unwrap();
}

#[test]
fn a_catalog_that_is_full_says_so() {
    let (_device, pool) = pool(64 * MIB);
    let mut full = None;
    for number in 0..5000 {
        let name = format!("{number:0>250}");
        if let Err(error) = pool.create_volume(&name, &VolumeOptions::new(4096)) {
            full = Some(error);
            break;
        }
    }
    assert!(matches!(full, Some(EngineError::CatalogFull { .. })), "{full:?}");
    pool.delete_volume(&format!("{:0>250}", 7)).unwrap();
    pool.create_volume("another", &VolumeOptions::new(4096)).unwrap();
    pool.close().unwrap();
}

#[test]
fn volumes_come_go_and_change_size() {
    let (device, pool) = pool(256 * MIB);
    let disk = pool.create_volume("a", &VolumeOptions::new(8 * MIB)).unwrap();
    let again = pool.create_volume("a", &VolumeOptions::new(MIB));
    assert!(matches!(again, Err(EngineError::VolumeExists { .. })));
    disk.write_at(0, &pattern(1, 8 * MIB as usize)).unwrap();
    pool.resize_volume("a", 4 * MIB + 512).unwrap();
    assert_eq!(disk.size_bytes(), 4 * MIB + 512);
    assert!(matches!(disk.write_at(4 * MIB, &[1; 1024]), Err(EngineError::OutOfRange { .. })));
    pool.resize_volume("a", 16 * MIB).unwrap();
    let mut back = vec![1; 12 * MIB as usize - 512];
    disk.read_at(4 * MIB + 512, &mut back).unwrap();
    assert!(back.iter().all(|&byte| byte == 0), "what was cut off reads as zeros");
    let other = pool.create_volume("b", &VolumeOptions::new(MIB)).unwrap();
    pool.delete_volume("b").unwrap();
    assert!(matches!(other.write_at(0, &[1]), Err(EngineError::VolumeDeleted { .. })));
    assert!(matches!(pool.volume("b"), Err(EngineError::NoSuchVolume { .. })));
    pool.close().unwrap();
    let pool = Pool::open_on(device, None, &OpenOptions::default()).unwrap();
    let names: Vec<_> =
        pool.volumes().into_iter().map(|info| (info.name, info.size_bytes)).collect();
    assert_eq!(names, [("a".to_string(), 16 * MIB)]);
}

#[test]
fn the_log_may_lie_in_a_file_of_its_own_written_or_mapped() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for nvram_mapped in [false, true] {
        let path = directory.path().join(format!("pool-{nvram_mapped}"));
        let nvram = directory.path().join(format!("nvram-{nvram_mapped}"));
        let options = CreateOptions {
            size_bytes: Some(64 * MIB),
            nvram: Some(nvram.clone()),
            nvram_mapped,
            ..CreateOptions::default()
        };
        Pool::create(&path, &options).unwrap();
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        let disk = pool.create_volume("disk", &VolumeOptions::new(MIB)).unwrap();
        disk.write_at(4096, &[9; 4096]).unwrap();
        disk.flush().unwrap();
        assert_eq!(pool.stat().counters.log_commits, 1, "the flush went to the log");
        drop(disk);
        pool.close().unwrap();
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        let mut back = [0; 4096];
        pool.volume("disk").unwrap().read_at(4096, &mut back).unwrap();
        assert_eq!(back, [9; 4096]);
        drop(pool);
        std::fs::remove_file(&nvram).unwrap();
        assert!(Pool::open(&path, &OpenOptions::default()).is_err(), "the log is missing");
    }
}
