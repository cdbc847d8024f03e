//! `check` and `scrub` list exactly what cannot be read, whatever is damaged; and `scrub` does so
//! while the pool is in use, without false alarm, without harm and at its rate.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{
    collections::BTreeSet,
    io,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use siltstone_device::{
    Operation, Runtime, SeededRandom, Threads,
    runtime::{Joining, Sleep, Task},
    sim::{Cause, Fault, SimDevice, Times},
};
use siltstone_engine::{
    CreateOptions, Findings, LostCause, Pool, Problem, ScrubOptions, ScrubReport, VolumeOptions,
};
use support::{
    content::{BLOCK, Block, bytes_of},
    pools::{self, DATA_START, KIB, MIB, POOL_BYTES, small_options as options, used_blocks},
    watchdog::Watchdog,
};

const DISK_BLOCKS: u64 = 600;

/// Every block different from all others; odd tags, which do not compress, in every second one.
fn unique(version: u32, block: u64) -> Block {
    std::array::from_fn(|sector| {
        let number = version * 100_000 + block as u32 * 8 + sector as u32;
        number << 1 | (block as u32 & 1) | 1 << 28
    })
}

/// A pool with a disk in which newer patches cover parts of older ones, and some duplicates.
fn sample() -> Arc<SimDevice> {
    let device = pools::create();
    let pool = Pool::open_on(device.clone(), None, &options(false)).unwrap();
    // The last block is not whole.
    let size_bytes = DISK_BLOCKS * BLOCK as u64 - 1024;
    let disk = pool.create_volume("disk", &VolumeOptions::new(size_bytes)).unwrap();
    let mut random = SeededRandom::new(5);
    for version in 0..5u32 {
        for _ in 0..if version == 0 { 0 } else { 60 } {
            let len = 1 + random.below(9);
            let first = random.below(DISK_BLOCKS - 1 - len);
            let from = if random.chance(1, 4) { random.below(DISK_BLOCKS) } else { first };
            let blocks: Vec<_> = (from..from + len).map(|block| unique(version, block)).collect();
            disk.write_at(first * BLOCK as u64, &bytes_of(blocks.as_flattened())).unwrap();
        }
        if version == 0 {
            let blocks: Vec<_> = (0..DISK_BLOCKS).map(|block| unique(version, block)).collect();
            let bytes = bytes_of(blocks.as_flattened());
            disk.write_at(0, &bytes[..size_bytes as usize]).unwrap();
        }
        disk.discard(random.below(400) * BLOCK as u64, 8 * BLOCK as u64).unwrap();
        pool.checkpoint().unwrap();
    }
    pool.close().unwrap();
    device
}

/// Whether a block begins with a metadata structure of one of these kinds.
fn is_kind(device: &SimDevice, at: u64, kinds: &[u8]) -> bool {
    let header = device.peek(at, 6);
    header[..4] == siltstone_device::header::MAGIC && kinds.contains(&header[4])
}

/// The blocks of a volume that findings call lost.
fn lost_blocks(findings: &Findings, volume: &str) -> BTreeSet<u64> {
    assert_eq!(findings.more_lost, 0);
    let total: u64 = findings.lost.iter().map(|range| range.len_bytes).sum();
    assert_eq!(total, findings.lost_bytes);
    let mut blocks = BTreeSet::new();
    for range in &findings.lost {
        assert_eq!(range.volume, volume);
        assert!(range.len_bytes > 0 && range.offset_bytes.is_multiple_of(BLOCK as u64));
        let first = range.offset_bytes / BLOCK as u64;
        let end = (range.offset_bytes + range.len_bytes).div_ceil(BLOCK as u64);
        for block in first..end {
            assert!(blocks.insert(block), "block {block} is lost twice: {:?}", findings.lost);
        }
    }
    blocks
}

