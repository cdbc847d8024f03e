//! The checkpointer: in the background, makes the state up to some moment a place from which
//! recovery can start, and frees what that state no longer needs.
//!
//! # Order
//! ```text
//! 0  let layers take over some of what they read of their parents (`adoption`)
//! 1  freeze the memtable at a unit's end, sequence W (the pipeline goes on with a new one)
//! 2  write the frozen memtable as a patch; merge patches as the policy wants
//! 3  settle frontier segments, find segments to free, reserve new frontier segments; let a new
//!    image of the index take the place of the one before
//! 4  write changed pages of the segment table
//! 5  flush the device: units up to W, patch pages and table pages are durable
//! 6  store the checkpoint record, durably, in the older of its two slots, with the volumes and
//!    snapshots of the record before: changes of these are stored by themselves
//! 7  let freed segments be used; give the sealer its new frontier; trim the log to W
//! 8  write a durability mark
//! ```
//! A cut before 6 has completed leaves the old record, and everything that it needs: nothing that
//! it refers to is overwritten before 7. A cut after 6 leaves the new one. Steps 1 and 3 take
//! short locks; no step stops the pipeline.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use event_listener::Event;
use siltstone_cursor::{Edit, MapError, Packing, Relocator, Rewrite, SegmentSource, Visibility};
use siltstone_device::{
    BLOCK_BYTES, LayerId, Runtime, SegmentId, Sequence, runtime::either, sync::Mutex,
};

use crate::{
    adoption::Adopter,
    catalog::Catalog,
    collector::{Collector, Step, step_pages},
    core::{Core, Published},
    error::Result,
    index_image::IndexImage,
    record::CheckpointBody,
    segment_table::{SegmentState, SegmentTable, StoredPages},
    stats::{Stage, add},
};

/// Most pages that one merge step reads: about a tenth of a second of work.
const MERGE_PAGES: usize = 1536;
/// Most merge steps in one checkpoint. What is left goes on in the next.
const MERGE_STEPS: usize = 8;

/// Of the buffers that a burst has left, a checkpoint lets those stay that take this share of staging; while
/// writes come, also those that were in use since the checkpoint before.
const KEPT_SHARE: usize = 8;

/// Requests to the checkpointer, and who waits for them.
pub(crate) struct Checkpointing {
    runtime: Arc<dyn Runtime>,
    opened: Instant,
    state: Mutex<State>,
    work: Event,
    finished: Event,
    /// A record is being stored: changes of the catalog, and flushes, wait for that.
    is_storing: AtomicBool,
    /// Nanoseconds that the task has rested between its slices of work.
    rested_ns: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Checkpoints begun and finished so far.
    begun: u64,
    finished: u64,
    requested: bool,
    /// Merge everything: space is wanted back.
    compact: bool,
    /// When the last one finished.
    finished_at: Option<Instant>,
    /// When the first change came that no checkpoint has seen.
    changed_at: Option<Instant>,
    /// When the collector or an adoption wants to go on.
    go_on_at: Option<Instant>,
    stopping: bool,
}

