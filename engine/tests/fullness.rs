//! Promise: a pool that fills up says so before it refuses writes, once at each threshold, and says
//! when it is over.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use siltstone_device::SeededRandom;
use siltstone_engine::{EngineError, Fullness, Pool, VolumeOptions};
use support::pools::{KIB, create, small_options};

fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 64 << 10];
    SeededRandom::new(seed).fill(&mut bytes);
    bytes
}

/// What is logged, for a test to look at.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).matches(text).count()
    }
}

#[test]
fn a_pool_that_fills_up_says_so_once_at_each_threshold_and_when_it_is_over() {
    let log = Log::default();
    let writer = log.clone();
    // For all threads: the checkpointer's is one of them. This test is alone in its program.
    tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).init();
    let pool = Pool::open_on(create(), None, &small_options(false)).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(1 << 30)).unwrap();
    let fullness = || pool.quick_stat().fullness;
    let [filling, almost, refused] = ["is filling up", "is almost full", "writes are refused"];
    assert_eq!(fullness(), Fullness::Normal);
    let mut seen = vec![Fullness::Normal];
    let mut at = 0;
    loop {
        match disk.write_at(at * 64 * KIB, &noise(at)) {
            Ok(()) => at += 1,
            Err(EngineError::NoSpace { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        if at % 8 == 0 {
            pool.checkpoint().unwrap();
            let now = fullness();
            assert!(now >= *seen.last().unwrap(), "{seen:?}, {now:?}");
            if now != *seen.last().unwrap() {
                seen.push(now);
            }
        }
    }
    assert_eq!(seen, [Fullness::Normal, Fullness::Warning, Fullness::Critical]);
    assert_eq!(fullness(), Fullness::Full);
    assert!(pool.quick_stat().used_percent >= 95);
    for _ in 0..3 {
        assert!(disk.write_at(0, &noise(1 << 40)).is_err());
    }
    assert_eq!([filling, almost, refused].map(|text| log.count(text)), [1, 1, 1]);
    // Half of it goes; what is garbage then does not count, collected or not.
    for piece in (0..at).step_by(2) {
        disk.discard(piece * 64 * KIB, 64 * KIB).unwrap();
    }
    assert_eq!(fullness(), Fullness::Critical, "nobody has been refused anything since");
    let word = "takes writes again";
    assert_eq!(log.count(word), 0, "that is not known yet");
    pool.checkpoint().unwrap();
    assert_eq!(fullness(), Fullness::Critical, "a write would have it collected");
    pool.collect_garbage().unwrap();
    assert_eq!(fullness(), Fullness::Normal, "before anything is written");
    disk.write_at(0, &noise(1 << 41)).unwrap();
    pool.checkpoint().unwrap();
    assert_eq!(fullness(), Fullness::Normal, "{:?}", pool.quick_stat());
    assert_eq!(log.count(word), 1);
    // Once for each threshold that it fell below, of which it may have skipped all.
    assert!(log.count("has more room again") <= 2);
    assert_eq!([filling, almost, refused].map(|text| log.count(text)), [1, 1, 1]);
    pool.close().unwrap();
}
