//! A device that pauses: flash memory that collects its own garbage, a path that fails over. Writers go
//! on until most of staging is full.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::{
    thread,
    time::{Duration, Instant},
};

use siltstone_device::{
    SeededRandom,
    sim::{CompletionMode, SimDevice},
};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Tuning, VolumeOptions};

const WRITE_BYTES: usize = 1 << 20;
const WRITES: usize = 64;

/// A mebibyte of which a quarter remains, like nothing else.
fn compressible(seed: u64) -> Vec<u8> {
    let mut data = vec![0; WRITE_BYTES];
    let mut random = SeededRandom::new(seed);
    data.chunks_exact_mut(4096).for_each(|block| random.fill(&mut block[..1024]));
    data
}

/// Lets the device complete what waits, even if the test fails before: its writers wait for that.
struct Pause<'a>(&'a SimDevice);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.set_completion_mode(CompletionMode::Inline);
    }
}

#[test]
fn while_the_device_pauses_most_of_staging_fills_with_what_compresses() {
    let device = SimDevice::new(8 << 30);
    Pool::create_on(device.clone(), None, &CreateOptions::default()).unwrap();
    // With many reducers there is more room for units under way.
    let tuning = Tuning { reducers: 2, ..Tuning::default() };
    let options = OpenOptions { tuning, ..OpenOptions::default() };
    let pool = Pool::open_on(device.clone(), None, &options).unwrap();
    let volume = pool.create_volume("v", &VolumeOptions::new(1 << 30)).unwrap();
    thread::scope(|scope| {
        device.set_completion_mode(CompletionMode::Queued);
        let _pause = Pause(&device);
        for writer in 0..2 {
            let volume = &volume;
            scope.spawn(move || {
                for write in (writer..WRITES).step_by(2) {
                    let offset_bytes = (write * WRITE_BYTES) as u64;
                    volume.write_at(offset_bytes, &compressible(write as u64)).unwrap();
                }
            });
        }
        let begun = Instant::now();
        loop {
            let stat = pool.quick_stat();
            let (staged, limit) = (stat.staging_bytes, stat.staging_limit_bytes);
            assert!(stat.unit_buffers_bytes <= stat.unit_buffers_limit_bytes);
            if staged > limit / 3 * 2 {
                break;
            }
            let is_late = begun.elapsed() > Duration::from_secs(60);
            assert!(!is_late, "no more than {staged} of {limit} bytes of staging come in use");
            thread::sleep(Duration::from_millis(5));
        }
    });
    pool.flush().unwrap();
    let stat = pool.quick_stat();
    assert_eq!((stat.staging_bytes, stat.unit_buffers_bytes), (0, 0), "all is given back");
    let mut back = vec![0; WRITE_BYTES];
    for write in 0..WRITES {
        volume.read_at((write * WRITE_BYTES) as u64, &mut back).unwrap();
        assert!(back == compressible(write as u64), "write {write} is read back");
    }
    pool.close().unwrap();
}