/// The blocks of the disk that cannot be read by somebody who has nothing cached.
fn unreadable_blocks(device: &Arc<SimDevice>) -> BTreeSet<u64> {
    let pool = Pool::open_on(device.clone(), None, &options(true)).unwrap();
    let disk = pool.volume("disk").unwrap();
    let mut out = [0; BLOCK];
    let is_unreadable = |block: &u64| {
        let at = block * BLOCK as u64;
        let len = (disk.size_bytes() - at).min(BLOCK as u64) as usize;
        disk.read_at(at, &mut out[..len]).is_err()
    };
    (0..disk.size_bytes().div_ceil(BLOCK as u64)).filter(is_unreadable).collect()
}

fn scrub(pool: &Pool) -> ScrubReport {
    let report = pool.scrub(&ScrubOptions::default(), &mut |_| ControlFlow::Continue(()));
    assert!(report.complete);
    report
}

#[test]
fn exactly_the_blocks_that_cannot_be_read_are_listed_whatever_is_damaged() {
    let watchdog = Watchdog::new("a pool to damage");
    let sample = sample();
    let used = used_blocks(&sample, DATA_START..POOL_BYTES);
    let is_map_page = |at: &&u64| is_kind(&sample, **at, &[5, 6]);
    let map_pages: Vec<_> = used.iter().filter(is_map_page).copied().collect();
    let mut random = SeededRandom::new(23);
    let (mut frames, mut maps, mut harmless) = (0, 0, 0);
    for round in 0..250 {
        let device = sample.snapshot();
        let mut places = Vec::new();
        for _ in 0..1 + random.below(3) {
            let among = if random.chance(1, 4) { &map_pages } else { &used };
            let at = among[random.below(among.len() as u64) as usize];
            let most = if random.chance(1, 3) { 160 } else { BLOCK as u64 };
            let offset = random.below(most);
            places.push(at + offset);
            match random.below(4) {
                0 => device.corrupt(at, &[0; BLOCK]),
                1 => {
                    let other = used[random.below(used.len() as u64) as usize];
                    device.corrupt(at, &sample.peek(other, BLOCK));
                }
                _ => device.flip_bit(at + offset, random.below(8) as u8),
            }
        }
        watchdog.feed(format!("round {round}: damage at {places:?}"));
        let Ok(pool) = Pool::open_on(device.clone(), None, &options(true)) else { continue };
        let checked = pool.check(&mut |_| {}).unwrap();
        let scrubbed = scrub(&pool);
        drop(pool);
        let unreadable = unreadable_blocks(&device);
        assert_eq!(lost_blocks(&checked.findings, "disk"), unreadable, "{places:?}");
        assert_eq!(lost_blocks(&scrubbed.findings, "disk"), unreadable, "{places:?}");
        let is_sound = checked.is_sound();
        assert_eq!(is_sound, scrubbed.is_sound(), "{places:?}: {checked:#?} {scrubbed:#?}");
        if !unreadable.is_empty() {
            assert!(checked.findings.problem_count() > 0);
        }
        // And in a pool that is open for writing, which has made a checkpoint by then.
        if random.chance(1, 4)
            && let Ok(pool) = Pool::open_on(device.clone(), None, &options(false))
        {
            let scrubbed = scrub(&pool);
            assert_eq!(lost_blocks(&scrubbed.findings, "disk"), unreadable_blocks(&device));
        }
        harmless += u32::from(unreadable.is_empty());
        let by = |cause| checked.findings.lost.iter().any(|range| range.cause == cause);
        frames += u32::from(by(LostCause::Frame));
        maps += u32::from(by(LostCause::Map));
    }
    println!("{frames} with damaged frames, {maps} with a damaged map, {harmless} harmless");
    assert!(frames > 20 && maps > 5 && harmless > 5, "{frames} {maps} {harmless}");
}

