//! Promises: a snapshot shows what its volume held at one moment, for as long as it exists, whatever
//! becomes of the volume; snapshots taken together show the same moment; clones and volumes that
//! were rolled back go on from there; what nobody can read any more comes back as free space.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use siltstone_device::{
    Runtime, SeededRandom,
    sim::{CompletionMode, Machine, SimDevice},
};
use siltstone_engine::{
    CreateOptions, EngineError, OpenOptions, Pool, SnapshotName, Tuning, Volume, VolumeOptions,
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn options() -> OpenOptions {
    let tuning = Tuning { staging_bytes: 4 << 20, memtable_entries: 300, ..Tuning::default() };
    OpenOptions { tuning, ..OpenOptions::default() }
}

fn open_as(device: &Arc<SimDevice>, read_only: bool) -> Pool {
    Pool::open_on(device.clone(), None, &OpenOptions { read_only, ..options() }).unwrap()
}

fn open(device: &Arc<SimDevice>) -> Pool {
    open_as(device, false)
}

fn create(size_bytes: u64) -> (Arc<SimDevice>, Pool) {
    let device = SimDevice::new(size_bytes);
    let options = CreateOptions { index_memory_bytes: 4 << 20, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let pool = open(&device);
    (device, pool)
}

fn name(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// A block of some version; 0 is a hole.
fn content(version: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    if version > 0 {
        SeededRandom::new(version).fill(&mut block);
    }
    block
}

fn write(disk: &Volume, block: u64, version: u64) {
    disk.write_at(block * BLOCK, &content(version)).unwrap();
}

fn assert_holds(disk: &Volume, versions: &[u64]) {
    assert_eq!(disk.size_bytes(), versions.len() as u64 * BLOCK, "{disk:?}");
    let mut all = vec![0; versions.len() * BLOCK as usize];
    disk.read_at(0, &mut all).unwrap();
    for ((at, &version), found) in (0..).zip(versions).zip(all.chunks(BLOCK as usize)) {
        assert!(found == content(version), "block {at} of {disk:?} is not version {version}");
    }
}

/// Volumes and snapshots, and what each is to hold.
#[derive(Default)]
struct Model {
    volumes: BTreeMap<String, Vec<u64>>,
    snapshots: BTreeMap<SnapshotName, Vec<u64>>,
    versions: u64,
    names: u64,
}

impl Model {
    fn any<K: Clone, V>(of: &BTreeMap<K, V>, random: &mut SeededRandom) -> Option<K> {
        let at = random.below(of.len().max(1) as u64) as usize;
        of.keys().nth(at).cloned()
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn step(&mut self, pool: &Pool, random: &mut SeededRandom) {
        let Some(volume) = Self::any(&self.volumes, random) else {
            let name = self.new_name();
            let blocks = 1 + random.below(300);
            pool.create_volume(&name, &VolumeOptions::new(blocks * BLOCK)).unwrap();
            self.volumes.insert(name, vec![0; blocks as usize]);
            return;
        };
        let snapshot = Self::any(&self.snapshots, random);
        let are_many = self.volumes.len() > 2;
        let versions = self.volumes.get_mut(&volume).unwrap();
        let blocks = versions.len() as u64;
        match (random.below(100), snapshot) {
            (0..50, _) => {
                let disk = pool.volume(&volume).unwrap();
                let first = random.below(blocks);
                for at in first..(first + 1 + random.below(20)).min(blocks) {
                    self.versions += 1;
                    // Some of it is a duplicate.
                    let version = if random.below(4) == 0 { 1 + at } else { self.versions };
                    versions[at as usize] = version;
                    write(&disk, at, version);
                }
            }
            (50..58, _) => {
                let disk = pool.volume(&volume).unwrap();
                let first = random.below(blocks);
                let len = (1 + random.below(60)).min(blocks - first);
                disk.discard(first * BLOCK, len * BLOCK).unwrap();
                versions[first as usize..(first + len) as usize].fill(0);
            }
            (58..72, _) => {
                let own = self.new_name();
                let of: Vec<_> = self.volumes.keys().filter(|_| random.below(3) > 0).collect();
                let names: Vec<_> =
                    of.iter().map(|volume| SnapshotName::new(volume, &own).unwrap()).collect();
                pool.create_snapshots(&names).unwrap();
                for name in names {
                    let versions = self.volumes[&name.volume].clone();
                    self.snapshots.insert(name, versions);
                }
            }
            (72..78, Some(snapshot)) => {
                pool.delete_snapshots(std::slice::from_ref(&snapshot)).unwrap();
                self.snapshots.remove(&snapshot);
            }
            (78..82, Some(snapshot)) => {
                let clone = self.new_name();
                pool.clone_snapshot(&snapshot, &clone).unwrap();
                self.volumes.insert(clone, self.snapshots[&snapshot].clone());
            }
            (82..85, Some(snapshot)) => {
                let before = pool.volume(&snapshot.volume).unwrap();
                pool.roll_back(&snapshot).unwrap();
                let versions = self.snapshots[&snapshot].clone();
                self.volumes.insert(snapshot.volume, versions);
                let refused = before.read_at(0, &mut [0; 512]).unwrap_err();
                assert!(matches!(refused, EngineError::VolumeRolledBack { .. }), "{refused}");
            }
            (85..88, _) if are_many => {
                pool.delete_volume_and_snapshots(&volume).unwrap();
                self.volumes.remove(&volume);
                self.snapshots.retain(|name, _| name.volume != volume);
            }
            (88..90, _) => {
                let blocks = 1 + random.below(300);
                pool.resize_volume(&volume, blocks * BLOCK).unwrap();
                versions.resize(blocks as usize, 0);
            }
            (90..92, _) => pool.checkpoint().unwrap(),
            (92..93, _) => pool.collect_garbage().unwrap(),
            (_, Some(snapshot)) => self.check_snapshot(pool, &snapshot),
            _ => self.check_volume(pool, &volume),
        }
    }

    fn check_volume(&self, pool: &Pool, volume: &str) {
        assert_holds(&pool.volume(volume).unwrap(), &self.volumes[volume]);
    }

    fn check_snapshot(&self, pool: &Pool, snapshot: &SnapshotName) {
        let disk = pool.volume(&snapshot.to_string()).unwrap();
        assert_holds(&disk, &self.snapshots[snapshot]);
    }

    fn check(&self, pool: &Pool) {
        let names: Vec<_> = pool.volumes().into_iter().map(|volume| volume.name).collect();
        assert!(names.iter().eq(self.volumes.keys()), "{names:?}");
        let names: Vec<_> = pool
            .snapshots()
            .iter()
            .map(|info| SnapshotName::new(&info.volume, &info.snapshot).unwrap())
            .collect();
        assert_eq!(names, self.snapshots.keys().cloned().collect::<Vec<_>>());
        self.volumes.keys().for_each(|volume| self.check_volume(pool, volume));
        self.snapshots.keys().for_each(|snapshot| self.check_snapshot(pool, snapshot));
    }
}

#[test]
fn any_history_of_snapshots_clones_and_writes_reads_as_it_should() {
    for seed in 0..6 {
        let (device, mut pool) = create(64 * MIB);
        let mut random = SeededRandom::new(seed);
        let mut model = Model::default();
        for _ in 0..4 {
            for _ in 0..150 {
                model.step(&pool, &mut random);
            }
            model.check(&pool);
            pool.close().unwrap();
            pool = open(&device);
            model.check(&pool);
        }
        let report = pool.check(&mut |_| {}).unwrap();
        assert!(report.is_sound(), "{report:#?}");
    }
}

/// A power cut right after a snapshot was taken leaves it whole, with writes that nobody had flushed;
/// also where the pool is then opened for reading only, so that nothing leaves the log.
#[test]
fn a_snapshot_is_durable_when_it_has_been_taken() {
    for read_only in [false, true] {
        let (device, pool) = create(64 * MIB);
        let disk = pool.create_volume("disk", &VolumeOptions::new(8 * BLOCK)).unwrap();
        write(&disk, 0, 1);
        pool.checkpoint().unwrap();
        write(&disk, 1, 2);
        pool.create_snapshots(&[name("disk@first")]).unwrap();
        write(&disk, 0, 3);
        write(&disk, 1, 4);
        let clone = pool.clone_snapshot(&name("disk@first"), "clone").unwrap();
        write(&clone, 1, 5);
        pool.create_snapshots(&[name("disk@second"), name("clone@second")]).unwrap();
        write(&clone, 1, 6);
        clone.flush().unwrap();
        let survivor = device.crash_at(device.history_len(), &mut SeededRandom::new(1));
        pool.abandon();
        let pool = open_as(&survivor, read_only);
        let holds = |volume: &str, versions: [u64; 2]| {
            let mut all = [0; 8];
            all[..2].copy_from_slice(&versions);
            assert_holds(&pool.volume(volume).unwrap(), &all);
        };
        holds("disk@first", [1, 2]);
        holds("disk@second", [3, 4]);
        holds("clone@second", [1, 5]);
        holds("disk", [3, 4]);
        holds("clone", [1, 6]);
    }
}

/// A writer counts up in one volume and then in the other; snapshots of both, taken while it does,
/// show the second at the first's count or one behind.
#[test]
fn snapshots_taken_together_show_one_moment() {
    let (_device, pool) = create(64 * MIB);
    let pair =
        ["a", "b"].map(|name| pool.create_volume(name, &VolumeOptions::new(8 * BLOCK)).unwrap());
    let stop = AtomicBool::new(false);
    let count = |disk: &Volume| {
        let mut count = [0; 8];
        disk.read_at(0, &mut count).unwrap();
        u64::from_le_bytes(count)
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            for count in 1u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                for disk in &pair {
                    disk.write_at(0, &count.to_le_bytes()).unwrap();
                }
            }
        });
        let mut last = 0;
        for number in 0..40 {
            let names = ["a", "b"].map(|v| SnapshotName::new(v, &number.to_string()).unwrap());
            let before = count(&pair[1]);
            pool.create_snapshots(&names).unwrap();
            let [a, b] = names.map(|name| count(&pool.volume(&name.to_string()).unwrap()));
            assert!(a == b || a == b + 1, "{a} and {b}");
            assert!(b >= before && a >= last, "{b} after {before}, {a} after {last}");
            last = a;
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn snapshots_are_read_only_and_end_when_they_are_deleted() {
    let (_device, pool) = create(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(8 * BLOCK)).unwrap();
    write(&disk, 0, 1);
    pool.create_snapshots(&[name("disk@s")]).unwrap();
    let snapshot = pool.volume("disk@s").unwrap();
    assert!(snapshot.is_read_only() && !disk.is_read_only());
    let refused = [
        snapshot.write_at(0, &[1; 512]),
        snapshot.discard(0, BLOCK),
        snapshot.write_zeroes(0, 512),
        pool.resize_volume("disk@s", BLOCK),
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(matches!(error, EngineError::SnapshotReadOnly { .. }), "{error}");
    }
    let error = pool.delete_volume("disk@s").unwrap_err();
    assert!(matches!(error, EngineError::NoSuchVolume { .. }), "{error}");
    let error = pool.delete_volume("disk").unwrap_err();
    assert!(matches!(error, EngineError::HasSnapshots { snapshots: 1, .. }), "{error}");
    pool.delete_snapshots(&[name("disk@s")]).unwrap();
    let error = snapshot.read_at(0, &mut [0; 512]).unwrap_err();
    assert!(matches!(error, EngineError::VolumeDeleted { .. }), "{error}");
    assert!(matches!(pool.volume("disk@s"), Err(EngineError::NoSuchSnapshot { .. })));
    assert_holds(&disk, &[1, 0, 0, 0, 0, 0, 0, 0]);
}

/// A volume that cannot go back, for want of room in the catalog, is as it was.
#[test]
fn a_full_catalog_leaves_a_volume_that_was_to_be_rolled_back_as_it_is() {
    let (_device, pool) = create(64 * MIB);
    let disks = ["a", "b", "c"].map(|volume| {
        let disk = pool.create_volume(volume, &VolumeOptions::new(2 * BLOCK)).unwrap();
        write(&disk, 0, 1);
        pool.create_snapshots(&[SnapshotName::new(volume, "s").unwrap()]).unwrap();
        write(&disk, 0, 2);
        disk
    });
    let mut number = 0;
    for (count, len) in [(1000, 200), (100, 200), (10, 200), (1, 200), (1, 5)] {
        loop {
            let own = (number..number + count).map(|number| format!("{number:0>len$}"));
            let names: Vec<_> = own.map(|own| SnapshotName::new("a", &own).unwrap()).collect();
            number += count;
            match pool.create_snapshots(&names) {
                Ok(()) => {}
                Err(EngineError::CatalogFull { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    // There is room for less than another snapshot, so for no more than two layers.
    let mut refusals = 0;
    for disk in disks {
        match pool.roll_back(&SnapshotName::new(disk.name(), "s").unwrap()) {
            Ok(disk) => assert_holds(&disk, &[1, 0]),
            Err(EngineError::CatalogFull { .. }) => {
                refusals += 1;
                assert_holds(&disk, &[2, 0]);
                write(&disk, 1, 3);
                assert_holds(&disk, &[2, 3]);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refusals > 0);
}

/// What only a snapshot held is free once it is deleted, and what a rolled-back volume had written.
#[test]
fn what_nobody_reads_any_more_comes_back() {
    let (_device, pool) = create(128 * MIB);
    let blocks = 4096;
    let disk = pool.create_volume("disk", &VolumeOptions::new(blocks * BLOCK)).unwrap();
    let fill = |disk: &Volume, from: u64| {
        for at in 0..blocks {
            write(disk, at, from + at);
        }
        disk.flush().unwrap();
    };
    let free = || {
        pool.collect_garbage().unwrap();
        pool.free_bytes()
    };
    let written = blocks * BLOCK;
    let empty = free();
    fill(&disk, 1 << 20);
    let once = free();
    assert!(once + written <= empty, "{once} of {empty} bytes are free");
    pool.create_snapshots(&[name("disk@s")]).unwrap();
    fill(&disk, 2 << 20);
    let twice = free();
    assert!(twice + written <= once, "{twice} of {once} bytes are free");
    pool.delete_snapshots(&[name("disk@s")]).unwrap();
    let deleted = free();
    assert!(deleted + written / 16 >= once, "{deleted} of {once} bytes are free");
    pool.create_snapshots(&[name("disk@t")]).unwrap();
    fill(&disk, 3 << 20);
    pool.roll_back(&name("disk@t")).unwrap();
    let back = free();
    assert!(back + written / 16 >= once, "{back} of {once} bytes are free");
    let disk = pool.volume("disk").unwrap();
    assert_holds(&disk, &(0..blocks).map(|at| (2 << 20) + at).collect::<Vec<_>>());
    pool.delete_volume_and_snapshots("disk").unwrap();
    let nothing = free();
    // But for a frontier segment that was begun.
    assert!(nothing + written / 4 >= empty, "{nothing} of {empty} bytes are free");
}

/// A change that was logged for a volume which was deleted later is not in the way of opening.
#[test]
fn logged_changes_of_volumes_that_are_gone_are_passed_over() {
    let (device, pool) = create(64 * MIB);
    let disks = ["a", "b", "c"]
        .map(|name| pool.create_volume(name, &VolumeOptions::new(8 * BLOCK)).unwrap());
    pool.create_snapshots(&[name("b@s")]).unwrap();
    for (disk, version) in disks.iter().zip(1..) {
        write(disk, 0, version);
        disk.flush().unwrap();
    }
    pool.delete_volume("a").unwrap();
    let b = pool.roll_back(&name("b@s")).unwrap();
    write(&b, 1, 9);
    write(&disks[2], 1, 10);
    b.flush().unwrap();
    let survivor = device.crash_at(device.history_len(), &mut SeededRandom::new(1));
    pool.abandon();
    let mut pool = open(&survivor);
    for _ in 0..2 {
        assert!(pool.volume("a").is_err());
        assert_holds(&pool.volume("b").unwrap(), &[0, 9, 0, 0, 0, 0, 0, 0]);
        assert_holds(&pool.volume("c").unwrap(), &[3, 10, 0, 0, 0, 0, 0, 0]);
        pool.abandon();
        pool = open(&survivor);
    }
}

/// A simulated machine with a new pool on its device, whose history begins there.
fn machine(seed: u64) -> (Arc<Machine>, Arc<SimDevice>) {
    let (device, pool) = create(64 * MIB);
    pool.close().unwrap();
    device.forget_history();
    let machine = Machine::new(seed);
    device.set_completion_mode(CompletionMode::Queued);
    machine.attach(&device);
    (machine, device)
}

/// Starts a checkpoint beside the caller; the flag says when it is done.
fn checkpoint_beside(machine: &Arc<Machine>, pool: &Arc<Pool>) -> Arc<AtomicBool> {
    let (pool, done) = (Arc::clone(pool), Arc::new(AtomicBool::new(false)));
    let is_done = Arc::clone(&done);
    let work = async move {
        pool.checkpoint_async().await.unwrap();
        is_done.store(true, Ordering::Release);
    };
    drop(machine.spawn("checkpoint", Box::pin(work)).unwrap());
    done
}

async fn wait_for(machine: &Arc<Machine>, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        machine.sleep_until(machine.now() + Duration::from_micros(50)).await;
    }
}

/// Wherever the power is cut, also in the middle of a checkpoint that runs beside it: a snapshot that
/// exists afterwards holds all that had been written before it was asked for.
#[test]
fn a_snapshot_is_not_there_before_what_it_holds() {
    for seed in 0..4 {
        let (machine, device) = machine(seed);
        let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        machine.run(async {
            let opened = Pool::open_in(machine.clone(), device.clone(), None, &options()).await;
            let pool = Arc::new(opened.unwrap());
            let size = VolumeOptions::new(32 * BLOCK);
            let disk = pool.create_volume_async("disk", &size).await.unwrap();
            let mut version = 0;
            for round in 0..8 {
                let done = checkpoint_beside(&machine, &pool);
                let pause = Duration::from_micros(20 * ((seed * 7 + round * 5) % 40));
                machine.sleep_until(machine.now() + pause + Duration::from_nanos(1)).await;
                for at in 0..32 {
                    version += 1;
                    disk.write(at * BLOCK, &content(version)).await.unwrap();
                }
                let name = name(&format!("disk@{round}"));
                expected.insert(name.to_string(), (version - 31..=version).collect());
                pool.create_snapshots_async(&[name]).await.unwrap();
                wait_for(&machine, &done).await;
            }
            Arc::into_inner(pool).unwrap().abandon();
        });
        let events = device.history_len();
        machine.kill();
        let mut random = SeededRandom::new(seed);
        for event in (0..events).step_by(2) {
            let survivor = device.crash_at(event, &mut random);
            survivor.set_completion_mode(CompletionMode::Inline);
            let read_only = OpenOptions { read_only: true, ..options() };
            let pool = Pool::open_on(survivor, None, &read_only).unwrap();
            if let Some(newest) = pool.snapshots().last() {
                let name = format!("disk@{}", newest.snapshot);
                assert_holds(&pool.volume(&name).unwrap(), &expected[&name]);
            }
        }
    }
}

/// Who asks for a change and does not wait for it has it all the same, whole, in memory and on the
/// device.
#[test]
fn a_change_that_nobody_waits_for_comes_to_its_end() {
    for seed in 0..40 {
        let (machine, device) = machine(seed);
        machine.run(async {
            let opened = Pool::open_in(machine.clone(), device.clone(), None, &options()).await;
            let pool = Arc::new(opened.unwrap());
            let size = VolumeOptions::new(256 * BLOCK);
            let disk = pool.create_volume_async("disk", &size).await.unwrap();
            for round in 0..4 {
                for at in 0..200 {
                    disk.write(at * BLOCK, &content(1 + at + round * 1000)).await.unwrap();
                }
                let names = [name(&format!("disk@{round}"))];
                let mut change = Box::pin(pool.create_snapshots_async(&names));
                assert!(poll_fn(|cx| Poll::Ready(change.as_mut().poll(cx).is_pending())).await);
                let done = checkpoint_beside(&machine, &pool);
                machine.sleep_until(machine.now() + Duration::from_nanos(1 + seed * 3000)).await;
                drop(change);
                wait_for(&machine, &done).await;
            }
            // The next change comes after all of these.
            pool.create_volume_async("last", &size).await.unwrap();
            assert_eq!(pool.snapshots().len(), 4);
            Arc::into_inner(pool).unwrap().abandon();
        });
        let end = device.history_len();
        machine.kill();
        let survivor = device.crash_at(end, &mut SeededRandom::new(seed));
        survivor.set_completion_mode(CompletionMode::Inline);
        let pool = open(&survivor);
        for round in 0..4 {
            let mut versions: Vec<_> = (0..200).map(|at| 1 + at + round * 1000).collect();
            versions.resize(256, 0);
            assert_holds(&pool.volume(&format!("disk@{round}")).unwrap(), &versions);
        }
    }
}

/// A change for which the catalog has no room leaves everything as it was.
#[test]
fn what_is_refused_changes_nothing() {
    let (_device, pool) = create(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(8 * BLOCK)).unwrap();
    pool.create_snapshots(&[name("disk@first")]).unwrap();
    // Long names fill it sooner; short ones leave no room for a layer.
    let mut digits = 250;
    let mut number = 0;
    while digits >= 5 {
        let names: Vec<_> = (0..digits / 5)
            .map(|at| SnapshotName::new("disk", &format!("{:0>digits$}", number + at)).unwrap())
            .collect();
        number += names.len();
        match pool.create_snapshots(&names) {
            Ok(()) => {}
            Err(EngineError::CatalogFull { .. }) => digits = digits * 3 / 5,
            Err(error) => panic!("{error}"),
        }
    }
    write(&disk, 0, 1);
    let snapshots = pool.snapshots().len();
    if let Err(refused) = pool.roll_back(&name("disk@first")) {
        assert!(matches!(refused, EngineError::CatalogFull { .. }), "{refused}");
        assert_holds(&disk, &[1, 0, 0, 0, 0, 0, 0, 0]);
        write(&disk, 1, 2);
    }
    let refused = pool.create_snapshots(&[SnapshotName::new("disk", &"x".repeat(250)).unwrap()]);
    assert!(matches!(refused, Err(EngineError::CatalogFull { .. })), "{refused:?}");
    assert_eq!(pool.snapshots().len(), snapshots);
}

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
