//! Promises: what a pool says its space is used for sums to its size, after any history; whose the
//! data are is right; an unreadable map is counted as unknown.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{sync::Arc, time::Duration};

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{
    CreateOptions, Fullness, OpenOptions, Pool, PoolStat, SnapshotName, Tuning, Volume,
    VolumeContent, VolumeOptions,
};
use support::pools::{
    BALLAST, DATA_START, KIB, MIB, POOL_BYTES, base, close, create, model_of, options,
    small_options, used_blocks, work,
};

const BLOCK: u64 = 4096;

fn assert_adds_up(stat: &PoolStat, when: &str) {
    let space = stat.space;
    assert_eq!(space.total_bytes(), stat.size_bytes, "{when}: {space:?}");
    if let Some(content) = stat.content {
        let logical: u64 =
            stat.volumes.iter().map(|volume| volume.content.unwrap().logical_bytes).sum();
        assert_eq!(content.logical_bytes, logical, "{when}");
        let readers = || stat.volumes.iter().chain(&stat.snapshots);
        let unique: u64 = readers().map(|reader| reader.content.unwrap().unique_bytes).sum();
        let all = content.unique_bytes + content.snapshot_bytes;
        assert_eq!(all, unique + content.shared_bytes, "{when}");
        assert_eq!(content.sampled_one_in, 1, "{when}");
        // Not that unique bytes are no more than logical ones: a clone holds what its snapshot held
        // although it has overwritten it.
        for volume in readers() {
            let of = volume.content.unwrap();
            assert_eq!(of.logical_bytes, of.exclusive_bytes + of.shared_bytes, "{when}");
            assert!(of.unique_bytes <= of.exclusive_bytes, "{when}: {}", volume.name);
        }
    }
}

/// Shared blocks hide garbage from those who do not look at the whole map: they know of more use, and
/// the level goes by that, for the log cannot look at the map each time.
#[test]
fn everybody_who_asks_is_told_the_same_level() {
    let device = SimDevice::new(64 * MIB);
    let create =
        CreateOptions { index_memory_bytes: MIB, nvram_bytes: Some(MIB), ..Default::default() };
    Pool::create_on(device.clone(), None, &create).unwrap();
    let tuning = Tuning { warn_percent: 50, critical_percent: 95, ..Tuning::default() };
    let options = OpenOptions { tuning, ..OpenOptions::default() };
    let pool = Pool::open_on(device, None, &options).unwrap();
    let size = VolumeOptions::new(64 * MIB);
    let [one, two] = ["one", "two"].map(|name| pool.create_volume(name, &size).unwrap());
    for at in 0..24 {
        one.write_at(at * MIB, &noise(at, MIB)).unwrap();
    }
    pool.checkpoint().unwrap();
    // Of each segment half is used twice and half is garbage, so that there are as many uses as blocks
    // also once a merge has come to what was discarded.
    const PIECE: u64 = 32 * KIB;
    for at in (0..24 * MIB / PIECE).step_by(2).map(|piece| piece * PIECE) {
        let (seed, start) = (at / MIB, (at % MIB) as usize);
        two.write_at(at, &noise(seed, MIB)[start..start + PIECE as usize]).unwrap();
        one.discard(at + PIECE, PIECE).unwrap();
    }
    pool.checkpoint().unwrap();
    let (quick, whole) = (pool.quick_stat(), pool.stat());
    assert!(quick.space.garbage_bytes < MIB, "{:?}", quick.space);
    assert!(whole.space.garbage_bytes > 10 * MIB, "{:?}", whole.space);
    let used = (quick.used_percent, whole.used_percent);
    assert!(used.0 >= 50 && used.1 < 45, "{used:?} % used");
    assert_eq!((quick.fullness, whole.fullness), (Fullness::Warning, Fullness::Warning));
}

