//! Promise: whenever the power is cut while a layer adopts what it reads of its parent, every volume
//! and every snapshot holds what it held, and so it is when the adoption has been made up for.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use siltstone_device::{
    Runtime, SeededRandom,
    sim::{CompletionMode, Machine, SimDevice},
};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, SnapshotName, Tuning, VolumeOptions};
use support::{content::BLOCK, watchdog::Watchdog};

/// More extents than one step of an adoption takes.
const BLOCKS: u64 = 1200;
const KIB: u64 = 1 << 10;

fn options(read_only: bool) -> OpenOptions {
    let tuning = Tuning {
        staging_bytes: 1 << 20,
        checkpoint_interval: Duration::from_secs(3600),
        linger: Duration::from_micros(200),
        warm_index: false,
        ..Tuning::default()
    };
    OpenOptions { read_only, tuning }
}

fn name(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// A block of some version; 0 is a hole.
fn content(version: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(&version.to_le_bytes());
    block
}

/// The versions of a volume's blocks.
fn versions(pool: &Pool, volume: &str) -> Vec<u64> {
    let mut blocks = vec![[0; BLOCK]; BLOCKS as usize];
    pool.volume(volume).unwrap().read_at(0, blocks.as_flattened_mut()).unwrap();
    let version = |block: &[u8; BLOCK]| {
        let version = u64::from_le_bytes(block[..8].try_into().unwrap());
        assert!(*block == content(version), "{volume} holds what was never written");
        version
    };
    blocks.iter().map(version).collect()
}

/// A pool in which the disk, and nothing else, reads through to a layer from before a rollback, with
/// snapshots that see what the disk has overwritten since, and a clone of one of these. And what
/// volumes and snapshots hold.
fn chain() -> (Arc<SimDevice>, BTreeMap<String, Vec<u64>>) {
    let device = SimDevice::new(48 << 20);
    let create = CreateOptions {
        segment_bytes: Some(256 * KIB),
        nvram_bytes: Some(256 * KIB),
        index_memory_bytes: 64 * KIB,
        ..CreateOptions::default()
    };
    Pool::create_on(device.clone(), None, &create).unwrap();
    let machine = Machine::new(1);
    device.set_completion_mode(CompletionMode::Queued);
    machine.attach(&device);
    let mut held = BTreeMap::new();
    machine.run(async {
        let pool = Pool::open_in(machine.clone(), device.clone(), None, &options(false)).await;
        let pool = pool.unwrap();
        let size = VolumeOptions::new(BLOCKS * BLOCK as u64);
        let mut disk = pool.create_volume_async("disk", &size).await.unwrap();
        let mut next = 0;
        let mut now = vec![0; BLOCKS as usize];
        for stage in 0..4 {
            // Neighbours that were written apart are extents of their own.
            for at in (0..BLOCKS).filter(|at| at % (stage + 2) < 1 + stage % 2) {
                next += 1;
                now[at as usize] = next;
                disk.write(at * BLOCK as u64, &content(next)).await.unwrap();
            }
            let holes = stage * 200..stage * 200 + 4;
            disk.trim(holes.start * BLOCK as u64, 4 * BLOCK as u64).await.unwrap();
            holes.for_each(|at| now[at as usize] = 0);
            if stage == 0 {
                pool.create_snapshots_async(&[name("disk@base")]).await.unwrap();
                disk = pool.roll_back_async(&name("disk@base")).await.unwrap();
            }
            let own = format!("disk@{stage}");
            pool.create_snapshots_async(&[name(&own)]).await.unwrap();
            held.insert(own, now.clone());
        }
        pool.clone_snapshot_async(&name("disk@2"), "clone").await.unwrap();
        held.insert("clone".into(), held["disk@2"].clone());
        held.insert("disk".into(), now);
        pool.delete_snapshots_async(&[name("disk@2"), name("disk@base")]).await.unwrap();
        held.remove("disk@2");
        // All of it is durable; any later the pool would begin to adopt.
        assert_eq!(pool.counters().adopted_extents, 0);
        pool.abandon();
    });
    machine.kill();
    device.forget_history();
    (device, held)
}

/// A write to the disk beside the adoption: the events before it began and after it was durable.
struct Write {
    begun: usize,
    durable: usize,
    block: u64,
    version: u64,
}

/// Whether the disk may hold this after a cut.
fn assert_disk(found: &[u64], before: &[u64], writes: &[Write], cut: usize) {
    let mut allowed: Vec<BTreeSet<u64>> = before.iter().map(|&one| [one].into()).collect();
    for write in writes.iter().filter(|write| write.begun < cut) {
        let of_block = &mut allowed[write.block as usize];
        if write.durable <= cut {
            of_block.clear();
        }
        of_block.insert(write.version);
    }
    for (at, (found, allowed)) in found.iter().zip(&allowed).enumerate() {
        assert!(allowed.contains(found), "cut at {cut}: block {at} is {found}, not {allowed:?}");
    }
}

/// An adoption is lived to its end and cut at each of its events; returns at how many.
fn cut_everywhere(seed: u64, clients_write: bool) -> usize {
    let watchdog = Watchdog::new("an adoption");
    let (device, mut held) = chain();
    let machine = Machine::new(seed);
    device.set_completion_mode(CompletionMode::Queued);
    machine.attach(&device);
    let random = &mut SeededRandom::new(seed);
    let mut writes = Vec::new();
    let counters = machine.run(async {
        let pool = Pool::open_in(machine.clone(), device.clone(), None, &options(false)).await;
        let pool = Arc::new(pool.unwrap());
        let disk = pool.volume("disk").unwrap();
        for version in 1_000_000.. {
            if pool.counters().adopted_layers > 0 {
                break;
            }
            if clients_write && random.chance(1, 3) {
                let block = random.below(BLOCKS);
                let begun = device.history_len();
                disk.write(block * BLOCK as u64, &content(version)).await.unwrap();
                disk.commit().await.unwrap();
                writes.push(Write { begun, durable: device.history_len(), block, version });
            }
            let pause = Duration::from_micros(1 + random.below(300));
            machine.sleep_until(machine.now() + pause).await;
        }
        drop(disk);
        pool.checkpoint_async().await.unwrap();
        let pool = Arc::into_inner(pool).unwrap();
        let counters = pool.counters();
        pool.abandon();
        counters
    });
    let events = device.history_len();
    machine.kill();
    let disk = held.remove("disk").unwrap();
    let assert_held = |pool: &Pool, cut: usize| {
        for (volume, expected) in &held {
            assert_eq!(&versions(pool, volume), expected, "{volume}, cut at {cut}");
        }
        assert_disk(&versions(pool, "disk"), &disk, &writes, cut);
    };
    let (mut begun, mut ended) = (0, 0);
    for cut in 0..=events {
        watchdog.feed(format!("seed {seed}, a cut at {cut} of {events}"));
        let survivor = device.crash_at(cut, random);
        survivor.set_completion_mode(CompletionMode::Inline);
        let pool = Pool::open_on(survivor.clone(), None, &options(true)).unwrap();
        assert_held(&pool, cut);
        pool.close().unwrap();
        let pool = Pool::open_on(survivor.clone(), None, &options(false)).unwrap();
        pool.collect_garbage().unwrap();
        let adopts_again = pool.counters().adopted_layers;
        begun += adopts_again;
        ended += 1 - adopts_again;
        assert_held(&pool, cut);
        pool.close().unwrap();
        let pool = Pool::open_on(survivor, None, &options(true)).unwrap();
        assert_held(&pool, cut);
        let report = pool.check(&mut |_| {}).unwrap();
        assert!(report.is_sound(), "cut at {cut}: {:?}", report.findings);
    }
    assert!(counters.adopted_extents > 1000 && counters.checkpoints > 3, "{counters:?}");
    assert!(begun > 10 && ended > 0, "{begun} cuts before and {ended} after its end");
    events
}

#[test]
fn no_cut_of_an_adoption_changes_what_is_held() {
    let events = cut_everywhere(1, false);
    assert!(events > 20, "{events} events");
}

#[test]
fn no_cut_of_an_adoption_beside_writes_changes_what_is_held() {
    let events = cut_everywhere(2, true);
    assert!(events > 60, "{events} events");
}
