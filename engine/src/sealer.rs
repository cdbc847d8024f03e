//! The sealer: places reduced batches as write units, in order, and publishes them.
//!
//! One task. It takes two kinds of messages: batches from the reducers, in any order, and
//! completions from the device, in any order. Batches are placed strictly by number, each as soon
//! as it is the next one needed; several units are in flight; and units are published strictly by
//! number, each as soon as it and all before it are on the device. Nothing here waits for a device
//! but through those messages; when the frontier is used up, placing waits for a checkpoint, and
//! publishing goes on.
//!
//! Publishing enters a unit into map, index and summaries, in this order takes its changes out of
//! the overlay and the queue, and gives back their memory.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use siltstone_cursor::{Epoch, Extent, Target};
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, DeviceError, Durability, Place, Request, SegmentId,
    Sequence, runtime::either,
};
use tokio::sync::mpsc;

use crate::{
    core::{Core, Published},
    error::EngineError,
    frame,
    overlay::Change,
    planned::{PlannedFrame, PlannedTarget, ReducedBatch},
    stats::{Stage, add},
    write_unit::{Summary, summary_bytes},
};

/// Checkpoints in a row that find no segment before the sealer gives up.
const MAX_FRONTIER_WAITS: u32 = 8;
/// More epochs in the memtable start a checkpoint: every lookup asks each.
const MAX_MEMTABLE_EPOCHS: usize = 32;

/// What the sealer is told.
pub(crate) enum Message {
    /// A reducer has finished a batch.
    Reduced(Box<ReducedBatch>),
    /// The device has finished writing a unit.
    Written {
        /// The batch in it.
        batch: u64,
        /// The outcome.
        outcome: Result<(), DeviceError>,
    },
    /// A reducer has stopped; no more batches come from it.
    ReducerStopped,
}

/// A unit that is on its way to the device or waits to be published.
struct Unit {
    changes: Vec<Arc<Change>>,
    summary: Summary,
    address: ByteOffset,
    submitted_at: Instant,
    written: bool,
}

/// See the module's page.
pub(crate) struct Sealer {
    core: Arc<Core>,
    messages: mpsc::UnboundedReceiver<Message>,
    completions: mpsc::UnboundedSender<Message>,
    reducers: usize,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Box<ReducedBatch>>,
    next_batch: u64,
    /// Placed and not published, oldest first; the first has number `next_batch - units.len()`.
    units: VecDeque<Unit>,
    /// Where batches put the blocks that they had registered as in flight.
    placed: BTreeMap<u64, Vec<Option<Place>>>,
    /// Those below the first number can be forgotten once the second is the next to seal.
    forget: Option<(u64, u64)>,
    open: Option<OpenSegment>,
    next_unit: u64,
}

struct OpenSegment {
    id: SegmentId,
    generation: u64,
    start: ByteOffset,
    used_bytes: u64,
}

impl Sealer {
    pub(crate) fn new(
        core: Arc<Core>,
        messages: mpsc::UnboundedReceiver<Message>,
        completions: mpsc::UnboundedSender<Message>,
        reducers: usize,
    ) -> Self {
        let next_unit = core.publishing.lock().unit + 1;
        let layout = &core.superblock.layout;
        let open = core.frontier.open_segment().map(|(segment, left_bytes)| OpenSegment {
            id: segment.id,
            generation: segment.generation,
            start: layout.geometry().segment_start(segment.id),
            used_bytes: layout.segment_bytes - left_bytes,
        });
        Self {
            core,
            messages,
            completions,
            reducers,
            early: BTreeMap::new(),
            next_batch: 0,
            units: VecDeque::new(),
            placed: BTreeMap::new(),
            forget: None,
            open,
            next_unit,
        }
    }

    /// Works until all reducers have stopped and everything is published, or the pool has failed.
    pub(crate) async fn run(mut self) {
        while self.reducers > 0 || !self.units.is_empty() || !self.early.is_empty() {
            let Some(message) = self.messages.recv().await else { break };
            self.note(message);
            if self.core.health.check().is_err() {
                break;
            }
            while let Some(batch) = self.early.remove(&self.next_batch) {
                if !self.seal(*batch).await {
                    return;
                }
            }
            self.publish().await;
        }
    }