/// Blocks behind a damaged summary are readable: the map and their frames say all that it takes.
#[test]
fn a_damaged_summary_is_a_problem_and_loses_nothing() {
    let _watchdog = Watchdog::new("a damaged summary");
    let device = sample();
    let is_unit = |at: &u64| is_kind(&device, *at, &[4]);
    let mut found = 0;
    for at in used_blocks(&device, DATA_START..POOL_BYTES).into_iter().filter(is_unit) {
        let device = device.snapshot();
        device.flip_bit(at + 60, 1);
        let pool = Pool::open_on(device.clone(), None, &options(true)).unwrap();
        for findings in [pool.check(&mut |_| {}).unwrap().findings, scrub(&pool).findings] {
            assert!(findings.lost.is_empty(), "{findings:#?}");
            // What stands in freed segments is nobody's.
            let Some(problem) = findings.problems.first() else { continue };
            assert!(matches!(problem, Problem::Unit { .. }), "{findings:#?}");
            assert_eq!(findings.problem_count(), 1);
            found += 1;
        }
    }
    assert!(found > 10, "{found}");
}

/// A device that fails a read has lost what lies on those sectors, and the pool is none the worse.
#[test]
fn what_the_device_does_not_give_is_a_problem_and_not_a_failure() {
    let _watchdog = Watchdog::new("unreadable sectors");
    let device = sample();
    let pool = Pool::open_on(device.clone(), None, &options(false)).unwrap();
    let used = used_blocks(&device, DATA_START..POOL_BYTES);
    let mut found = 0;
    for at in used.iter().step_by(17) {
        device.inject(Fault {
            operation: Operation::Read,
            range_bytes: *at..at + BLOCK as u64,
            times: Times::Always,
            cause: Cause::Errno(5),
        });
        let report = scrub(&pool);
        assert_eq!(lost_blocks(&report.findings, "disk"), unreadable_blocks(&device), "at {at}");
        found += u32::from(!report.findings.lost.is_empty());
        device.clear_faults();
    }
    assert!(found > 5, "{found}");
    assert!(scrub(&pool).is_sound());
    let disk = pool.volume("disk").unwrap();
    disk.write_at(0, &[7; BLOCK]).unwrap();
    pool.close().unwrap();
}

/// A list that is cut off says how much it leaves out.
#[test]
fn no_lost_range_is_passed_over_in_silence() {
    let _watchdog = Watchdog::new("a short list");
    let device = sample();
    // Of a page of the map all that it says would be lost, which is one range.
    let of_map = |at: &u64| matches!(device.peek(*at, 6)[..], [b'S', b'L', b'T', b'S', 5 | 6, 0]);
    let blocks = used_blocks(&device, DATA_START..POOL_BYTES);
    for at in blocks.into_iter().filter(|at| !of_map(at)).step_by(3) {
        device.flip_bit(at + 300, 2);
    }
    let pool = Pool::open_on(device, None, &options(true)).unwrap();
    let all = ScrubOptions { list_limit: usize::MAX, ..ScrubOptions::default() };
    let few = ScrubOptions { list_limit: 2, ..ScrubOptions::default() };
    let of = |options| pool.scrub(options, &mut |_| ControlFlow::Continue(())).findings;
    let (all, few) = (of(&all), of(&few));
    assert!(all.lost.len() > 4 && all.more_lost == 0 && all.more_problems == 0);
    assert_eq!((few.lost.len(), few.problems.len()), (2, 2));
    assert_eq!(few.problem_count(), all.problem_count());
    assert_eq!(few.lost_bytes, all.lost_bytes);
    assert!(few.more_lost > 0);
}

