//! Keeping the durability mark: a note, written lazily, of how far things have become durable, by
//! which the next opening tells damage from power loss.
//!
//! Whatever makes something durable (a log record, a device flush, a checkpoint) tells nobody more
//! than it did before; the mark is read off their counters. It is written after each checkpoint,
//! at close, and by a task of its own, [`mark_delay`](crate::Tuning::mark_delay) after something
//! became durable. What became durable less than that before a power cut may not be marked: damage
//! of it is taken for a tear.

use std::sync::atomic::{AtomicU64, Ordering};

use event_listener::Event;
use siltstone_device::{BLOCK_BYTES, runtime::either};
use siltstone_nvram::{Mark, MarkStore};

use crate::{core::Core, error::Result, health::Milestone, stats::add};

/// The mark, and what it is made from.
pub(crate) struct Marks {
    store: MarkStore,
    /// The newest unit that a completed flush covers.
    flushed_unit: AtomicU64,
    /// Something became durable.
    changed: Event,
    stopping: Milestone,
}

impl Marks {
    /// Begins with what the store holds; `unit` is in a stored checkpoint.
    pub(crate) fn new(store: MarkStore, unit: u64) -> Self {
        Self {
            store,
            flushed_unit: AtomicU64::new(unit),
            changed: Event::new(),
            stopping: Milestone::default(),
        }
    }

    /// A flush has completed; when it was submitted, units up to `unit` had been published.
    pub(crate) fn note_flushed(&self, unit: u64) {
        self.flushed_unit.fetch_max(unit, Ordering::AcqRel);
    }

    /// Something became durable: a mark is due some time later.
    pub(crate) fn note_durable(&self) {
        self.changed.notify(usize::MAX);
    }

    /// The newest mark.
    pub(crate) fn newest(&self) -> Mark {
        self.store.newest()
    }

    /// Whether the newest mark says all of `now`. It may say more: of what was found damaged, and
    /// not needed, when the pool was opened.
    fn covers(&self, now: &Mark) -> bool {
        let newest = self.newest();
        newest.joined(now) == newest
    }

    /// Ends the task.
    pub(crate) fn stop(&self) {
        self.stopping.set();
    }

    /// Lets the task look at the pool's health.
    pub(crate) fn wake(&self) {
        self.stopping.wake();
    }
}

impl Core {
    /// How far things are durable at this moment: no power cut takes any of it back.
    fn durable_now(&self) -> Mark {
        Mark {
            record: self.log.newest_record(),
            unit: self.marks.flushed_unit.load(Ordering::Acquire),
            sequence: self.commit.durable(),
            checkpoint: self.checkpoints.newest(),
        }
    }

    /// Writes a mark if something is durable now that the last one does not say. Only after the opening's own
    /// checkpoint: what recovery found may have stood in a volatile cache until then.
    ///
    /// # Errors
    /// If the pool has failed, or the device fails.
    pub(crate) async fn write_mark_if_behind(&self) -> Result<()> {
        self.health.check()?;
        let now = self.durable_now();
        if !self.marks.covers(&now) {
            self.marks.store.write(now).await?;
            add(&self.stats.counters.record_bytes, BLOCK_BYTES as u64);
        }
        Ok(())
    }
}

/// The marker: writes a mark some time after something became durable.
pub(crate) async fn run(core: &Core) {
    let (marks, runtime) = (&core.marks, &core.runtime);
    let stopped = || async {
        // A failed pool stops, too.
        let _ = marks.stopping.wait(|| core.health.check()).await;
    };
    while !marks.stopping.is_set() && core.health.check().is_ok() {
        let changed = marks.changed.listen();
        if marks.covers(&core.durable_now()) {
            either(changed, stopped()).await;
            continue;
        }
        drop(changed);
        either(runtime.sleep_until(runtime.now() + core.tuning.mark_delay), stopped()).await;
        core.fail_with(core.write_mark_if_behind().await);
    }
}