    /// Publishes what is written. While the memtable is full, waits for checkpoints, which freeze
    /// it.
    async fn publish(&mut self) {
        let core = Arc::clone(&self.core);
        loop {
            let changed = core.frontier.listen();
            self.publish_written();
            let is_held_back = self.units.front().is_some_and(|unit| unit.written);
            if !is_held_back || core.health.check().is_err() {
                return;
            }
            let mut message = None;
            let received = async { message = self.messages.recv().await };
            either(changed, received).await;
            if let Some(message) = message {
                self.note(message);
            }
        }
    }

    fn note(&mut self, message: Message) {
        match message {
            Message::Reduced(batch) => {
                self.early.insert(batch.number, batch);
            }
            Message::Written { batch, outcome: Ok(()) } => self.note_written(batch),
            Message::Written { outcome: Err(error), .. } => self.core.fail(error.into()),
            Message::ReducerStopped => self.reducers -= 1,
        }
    }

    /// Places a batch and submits its unit. False if the pool has failed.
    async fn seal(&mut self, batch: ReducedBatch) -> bool {
        let core = Arc::clone(&self.core);
        let unit_bytes = batch.end_bytes.next_multiple_of(BLOCK_BYTES) as u64;
        let Some(address) = self.make_room(unit_bytes).await else { return false };
        let timer = core.stats.time(Stage::Seal);
        let open = self.open.as_mut().expect("there is room in an open segment");
        let offset_in_segment = open.used_bytes as usize;
        let frame_place = |frame: u32| {
            let frame = &batch.frames[frame as usize];
            let offset = offset_in_segment + frame.offset_bytes as usize;
            frame::place_of(open.id, offset, frame.body.total_bytes())
        };
        let own = |(frame, index): (u32, u8)| {
            frame_place(frame).advanced(index.into()).expect("frames hold few blocks")
        };

        let mut buffer = batch.buffer;
        buffer.set_len(unit_bytes as usize);
        buffer[batch.end_bytes..].fill(0);
        for (number, planned) in (0..).zip(&batch.frames) {
            let out = &mut buffer[planned.offset_bytes as usize..];
            let place = frame_place(number);
            planned.body.write_header(core.superblock.pool, open.generation, place, out);
        }
        let registered: Vec<_> = batch.registered.iter().map(|at| at.map(own)).collect();
        self.placed.insert(batch.number, registered);
        let in_flight = batch.entries.iter().filter(|entry| entry.target.is_in_flight()).count();
        add(&core.stats.counters.linked_in_flight_blocks, in_flight as u64);
        let mut entries: Vec<(Extent, Sequence)> = Vec::with_capacity(batch.entries.len());
        for entry in &batch.entries {
            let target = match entry.target {
                PlannedTarget::Hole => Target::Hole,
                PlannedTarget::Own { frame, index } => Target::Stored(own((frame, index))),
                PlannedTarget::Stored(place) => Target::Stored(place),
                PlannedTarget::InFlight { batch, position } => {
                    let owner = self.placed.get(&batch).expect("owners are earlier and kept");
                    let place = owner[position as usize].expect("an owner stores its block");
                    Target::Stored(place)
                }
            };
            let (layer, address) = (entry.layer, entry.address);
            let extent = Extent {
                layer,
                epoch: Epoch::FIRST,
                address,
                len_blocks: entry.len_blocks,
                target,
            };
            match entries.last_mut() {
                Some((last, sequence))
                    if *sequence == entry.sequence && continues(last, &extent) =>
                {
                    last.len_blocks += extent.len_blocks;
                }
                _ => entries.push((extent, entry.sequence)),
            }
        }
        let first = batch.changes.first().expect("a batch has changes").sequence;
        let last = batch.changes.last().expect("a batch has changes").sequence;
        let summary = Summary {
            number: self.next_unit,
            segment: open.id,
            generation: open.generation,
            first_sequence: first,
            last_sequence: last,
            unit_bytes: unit_bytes as u32,
            entries,
            frames: batch.frames.iter().map(PlannedFrame::in_summary).collect(),
            fingerprints: batch.fingerprints,
        };
        // Entries that were joined only now leave a gap before the frames.
        let blocks = summary.fingerprints.len();
        let room = summary_bytes(batch.entries.len(), summary.frames.len(), blocks);
        let used = summary_bytes(summary.entries.len(), summary.frames.len(), blocks);
        buffer[used..room].fill(0);
        summary.encode(core.superblock.pool, address, &mut buffer);

        open.used_bytes += unit_bytes;
        let left = core.superblock.layout.segment_bytes - open.used_bytes;
        core.frontier.placed(last, left);
        core.table.note_unit(open.id, blocks as u32, unit_bytes as u32);
        self.settle_space(&batch.changes);
        self.count(&batch.frames, &summary);
        drop(timer);
        let unit = Unit {
            changes: batch.changes,
            summary,
            address,
            submitted_at: Instant::now(),
            written: false,
        };
        self.units.push_back(unit);
        self.submit(batch.number, address, buffer);
        self.next_batch += 1;
        self.next_unit += 1;
        if core.frontier.is_low() {
            core.checkpointing.request();
        }
        true
    }

