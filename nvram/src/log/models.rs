//! Models: every interleaving of a few appends and the device's completions.

use siltstone_device::{
    Operation,
    sync::explore::{Arc, block_on, explore, thread},
};

use super::*;
use crate::ring::RecordExtent;

fn progress() -> Arc<Progress> {
    let first = RecordExtent { start: 0, len_blocks: 1, last_sequence: Sequence(0) };
    let ring = Ring::new(64, 1, [first].into(), Sequence(0)).unwrap();
    let state = State { ring, turn: Turn::Free, failed: None, stats: LogStats::default() };
    Arc::new(Progress { state: Mutex::new(state), free: Event::new() })
}

/// Reserves a record and lets another thread complete it; returns its number, and where its outcome
/// will be.
fn submit(
    progress: &Arc<Progress>,
    outcome: Result<(), DeviceError>,
) -> Result<(u64, oneshot::Receiver<Result<(), LogError>>), LogError> {
    let plan = block_on(progress.reserve(|ring| ring.plan(1)))?;
    let Some(Plan::Record(placement)) = plan else { panic!("the ring has room") };
    let progress = Arc::clone(progress);
    let (told, written) = oneshot::channel();
    // `complete` asserts that this is the only write in flight, and the ring that it is the next.
    thread::spawn(move || {
        let last = Some(Sequence(placement.number));
        progress.complete(&placement, last, outcome, |outcome| {
            let _ = told.send(outcome);
        });
    });
    Ok((placement.number, written))
}

fn append(progress: &Arc<Progress>, outcome: Result<(), DeviceError>) -> Result<u64, LogError> {
    let (number, written) = submit(progress, outcome)?;
    block_on(written).expect("every write is told")?;
    Ok(number)
}

/// Records are written one at a time, an append returns when its record is durable, and none waits
/// for ever.
#[test]
fn appends_take_turns_and_return_when_durable() {
    explore("log: appends take turns", Some(2), || {
        let shared = progress();
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || append(&shared, Ok(())).unwrap())
        };
        let mine = append(&shared, Ok(())).unwrap();
        assert!(shared.state.lock().ring.newest() >= mine);
        let theirs = other.join().unwrap();
        assert_eq!([mine.min(theirs), mine.max(theirs)], [2, 3]);
        assert_eq!(shared.state.lock().stats.records, 2);
    });
}

/// An append that is dropped after it was submitted does not keep the turn.
#[test]
fn an_append_that_nobody_waits_for_gives_its_turn_on() {
    explore("log: an append is dropped", Some(3), || {
        let shared = progress();
        drop(submit(&shared, Ok(())).unwrap());
        assert_eq!(append(&shared, Ok(())).unwrap(), 3);
    });
}

/// After a failed write nothing is reported durable any more, to those who wait already and to
/// those who come later.
#[test]
fn a_failed_write_fails_everyone() {
    explore("log: a write fails", Some(2), || {
        let shared = progress();
        let failed = || DeviceError::Closed { operation: Operation::Write };
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || assert!(append(&shared, Err(failed())).is_err()))
        };
        assert!(append(&shared, Err(failed())).is_err());
        other.join().unwrap();
        assert_eq!(shared.state.lock().ring.newest(), 1);
        assert_eq!(shared.state.lock().stats.records, 0);
    });
}