impl Checkpointing {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        let (work, finished) = (Event::new(), Event::new());
        let (is_storing, rested_ns) = Default::default();
        let (opened, state) = (runtime.now(), Mutex::default());
        Self { runtime, opened, state, work, finished, is_storing, rested_ns }
    }

    /// Asks for a checkpoint that begins after this call; returns its number at once.
    pub(crate) fn request(&self) -> u64 {
        self.ask(false)
    }

    /// Asks for a checkpoint that merges all patches before; returns its number at once.
    pub(crate) fn request_compacting(&self) -> u64 {
        self.ask(true)
    }

    fn ask(&self, compact: bool) -> u64 {
        let mut state = self.state.lock();
        state.requested = true;
        state.compact |= compact;
        let ticket = state.begun + 1;
        drop(state);
        self.work.notify(usize::MAX);
        ticket
    }

    /// The task rests for so long.
    pub(crate) fn note_rest(&self, rest: Duration) {
        self.rested_ns.fetch_add(rest.as_nanos() as u64, Ordering::Relaxed);
    }

    fn rested(&self) -> Duration {
        Duration::from_nanos(self.rested_ns.load(Ordering::Relaxed))
    }

    /// Whether somebody waits for the end of a checkpoint.
    fn is_awaited(&self) -> bool {
        self.finished.total_listeners() > 0
    }

    /// Whether a checkpoint that was asked for is done.
    pub(crate) fn is_finished(&self, ticket: u64) -> bool {
        self.state.lock().finished >= ticket
    }

    /// Something was published: a checkpoint is due some time later.
    pub(crate) fn note_change(&self) {
        let mut state = self.state.lock();
        if state.changed_at.is_none() {
            state.changed_at = Some(self.runtime.now());
            drop(state);
            self.work.notify(usize::MAX);
        }
    }

    /// How long ago the last checkpoint was made (or the pool opened), and the first change came
    /// that none has seen.
    pub(crate) fn ages(&self) -> (Duration, Duration) {
        let state = self.state.lock();
        let (finished_at, changed_at) = (state.finished_at, state.changed_at);
        drop(state);
        let now = self.runtime.now();
        let since = |then| now.saturating_duration_since(then);
        (since(finished_at.unwrap_or(self.opened)), changed_at.map_or(Duration::ZERO, since))
    }

    /// Lets the collector or an adoption go on after a pause.
    fn go_on_after(&self, pause: Duration) {
        self.state.lock().go_on_at = Some(self.runtime.now() + pause);
    }

    /// Asks for a checkpoint that begins after this call, and waits for it. With `compact`, for
    /// one that has merged all patches before.
    pub(crate) async fn run<E>(
        &self,
        compact: bool,
        give_up: impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let ticket = self.ask(compact);
        loop {
            let listener = self.finished.listen();
            if self.is_finished(ticket) {
                return Ok(());
            }
            give_up()?;
            listener.await;
        }
    }

    /// Lets everyone who waits look at the pool's health.
    pub(crate) fn wake(&self) {
        self.work.notify(usize::MAX);
        self.finished.notify(usize::MAX);
    }

    /// Ends the task after what is requested, or, if the pool has failed, at once.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.work.notify(usize::MAX);
    }

    /// Waits for the next checkpoint to do; `None` to end. Says whether to merge everything.
    async fn next(&self, interval: Duration) -> Option<bool> {
        loop {
            let (work, due) = {
                let mut state = self.state.lock();
                let changed = state.changed_at.map(|changed_at| changed_at + interval);
                let due = changed.into_iter().chain(state.go_on_at).min();
                if state.requested || due.is_some_and(|due| due <= self.runtime.now()) {
                    state.requested = false;
                    state.changed_at = None;
                    state.go_on_at = None;
                    state.begun += 1;
                    return Some(std::mem::take(&mut state.compact));
                }
                if state.stopping {
                    return None;
                }
                (self.work.listen(), due)
            };
            match due {
                Some(due) => either(work, self.runtime.sleep_until(due)).await,
                None => work.await,
            }
        }
    }

    fn finish(&self) {
        let mut state = self.state.lock();
        state.finished = state.begun;
        state.finished_at = Some(self.runtime.now());
        drop(state);
        self.finished.notify(usize::MAX);
    }
}

/// The checkpointer's task.
pub(crate) async fn run(core: &Arc<Core>, mut collector: Collector) {
    let mut adopter = Adopter::default();
    if core.catalog.lock().adoptable(|_| true).is_some() {
        core.checkpointing.request();
    }
    while let Some(compact) = core.checkpointing.next(core.tuning.checkpoint_interval).await {
        let (began, rested_before) = (core.runtime.now(), core.checkpointing.rested());
        let outcome = match core.health.check() {
            Ok(()) => match adopter.step(core).await {
                Ok(()) => checkpoint(core, &mut collector, compact).await,
                failed => failed,
            },
            failed => failed,
        };
        if outcome.is_err() {
            // Whoever waits is woken by the pool's failure. This checkpoint is never finished:
            // they would take that for success.
            core.fail_with(outcome);
            return;
        }
        // Others had the time in which it rested: what was done says nothing of that.
        let rested = core.checkpointing.rested() - rested_before;
        core.throttle.note_pause(rested);
        let took = (core.runtime.now() - began).saturating_sub(rested);
        let pauses = [collector.pause(core, took), adopter.pause(took)];
        if let Some(pause) = pauses.into_iter().flatten().min() {
            core.checkpointing.go_on_after(pause);
        }
        core.checkpointing.finish();
        core.frontier.wake();
    }
}

/// Whether somebody waits for the checkpointer, or would soon if it rested between its slices of work
/// ([`spread`](crate::spread)).
pub(crate) fn is_hurried(core: &Core) -> bool {
    core.is_ending()
        || core.checkpointing.is_storing.load(Ordering::Relaxed)
        || core.checkpointing.is_awaited()
        || core.collection.is_forced()
        || core.frontier.is_nearly_used_up()
        || core.is_log_filling()
        || core.map.memtable_len() >= core.full_memtable()
        || core.space.has_queue()
        || core.throttle.is_holding(core.runtime.now())
}