#[test]
fn the_parts_sum_to_the_size_after_any_history() {
    for seed in 0..12 {
        let mut random = SeededRandom::new(seed);
        let device = base(256 * KIB, random.below(3) * 20);
        for life in 0..3 {
            let when = format!("seed {seed}, life {life}");
            let pool =
                Arc::new(Pool::open_on(device.clone(), None, &options(&mut random)).unwrap());
            let model = model_of(&pool);
            assert_adds_up(&pool.stat(), &format!("{when}, open"));
            work(&device, &pool, &model, &mut random, 40, false).unwrap();
            assert_adds_up(&pool.stat(), &format!("{when}, worked"));
            let (quick, whole) = (pool.quick_stat(), pool.stat());
            assert_adds_up(&quick, &format!("{when}, quick"));
            if life == 1 {
                pool.volume(BALLAST).iter().for_each(|ballast| {
                    ballast.discard(0, 10 * MIB + random.below(100) * BLOCK).unwrap();
                });
                pool.collect_garbage().unwrap();
                assert_adds_up(&pool.stat(), &format!("{when}, collected"));
            }
            drop(whole);
            if random.chance(1, 2) {
                close(pool).unwrap();
            } else {
                Arc::into_inner(pool).unwrap().abandon();
            }
            let pool = Pool::open_on(device.clone(), None, &small_options(true)).unwrap();
            assert_adds_up(&pool.stat(), &format!("{when}, read only"));
            let report = pool.check(&mut |_| {}).unwrap();
            assert!(report.is_sound(), "{when}: {:?}", report.findings);
            assert_eq!(report.space.total_bytes(), pool.size_bytes(), "{when}");
        }
    }
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    SeededRandom::new(seed).fill(&mut bytes);
    bytes
}

fn volume(pool: &Pool, name: &str) -> Volume {
    pool.create_volume(name, &VolumeOptions::new(64 * MIB)).unwrap()
}

#[test]
fn what_is_whose_and_what_deleting_it_frees_is_told() {
    let pool = Pool::open_on(create(), None, &OpenOptions::default()).unwrap();
    let (one, two) = (volume(&pool, "one"), volume(&pool, "two"));
    // One's own, half of it twice; shared; two's own; zeros, which nobody holds.
    one.write_at(0, &noise(1, 2 * MIB)).unwrap();
    one.write_at(8 * MIB, &noise(1, 2 * MIB)[..1 << 20]).unwrap();
    one.write_at(16 * MIB, &noise(2, 3 * MIB)).unwrap();
    pool.checkpoint().unwrap();
    two.write_at(0, &noise(2, 3 * MIB)).unwrap();
    two.write_at(32 * MIB, &noise(3, MIB)).unwrap();
    two.write_at(40 * MIB, &vec![0; 1 << 20]).unwrap();
    pool.checkpoint().unwrap();
    let stat = pool.stat();
    assert_adds_up(&stat, "shared");
    let of = |stat: &PoolStat, at: usize| {
        let content = stat.volumes[at].content.unwrap();
        let all = [
            content.logical_bytes,
            content.exclusive_bytes,
            content.shared_bytes,
            content.unique_bytes,
        ];
        all.map(|bytes| bytes / MIB)
    };
    assert_eq!(of(&stat, 0), [6, 3, 3, 2]);
    assert_eq!(of(&stat, 1), [4, 1, 3, 1]);
    let content = stat.content.unwrap();
    assert_eq!(
        [
            content.provisioned_bytes,
            content.logical_bytes,
            content.unique_bytes,
            content.shared_bytes
        ]
        .map(|bytes| bytes / MIB),
        [128, 10, 6, 3]
    );
    assert_eq!(stat.written.received_bytes, 11 * MIB);
    assert_eq!(stat.written.zero_bytes, MIB);
    assert!((content.dedup_ratio - 10.0 / 6.0).abs() < 1e-9);
    assert!((content.thin_ratio - 12.8).abs() < 1e-9);
    let product = content.dedup_ratio * content.compression_ratio * content.thin_ratio;
    assert!((content.total_ratio - product).abs() < 1e-9);
    // What deleting frees is what was its alone; the rest is the other's alone then.
    let (stored, garbage) = (stat.space.stored_bytes, stat.space.garbage_bytes);
    drop(one);
    pool.delete_volume("one").unwrap();
    let stat = pool.stat();
    assert_adds_up(&stat, "deleted");
    assert_eq!(of(&stat, 0), [4, 4, 0, 4]);
    let least = 2 * MIB;
    assert!(
        stat.space.stored_bytes <= stored - least && stat.space.garbage_bytes >= garbage + least
    );
    pool.collect_garbage().unwrap();
    let after = pool.stat();
    assert_adds_up(&after, "collected");
    assert!(after.space.free_bytes >= stat.space.free_bytes + least, "{:?}", after.space);
    // What is called garbage can be got back.
    assert!(after.space.garbage_bytes <= 64 * KIB, "{:?}", after.space);
    pool.close().unwrap();
}

