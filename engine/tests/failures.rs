//! A device error is final: nothing is reported as durable after it, changes are refused, what can
//! be read is read, nothing hangs, and closing says what happened. Reopened on a healthy device,
//! the pool is as after a power cut.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::sync::Arc;

use pollster::block_on;
use siltstone_device::{
    Operation, SeededRandom,
    sim::{Cause, CompletionMode, Fault, Times},
};
use siltstone_engine::{EngineError, OpenOptions, Pool};
use support::{
    pools::{BALLAST, KIB, MIB, base, close, model_of, options, set_completion, work},
    watchdog::Watchdog,
};

const EIO: i32 = 5;
const NOW: usize = usize::MAX - 1;

/// Fails one operation while clients work, `rounds` times, at different moments.
fn fail(what: &str, operation: Operation, range_bytes: std::ops::Range<u64>, rounds: u64) {
    let watchdog = Watchdog::new(what);
    let base = base(256 * KIB, 0);
    let mut struck = 0;
    for seed in 0..rounds {
        watchdog.feed(format!("{what}, seed {seed}"));
        let mut random = SeededRandom::new(seed);
        let device = base.snapshot();
        set_completion(&device, &mut random);
        let pool = Pool::open_on(device.clone(), None, &options(&mut random)).unwrap();
        let pool = Arc::new(pool);
        let model = model_of(&pool);
        work(&device, &pool, &model, &mut random, 12, false).unwrap();
        device.inject(Fault {
            operation,
            range_bytes: range_bytes.clone(),
            times: Times::Count(1),
            cause: Cause::Errno(EIO),
        });
        work(&device, &pool, &model, &mut random, 60, true).unwrap();
        let disk = pool.volume("disk").unwrap();
        let failed = pool.stat().failure.is_some();
        if failed {
            struck += 1;
            let refused = |outcome: Result<(), EngineError>| {
                let error = outcome.expect_err("the pool has failed");
                assert!(matches!(error, EngineError::Failed { .. }), "{what}: {error}");
                assert!(error.to_string().contains("os error 5"), "{what}: {error}");
            };
            for _ in 0..3 {
                refused(disk.flush());
                refused(disk.write_at(0, &[1; 4096]));
                refused(disk.write_at(5, &[1; 10]));
                refused(disk.discard(0, 8192));
                refused(disk.write_zeroes(5, 8192));
                refused(pool.checkpoint());
                refused(
                    pool.create_volume("late", &siltstone_engine::VolumeOptions::new(4096))
                        .map(|_| ()),
                );
                refused(pool.resize_volume("disk", 4096));
            }
            block_on(model.lock().check_visible(&pool))
                .unwrap_or_else(|reason| panic!("{what}, seed {seed}: after the failure {reason}"));
            refused(close(pool));
            refused(disk.flush());
        } else {
            // Perhaps it strikes now, or has struck what nobody waited for.
            let _ = close(pool);
        }
        device.clear_faults();
        device.set_completion_mode(CompletionMode::Inline);
        let pool = Pool::open_on(device, None, &options(&mut random)).unwrap();
        block_on(model.lock().check(&pool, NOW, None)).unwrap_or_else(|reason| {
            panic!("{what}, seed {seed}: reopened on the healthy device, {reason}")
        });
        pool.close().unwrap();
    }
    assert!(struck * 3 > rounds, "{what}: only {struck} of {rounds} failures had an effect");
}

#[test]
fn a_failed_write_of_data_is_final() {
    fail("a data write", Operation::Write, 7 * MIB..64 * MIB, 24);
}

#[test]
fn a_failed_flush_is_final() {
    fail("a flush", Operation::Flush, 0..64 * MIB, 24);
}

#[test]
fn a_failed_log_write_is_final() {
    fail("a log write", Operation::Write, 5 * MIB..6 * MIB, 24);
}

#[test]
fn a_failed_checkpoint_write_is_final() {
    fail("a checkpoint write", Operation::Write, MIB..5 * MIB, 24);
}

/// An unreadable block costs itself and its frame's, and nothing else.
#[test]
fn a_failed_read_concerns_only_what_was_read() {
    let _watchdog = Watchdog::new("failing reads");
    let device = base(256 * KIB, 2);
    let pool = Pool::open_on(device.clone(), None, &OpenOptions::default()).unwrap();
    let ballast = pool.volume(BALLAST).unwrap();
    device.inject(Fault {
        operation: Operation::Read,
        range_bytes: 7 * MIB..64 * MIB,
        times: Times::Always,
        cause: Cause::Errno(EIO),
    });
    let mut bytes = vec![0; 4096];
    let error = ballast.read_at(0, &mut bytes).unwrap_err();
    assert!(error.to_string().contains("os error 5"), "{error}");
    device.clear_faults();
    ballast.read_at(0, &mut bytes).unwrap();
    ballast.write_at(0, &bytes).unwrap();
    pool.close().unwrap();
}