/// Makes one checkpoint. See the module's page for the order and its reasons.
pub(crate) async fn checkpoint(
    core: &Arc<Core>,
    collector: &mut Collector,
    compact: bool,
) -> Result<()> {
    let timer = core.stats.time(Stage::Checkpoint);
    collector.begin_checkpoint();
    let published = {
        let published = core.publishing.lock();
        core.map.freeze();
        *published
    };
    // What is written may wait for room in the memtable.
    core.frontier.wake();
    // After freezing: what is merged was admitted before this, so every snapshot that sees any of it
    // is known. One that is deleted from now on may still be told of.
    let visibilities = core.catalog.lock().visibilities();
    let layers = |layer| visibilities.get(&layer).cloned().unwrap_or_else(Visibility::dead);
    let table = &core.table;
    let edit = core.map.write_frozen(&mut MetadataSegments { table, keep: 0 }, &layers).await?;
    core.apply(&edit)?;
    // The next memtable has to find room, whatever merges and the collector take.
    let mut source = MetadataSegments { table, keep: core.space.memtable_segments() };
    let made_before = core.map.next_patch();
    let mut steps = 0;
    // The sealer must not wait for a merge when its frontier is nearly used up.
    let is_over = |steps, collector: &Collector| {
        steps == MERGE_STEPS || (steps > 0 && core.frontier.is_low()) || collector.has_enough()
    };
    while compact || !is_over(steps, collector) {
        let step = merge_step(core, collector, &mut source, &layers, compact, made_before).await;
        let edit = match step {
            Ok(Some(edit)) => edit,
            // What the steps so far let go of is free once this checkpoint is stored.
            Ok(None) | Err(MapError::NoSpace) => break,
            Err(error) if error.is_damage() => {
                core.note_damaged_patch(&error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        core.apply(&edit)?;
        steps += 1;
    }
    if steps == MERGE_STEPS {
        core.checkpointing.request();
    }
    core.frontier.settle(&core.table, published.sequence);
    // Before the collector: what is promised to admitted changes is the sealer's.
    let reservation = core.frontier.reserve(&core.table, core.space.promised());
    let count_batches = |newest: Option<u64>| newest.map_or(0, |batch| batch + 1);
    let count_started = || count_batches(core.admission.newest_started());
    let covered = count_batches(published.batch);
    let source = &mut source;
    let count = &count_started;
    let step =
        Step { core, source, layers: &layers, covered, count_started: count, is_urgent: compact };
    collector.step(step).await?;
    core.table.reclaim(covered, count_started, &collector.open_segments());

    let is_short = core.space.is_short_for_image(core.room());
    let image = core.images.settle(&core.table, is_short);

    core.checkpointing.is_storing.store(true, Ordering::Relaxed);
    let mut record = core.record.lock().await;
    let stored = match store(core, &mut record, published, image, reservation.segments).await {
        Ok(stored) => stored,
        Err(error) => {
            // Before anyone else can store a record over pages that are written in part.
            core.fail(error.clone());
            return Err(error);
        }
    };
    drop(record);
    core.checkpointing.is_storing.store(false, Ordering::Relaxed);
    core.epochs.write().forget(published.sequence);
    core.frontier.extend(reservation.added);
    add(&core.stats.counters.freed_segments, stored.freeing.len() as u64);
    core.table.stored(stored);
    core.discarder.note_freed();
    core.images.note_coverage(core.coverage(collector.open_segments().into_iter()));
    let kept_bytes = core.tuning.staging_bytes / KEPT_SHARE;
    match core.staging.used_bytes() {
        0 => core.write_buffers.trim(kept_bytes),
        _ => core.write_buffers.trim_unused(kept_bytes),
    }
    core.log.trim(published.sequence);
    if published.sequence > Sequence(0) {
        core.commit.advance(published.sequence);
    }
    add(&core.stats.counters.checkpoints, 1);
    core.watch_fullness();
    core.write_mark_if_behind().await?;
    drop(timer);
    Ok(())
}

/// Stores the segment table and then the record, of the state that was `published`.
async fn store(
    core: &Arc<Core>,
    record: &mut CheckpointBody,
    published: Published,
    image: Option<IndexImage>,
    frontier: Vec<(SegmentId, u64)>,
) -> Result<StoredPages> {
    // A change of the catalog whose record failed may stand on the device all the same, under the
    // number that this one would have: pages of the table must not bear it then.
    core.health.check()?;
    let number = core.checkpoints.newest() + 1;
    let stored = core.table.store_changes(&*core.device, number).await?;
    core.flush_device().await?;
    let epochs = core.epochs.read().after(published.sequence);
    *record = CheckpointBody {
        sequence: published.sequence,
        unit: published.unit,
        next_generation: core.table.next_generation(),
        table_versions_sum: stored.versions_sum,
        segment_count: stored.segment_count,
        image,
        frontier,
        epochs,
        catalog: std::mem::replace(&mut record.catalog, Catalog::new()),
        manifest: core.map.manifest(),
    };
    add(&core.stats.counters.record_bytes, stored.bytes_written());
    let stored_number = core.store_record(&record.encode()).await?;
    assert_eq!(stored_number, number, "records are stored one at a time");
    Ok(stored)
}

/// One step of merging, or, when nothing is to be merged, of packing metadata segments.
async fn merge_step(
    core: &Core,
    collector: &mut Collector,
    source: &mut (dyn SegmentSource + Send),
    layers: &(dyn Fn(LayerId) -> Visibility + Sync),
    compact: bool,
    made_before: u64,
) -> std::result::Result<Option<Edit>, MapError> {
    let mut mover = collector.mover(core, !compact);
    // Moving blocks takes longer than moving entries.
    let pages = if mover.is_some() { step_pages(core) } else { merge_pages(core) };
    let mut rewrite = Rewrite::new(source, layers, pages);
    rewrite.relocator = mover.as_mut().map(|mover| mover as &mut dyn Relocator);
    if compact {
        if let Some(edit) = core.map.compact_step(rewrite.again()).await? {
            return Ok(Some(edit));
        }
        core.map.relocate_step(rewrite, Packing::Tight, made_before).await
    } else {
        if let Some(edit) = core.map.merge_step(rewrite.again()).await? {
            return Ok(Some(edit));
        }
        core.map.relocate_step(rewrite, Packing::Loose, made_before).await
    }
}

impl Core {
    /// Entries of the memtable from which a checkpoint is due.
    pub(crate) fn full_memtable(&self) -> usize {
        self.tuning.memtable_entries.min(self.space.memtable_entries() / 2)
    }

    /// A patch has a damaged page: it stays as it is, and everything else goes on. The damage is
    /// for those who need the page, or for a scrub, to report: rewriting the map must not be what
    /// makes a pool fail.
    pub(crate) fn note_damaged_patch(&self, error: &MapError) {
        add(&self.stats.counters.damaged_patches, 1);
        tracing::warn!(%error, "part of the map is damaged and is left as it is");
    }

    /// Tells the segment table what became of patches, and counts it.
    pub(crate) fn apply(&self, edit: &Edit) -> Result<()> {
        add(&self.stats.counters.map_page_bytes, edit.pages_written * BLOCK_BYTES as u64);
        self.table.apply(edit)
    }
}

/// How much one merge step may write: no more than half of what is free, for the pages that it
/// replaces stay until the checkpoint is stored.
pub(crate) fn merge_pages(core: &Core) -> usize {
    let segment_pages = core.superblock.layout.segment_bytes / BLOCK_BYTES as u64;
    let free = core.table.free_segments().saturating_sub(core.space.memtable_segments());
    let free_pages = free * segment_pages;
    MERGE_PAGES.min(free_pages as usize / 2).max(1)
}

/// Free segments for patches, but for the last `keep`.
struct MetadataSegments<'a> {
    table: &'a SegmentTable,
    keep: u64,
}

impl SegmentSource for MetadataSegments<'_> {
    fn allocate(&mut self) -> Option<SegmentId> {
        if self.table.free_segments() <= self.keep {
            return None;
        }
        self.table.take(SegmentState::Metadata).map(|(id, _)| id)
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::CreateOptions, layout::Layout, segment_count::SegmentCount};

    #[test]
    fn what_rewrites_patches_leaves_segments_for_the_next_memtable() {
        const POOL_BYTES: u64 = 64 << 20;
        let layout = Layout::new(POOL_BYTES, &CreateOptions::default());
        let layout = layout.expect("a pool of 64 MiB can be made");
        let count = SegmentCount::new(layout.segment_count(POOL_BYTES));
        let table = SegmentTable::new(1, layout, count);
        let mut merges = MetadataSegments { table: &table, keep: 3 };
        while merges.allocate().is_some() {}
        assert_eq!(table.free_segments(), 3);
        let mut memtable = MetadataSegments { table: &table, keep: 0 };
        assert!((0..3).all(|_| memtable.allocate().is_some()));
        assert_eq!(memtable.allocate(), None);
    }
}
