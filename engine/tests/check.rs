//! `check` says of a sound pool that it is sound, whatever it has been through, and of a damaged
//! one what is damaged and which blocks of which volume are lost.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::sync::Arc;

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Problem, Tuning, VolumeOptions};

const MIB: u64 = 1 << 20;

fn used_pool() -> Arc<SimDevice> {
    let device = SimDevice::new(128 * MIB);
    let options = CreateOptions { index_memory_bytes: 1 << 20, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let tuning = Tuning { memtable_entries: 200, ..Tuning::default() };
    let pool =
        Pool::open_on(device.clone(), None, &OpenOptions { tuning, ..OpenOptions::default() })
            .unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(32 * MIB)).unwrap();
    let gone = pool.create_volume("gone", &VolumeOptions::new(32 * MIB)).unwrap();
    let mut random = SeededRandom::new(7);
    for _ in 0..800 {
        let mut data = vec![0; 4096 * (1 + random.below(20) as usize)];
        let fill = random.below(30) as u8;
        for (at, block) in data.chunks_mut(4096).enumerate() {
            block[..2048].fill(fill.wrapping_add(at as u8 % 3));
        }
        let volume = if random.chance(1, 3) { &gone } else { &disk };
        let at = random.below(8000 - 20) * 4096;
        volume.write_at(at, &data).unwrap();
        if random.chance(1, 20) {
            disk.discard(random.below(4000) * 4096, 4096 * random.below(4000)).unwrap();
        }
    }
    pool.delete_volume("gone").unwrap();
    pool.close().unwrap();
    device
}

fn check(device: &Arc<SimDevice>) -> siltstone_engine::CheckReport {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let pool = Pool::open_on(device.clone(), None, &options).unwrap();
    pool.check(&mut |_| {}).unwrap()
}

#[test]
fn a_sound_pool_is_sound() {
    let report = check(&used_pool());
    assert!(report.is_sound(), "{:#?}", report.findings.problems);
    assert!(report.units > 0 && report.frames > 0 && report.entries > 0, "{report:?}");
}

#[test]
fn a_damaged_frame_is_found_and_its_blocks_are_named() {
    let device = used_pool();
    // Frames begin with their checksums; "SF" and version 1 follow.
    let image = device.peek(0, 128 * MIB as usize);
    let frame = image
        .chunks(16)
        .enumerate()
        .skip((8 * MIB / 16) as usize)
        .find(|(_, bytes)| bytes[8..11] == *b"SF\x01")
        .map(|(at, _)| at as u64 * 16)
        .unwrap();
    device.flip_bit(frame + 60, 3);
    let report = check(&device);
    assert!(report.findings.problems.iter().any(|p| matches!(p, Problem::Frame(_))), "{report:?}");
    let others =
        report.findings.problems.iter().filter(|p| !matches!(p, Problem::Frame(_))).count();
    assert_eq!(others, 0, "{:#?}", report.findings.problems);
}