    /// Makes sure that the open segment has room; returns where the next unit goes.
    async fn make_room(&mut self, unit_bytes: u64) -> Option<ByteOffset> {
        let layout = &self.core.superblock.layout;
        let segment_bytes = layout.segment_bytes;
        assert!(unit_bytes <= segment_bytes, "a unit fits a segment");
        let fits = |open: &OpenSegment| open.used_bytes + unit_bytes <= segment_bytes;
        if !self.open.as_ref().is_some_and(fits) {
            self.core.frontier.close_open();
            let (id, generation) = self.next_segment(unit_bytes).await?;
            let start = self.core.superblock.layout.geometry().segment_start(id);
            self.open = Some(OpenSegment { id, generation, start, used_bytes: 0 });
        }
        self.open.as_ref().map(|open| open.start.plus(open.used_bytes))
    }

    /// The next frontier segment; waits for checkpoints if there is none, and publishes meanwhile:
    /// a segment is freed only when every batch that may link to it is published. `None` if the
    /// pool has failed, or if so many checkpoints bring none that none can be expected.
    async fn next_segment(&mut self, unit_bytes: u64) -> Option<(SegmentId, u64)> {
        let core = Arc::clone(&self.core);
        // The checkpoint asked for, and how many have been before it.
        let mut asked: Option<(u64, u32)> = None;
        loop {
            let changed = core.frontier.listen();
            // Looked at first: what it brought is then there to be taken.
            let is_over = asked.is_none_or(|(ticket, _)| core.checkpointing.is_finished(ticket));
            if let Some(segment) = core.frontier.next() {
                return Some(segment);
            }
            core.health.check().ok()?;
            asked = match asked {
                Some(asked) if !is_over => Some(asked),
                Some((_, MAX_FRONTIER_WAITS)) => {
                    // Promises of space count what changes need; this is for what they overlook.
                    let free_bytes = core.space.free_bytes(core.room());
                    core.fail(EngineError::NoSpace { needed_bytes: unit_bytes, free_bytes });
                    return None;
                }
                Some((_, waits)) => Some((core.checkpointing.request_compacting(), waits + 1)),
                None => {
                    add(&core.stats.counters.frontier_waits, 1);
                    Some((core.checkpointing.request(), 1))
                }
            };
            let mut message = None;
            let received = async { message = self.messages.recv().await };
            either(changed, received).await;
            if let Some(message) = message {
                self.note(message);
                self.publish_written();
            }
        }
    }

    fn submit(&self, batch: u64, address: ByteOffset, buffer: AlignedBuffer) {
        let completions = self.completions.clone();
        let completion = Box::new(move |buffer: AlignedBuffer, outcome| {
            drop(buffer);
            // The sealer is gone only if the pool has failed.
            let _ = completions.send(Message::Written { batch, outcome });
        });
        let durability = Durability::Flush;
        self.core.device.submit(vec![Request::Write {
            offset: address,
            buffer,
            durability,
            completion,
        }]);
    }

    /// The placed unit takes the room that its changes were promised.
    fn settle_space(&self, changes: &[Arc<Change>]) {
        let core = &self.core;
        core.space.release(changes.iter().map(|change| change.space_bytes).sum());
    }

