//! A snapshot is durable, and whole, when it has been taken: power cuts at any moment.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use siltstone_device::{
    Runtime, SeededRandom,
    sim::{CompletionMode, Machine, SimDevice},
};
use siltstone_engine::{OpenOptions, Pool, VolumeOptions};

use super::{BLOCK, MIB, assert_holds, content, create, name, open, open_as, options, write};

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
