//! Models: every interleaving of two stores and the device's completions.

use siltstone_device::{
    Operation,
    sync::explore::{Arc, block_on, explore, thread},
};

use super::*;

fn progress() -> Arc<Progress> {
    let state = State { newest: 0, in_flight: 0, failed: None };
    Arc::new(Progress { state: Mutex::new(state), written: Event::new() })
}

/// As `CheckpointStore::store` does; another thread completes both copies, the second one with
/// `outcome`.
fn store(
    progress: &Arc<Progress>,
    outcome: Result<(), DeviceError>,
) -> Result<u64, CheckpointError> {
    let number = block_on(progress.reserve())?;
    let device = Arc::clone(progress);
    // `complete` asserts that this is the only store in flight.
    thread::spawn(move || {
        device.complete(number, Ok(()));
        device.complete(number, outcome);
    });
    block_on(progress.durable(number))?;
    Ok(number)
}

/// Two stores are written one after the other, and both return.
#[test]
fn stores_take_turns_and_return_when_durable() {
    explore("checkpoint: stores take turns", Some(2), || {
        let shared = progress();
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || store(&shared, Ok(())).unwrap())
        };
        let mine = store(&shared, Ok(())).unwrap();
        let theirs = other.join().unwrap();
        assert_eq!([mine.min(theirs), mine.max(theirs)], [1, 2]);
        assert_eq!(shared.state.lock().newest, 2);
    });
}

/// After a failed write nothing counts as stored, and nobody waits for it.
#[test]
fn a_failed_write_fails_everyone() {
    explore("checkpoint: a write fails", Some(2), || {
        let shared = progress();
        let failed = || DeviceError::Closed { operation: Operation::Write };
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || assert!(store(&shared, Err(failed())).is_err()))
        };
        assert!(store(&shared, Err(failed())).is_err());
        other.join().unwrap();
        assert_eq!(shared.state.lock().newest, 0);
    });
}
