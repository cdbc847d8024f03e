//! The write pipeline's threads: reducers, sealer, checkpointer, and the one that warms the index.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
};

use crate::{
    checkpointer,
    core::Core,
    error::{EngineError, Result},
    recovery,
    reduce::Reducer,
    sealer::{Message, Sealer},
    segment_table::SegmentState,
    summaries::SummaryCache,
};

/// The running threads of a pool.
pub(crate) struct Pipeline {
    reducers: Vec<JoinHandle<()>>,
    sealer: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
    warmer: Option<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn start(pool: &Arc<Core>) -> io::Result<Self> {
        let count = match pool.tuning.reducers {
            0 => thread::available_parallelism().map_or(2, usize::from),
            count => count,
        };
        let (sender, receiver) = mpsc::channel();
        let mut reducers = Vec::with_capacity(count);
        for number in 0..count {
            let (core, sender) = (Arc::clone(pool), sender.clone());
            reducers
                .push(spawn(pool, &format!("reducer-{number}"), move || reduce(&core, &sender))?);
        }
        let sealer = Sealer::new(Arc::clone(pool), receiver, sender, count);
        let sealer = spawn(pool, "sealer", move || sealer.run())?;
        let checkpointing = Arc::clone(pool);
        let checkpointer = spawn(pool, "checkpointer", move || checkpointer::run(&checkpointing))?;
        let warmer = if pool.tuning.warm_index {
            let core = Arc::clone(pool);
            Some(spawn(pool, "index-warmer", move || warm_index(&core))?)
        } else {
            pool.index_is_warm.set();
            None
        };
        Ok(Self { reducers, sealer, checkpointer, warmer })
    }

    /// Finishes what is admitted, makes a last checkpoint and ends the threads.
    ///
    /// # Errors
    /// The pool's failure, if it has failed.
    pub(crate) fn stop(self, core: &Core) -> Result<()> {
        core.health.close();
        core.stopping.store(true, Ordering::Release);
        core.staging.close();
        core.admission.close();
        core.wake_all();
        for reducer in self.reducers {
            join(reducer);
        }
        join(self.sealer);
        let last = pollster::block_on(core.checkpointing.run(false, || core.health.check()));
        core.checkpointing.stop();
        join(self.checkpointer);
        if let Some(warmer) = self.warmer {
            join(warmer);
        }
        last?;
        pollster::block_on(core.log.persist_trim())?;
        Ok(())
    }
}

/// Starts a thread that fails the pool if it panics, so that nobody waits for it for ever.
fn spawn(
    core: &Arc<Core>,
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (core, thread) = (Arc::clone(core), name.to_owned());
    thread::Builder::new().name(name.into()).spawn(move || {
        let outcome = panic::catch_unwind(AssertUnwindSafe(work));
        if let Err(panic) = outcome {
            core.fail(EngineError::Panicked { thread });
            panic::resume_unwind(panic);
        }
    })
}

fn join(thread: JoinHandle<()>) {
    if let Err(panic) = thread.join() {
        // A broken invariant must not be mistaken for a clean end.
        panic::resume_unwind(panic);
    }
}

fn reduce(core: &Core, sealer: &mpsc::Sender<Message>) {
    let mut reducer = Reducer::new();
    while let Some(batch) = core.admission.take_batch() {
        let Ok(reduced) = reducer.reduce(core, batch) else { break };
        if sealer.send(Message::Reduced(Box::new(reduced))).is_err() {
            break;
        }
    }
    // The sealer may be gone already after a failure.
    let _ = sealer.send(Message::ReducerStopped);
}

/// Fills the index from the summaries on the device, so that a restart does not store anew what
/// is there. In the background, segment by segment, and stopped at once when the pool closes.
pub(crate) fn warm_index(core: &Core) {
    let layout = &core.superblock.layout;
    for id in (0..core.table.len()).map(siltstone_device::SegmentId) {
        let Some(segment) = core.table.segment(id) else { continue };
        let mut at = layout.geometry().segment_start(id);
        // Behind what counts may stand units that recovery passed over.
        let end = at.plus(segment.used_bytes.into());
        if segment.state != SegmentState::Data {
            continue;
        }
        while at < end {
            if core.stopping.load(Ordering::Acquire) || core.health.check().is_err() {
                return;
            }
            let read = core.summaries.read(at);
            let Some(summary) = pollster::block_on(read) else { break };
            if summary.generation != segment.generation {
                break;
            }
            let unit = SummaryCache::unit_at(at);
            core.index.insert_batch(&summary.fingerprints, unit);
            at = at.plus(summary.unit_bytes.into());
        }
    }
    tracing::debug!(entries = core.index.stats().entries, "the index is warm");
    core.index_is_warm.set();
}

/// Enters recovered units into map and index, as publishing would have.
pub(crate) fn apply_units(core: &Core, units: Vec<recovery::FoundUnit>) {
    for recovery::FoundUnit { address, summary } in units {
        core.map.publish(&summary.entries);
        core.index.insert_batch(&summary.fingerprints, SummaryCache::unit_at(address));
    }
}
