//! Layers that take over what they read of a parent that nothing else reads.

use std::collections::BTreeMap;

use siltstone_device::SeededRandom;
use siltstone_engine::{Pool, Volume, VolumeOptions};

use super::{BLOCK, MIB, assert_holds, create, name, open, write};

/// Adoption comes to its end: the volume reads by itself.
fn adopt(pool: &Pool) {
    pool.collect_garbage().unwrap();
}

/// Going back again and again is not refused and costs nothing, though each time the volume reads
/// through one more layer.
#[test]
fn rolling_back_and_forgetting_can_be_repeated_for_ever() {
    let (device, pool) = create(64 * MIB);
    let blocks = 512;
    pool.create_volume("disk", &VolumeOptions::new(blocks * BLOCK)).unwrap();
    let mut versions = vec![0; blocks as usize];
    for round in 1..=300 {
        let disk = pool.volume("disk").unwrap();
        for at in 0..blocks {
            versions[at as usize] = (round << 20) + at;
            write(&disk, at, versions[at as usize]);
        }
        pool.create_snapshots(&[name("disk@s")]).unwrap();
        write(&disk, round % blocks, 1);
        pool.roll_back(&name("disk@s")).unwrap();
        pool.delete_snapshots(&[name("disk@s")]).unwrap();
        if round % 16 == 0 {
            adopt(&pool);
        }
    }
    assert_holds(&pool.volume("disk").unwrap(), &versions);
    adopt(&pool);
    pool.close().unwrap();
    let pool = open(&device);
    assert_holds(&pool.volume("disk").unwrap(), &versions);
}

/// What a clone has overwritten is kept for nobody once the volume that it was cloned from is gone.
#[test]
fn what_a_clone_has_overwritten_comes_back() {
    let (_device, pool) = create(128 * MIB);
    let blocks = 4096;
    let disk = pool.create_volume("disk", &VolumeOptions::new(blocks * BLOCK)).unwrap();
    let empty = pool.free_bytes();
    for at in 0..blocks {
        write(&disk, at, (1 << 20) + at);
    }
    pool.create_snapshots(&[name("disk@s")]).unwrap();
    let clone = pool.clone_snapshot(&name("disk@s"), "clone").unwrap();
    pool.delete_volume_and_snapshots("disk").unwrap();
    adopt(&pool);
    let once = pool.free_bytes();
    for at in 0..blocks {
        write(&clone, at, (2 << 20) + at);
    }
    adopt(&pool);
    let again = pool.free_bytes();
    let written = blocks * BLOCK;
    assert!(once + written <= empty, "{once} of {empty} bytes are free");
    assert!(again + written / 8 >= once, "{again} of {once} bytes are free");
    assert_holds(&clone, &(0..blocks).map(|at| (2 << 20) + at).collect::<Vec<_>>());
}

/// What is written, discarded, labelled or labelled no more before, during and after an adoption is
/// read as it should be, by the volume and by each of its snapshots; also after it is opened again.
#[test]
fn adoption_hides_nothing_and_shows_nothing() {
    // In lives that an adoption outlasts it is counted in the next, if at all.
    let mut adopted = 0;
    for seed in 0..100 {
        let random = &mut SeededRandom::new(seed);
        let (device, mut pool) = create(64 * MIB);
        let blocks = 200;
        let disk = pool.create_volume("disk", &VolumeOptions::new(blocks * BLOCK)).unwrap();
        let mut versions: Vec<u64> = vec![0; blocks as usize];
        let mut snapshots: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut next = 0;
        let mut change = |disk: &Volume, versions: &mut Vec<u64>, random: &mut SeededRandom| {
            for _ in 0..random.below(30) {
                let first = random.below(blocks);
                let len = (1 + random.below(12)).min(blocks - first);
                if random.below(3) == 0 {
                    disk.discard(first * BLOCK, len * BLOCK).unwrap();
                    versions[first as usize..(first + len) as usize].fill(0);
                } else {
                    for at in first..first + len {
                        next += 1;
                        versions[at as usize] = next;
                        write(disk, at, next);
                    }
                }
            }
        };
        for at in (0..blocks).filter(|at| at % 5 > 0) {
            versions[at as usize] = (1 << 20) + at;
            write(&disk, at, versions[at as usize]);
        }
        change(&disk, &mut versions, random);
        pool.create_snapshots(&[name("disk@base")]).unwrap();
        let mut forgotten = versions.clone();
        change(&disk, &mut forgotten, random);
        let mut disk = pool.roll_back(&name("disk@base")).unwrap();
        // Written again, or not, between the rollback and the labels, and between these.
        for round in 0..12 {
            match random.below(6) {
                0 => pool.checkpoint().unwrap(),
                1 => {
                    let own = format!("s{round}");
                    pool.create_snapshots(&[name(&format!("disk@{own}"))]).unwrap();
                    snapshots.insert(own, versions.clone());
                }
                2 if !snapshots.is_empty() => {
                    let own = snapshots.keys().next().unwrap().clone();
                    pool.delete_snapshots(&[name(&format!("disk@{own}"))]).unwrap();
                    snapshots.remove(&own);
                }
                _ => change(&disk, &mut versions, random),
            }
            if round == seed % 12 {
                pool.delete_snapshots(&[name("disk@base")]).unwrap();
            }
            if random.below(8) == 0 {
                adopted += pool.counters().adopted_layers;
                drop(disk);
                pool.close().unwrap();
                pool = open(&device);
                disk = pool.volume("disk").unwrap();
            }
            if random.below(4) == 0 {
                assert_holds(&disk, &versions);
            }
        }
        for is_again in [false, true] {
            if is_again {
                drop(disk);
                pool.close().unwrap();
                pool = open(&device);
                disk = pool.volume("disk").unwrap();
            }
            adopt(&pool);
            adopted += pool.counters().adopted_layers;
            assert_holds(&disk, &versions);
            for (own, versions) in &snapshots {
                assert_holds(&pool.volume(&format!("disk@{own}")).unwrap(), versions);
            }
        }
    }
    assert!(adopted > 0);
}

/// A snapshot of a volume that was rolled back keeps what it saw of the layer before, though the volume
/// has overwritten it since, when the volume takes over what it needs of that layer.
#[test]
fn adoption_leaves_to_snapshots_what_the_volume_has_overwritten() {
    let (device, pool) = create(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(8 * BLOCK)).unwrap();
    (0..8).for_each(|at| write(&disk, at, 1 + at));
    pool.create_snapshots(&[name("disk@base")]).unwrap();
    let disk = pool.roll_back(&name("disk@base")).unwrap();
    pool.create_snapshots(&[name("disk@kept")]).unwrap();
    (2..4).for_each(|at| write(&disk, at, 20 + at));
    disk.discard(5 * BLOCK, BLOCK).unwrap();
    pool.create_snapshots(&[name("disk@later")]).unwrap();
    write(&disk, 3, 33);
    pool.delete_snapshots(&[name("disk@base")]).unwrap();
    adopt(&pool);
    assert_eq!(pool.counters().adopted_layers, 1);
    pool.close().unwrap();
    let pool = open(&device);
    let holds = |of, versions: &[u64]| assert_holds(&pool.volume(of).unwrap(), versions);
    holds("disk@kept", &[1, 2, 3, 4, 5, 6, 7, 8]);
    holds("disk@later", &[1, 2, 22, 23, 5, 0, 7, 8]);
    holds("disk", &[1, 2, 22, 33, 5, 0, 7, 8]);
}
