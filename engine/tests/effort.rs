//! Promises: what is written while nothing waits is read back by less; a volume's levels bound what is made
//! of its data, and stay with it.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use siltstone_device::SeededRandom;
use siltstone_engine::{Effort, Levels, OpenOptions, Pool, SnapshotName, Tuning, VolumeOptions};
use support::pools;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;

fn options(effort: Option<Effort>) -> OpenOptions {
    let options = pools::small_options(false);
    OpenOptions { tuning: Tuning { effort, ..options.tuning }, ..options }
}

/// Bytes of the device that a read of one block takes, of what a volume of these levels was given with
/// an effort.
fn bytes_of_a_read(effort: Option<Effort>, levels: Levels) -> u64 {
    let device = pools::create();
    let pool = Pool::open_on(device.clone(), None, &options(effort)).unwrap();
    let size = VolumeOptions::new(BLOCKS * BLOCK).with_levels(levels);
    let disk = pool.create_volume("disk", &size).unwrap();
    // What does not compress, so that lengths are known.
    let mut data = vec![0; (BLOCKS * BLOCK) as usize];
    SeededRandom::new(1).fill(&mut data);
    for (at, piece) in data.chunks(16 * BLOCK as usize).enumerate() {
        disk.write_at(at as u64 * 16 * BLOCK, piece).unwrap();
        // Nothing waits behind the next.
        pool.checkpoint().unwrap();
    }
    pool.close().unwrap();
    let pool = Pool::open_on(device, None, &options(effort)).unwrap();
    let mut block = [0; BLOCK as usize];
    pool.volume("disk").unwrap().read_at(29 * BLOCK, &mut block).unwrap();
    assert_eq!(block, data[29 * BLOCK as usize..][..BLOCK as usize]);
    pool.counters().frame_read_bytes
}

#[test]
fn what_was_written_without_haste_is_read_by_less() {
    let (levels, fixed) = (Levels::default(), Levels::new(1, 1).unwrap());
    let (small, large) = (4 * BLOCK, 8 * BLOCK);
    assert!(bytes_of_a_read(None, levels) < small, "nothing waited");
    assert!(bytes_of_a_read(Some(Effort::Great), levels) < small);
    assert!(bytes_of_a_read(Some(Effort::Little), levels) > large);
    assert!(bytes_of_a_read(None, fixed) > large, "one level is one treatment");
}

#[test]
fn levels_stay_with_a_volume_and_its_snapshots() {
    let device = pools::create();
    let levels = Levels::new(-5, 9).unwrap();
    let name: SnapshotName = "disk@now".parse().unwrap();
    {
        let pool = Pool::open_on(device.clone(), None, &options(None)).unwrap();
        let size = VolumeOptions::new(BLOCKS * BLOCK).with_levels(levels);
        pool.create_volume("disk", &size).unwrap();
        pool.create_snapshots(&[name.clone()]).unwrap();
        pool.close().unwrap();
    }
    let pool = Pool::open_on(device, None, &options(None)).unwrap();
    pool.clone_snapshot(&name, "clone").unwrap();
    for volume in pool.volumes() {
        assert_eq!(volume.levels, levels, "{}", volume.name);
    }
    assert_eq!(pool.volumes().len(), 2);
    pool.close().unwrap();
}