    fn count(&self, frames: &[PlannedFrame], summary: &Summary) {
        let counters = &self.core.stats.counters;
        let (mut bytes, mut plain) = (0, 0);
        for planned in frames {
            bytes += planned.body.total_bytes() as u64;
            if planned.body.codec == frame::Codec::Plain {
                plain += u64::from(planned.body.block_count);
            }
        }
        let own = summary.fingerprints.len() as u64;
        let (mut mapped, mut zero) = (0, 0);
        for (extent, _) in &summary.entries {
            match extent.target {
                Target::Stored(_) => mapped += u64::from(extent.len_blocks),
                Target::Hole => zero += u64::from(extent.len_blocks),
            }
        }
        add(&counters.batches, 1);
        add(&counters.units, 1);
        add(&counters.unit_bytes, summary.unit_bytes.into());
        add(&counters.stored_blocks, own);
        add(&counters.linked_blocks, mapped - own);
        add(&counters.zero_blocks, zero);
        add(&counters.frame_bytes, bytes);
        add(&counters.plain_blocks, plain);
    }

    fn note_written(&mut self, batch: u64) {
        let first = self.next_batch - self.units.len() as u64;
        let unit = &mut self.units[(batch - first) as usize];
        unit.written = true;
        self.core.stats.record(Stage::DeviceWrite, unit.submitted_at);
    }

    /// Publishes what is written, until the memtable is full.
    fn publish_written(&mut self) {
        while self.units.front().is_some_and(|unit| unit.written)
            && self.core.map.memtable_len() < self.core.space.memtable_entries()
        {
            let batch = self.next_batch - self.units.len() as u64;
            let unit = self.units.pop_front().expect("it was just looked at");
            let start = Instant::now();
            self.publish_unit(batch, unit);
            self.core.stats.record(Stage::Publish, start);
        }
    }

    fn publish_unit(&mut self, batch: u64, unit: Unit) {
        let core = &self.core;
        let Unit { changes, mut summary, address, .. } = unit;
        core.date(&mut summary.entries);
        // Until the batch is retired: a checkpoint that covers it must not begin while others can
        // still name it as the owner of a block, or it could condemn what they link to.
        let mut published = core.publishing.lock();
        core.map.publish(&summary.entries);
        *published =
            Published { sequence: summary.last_sequence, unit: summary.number, batch: Some(batch) };
        if !summary.fingerprints.is_empty() {
            core.summaries.insert(address, &summary);
            let unit = crate::summaries::SummaryCache::unit_at(address);
            core.index.insert_batch(&summary.fingerprints, unit);
        }
        for change in &changes {
            change.volume.overlay.remove(change);
        }
        // Before anyone who waits for this is told.
        core.staging.give_back(changes.iter().map(|change| change.staged_bytes).sum());
        core.admission.publish(&changes);
        let newest_started = core.admission.newest_started().expect("a batch was published");
        core.in_flight.retire(batch, newest_started);
        drop(published);
        self.forget_placed();
        let core = &self.core;
        let enough = core.tuning.memtable_entries.min(core.space.memtable_entries() / 2);
        if core.map.memtable_len() >= enough || core.map.memtable_epochs() > MAX_MEMTABLE_EPOCHS {
            core.checkpointing.request();
        }
        core.checkpointing.note_change();
    }

    /// Forgets where batches put their blocks once nobody can ask any more: no registration to
    /// come can name them, and every batch that had registered by then is sealed.
    fn forget_placed(&mut self) {
        let in_flight = &self.core.in_flight;
        if self.forget.is_none() {
            // In this order: who registers after the first line names nothing older than it says,
            // and who registered before is at most the batch whose turn it is in the second.
            let below = in_flight.oldest().unwrap_or(self.next_batch);
            let once_sealed = in_flight.gate().next() + 1;
            self.forget = Some((below.min(self.next_batch), once_sealed));
        }
        if let Some((below, once_sealed)) = self.forget
            && self.next_batch >= once_sealed
        {
            self.placed = self.placed.split_off(&below);
            self.forget = None;
        }
    }
}

/// Whether `next` continues `extent` in address and frame.
fn continues(extent: &Extent, next: &Extent) -> bool {
    let len = u64::from(extent.len_blocks);
    let target = match (extent.target, next.target) {
        (Target::Hole, Target::Hole) => false,
        (Target::Stored(place), Target::Stored(other)) => place.advanced(len) == Some(other),
        _ => false,
    };
    target && extent.layer == next.layer && extent.address.plus(len) == next.address
}
