//! The sealer: places reduced batches as write units, in order, and publishes them. Units of each
//! temperature go to segments of their own, as long as there are segments for both.
//!
//! One task. It takes two kinds of messages: batches from the reducers, in any order, and
//! completions from the device, in any order. Batches are placed strictly by number, each as soon
//! as it is the next one needed; several units are in flight; and units are published strictly by
//! number, each as soon as it and all before it are on the device. Nothing here waits for a device
//! but through those messages; when the frontier is used up, placing waits for a checkpoint, and
//! publishing goes on; when the memtable is full, publishing waits for one, and placing goes on.
//!
//! Publishing enters a unit into map, index and summaries, in this order takes its changes out of
//! the overlay and the queue, and gives back their memory.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Instant,
};

use event_listener::EventListener;
use siltstone_cursor::{Epoch, Extent, Target};
use siltstone_device::{
    AlignedBuffer, ByteOffset, DeviceError, Durability, Place, Request, SegmentId, Sequence,
    runtime::either,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    core::{Core, Published},
    error::EngineError,
    frame,
    overlay::Change,
    planned::{OwnBlock, PlannedFrame, PlannedTarget, ReducedBatch, ReducedUnit},
    small_units::SmallUnits,
    stats::{Stage, add},
    summaries::SummaryCache,
    temperature::Temperature,
    unit_buffers::Held,
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
    /// The device has finished writing a unit, or several small ones.
    Written {
        /// The batches of each.
        batches: Range<u64>,
        /// The outcome.
        outcome: Result<(), DeviceError>,
    },
    /// A reducer has stopped; no more batches come from it.
    ReducerStopped,
    /// Whatever is written next shall go to other segments than what was written before; answered
    /// once that is so.
    GiveUpSegments(oneshot::Sender<()>),
}

/// A batch whose units are on their way to the device or wait to be published.
struct Sealed {
    changes: Vec<Arc<Change>>,
    units: Vec<(ByteOffset, Summary)>,
    placed_at: Instant,
    /// Units that are not on the device yet.
    unwritten: usize,
    /// The memory of its units, until all of them are on the device.
    held: Option<Held>,
}

impl Sealed {
    fn is_written(&self) -> bool {
        self.unwritten == 0
    }
}

impl UnitPlace {
    fn address(&self, core: &Core) -> ByteOffset {
        let start = core.superblock.layout.geometry().segment_start(self.segment);
        start.plus(self.offset_in_segment)
    }

    /// Where a block of the unit stands.
    fn block(&self, unit: &ReducedUnit, frame: u32, index: u8) -> Place {
        let frame = &unit.frames[frame as usize];
        let offset = self.offset_in_segment as usize + frame.offset_bytes as usize;
        let first = frame::place_of(self.segment, offset, frame.body.total_bytes());
        first.advanced(index.into()).expect("frames hold few blocks")
    }
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
    /// Placed and not published, oldest first; the first has number `next_batch - sealed.len()`.
    sealed: VecDeque<Sealed>,
    /// Where batches put the blocks that they had registered as in flight.
    placed: BTreeMap<u64, Vec<Option<Place>>>,
    /// Those below the first number can be forgotten once the second is the next to seal.
    forget: Option<(u64, u64)>,
    /// By temperature.
    open: [Option<OpenSegment>; 2],
    /// Placed, and yet to be submitted.
    small: Option<SmallUnits>,
    next_unit: u64,
    /// Units on their way to the device, and since when there have been any, or when that was last
    /// counted.
    on_their_way: (usize, Instant),
}

struct OpenSegment {
    id: SegmentId,
    generation: u64,
    used_bytes: u64,
}