/// What was written last lies in a segment that is not full; it is looked at all the same.
#[test]
fn data_in_an_open_segment_is_verified() {
    let _watchdog = Watchdog::new("an open segment");
    let device = SimDevice::new(64 * MIB);
    Pool::create_on(device.clone(), None, &CreateOptions::default()).unwrap();
    let pool = Pool::open_on(device.clone(), None, &options(false)).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(MIB)).unwrap();
    let block = unique(1, 3);
    disk.write_at(8 * BLOCK as u64, &bytes_of(&block)).unwrap();
    pool.checkpoint().unwrap();
    let report = scrub(&pool);
    assert_eq!((report.blocks, report.skipped_segments), (1, 0), "{report:#?}");
    let sector = bytes_of(&block[..1]);
    let image = device.peek(0, 64 * MIB as usize);
    let at = image.windows(sector.len()).position(|window| window == sector).unwrap();
    device.flip_bit(at as u64 + 9, 1);
    assert_eq!(lost_blocks(&scrub(&pool).findings, "disk"), [8].into());
    // What is written anew is not lost any more, even before it has left staging.
    disk.write_at(8 * BLOCK as u64, &bytes_of(&unique(2, 3))).unwrap();
    assert_eq!(lost_blocks(&scrub(&pool).findings, "disk"), BTreeSet::new());
    let stat = pool.stat();
    assert_eq!((stat.counters.scrub_passes, stat.counters.scrub_problems), (3, 2));
    let last = stat.last_scrub.unwrap();
    assert_eq!((last.problems, last.lost_ranges, last.lost_bytes), (1, 0, 0));
    assert!(stat.counters.scrubbed_bytes > 0);
}

/// Damage that every checksum passes for whole is found by the fingerprint, and named by block.
#[test]
fn a_block_that_reads_as_something_else_is_named() {
    let _watchdog = Watchdog::new("a forged frame");
    let device = SimDevice::new(64 * MIB);
    Pool::create_on(device.clone(), None, &CreateOptions::default()).unwrap();
    let pool = Pool::open_on(device.clone(), None, &options(false)).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(MIB)).unwrap();
    // Odd tags only: such a frame is stored as it is.
    let blocks: Vec<_> = (0..8).map(|block| unique(1, 2 * block + 1)).collect();
    disk.write_at(0, &bytes_of(blocks.as_flattened())).unwrap();
    // A duplicate of the sixth block.
    disk.write_at(64 * BLOCK as u64, &bytes_of(&blocks[5])).unwrap();
    pool.close().unwrap();

    let sector = bytes_of(&blocks[0][..1]);
    let image = device.peek(0, 64 * MIB as usize);
    let is_first =
        |at: &usize| image[*at..].starts_with(&sector) && image[at - 40..][..2] == *b"SF";
    let payload = (48..image.len() - 8 * BLOCK).find(is_first).unwrap();
    let mut frame = image[payload - 48..payload + 8 * BLOCK].to_vec();
    frame[48 + 5 * BLOCK + 77] ^= 1;
    let payload_checksum = crc32fast::hash(&frame[48..]);
    frame[4..8].copy_from_slice(&payload_checksum.to_le_bytes());
    let header_checksum = crc32fast::hash(&frame[4..48]);
    frame[..4].copy_from_slice(&header_checksum.to_le_bytes());
    device.corrupt(payload as u64 - 48, &frame);

    let pool = Pool::open_on(device.clone(), None, &options(true)).unwrap();
    assert!(unreadable_blocks(&device).is_empty(), "no checksum tells");
    for findings in [pool.check(&mut |_| {}).unwrap().findings, scrub(&pool).findings] {
        assert_eq!(lost_blocks(&findings, "disk"), [5, 64].into());
        assert!(findings.lost.iter().all(|range| range.cause == LostCause::Contents));
        assert!(matches!(findings.problems[..], [Problem::Fingerprint { .. }]));
    }
}

/// Scrubs again and again until told to stop; returns the reports.
fn scrub_beside(pool: &Pool, stop: &AtomicBool) -> Vec<ScrubReport> {
    let mut reports = Vec::new();
    while !stop.load(Ordering::Acquire) || reports.is_empty() {
        reports.push(scrub(pool));
    }
    reports
}