#[test]
fn everything_that_is_written_to_the_device_is_accounted_for() {
    let device = create();
    // So that what is small is still waiting when it is flushed, and goes to the log.
    let tuning = Tuning { linger: Duration::from_secs(3600), ..Tuning::default() };
    let options = OpenOptions { tuning, ..OpenOptions::default() };
    let pool = Pool::open_on(device.clone(), None, &options).unwrap();
    let (before, of_device) = (pool.quick_stat().written, device.counters().written_bytes);
    assert_eq!(before.amplification, None);
    let disk = volume(&pool, "disk");
    for round in 0..40 {
        disk.write_at(round % 7 * 512 * KIB, &noise(round, 300 * KIB)).unwrap();
        disk.flush().unwrap();
        disk.write_at(30 * MIB + round * BLOCK, &noise(round, 100)).unwrap();
        disk.flush().unwrap();
    }
    pool.collect_garbage().unwrap();
    disk.flush().unwrap();
    let written = pool.quick_stat().written;
    assert_eq!(written.received_bytes, 40 * (300 * KIB + 100));
    let parts = [
        written.unit_bytes,
        written.collector_bytes,
        written.map_bytes,
        written.log_bytes,
        written.image_bytes,
        written.record_bytes,
    ];
    assert_eq!(written.device_bytes, parts.iter().sum::<u64>());
    let told = written.device_bytes - before.device_bytes;
    let found = device.counters().written_bytes - of_device;
    assert_eq!(told, found, "{written:?}");
    assert!(written.unit_bytes > 0 && written.map_bytes > 0 && written.log_bytes > 0);
    let expected = written.device_bytes as f64 / written.received_bytes as f64;
    assert!((written.amplification.unwrap() - expected).abs() < 1e-9);
    pool.close().unwrap();
}

#[test]
fn an_unreadable_map_is_counted_as_unknown_and_the_rest_is_told() {
    let device = create();
    let pool = Pool::open_on(device.clone(), None, &OpenOptions::default()).unwrap();
    let disk = volume(&pool, "disk");
    let mut random = SeededRandom::new(3);
    for block in (0..12_000).step_by(2) {
        disk.write_at(block * BLOCK, &noise(random.next_u64(), BLOCK)).unwrap();
    }
    drop(disk);
    pool.close().unwrap();
    let open = || Pool::open_on(device.clone(), None, &small_options(true)).unwrap();
    let whole = open().stat().content.unwrap();
    assert_eq!((whole.logical_bytes, whole.unknown_bytes), (6_000 * BLOCK, 0));
    // A common header of a leaf of a patch.
    let is_leaf = |at: &u64| {
        let start = device.peek(*at, 6);
        start[..4] == *b"SLTS" && start[4..] == [5, 0]
    };
    let leaves: Vec<u64> =
        used_blocks(&device, DATA_START..POOL_BYTES).into_iter().filter(is_leaf).collect();
    // Those of patches that have been merged stand there, too, and nobody needs them.
    let needed = leaves.iter().filter(|leaf| {
        let damaged = device.snapshot();
        damaged.corrupt(*leaf + 100, &[0xff; 8]);
        let pool = Pool::open_on(damaged, None, &small_options(true)).unwrap();
        let stat = pool.stat();
        assert_adds_up(&stat, "damaged");
        let content = stat.content.unwrap();
        assert_eq!(stat.volumes[0].content.unwrap().unknown_bytes, content.unknown_bytes);
        assert!(content.logical_bytes > 5_000 * BLOCK, "{content:?}");
        assert_eq!(content.unknown_bytes > 0, content.logical_bytes < whole.logical_bytes);
        content.unknown_bytes > 0
    });
    assert!(needed.count() > 0, "no page that was damaged is in use");
}