/// Where a unit goes.
#[derive(Clone, Copy)]
struct UnitPlace {
    segment: SegmentId,
    generation: u64,
    offset_in_segment: u64,
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
        let mut open = [None, None];
        open[Temperature::Cold as usize] =
            core.frontier.open_segment().map(|segment| OpenSegment {
                id: segment.id,
                generation: segment.generation,
                used_bytes: layout.segment_bytes - segment.left_bytes,
            });
        Self {
            core,
            messages,
            completions,
            reducers,
            early: BTreeMap::new(),
            next_batch: 0,
            sealed: VecDeque::new(),
            placed: BTreeMap::new(),
            forget: None,
            open,
            small: None,
            next_unit,
            on_their_way: (0, Instant::now()),
        }
    }

    /// Works until all reducers have stopped and everything is published, or the pool has failed.
    pub(crate) async fn run(mut self) {
        let core = Arc::clone(&self.core);
        loop {
            // Before looking: failures, room in the memtable, and who waits for small units bring no message.
            let changed = core.frontier.listen();
            while let Some(batch) = self.early.remove(&self.next_batch) {
                if !self.seal(*batch).await {
                    return;
                }
            }
            self.submit_awaited();
            self.publish_written();
            let is_over = self.reducers == 0 && self.sealed.is_empty() && self.early.is_empty();
            if is_over || core.health.check().is_err() {
                return;
            }
            self.take_message(changed).await;
        }
    }

    /// Waits for a message, and notes it, or for what the frontier has to tell.
    async fn take_message(&mut self, changed: EventListener) {
        let mut message = None;
        let received = async { message = self.messages.recv().await };
        either(changed, received).await;
        if let Some(message) = message {
            self.note(message);
        }
    }

    fn note(&mut self, message: Message) {
        match message {
            Message::Reduced(batch) => {
                self.early.insert(batch.number, batch);
            }
            Message::Written { batches, outcome: Ok(()) } => {
                batches.for_each(|batch| self.note_written(batch))
            }
            Message::Written { outcome: Err(error), .. } => self.core.fail(error.into()),
            Message::ReducerStopped => self.reducers -= 1,
            Message::GiveUpSegments(done) => {
                self.submit_small();
                for given_up in self.open.iter_mut().filter_map(Option::take) {
                    self.core.frontier.close(given_up.id);
                }
                // Whoever asked may have given up.
                let _ = done.send(());
            }
        }
    }

    /// Places a batch and submits its units. False if the pool has failed.
    async fn seal(&mut self, batch: ReducedBatch) -> bool {
        let core = Arc::clone(&self.core);
        if core.health.check().is_err() {
            return false;
        }
        let ReducedBatch { number, changes, units, registered, held } = batch;
        let first_sequence = changes.first().expect("a batch has changes").sequence;
        let last_sequence = changes.last().expect("a batch has changes").sequence;
        let is_small = held.is_past_the_gate() && SmallUnits::may_hold(&units);
        if !is_small {
            self.submit_small();
        }
        // All of them before any is completed: one may refer to what stands in the other.
        let mut places = Vec::with_capacity(units.len());
        for unit in &units {
            let place = self.make_room(unit.temperature, unit.unit_bytes(), last_sequence).await;
            let Some(place) = place else { return false };
            places.push(place);
        }
        let timer = core.stats.time(Stage::Seal);
        let own = |OwnBlock { unit, frame, index }| places[unit].block(&units[unit], frame, index);
        let registered = registered.iter().map(|at| at.map(own)).collect();
        self.placed.insert(number, registered);
        let unwritten = units.len();
        let mut sealed = Vec::with_capacity(unwritten);
        for (unit, place) in units.into_iter().zip(places) {
            let is_continued = sealed.len() + 1 < unwritten;
            let summary = Summary {
                number: self.next_unit,
                segment: place.segment,
                generation: place.generation,
                first_sequence,
                last_sequence,
                unit_bytes: unit.unit_bytes() as u32,
                is_continued,
                entries: self.place_entries(&unit, place),
                frames: unit.frames.iter().map(PlannedFrame::in_summary).collect(),
                fingerprints: unit.fingerprints.clone(),
            };
            let address = place.address(&core);
            let buffer = complete_unit(&core, unit, place, address, &summary);
            if is_small {
                self.hold(number, address, buffer);
            } else {
                self.submit(number..number + 1, address, buffer);
            }
            sealed.push((address, summary));
            self.next_unit += 1;
        }
        self.settle_space(&changes);
        add(&core.stats.counters.batches, 1);
        drop(timer);
        let placed_at = Instant::now();
        let (units, held) = (sealed, Some(held));
        self.sealed.push_back(Sealed { changes, units, placed_at, unwritten, held });
        self.next_batch += 1;
        if core.frontier.is_low() {
            core.checkpointing.request();
        }
        true
    }

    /// The entries of a unit, with the places of what they refer to.
    fn place_entries(&self, unit: &ReducedUnit, place: UnitPlace) -> Vec<(Extent, Sequence)> {
        let in_flight = unit.entries.iter().filter(|entry| entry.target.is_in_flight()).count();
        add(&self.core.stats.counters.linked_in_flight_blocks, in_flight as u64);
        let mut entries: Vec<(Extent, Sequence)> = Vec::with_capacity(unit.entries.len());
        for entry in &unit.entries {
            let target = match entry.target {
                PlannedTarget::Hole => Target::Hole,
                PlannedTarget::Own { frame, index } => {
                    Target::Stored(place.block(unit, frame, index))
                }
                PlannedTarget::Stored(place) => Target::Stored(place),
                PlannedTarget::InFlight { batch, position } => {
                    let owner = self.placed.get(&batch).expect("owners are no later and kept");
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
        entries
    }

    /// Takes room for a unit in an open segment, which may have to be a new one.
    async fn make_room(
        &mut self,
        temperature: Temperature,
        unit_bytes: u64,
        last_sequence: Sequence,
    ) -> Option<UnitPlace> {
        let core = Arc::clone(&self.core);
        let segment_bytes = core.superblock.layout.segment_bytes;
        assert!(unit_bytes <= segment_bytes, "a unit fits a segment");
        let at = self.segment_for(temperature, unit_bytes);
        if !self.fits(at, unit_bytes) {
            // A segment may have to wait for a checkpoint, and that for what waits to be submitted.
            self.submit_small();
            if let Some(full) = self.open[at as usize].take() {
                core.frontier.close(full.id);
            }
            let (id, generation) = self.next_segment(unit_bytes).await?;
            self.open[at as usize] = Some(OpenSegment { id, generation, used_bytes: 0 });
        }
        let open = self.open[at as usize].as_mut().expect("there is room in an open segment");
        let OpenSegment { id: segment, generation, used_bytes: offset_in_segment } = *open;
        open.used_bytes += unit_bytes;
        core.frontier.placed(segment, last_sequence, segment_bytes - open.used_bytes);
        Some(UnitPlace { segment, generation, offset_in_segment })
    }

    /// In which of the open segments a unit goes: in that of its temperature, but if it does not fit
    /// there and no other segment is ready, where it does fit. What room there is was promised
    /// whatever the temperature.
    fn segment_for(&self, temperature: Temperature, unit_bytes: u64) -> Temperature {
        let other = temperature.other();
        let is_short =
            self.core.frontier.ready_segments() <= usize::from(temperature == Temperature::Hot);
        let moves = is_short && !self.fits(temperature, unit_bytes) && self.fits(other, unit_bytes);
        if moves { other } else { temperature }
    }

    fn fits(&self, temperature: Temperature, unit_bytes: u64) -> bool {
        let segment_bytes = self.core.superblock.layout.segment_bytes;
        let open = self.open[temperature as usize].as_ref();
        // Where damage was found, what is written now might be lost next, and nothing could link to it.
        let is_trusted = |id| self.core.table.generation(id).is_some_and(|(_, trusted)| trusted);
        open.is_some_and(|open| {
            open.used_bytes + unit_bytes <= segment_bytes && is_trusted(open.id)
        })
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
            self.take_message(changed).await;
            self.publish_written();
        }
    }

    /// Lets a small unit wait for others.
    fn hold(&mut self, batch: u64, address: ByteOffset, unit: AlignedBuffer) {
        match &mut self.small {
            Some(small) if small.may_share(batch, address, &unit) => small.push(unit),
            _ => {
                self.submit_small();
                self.small = Some(SmallUnits::first(batch, address, unit));
            }
        }
        if self.small.as_ref().is_some_and(SmallUnits::is_full) {
            self.submit_small();
        }
    }

    /// Submits the small units that have waited for others, unless they may wait on.
    fn submit_awaited(&mut self) {
        if self.small.is_some() {
            let newest = self.sealed.back().and_then(|sealed| sealed.changes.last());
            let newest = newest.expect("what waits is sealed").sequence;
            if !self.core.admission.is_company_coming(self.next_batch, newest) {
                self.submit_small();
            }
        }
    }

    /// Submits the small units that have waited for others.
    fn submit_small(&mut self) {
        if let Some(small) = self.small.take() {
            let (batches, address, buffer) = small.into_write(&self.core.write_buffers);
            self.submit(batches, address, buffer);
        }
    }

    fn submit(&mut self, batches: Range<u64>, address: ByteOffset, buffer: AlignedBuffer) {
        if self.on_their_way.0 == 0 {
            self.on_their_way.1 = Instant::now();
        }
        self.on_their_way.0 += (batches.end - batches.start) as usize;
        let completions = self.completions.clone();
        let completion = Box::new(move |buffer: AlignedBuffer, outcome| {
            drop(buffer);
            // The sealer is gone only if the pool has failed.
            let _ = completions.send(Message::Written { batches, outcome });
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

    fn note_written(&mut self, batch: u64) {
        let first = self.next_batch - self.sealed.len() as u64;
        let sealed = &mut self.sealed[(batch - first) as usize];
        sealed.unwritten -= 1;
        if sealed.is_written() {
            let held = sealed.held.take().expect("units are written once");
            self.core.unit_buffers.give_back(held);
        }
        let (count, since) = &mut self.on_their_way;
        *count -= 1;
        self.core.stats.record(Stage::DeviceBusy, *since);
        *since = Instant::now();
        self.core.stats.record(Stage::DeviceWrite, sealed.placed_at);
    }

    /// Publishes what is written, until the memtable is full.
    fn publish_written(&mut self) {
        while self.sealed.front().is_some_and(Sealed::is_written)
            && self.core.map.memtable_len() < self.core.space.memtable_entries()
        {
            let batch = self.next_batch - self.sealed.len() as u64;
            let sealed = self.sealed.pop_front().expect("it was just looked at");
            let start = Instant::now();
            self.publish_batch(batch, sealed);
            self.core.stats.record(Stage::Publish, start);
        }
    }

    fn publish_batch(&mut self, batch: u64, sealed: Sealed) {
        let core = &self.core;
        let Sealed { changes, mut units, .. } = sealed;
        for (_, summary) in &mut units {
            core.date(&mut summary.entries);
        }
        let (_, newest) = units.last().expect("a batch has a unit");
        let (sequence, newest_unit) = (newest.last_sequence, newest.number);
        // Until the batch is retired: a checkpoint that covers it must not begin while others can
        // still name it as the owner of a block, or it could condemn what they link to.
        let mut published = core.publishing.lock();
        *published = Published { sequence, unit: newest_unit, batch: Some(batch) };
        for (address, summary) in &units {
            // Not when it is placed: a checkpoint that stores this flushes the device before its record
            // counts, and recovery takes what the table says of a segment for whole.
            let blocks = summary.fingerprints.len() as u32;
            core.table.note_unit(summary.segment, blocks, summary.unit_bytes);
            add(&core.stats.counters.units, 1);
            add(&core.stats.counters.unit_bytes, summary.unit_bytes.into());
            core.map.publish(&summary.entries);
            if !summary.fingerprints.is_empty() {
                core.summaries.insert(*address, summary);
                let unit = SummaryCache::unit_at(*address);
                core.index.insert_batch(&summary.fingerprints, unit);
            }
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
        if core.map.memtable_len() >= core.full_memtable()
            || core.map.memtable_epochs() > MAX_MEMTABLE_EPOCHS
        {
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

/// Completes the headers of a unit's frames, and writes its summary.
fn complete_unit(
    core: &Core,
    mut unit: ReducedUnit,
    place: UnitPlace,
    address: ByteOffset,
    summary: &Summary,
) -> AlignedBuffer {
    let pool = core.superblock.pool;
    let firsts: Vec<Place> =
        (0..).zip(&unit.frames).map(|(frame, _)| place.block(&unit, frame, 0)).collect();
    let buffer = &mut unit.buffer;
    buffer.set_len(summary.unit_bytes as usize);
    buffer[unit.end_bytes..].fill(0);
    for (planned, first) in unit.frames.iter().zip(firsts) {
        let out = &mut buffer[planned.offset_bytes as usize..];
        planned.body.write_header(pool, place.generation, first, out);
    }
    // Entries that were joined only now leave a gap before the frames.
    let (frames, blocks) = (summary.frames.len(), summary.fingerprints.len());
    let room = summary_bytes(unit.entries.len(), frames, blocks);
    let used = summary_bytes(summary.entries.len(), frames, blocks);
    buffer[used..room].fill(0);
    summary.encode(pool, address, buffer);
    count(core, &unit.frames, summary);
    unit.buffer
}

fn count(core: &Core, frames: &[PlannedFrame], summary: &Summary) {
    let counters = &core.stats.counters;
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
    add(&counters.stored_blocks, own);
    add(&counters.linked_blocks, mapped - own);
    add(&counters.zero_blocks, zero);
    add(&counters.frame_bytes, bytes);
    add(&counters.plain_blocks, plain);
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
