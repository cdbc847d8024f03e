//! Promises: what a pool does not need any more goes back to the medium: after a while, when the pool is
//! closed, and, even after a crash, when a collection is asked for; and what is soon needed again is not
//! given back before.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::{
    fs, iter,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use siltstone_device::{DeviceError, SeededRandom};
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, VolumeOptions};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 256 * MIB;
const DATA_BYTES: u64 = 96 * MIB;

fn create() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool.silt");
    let size_bytes = Some(POOL_BYTES);
    Pool::create(&path, &CreateOptions { size_bytes, ..CreateOptions::default() }).unwrap();
    (directory, path)
}

fn open(path: &Path, discard_delay: Duration) -> Pool {
    let mut options = OpenOptions::default();
    options.tuning.discard_delay = discard_delay;
    options.tuning.checkpoint_interval = Duration::from_millis(50);
    loop {
        match Pool::open(path, &options) {
            // The tasks of one that was abandoned hold it until they have ended.
            Err(EngineError::Device(DeviceError::Locked { .. })) => thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// What the file takes on its medium.
fn allocated_bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Writes noise that no other seed has.
fn write(pool: &Pool, name: &str, seed: u64) {
    let mut piece = vec![0; MIB as usize];
    let mut random = SeededRandom::new(seed);
    let disk = pool.volume(name).unwrap();
    for at in 0..DATA_BYTES / MIB {
        random.fill(&mut piece);
        disk.write_at(at * MIB, &piece).unwrap();
    }
    pool.checkpoint().unwrap();
}

fn fill_and_delete(pool: &Pool) {
    pool.create_volume("disk", &VolumeOptions::new(DATA_BYTES)).unwrap();
    write(pool, "disk", 1);
    pool.delete_volume("disk").unwrap();
    // What nothing refers to is condemned by one and let go of by the next.
    for _ in 0..3 {
        pool.checkpoint().unwrap();
    }
}

const NEVER: Duration = Duration::from_secs(1 << 30);

#[test]
fn what_was_deleted_goes_back_when_the_pool_is_closed() {
    let (_directory, path) = create();
    let empty = allocated_bytes(&path);
    let pool = open(&path, NEVER);
    fill_and_delete(&pool);
    assert!(allocated_bytes(&path) > empty + DATA_BYTES, "nothing is given back at once");
    pool.close().unwrap();
    let after = allocated_bytes(&path);
    assert!(after < empty + 16 * MIB, "{empty} before, {after} after");
}

#[test]
fn what_stays_free_goes_back_by_itself() {
    let (_directory, path) = create();
    let empty = allocated_bytes(&path);
    let pool = open(&path, Duration::from_millis(20));
    fill_and_delete(&pool);
    let is_back = |_: &()| allocated_bytes(&path) < empty + 32 * MIB;
    let waits = iter::repeat_with(|| thread::sleep(Duration::from_millis(20))).take(1500);
    let found = waits.into_iter().find(is_back);
    assert!(found.is_some(), "{} of {empty} are left", allocated_bytes(&path));
    pool.close().unwrap();
}

/// It was not given back before the crash, and nobody knows any more that it was ever written.
#[test]
fn a_collection_gives_back_what_a_crash_left() {
    let (_directory, path) = create();
    let empty = allocated_bytes(&path);
    let pool = open(&path, NEVER);
    fill_and_delete(&pool);
    pool.abandon();
    let pool = open(&path, NEVER);
    assert!(allocated_bytes(&path) > empty + DATA_BYTES);
    pool.collect_garbage().unwrap();
    let after = allocated_bytes(&path);
    assert!(after < empty + 32 * MIB, "{empty} before, {after} after");
    pool.close().unwrap();
}

#[test]
fn what_was_freed_is_used_again_before_anything_else() {
    let (_directory, path) = create();
    let pool = open(&path, NEVER);
    fill_and_delete(&pool);
    let before = allocated_bytes(&path);
    pool.create_volume("next", &VolumeOptions::new(DATA_BYTES)).unwrap();
    write(&pool, "next", 2);
    let after = allocated_bytes(&path);
    assert!(after < before + DATA_BYTES / 2, "{before} before, {after} after");
    pool.close().unwrap();
}