#[test]
fn a_snapshot_holds_what_was_changed_since_and_deleting_it_frees_that() {
    let pool = Pool::open_on(create(), None, &OpenOptions::default()).unwrap();
    let disk = volume(&pool, "disk");
    disk.write_at(0, &noise(1, 4 * MIB)).unwrap();
    let name = |name: &str| name.parse::<SnapshotName>().unwrap();
    pool.create_snapshots(&[name("disk@one")]).unwrap();
    disk.write_at(0, &noise(2, MIB)).unwrap();
    pool.create_snapshots(&[name("disk@two")]).unwrap();
    disk.write_at(MIB, &noise(3, MIB)).unwrap();
    pool.checkpoint().unwrap();
    let in_mib = |content: VolumeContent| {
        [content.logical_bytes, content.shared_bytes, content.unique_bytes].map(|bytes| bytes / MIB)
    };
    let stat = pool.stat();
    assert_adds_up(&stat, "with snapshots");
    assert_eq!(in_mib(stat.volumes[0].content.unwrap()), [4, 3, 1]);
    let found: Vec<_> = stat
        .snapshots
        .iter()
        .map(|snapshot| (snapshot.name.as_str(), in_mib(snapshot.content.unwrap())))
        .collect();
    // The first MiB is one's alone; the second is both snapshots'.
    assert_eq!(found, [("disk@one", [4, 3, 1]), ("disk@two", [4, 4, 0])]);
    let content = stat.content.unwrap();
    let figures = [content.logical_bytes, content.unique_bytes, content.snapshot_bytes];
    assert_eq!(figures.map(|bytes| bytes / MIB), [4, 4, 2]);
    pool.delete_snapshots(&[name("disk@one")]).unwrap();
    let stat = pool.stat();
    assert_adds_up(&stat, "without the first");
    assert_eq!(stat.content.unwrap().snapshot_bytes, MIB);
    assert_eq!(in_mib(stat.snapshots[0].content.unwrap()), [4, 3, 1]);
    pool.close().unwrap();
}

/// A device that holds more than a pool and has a log of its own adds up, too.
#[test]
fn a_pool_with_a_log_elsewhere_and_a_ragged_end_adds_up() {
    let (device, nvram) = (SimDevice::new(POOL_BYTES + 77 * BLOCK), SimDevice::new(MIB));
    let options = CreateOptions {
        segment_bytes: Some(256 * KIB),
        nvram_bytes: Some(MIB),
        index_memory_bytes: 64 * KIB,
        ..CreateOptions::default()
    };
    Pool::create_on(device.clone(), Some(nvram.clone()), &options).unwrap();
    let pool = Pool::open_on(device, Some(nvram), &OpenOptions::default()).unwrap();
    let stat = pool.stat();
    assert_adds_up(&stat, "ragged");
    assert!(stat.space.unusable_bytes > 0);
    assert_eq!(stat.space.unusable_bytes % BLOCK, 0);
    pool.close().unwrap();
}
