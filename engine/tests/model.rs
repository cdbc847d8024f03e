//! Many clients at once, on the same few blocks, while volumes come and go and the pool is closed:
//! what a client did itself it sees, what a flush acknowledged stays, budgets hold, nothing hangs.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pollster::block_on;
use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{EngineError, OpenOptions, Pool, Volume, VolumeOptions};
use support::{
    content::{BLOCK, SECTOR, SECTORS, bytes_of, tags_of},
    pools::{KIB, base, close, model_of, options, set_completion, work},
    watchdog::Watchdog,
};

fn open(device: &Arc<SimDevice>, random: &mut SeededRandom) -> Pool {
    set_completion(device, random);
    Pool::open_on(device.clone(), None, &options(random)).unwrap()
}

/// Each thread writes its own sector of the same two blocks, a counter that only grows: no merge
/// may take another's counter back, nor lose one that a flush acknowledged.
#[test]
fn writes_of_parts_of_the_same_blocks_never_take_each_other_back() {
    let watchdog = Watchdog::new("parts of the same blocks");
    let base = base(256 * KIB, 0);
    for seed in 0..6 {
        watchdog.feed(format!("parts of the same blocks, seed {seed}"));
        let mut random = SeededRandom::new(seed);
        let device = base.snapshot();
        let pool = open(&device, &mut random);
        let disk = pool.volume("disk").unwrap();
        let flushed: Vec<_> = (0..2 * SECTORS).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for sector in (0..2 * SECTORS).step_by(3) {
                let (disk, flushed) = (&disk, &flushed);
                scope.spawn(move || {
                    for count in 1..=60u32 {
                        let at = (sector * SECTOR) as u64;
                        disk.write_at(at, &bytes_of(&[count])).unwrap();
                        let mut back = [0; SECTOR];
                        disk.read_at(at, &mut back).unwrap();
                        assert_eq!(tags_of(&back).unwrap(), [count], "sector {sector}");
                        if count % 7 == sector as u32 % 7 {
                            disk.flush().unwrap();
                            flushed[sector].store(count.into(), Ordering::Release);
                        }
                    }
                });
            }
        });
        // Everybody has stopped; what is not flushed is lost with the power.
        let crashed = device.crash_with(
            device.history_len(),
            siltstone_device::sim::CrashPolicy::LoseAll,
            &mut random,
        );
        drop(disk);
        pool.close().unwrap();
        let pool = open(&crashed, &mut random);
        let mut bytes = vec![0; 2 * BLOCK];
        pool.volume("disk").unwrap().read_at(0, &mut bytes).unwrap();
        for (sector, tag) in tags_of(&bytes).unwrap().into_iter().enumerate() {
            let least = flushed[sector].load(Ordering::Acquire);
            assert!(u64::from(tag) >= least, "sector {sector}: {tag}, flushed {least}");
        }
    }
}

/// Memory: staging holds what its budget says, whatever the load.
#[test]
fn staging_never_exceeds_its_budget() {
    let _watchdog = Watchdog::new("the staging budget");
    let base = base(256 * KIB, 0);
    for seed in 0..4 {
        let mut random = SeededRandom::new(seed);
        let device = base.snapshot();
        let pool = open(&device, &mut random);
        let disk = pool.volume("disk").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4u64)
                .map(|writer| {
                    let disk = &disk;
                    scope.spawn(move || {
                        let mut random = SeededRandom::new(seed * 100 + writer);
                        for _ in 0..40 {
                            let blocks = 1 + random.below(64);
                            let mut noise = vec![0; blocks as usize * BLOCK];
                            random.fill(&mut noise);
                            disk.write_at(random.below(200) * BLOCK as u64, &noise).unwrap();
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let stat = pool.stat();
                    // One change larger than the whole budget may hold it alone.
                    assert!(
                        stat.staging_bytes <= stat.staging_limit_bytes.max(256 * KIB),
                        "{} of {}",
                        stat.staging_bytes,
                        stat.staging_limit_bytes
                    );
                }
            });
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            done.store(true, Ordering::Release);
        });
        disk.flush().unwrap();
        pool.checkpoint().unwrap();
        assert_eq!(pool.stat().staging_bytes, 0, "all is given back");
        pool.close().unwrap();
    }
}

fn expected(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Closing | EngineError::VolumeDeleted { .. } | EngineError::OutOfRange { .. }
    )
}

/// Writes, flushes and reads until it is refused.
fn hammer(volume: &Volume, seed: u64, deadline: Instant) {
    let mut random = SeededRandom::new(seed);
    let mut bytes = vec![0; 8 * BLOCK];
    while Instant::now() < deadline {
        let blocks = 1 + random.below(8);
        let at = random.below(64) * BLOCK as u64 + 512 * random.below(3);
        let len = blocks as usize * BLOCK - SECTOR * random.below(2) as usize;
        random.fill(&mut bytes[..len]);
        let outcome = match random.below(8) {
            0 => volume.discard(at, len as u64),
            1 => volume.write_zeroes(at, len as u64),
            2 | 3 => volume.flush(),
            4 => volume.read_at(at, &mut bytes[..len]),
            _ => volume.write_at(at, &bytes[..len]),
        };
        match outcome {
            Ok(()) => {}
            Err(EngineError::OutOfRange { .. }) => {}
            Err(error) => {
                assert!(expected(&error), "{error}");
                return;
            }
        }
    }
}