#[test]
fn writers_trims_and_checkpoints_beside_a_scrub_are_no_damage() {
    let watchdog = Watchdog::new("the base");
    let mut freed = 0;
    for seed in 0..12 {
        watchdog.feed(format!("seed {seed}"));
        let mut random = SeededRandom::new(seed);
        let device = pools::base(256 * KIB, 30);
        pools::set_completion(&device, &mut random);
        let pool = Pool::open_on(device.clone(), None, &pools::options(&mut random)).unwrap();
        let pool = Arc::new(pool);
        let model = pools::model_of(&pool);
        let stop = AtomicBool::new(false);
        let reports = std::thread::scope(|scope| {
            let scrubbing = scope.spawn(|| scrub_beside(&pool, &stop));
            for _ in 0..3 {
                pools::work(&device, &pool, &model, &mut random, 150, false).unwrap();
                // Segments are freed, and taken again.
                let ballast = pool.volume(pools::BALLAST).unwrap();
                let mut noise = vec![0; MIB as usize];
                for at in 0..12 {
                    random.fill(&mut noise);
                    ballast.write_at((random.below(30) + at % 2) * MIB, &noise).unwrap();
                }
                ballast.discard(random.below(20) * MIB, 6 * MIB).unwrap();
                pool.checkpoint().unwrap();
                freed += 1;
            }
            stop.store(true, Ordering::Release);
            scrubbing.join().unwrap()
        });
        for report in &reports {
            assert!(report.is_sound(), "seed {seed}: {:#?}", report.findings);
        }
        assert!(reports.iter().any(|report| report.blocks > 1000), "seed {seed}");
        pollster::block_on(model.lock().check_visible(&pool)).unwrap();
        let report = scrub(&pool);
        assert!(report.is_sound());
        pools::close(pool).unwrap();
    }
    assert_eq!(freed, 36);
}

#[test]
fn damage_is_named_exactly_while_others_write() {
    let watchdog = Watchdog::new("the sample");
    let sample = sample();
    let used = used_blocks(&sample, DATA_START..POOL_BYTES);
    let mut random = SeededRandom::new(77);
    let mut found = 0;
    for round in 0..20 {
        watchdog.feed(format!("round {round}"));
        let device = sample.snapshot();
        for _ in 0..2 {
            let at = used[random.below(used.len() as u64) as usize];
            device.flip_bit(at + random.below(BLOCK as u64), 1);
        }
        let before = {
            let Ok(pool) = Pool::open_on(device.clone(), None, &options(true)) else { continue };
            let map_is_sound = |problem: &Problem| !matches!(problem, Problem::Map(_));
            // A checkpoint cannot merge what it cannot read: such a pool stops taking writes.
            let findings = pool.check(&mut |_| {}).unwrap().findings;
            if !findings.problems.iter().all(map_is_sound) {
                continue;
            }
            lost_blocks(&findings, "disk")
        };
        let pool = Pool::open_on(device.clone(), None, &options(false)).unwrap();
        let other = pool.create_volume("other", &VolumeOptions::new(8 * MIB)).unwrap();
        let stop = AtomicBool::new(false);
        let reports = std::thread::scope(|scope| {
            let scrubbing = scope.spawn(|| scrub_beside(&pool, &stop));
            for number in 0..60 {
                let blocks: Vec<_> = (0..16).map(|block| unique(number + 9, block)).collect();
                let at = random.below(2000) * BLOCK as u64;
                other.write_at(at, &bytes_of(blocks.as_flattened())).unwrap();
                if number % 8 == 0 {
                    pool.checkpoint().unwrap();
                }
            }
            stop.store(true, Ordering::Release);
            scrubbing.join().unwrap()
        });
        for report in reports {
            assert_eq!(lost_blocks(&report.findings, "disk"), before, "round {round}");
        }
        found += u32::from(!before.is_empty());
    }
    assert!(found > 3, "{found}");
}

/// Time that passes only while somebody sleeps.
struct SleepClock {
    start: Instant,
    slept: Arc<Mutex<Duration>>,
}

