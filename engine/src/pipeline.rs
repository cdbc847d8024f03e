//! The write pipeline's tasks: reducers, sealer, checkpointer, the one that marks what is durable,
//! the one that gives freed space back to the medium, and the one that fills the index after opening
//! and keeps an image of it.

use std::{
    io, panic,
    sync::{Arc, atomic::Ordering},
    thread,
};

use siltstone_device::runtime::Joining;
use tokio::sync::{mpsc, oneshot};

use crate::{
    checkpointer,
    collector::Collector,
    core::Core,
    discarder,
    error::{EngineError, Result},
    index_image, marks, recovery,
    reduce::Reducer,
    sealer::{Message, Sealer},
    spread::Spread,
    summaries::SummaryCache,
    warm,
};

/// The running tasks of a pool.
pub(crate) struct Pipeline {
    reducers: Vec<Joining>,
    sealer: Joining,
    to_sealer: mpsc::UnboundedSender<Message>,
    checkpointer: Joining,
    marker: Joining,
    discarder: Joining,
    index_keeper: Option<Joining>,
}

impl Pipeline {
    /// Starts the tasks.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn start(pool: &Arc<Core>, collector: Collector) -> io::Result<Self> {
        let count = pool.tuning.reducers;
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut reducers = Vec::with_capacity(count);
        for number in 0..count {
            let (core, sender) = (Arc::clone(pool), sender.clone());
            let work = async move { reduce(&core, &sender).await };
            reducers.push(spawn(pool, &format!("reducer-{number}"), work)?);
        }
        let to_sealer = sender.clone();
        let sealer = Sealer::new(Arc::clone(pool), receiver, sender, count);
        let sealer = spawn(pool, "sealer", sealer.run())?;
        let core = Arc::clone(pool);
        let work = async move {
            let work = checkpointer::run(&core, collector);
            let is_hurried = || checkpointer::is_hurried(&core);
            let note_rest = |rest| core.checkpointing.note_rest(rest);
            Spread::new(&*core.runtime, work, is_hurried, note_rest).await;
        };
        let checkpointer = spawn(pool, "checkpointer", work)?;
        let core = Arc::clone(pool);
        let marker = spawn(pool, "marker", async move { marks::run(&core).await })?;
        let core = Arc::clone(pool);
        let discarder = spawn(pool, "discarder", async move { discarder::run(&core).await })?;
        let index_keeper = if pool.tuning.warm_index {
            let core = Arc::clone(pool);
            let work = async move {
                warm::warm_index(&core).await;
                let keep = index_image::keep(&core);
                Spread::new(&*core.runtime, keep, || core.is_ending(), |_| {}).await;
            };
            Some(spawn(pool, "index-keeper", work)?)
        } else {
            pool.index_is_warm.set();
            None
        };
        Ok(Self { reducers, sealer, to_sealer, checkpointer, marker, discarder, index_keeper })
    }

    /// Has everything that is placed from now on go to other segments than what was placed before.
    /// The answer comes once that is so, or an error if the pool has failed or is closed before.
    pub(crate) fn give_up_segments(&self) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        // If nobody receives it, the answer is an error.
        let _ = self.to_sealer.send(Message::GiveUpSegments(done));
        answer
    }

    /// Finishes what is admitted, makes a last checkpoint and ends the tasks.
    ///
    /// # Errors
    /// The pool's failure, if it has failed.
    pub(crate) async fn stop(self, core: &Arc<Core>) -> Result<()> {
        core.health.close();
        core.stopping.store(true, Ordering::Release);
        core.staging.close();
        core.backlog.close();
        core.admission.close();
        core.wake_all();
        let mut ended = Vec::new();
        for reducer in self.reducers {
            ended.push(reducer.await);
        }
        ended.push(self.sealer.await);
        if let Some(keeper) = self.index_keeper {
            ended.push(keeper.await);
        }
        let last = finish(core).await;
        core.checkpointing.stop();
        ended.push(self.checkpointer.await);
        core.marks.stop();
        ended.push(self.marker.await);
        core.discarder.stop();
        ended.push(self.discarder.await);
        if let Some(panic) = ended.into_iter().find_map(|task| task.err()) {
            // A broken invariant must not be mistaken for a clean end. All others have ended.
            panic::resume_unwind(panic);
        }
        last?;
        core.log.persist_trim().await?;
        core.write_mark_if_behind().await?;
        core.give_everything_back(true).await;
        Ok(())
    }
}

/// The last checkpoint, and one more if an image of the index follows it.
async fn finish(core: &Core) -> Result<()> {
    core.checkpointing.run(false, || core.health.check()).await?;
    if index_image::write_at_close(core).await {
        core.checkpointing.run(false, || core.health.check()).await?;
    }
    Ok(())
}

/// Starts a task that fails the pool if it panics, so that nobody waits for it for ever.
pub(crate) fn spawn(
    core: &Arc<Core>,
    name: &str,
    work: impl Future<Output = ()> + Send + 'static,
) -> io::Result<Joining> {
    let guard = FailOnPanic { core: Arc::clone(core), task: name.to_owned() };
    let task = async move {
        let guard = guard;
        work.await;
        drop(guard);
    };
    core.runtime.spawn(name, Box::pin(task))
}

struct FailOnPanic {
    core: Arc<Core>,
    task: String,
}

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.core.fail(EngineError::Panicked { thread: std::mem::take(&mut self.task) });
        }
    }
}

async fn reduce(core: &Core, sealer: &mpsc::UnboundedSender<Message>) {
    let mut reducer = Reducer::new();
    while let Some(mut batch) = core.admission.take_batch().await {
        // Before they get the places of this one.
        batch.behind_bytes += core.backlog.waiting_bytes();
        core.backlog.give_back_all(batch.changes.iter().map(|change| change.staged_bytes));
        let Ok(reduced) = reducer.reduce(core, batch).await else { break };
        if sealer.send(Message::Reduced(Box::new(reduced))).is_err() {
            break;
        }
    }
    // The sealer may be gone already after a failure.
    let _ = sealer.send(Message::ReducerStopped);
}

/// Tells the index of units that patches cover.
pub(crate) fn know_units(core: &Core, units: &[recovery::FoundUnit]) {
    for recovery::FoundUnit { address, summary } in units {
        core.index.insert_batch(&summary.fingerprints, SummaryCache::unit_at(*address));
    }
}

/// Enters recovered units into map and index, as publishing would have.
pub(crate) fn apply_units(core: &Core, units: Vec<recovery::FoundUnit>) {
    for recovery::FoundUnit { address, mut summary } in units {
        core.date(&mut summary.entries);
        core.map.publish(&summary.entries);
        core.index.insert_batch(&summary.fingerprints, SummaryCache::unit_at(address));
    }
}