/// Closing under load ends everything in order; what comes late is refused, and nobody waits for
/// ever. What was acknowledged and flushed is there.
#[test]
fn a_pool_closes_under_load() {
    let watchdog = Watchdog::new("closing under load");
    let base = base(256 * KIB, 0);
    for seed in 0..60 {
        watchdog.feed(format!("closing under load, seed {seed}"));
        let mut random = SeededRandom::new(seed);
        let device = base.snapshot();
        let pool = open(&device, &mut random);
        let disk = pool.volume("disk").unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        std::thread::scope(|scope| {
            for client in 0..3 {
                let disk = disk.clone();
                scope.spawn(move || hammer(&disk, seed * 10 + client, deadline));
            }
            std::thread::sleep(Duration::from_millis(random.below(12)));
            pool.close().unwrap();
        });
        assert!(matches!(disk.write_at(0, &[1; 512]), Err(EngineError::Closing)));
        let _ = disk.flush();
        drop(disk);
        let pool = open(&device, &mut random);
        pool.volume("disk").unwrap().read_at(0, &mut vec![0; 64 * BLOCK]).unwrap();
        pool.close().unwrap();
    }
}

/// What a smaller size cuts off never comes back, though clients write there all the time.
#[test]
fn shrinking_under_load_leaves_zeros_behind_the_end() {
    let watchdog = Watchdog::new("shrinking under load");
    let base = base(256 * KIB, 0);
    for seed in 0..8 {
        watchdog.feed(format!("shrinking under load, seed {seed}"));
        let mut random = SeededRandom::new(seed);
        let device = base.snapshot();
        let pool = open(&device, &mut random);
        let options = VolumeOptions::new(80 * BLOCK as u64);
        let volume = pool.create_volume("resized", &options).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for client in 0..3u64 {
                let (volume, stop) = (&volume, &stop);
                scope.spawn(move || {
                    let mut random = SeededRandom::new(seed * 10 + client);
                    while !stop.load(Ordering::Acquire) {
                        let first = random.below(8 * 64);
                        let tags = vec![7; 1 + random.below(64) as usize];
                        match volume.write_at(first * SECTOR as u64, &bytes_of(&tags)) {
                            Ok(()) | Err(EngineError::OutOfRange { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            for _ in 0..20 {
                pool.resize_volume("resized", 80 * BLOCK as u64).unwrap();
                std::thread::sleep(Duration::from_micros(random.below(2000)));
                let small = (8 * 10 + random.below(8)) * SECTOR as u64;
                pool.resize_volume("resized", small).unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        let small = volume.size_bytes() as usize;
        pool.resize_volume("resized", 80 * BLOCK as u64).unwrap();
        let mut bytes = vec![0; 80 * BLOCK];
        volume.read_at(0, &mut bytes).unwrap();
        let stray = bytes[small..].iter().position(|&byte| byte != 0);
        assert_eq!(stray, None, "seed {seed}: something behind the end came back");
        pool.close().unwrap();
    }
}

/// Volumes are created, filled, and deleted under the hands of their writers.
#[test]
fn volumes_are_deleted_under_load() {
    let watchdog = Watchdog::new("deleting under load");
    let base = base(256 * KIB, 0);
    for seed in 0..6 {
        watchdog.feed(format!("deleting under load, seed {seed}"));
        let mut random = SeededRandom::new(seed);
        let device = base.snapshot();
        let pool = Arc::new(open(&device, &mut random));
        let model = model_of(&pool);
        let deadline = Instant::now() + Duration::from_secs(30);
        std::thread::scope(|scope| {
            for round in 0..12 {
                let name = format!("volume-{round}");
                let options = VolumeOptions::new(72 * BLOCK as u64);
                let volume = pool.create_volume(&name, &options).unwrap();
                scope.spawn(move || hammer(&volume, seed * 100 + round, deadline));
                std::thread::sleep(Duration::from_micros(random.below(3000)));
                pool.delete_volume(&name).unwrap();
            }
        });
        // The neighbours have noticed nothing, and the space comes back.
        work(&device, &pool, &model, &mut random, 20, false).unwrap();
        block_on(model.lock().check_visible(&pool)).unwrap();
        close(pool).unwrap();
        let pool = open(&device, &mut random);
        block_on(model.lock().check(&pool, device.history_len(), None)).unwrap();
        assert!(pool.volumes().iter().all(|volume| !volume.name.starts_with("volume-")));
    }
}

/// A handle outlives its pool without harm.
#[test]
fn a_handle_outlives_its_pool() {
    let device = base(256 * KIB, 0);
    let pool = Pool::open_on(device, None, &OpenOptions::default()).unwrap();
    let disk = pool.volume("disk").unwrap();
    disk.write_at(0, &[3; 4096]).unwrap();
    drop(pool);
    let mut bytes = [0; 4096];
    disk.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [3; 4096]);
    assert!(matches!(disk.write_at(0, &[1; 512]), Err(EngineError::Closing)));
    disk.flush().unwrap();
}