impl Runtime for SleepClock {
    fn spawn(&self, name: &str, task: Task) -> io::Result<Joining> {
        Threads.spawn(name, task)
    }

    fn now(&self) -> Instant {
        self.start + *self.slept.lock().unwrap()
    }

    fn unix_seconds(&self) -> u64 {
        0
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        let (start, slept) = (self.start, Arc::clone(&self.slept));
        Box::pin(async move {
            let mut slept = slept.lock().unwrap();
            *slept = (*slept).max(deadline - start);
        })
    }

    fn parallelism(&self) -> usize {
        1
    }

    fn can_block(&self) -> bool {
        true
    }
}

#[test]
fn a_scrub_reads_no_faster_than_its_rate() {
    const RATE: u64 = 3 * MIB;
    let _watchdog = Watchdog::new("a slow scrub");
    let device = pools::base(MIB, 20);
    let slept: Arc<Mutex<Duration>> = Arc::default();
    let runtime = Arc::new(SleepClock { start: Instant::now(), slept: slept.clone() });
    let opening = options(true);
    let pool = Pool::open_in(runtime, device.clone(), None, &opening);
    let pool = pollster::block_on(pool).unwrap();
    let options = ScrubOptions { rate_bytes_per_second: Some(RATE), ..ScrubOptions::default() };
    let before = device.counters().read_bytes;
    let read = || device.counters().read_bytes - before;
    let mut steps = 0;
    let mut progress = |_| {
        let slept = slept.lock().unwrap().as_secs_f64();
        let allowed = slept * RATE as f64 + 1.01 * MIB as f64;
        assert!(read() as f64 <= allowed, "{} bytes after {slept} s", read());
        steps += 1;
        ControlFlow::Continue(())
    };
    let report = pool.scrub(&options, &mut progress);
    assert!(report.is_sound() && report.complete && steps > 20);
    assert!(read() >= 20 * MIB && report.bytes >= read(), "{report:?}");
    assert!(report.elapsed_ms >= 6000, "{report:?}");
}

#[test]
fn a_scrub_ends_when_it_is_told_to() {
    let device = pools::base(MIB, 10);
    let pool = Pool::open_on(device, None, &options(true)).unwrap();
    let mut stop = |progress: siltstone_engine::ScrubProgress| {
        if progress.segments == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let report = pool.scrub(&ScrubOptions::default(), &mut stop);
    assert!(!report.complete && report.segments <= 3);
    assert!(pool.stat().last_scrub.is_none());
}

#[test]
fn how_far_a_scrub_has_come_can_be_asked_until_it_ends() {
    let device = pools::base(MIB, 10);
    let pool = Pool::open_on(device, None, &options(true)).unwrap();
    let mut seen = 0;
    let mut look = |progress: siltstone_engine::ScrubProgress| {
        let told = pool.quick_stat().scrub.unwrap();
        assert_eq!((told.bytes, told.bytes_total), (progress.bytes, progress.bytes_total));
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    pool.scrub(&ScrubOptions::default(), &mut look);
    assert!(seen == 3 && pool.quick_stat().scrub.is_none());
}

#[test]
fn a_scrub_knows_how_much_there_is_to_read() {
    let device = pools::base(MIB, 10);
    let pool = Pool::open_on(device, None, &options(true)).unwrap();
    let mut seen = Vec::new();
    let mut note = |progress: siltstone_engine::ScrubProgress| {
        seen.push((progress.bytes, progress.bytes_total));
        ControlFlow::Continue(())
    };
    let report = pool.scrub(&ScrubOptions::default(), &mut note);
    // Nothing changes, so it is known from the start. Most segments are empty.
    let (first, last) = (seen[0], seen[seen.len() - 1]);
    assert!(first.1.abs_diff(report.bytes) * 50 < report.bytes, "{first:?} {report:?}");
    assert_eq!(last, (report.bytes, report.bytes));
    assert!(seen.iter().all(|(bytes, total)| bytes <= total), "{seen:?}");
}
