//! Reduction: a batch of admitted changes becomes the contents of a write unit, or of two, one of
//! what is overwritten often and one of the rest (see `temperature`).
//!
//! Everything is done for the whole batch at once, in passes: find zeros, fingerprint in one
//! multi-lane pass, ask neighbourhood and index, pass the gate that orders batches, plan runs by
//! the threshold, then frame and compress what remains, straight into the buffers that go to the
//! device. One `Reducer` a task; it keeps its scratch memory between batches.
//!
//! Whatever a block becomes, a hole, a link or part of a frame, it is compared with its sum last
//! (see `staged_data`).

use std::{collections::HashMap, ops::Range, sync::Arc};

use siltstone_dedup::{
    Candidate, Fingerprint, GateClosed, Kind, Registration, Run, ShortFingerprint, Target,
    UnitAddress, fingerprint_blocks, is_zero,
};
use siltstone_device::{BLOCK_BYTES, BufferPool, units::PLACE_GRAIN_BYTES};

use crate::{
    admission::Batch,
    compress::Compressor,
    config::FRAME_BLOCKS,
    core::Core,
    effort::Effort,
    frame::{Codec, FRAME_HEADER_BYTES, FrameBody},
    framing::{self, Framed},
    overlay::{Change, ChangeBody},
    planned::{OwnBlock, PlannedEntry, PlannedFrame, PlannedTarget, ReducedBatch, ReducedUnit},
    staged_data::StagedData,
    stats::{Stage, add},
    summaries::UnitFrames,
    temperature::Temperature,
    unit_buffers::Held,
    write_unit::{frames_start, summary_bytes, worst_unit_bytes},
};

/// A run of links of this length or more is no accident.
const LONG_RUN_BLOCKS: usize = 16;

/// A batch is divided only if as many blocks as this are hot, and as many are cold, or an eighth of a
/// full batch.
const MIN_PART_BLOCKS: usize = 4 * FRAME_BLOCKS;

/// The batch was not reduced: the pool has failed.
#[derive(Debug)]
pub(crate) struct Stopped;

impl From<GateClosed> for Stopped {
    fn from(_: GateClosed) -> Self {
        Self
    }
}

/// A block of the batch with data in it.
#[derive(Clone, Copy)]
struct Block {
    change: u32,
    /// In blocks from the change's start.
    index: u32,
}

/// Reduces batches; one a task.
pub(crate) struct Reducer {
    compressor: Compressor,
    gather: Vec<u8>,
    blocks: Vec<Block>,
    contiguous: Vec<bool>,
    fingerprints: Vec<Fingerprint>,
    shorts: Vec<ShortFingerprint>,
    candidates: Vec<Option<Candidate>>,
    targets: Vec<Option<Target>>,
    runs: Vec<Run>,
}

impl Reducer {
    pub(crate) fn new() -> Self {
        Self {
            compressor: Compressor::new(),
            gather: vec![0; FRAME_BLOCKS * BLOCK_BYTES],
            blocks: Vec::new(),
            contiguous: Vec::new(),
            fingerprints: Vec::new(),
            shorts: Vec::new(),
            candidates: Vec::new(),
            targets: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Reduces one batch.
    ///
    /// # Errors
    /// [`Stopped`] after a failure, and if a block is not what was received, which is one.
    pub(crate) async fn reduce(
        &mut self,
        core: &Core,
        batch: Batch,
    ) -> Result<ReducedBatch, Stopped> {
        let Batch { number, changes, behind_bytes } = batch;
        let others_bytes = (core.tuning.reducers - 1) * core.tuning.batch_bytes;
        let by_load = Effort::by_load(behind_bytes, others_bytes, core.tuning.staging_bytes);
        let effort = core.tuning.effort.unwrap_or(by_load);
        let mut entries = Vec::new();
        let timer = core.stats.time(Stage::Fingerprint);
        self.classify(core, &changes, &mut entries)?;
        self.fingerprint(&changes);
        drop(timer);

        let timer = core.stats.time(Stage::Index);
        let units = self.find_stored(core).await;
        drop(timer);
        let (registered_at, mut held) = self.register(core, number, entries.len()).await?;

        let timer = core.stats.time(Stage::Compress);
        self.check_links(core, &changes)?;
        let stored = self.plan_entries(&changes, &units, &mut entries);
        let parts = self.divide(core, &changes, effort, stored, entries);
        let mut registered = vec![None; registered_at.len()];
        let mut units = Vec::with_capacity(parts.len());
        for (unit, part) in parts.into_iter().enumerate() {
            place_registered(&registered_at, unit, &part.frames, &mut registered);
            units.push(self.fill(core, &changes, part)?);
        }
        if core.unit_buffers.is_device_behind() {
            units.iter_mut().for_each(|unit| unit.pack(&core.write_buffers));
            let kept_bytes = units.iter().map(|unit| unit.buffer.capacity()).sum();
            core.unit_buffers.shrink(&mut held, kept_bytes);
        }
        drop(timer);
        Ok(ReducedBatch { number, changes, units, registered, held })
    }

    /// Splits changes into holes, which become entries, and blocks with data.
    fn classify(
        &mut self,
        core: &Core,
        changes: &[Arc<Change>],
        entries: &mut Vec<PlannedEntry>,
    ) -> Result<(), Stopped> {
        self.blocks.clear();
        self.contiguous.clear();
        for (at, change) in changes.iter().enumerate() {
            let hole = |index: u32, len_blocks: u32| PlannedEntry {
                layer: change.layer(),
                address: change.address.plus(index.into()),
                len_blocks,
                sequence: change.sequence,
                target: PlannedTarget::Hole,
            };
            let ChangeBody::Data(data) = &change.body else {
                entries.push(hole(0, change.len_blocks));
                continue;
            };
            let mut hole_start = None;
            let mut follows = self.follows_previous_change(changes, at);
            for (index, block) in (0..).zip(data.blocks()) {
                if is_zero(block) {
                    if !data.was_zero(index as usize) {
                        return Err(altered(core, change, index));
                    }
                    hole_start.get_or_insert(index);
                    follows = false;
                    continue;
                }
                if let Some(start) = hole_start.take() {
                    entries.push(hole(start, index - start));
                }
                self.blocks.push(Block { change: at as u32, index });
                self.contiguous.push(follows);
                follows = true;
            }
            if let Some(start) = hole_start {
                entries.push(hole(start, change.len_blocks - start));
            }
        }
        Ok(())
    }

    /// Whether a change's first block follows the last block that was pushed, in address.
    fn follows_previous_change(&self, changes: &[Arc<Change>], at: usize) -> bool {
        let (Some(last), Some(before)) =
            (self.blocks.last(), at.checked_sub(1).map(|before| &changes[before]))
        else {
            return false;
        };
        let change = &changes[at];
        last.change as usize + 1 == at
            && last.index + 1 == before.len_blocks
            && before.layer() == change.layer()
            && before.address.plus(before.len_blocks.into()) == change.address
    }

    fn fingerprint(&mut self, changes: &[Arc<Change>]) {
        let blocks: Vec<&[u8; BLOCK_BYTES]> =
            self.blocks.iter().map(|block| data_of(changes, *block)).collect();
        self.fingerprints.resize(blocks.len(), Fingerprint::from_bytes([0; 32]));
        fingerprint_blocks(&blocks, &mut self.fingerprints);
        self.shorts.clear();
        self.shorts.extend(self.fingerprints.iter().map(Fingerprint::short));
    }

    /// Checks the blocks that become short runs of links. A block that changed before it was
    /// fingerprinted is no duplicate of what it was, but may be one of another block: of its own
    /// older contents, say, if the two differed in that bit. In a long run it would also have to fit
    /// between its neighbours, and a second pass over every duplicate would cost too much.
    fn check_links(&self, core: &Core, changes: &[Arc<Change>]) -> Result<(), Stopped> {
        let is_link = |run: &&Run| matches!(run.kind, Kind::Link { .. });
        for run in self.runs.iter().filter(is_link).filter(|run| run.len < LONG_RUN_BLOCKS) {
            for &block in &self.blocks[run.first..run.first + run.len] {
                check(core, changes, block, data_of(changes, block))?;
            }
        }
        Ok(())
    }

    /// Finds duplicates of published blocks: `candidates` are true and linkable afterwards.
    /// Returns the frames of the units that they are in.
    async fn find_stored(&mut self, core: &Core) -> HashMap<UnitAddress, Arc<UnitFrames>> {
        self.candidates.clear();
        core.summaries.collect_ahead().await;
        core.summaries.lookup(&self.shorts, &mut self.candidates);
        let mut missing = self.missing();
        // A stream may have come as far as what is on its way for it, and the index may not know it.
        if missing.len() >= LONG_RUN_BLOCKS && core.summaries.await_ahead().await {
            self.look_again(core, &missing);
            missing = self.missing();
        }
        if !missing.is_empty() {
            let mut hints = Vec::new();
            core.index.lookup_batch(&missing, &mut hints);
            let mut units: Vec<UnitAddress> = hints.into_iter().flatten().collect();
            units.sort_unstable();
            units.dedup();
            if !units.is_empty() {
                core.summaries.load(&units).await;
                self.look_again(core, &missing);
            }
        }
        siltstone_dedup::run::extend(&self.shorts, &mut self.candidates, &core.summaries);
        let mut units = HashMap::new();
        for (candidate, short) in self.candidates.iter_mut().zip(&self.shorts) {
            let Some(Candidate { unit, ordinal }) = *candidate else { continue };
            let (frames, hits) = units
                .entry(unit)
                .or_insert_with(|| (core.summaries.linkable(unit, &core.table), 0_usize));
            // Asked again of what gives the place: the unit's address may have been used anew
            // since the candidate was found.
            if frames.as_ref().is_some_and(|frames| frames.holds(ordinal, short)) {
                *hits += 1;
            } else {
                *candidate = None;
            }
        }
        let mut streams = Vec::new();
        let mut linkable = HashMap::with_capacity(units.len());
        for (unit, (frames, hits)) in units {
            let Some(frames) = frames else { continue };
            if hits >= LONG_RUN_BLOCKS.min(frames.len_blocks()) {
                streams.push(Arc::clone(&frames));
            }
            linkable.insert(unit, frames);
        }
        core.summaries.load_ahead(&streams, &core.table);
        linkable
    }

    /// The fingerprints of blocks that have not been found.
    fn missing(&self) -> Vec<ShortFingerprint> {
        let all = self.candidates.iter().zip(&self.shorts);
        all.filter(|(found, _)| found.is_none()).map(|(_, short)| *short).collect()
    }

    /// Looks up `missing`, which are all that have not been found, in the summaries that are loaded by now.
    fn look_again(&mut self, core: &Core, missing: &[ShortFingerprint]) {
        let mut found = Vec::new();
        core.summaries.lookup(missing, &mut found);
        let mut found = found.into_iter();
        for candidate in self.candidates.iter_mut().filter(|found| found.is_none()) {
            *candidate = found.next().expect("one answer for each question");
        }
    }

    /// Registers what was not found, in batch order, completes `targets`, plans `runs` and takes the memory
    /// for the unit. Returns the blocks that were registered.
    ///
    /// A batch of which everything was found has nothing to register, and goes past the gate.
    async fn register(
        &mut self,
        core: &Core,
        number: u64,
        hole_count: usize,
    ) -> Result<(Vec<u32>, Held), Stopped> {
        let mut unknown = Vec::new();
        let mut positions = Vec::new();
        for (at, candidate) in (0..).zip(&self.candidates) {
            if candidate.is_none() {
                unknown.push(self.shorts[at as usize]);
                positions.push(at);
            }
        }
        self.targets.clear();
        self.targets.extend(self.candidates.iter().map(|found| found.map(Target::Stored)));
        let gate = core.in_flight.gate();
        if unknown.is_empty() {
            self.plan_runs(core);
            let bytes = self.buffer_bytes(hole_count);
            if let Some(held) = core.unit_buffers.try_take_past_the_gate(bytes) {
                gate.skip(number);
                add(&core.stats.counters.found_batches, 1);
                return Ok((positions, held));
            }
        }
        let mut registrations = Vec::new();
        let timer = core.stats.time(Stage::Gate);
        let turn = gate.enter(number).await?;
        core.in_flight.register_batch(&turn, &unknown, &mut registrations);
        for (&at, registration) in positions.iter().zip(registrations) {
            if let Registration::Duplicate { batch, position } = registration {
                self.targets[at as usize] = Some(Target::InFlight { batch, position });
            }
        }
        self.plan_runs(core);
        let bytes = self.buffer_bytes(hole_count);
        drop(timer);
        let held = core.unit_buffers.take(&turn, bytes).await.map_err(|_| Stopped)?;
        drop(turn);
        Ok((positions, held))
    }

    fn plan_runs(&mut self, core: &Core) {
        self.runs.clear();
        let threshold = core.threshold as usize;
        siltstone_dedup::run::plan(&self.targets, &self.contiguous, threshold, &mut self.runs);
    }

    /// What the buffer of the batch's unit takes at most, now that `runs` are planned. If there
    /// are two units, they may take half more.
    fn buffer_bytes(&self, hole_count: usize) -> usize {
        let stored = self.runs.iter().filter(|run| matches!(run.kind, Kind::Store));
        let stored_blocks = stored.map(|run| run.len).sum();
        let entries = hole_count + self.blocks.len();
        BufferPool::capacity_of(worst_unit_bytes(entries, stored_blocks, stored_blocks))
    }

    /// Adds an entry for every run; returns the blocks to store, in order, each with the entry
    /// that it belongs to.
    fn plan_entries(
        &self,
        changes: &[Arc<Change>],
        units: &HashMap<UnitAddress, Arc<UnitFrames>>,
        entries: &mut Vec<PlannedEntry>,
    ) -> Vec<StoredBlock> {
        let mut stored = Vec::new();
        let entry = |at: usize, target| {
            let block = self.blocks[at];
            let change = &changes[block.change as usize];
            PlannedEntry {
                layer: change.layer(),
                address: change.address.plus(block.index.into()),
                len_blocks: 1,
                sequence: change.sequence,
                target,
            }
        };
        for run in &self.runs {
            for at in run.first..run.first + run.len {
                let target = match run.kind {
                    Kind::Store => {
                        stored.push(StoredBlock { block: at as u32, entry: entries.len() as u32 });
                        PlannedTarget::Own { frame: 0, index: 0 }
                    }
                    Kind::Link { first_target: Target::Stored(first) } => {
                        let ordinal = first.ordinal + (at - run.first) as u32;
                        let place = units.get(&first.unit).and_then(|unit| unit.place(ordinal));
                        PlannedTarget::Stored(place.expect("candidates were checked in summaries"))
                    }
                    Kind::Link { first_target: Target::InFlight { batch, position } } => {
                        let position = position + (at - run.first) as u32;
                        PlannedTarget::InFlight { batch, position }
                    }
                };
                entries.push(entry(at, target));
            }
        }
        stored
    }

    /// Divides a batch by temperature if there is enough of both; holes and links go with what is
    /// cold. A unit has a summary and padding of its own, so less than a few frames is not worth one.
    fn divide(
        &self,
        core: &Core,
        changes: &[Arc<Change>],
        effort: Effort,
        stored: Vec<StoredBlock>,
        mut entries: Vec<PlannedEntry>,
    ) -> Vec<Part> {
        let temperatures: Vec<_> =
            changes.iter().map(|change| core.recent_writes.note(change)).collect();
        let is_hot = |stored: &StoredBlock| {
            let change = self.blocks[stored.block as usize].change;
            temperatures[change as usize] == Temperature::Hot
        };
        let hot_blocks = stored.iter().filter(|stored| is_hot(stored)).count();
        let cold_blocks = stored.len() - hot_blocks;
        let least = (core.tuning.batch_bytes / BLOCK_BYTES / 8).clamp(1, MIN_PART_BLOCKS);
        if hot_blocks.min(cold_blocks) < least {
            let temperature =
                if hot_blocks > cold_blocks { Temperature::Hot } else { Temperature::Cold };
            let frames = self.group_into_frames(temperature, effort, &stored, changes);
            place_own(&mut entries, &frames);
            return vec![Part::new(temperature, entries, frames)];
        }
        add(&core.stats.counters.divided_batches, 1);
        let (hot, cold): (Vec<_>, Vec<_>) = stored.into_iter().partition(is_hot);
        let frames = [(Temperature::Hot, &hot), (Temperature::Cold, &cold)];
        let frames = frames.map(|(temperature, stored)| {
            self.group_into_frames(temperature, effort, stored, changes)
        });
        for frames in &frames {
            place_own(&mut entries, frames);
        }
        let mut hot_entries = Vec::with_capacity(hot.len());
        let mut hot = hot.iter().map(|stored| stored.entry).peekable();
        let mut at = 0;
        entries.retain(|entry| {
            let is_hot = hot.next_if_eq(&at).is_some();
            if is_hot {
                hot_entries.push(*entry);
            }
            at += 1;
            !is_hot
        });
        // What goes on with the same changes as the unit before it, so the newest is the cold one.
        let [hot_frames, cold_frames] = frames;
        vec![
            Part::new(Temperature::Hot, hot_entries, hot_frames),
            Part::new(Temperature::Cold, entries, cold_frames),
        ]
    }

    /// Groups blocks in order into frames: neighbours, of one framing.
    fn group_into_frames(
        &self,
        temperature: Temperature,
        effort: Effort,
        stored: &[StoredBlock],
        changes: &[Arc<Change>],
    ) -> Vec<FramePlan> {
        // Its room comes back soon.
        let effort = match temperature {
            Temperature::Hot => Effort::Little,
            Temperature::Cold => effort,
        };
        let framed = |stored: &StoredBlock| {
            let Block { change, index } = self.blocks[stored.block as usize];
            let change = &changes[change as usize];
            let (address, framing) =
                (change.address.plus(index.into()), change.volume.compression().framing(effort));
            Framed { layer: change.layer(), address, framing }
        };
        let plan = |range: Range<usize>| {
            let level = framed(&stored[range.start]).framing.level;
            let (blocks, entries) =
                stored[range].iter().map(|stored| (stored.block, stored.entry)).unzip();
            FramePlan { blocks, entries, level }
        };
        framing::cut(stored.iter().map(framed)).into_iter().map(plan).collect()
    }

    /// Compresses the frames of a unit into a buffer that has room for the summary.
    fn fill(
        &mut self,
        core: &Core,
        changes: &[Arc<Change>],
        part: Part,
    ) -> Result<ReducedUnit, Stopped> {
        let Part { temperature, entries, frames } = part;
        let block_count = frames.iter().map(|frame| frame.blocks.len()).sum();
        let summary = summary_bytes(entries.len(), frames.len(), block_count);
        let grain = PLACE_GRAIN_BYTES as usize;
        let worst = worst_unit_bytes(entries.len(), frames.len(), block_count);
        let mut buffer = core.write_buffers.take(worst);
        let mut planned = Vec::with_capacity(frames.len());
        let mut fingerprints = Vec::with_capacity(block_count);
        let mut sums = Vec::with_capacity(FRAME_BLOCKS);
        let mut end = frames_start(summary);
        buffer[summary..end].fill(0);
        for frame in &frames {
            core.flush_waiters.give_way();
            let plain_bytes = frame.blocks.len() * BLOCK_BYTES;
            let plain = match contiguous_data(changes, &self.blocks, &frame.blocks) {
                Some(plain) => plain,
                None => {
                    let slots = self.gather.chunks_exact_mut(BLOCK_BYTES);
                    for (&block, slot) in frame.blocks.iter().zip(slots) {
                        slot.copy_from_slice(data_of(changes, self.blocks[block as usize]));
                    }
                    &self.gather[..plain_bytes]
                }
            };
            let out = &mut buffer[end + FRAME_HEADER_BYTES..];
            sums.clear();
            sums.extend(
                frame.blocks.iter().map(|&block| sum_of(changes, self.blocks[block as usize])),
            );
            let body = FrameBody::store(&mut self.compressor, plain, &sums, frame.level, out);
            // The frame's checksum vouches for it from now on: what was compressed, or the plain copy, must
            // have the sums that were received.
            let used = if body.codec == Codec::Plain { &out[..plain_bytes] } else { plain };
            for (&block, used) in frame.blocks.iter().zip(used.as_chunks().0) {
                check(core, changes, self.blocks[block as usize], used)?;
            }
            planned.push(PlannedFrame { offset_bytes: end as u32, body });
            let used = end + body.total_bytes();
            end = used.next_multiple_of(grain);
            buffer[used..end].fill(0);
            fingerprints.extend(frame.blocks.iter().map(|&block| self.shorts[block as usize]));
        }
        let (end_bytes, frames) = (end, planned);
        Ok(ReducedUnit { temperature, buffer, end_bytes, entries, frames, fingerprints })
    }
}

/// A block that is to be stored, and the entry that will point to it.
#[derive(Clone, Copy)]
struct StoredBlock {
    block: u32,
    entry: u32,
}

/// What becomes one unit.
struct Part {
    temperature: Temperature,
    entries: Vec<PlannedEntry>,
    frames: Vec<FramePlan>,
}

impl Part {
    fn new(
        temperature: Temperature,
        mut entries: Vec<PlannedEntry>,
        frames: Vec<FramePlan>,
    ) -> Self {
        entries.dedup_by(|next, entry| entry.absorb(next));
        Self { temperature, entries, frames }
    }
}

/// The blocks of one frame.
struct FramePlan {
    blocks: Vec<u32>,
    entries: Vec<u32>,
    level: i8,
}

/// Says of each registered block that is stored in this unit where it stands.
fn place_registered(
    registered_at: &[u32],
    unit: usize,
    frames: &[FramePlan],
    places: &mut [Option<OwnBlock>],
) {
    // Both lists are in the batch's order.
    let mut stored = (0..).zip(frames).flat_map(|(frame, plan)| {
        let own = move |index| OwnBlock { unit, frame, index };
        (0..).zip(&plan.blocks).map(move |(index, &block)| (block, own(index)))
    });
    let mut next = stored.next();
    for (&at, place) in registered_at.iter().zip(places) {
        while next.is_some_and(|(block, _)| block < at) {
            next = stored.next();
        }
        if let Some((_, own)) = next.filter(|&(block, _)| block == at) {
            *place = Some(own);
        }
    }
}

/// Tells the entries of stored blocks their frames.
fn place_own(entries: &mut [PlannedEntry], frames: &[FramePlan]) {
    for (frame, plan) in (0..).zip(frames) {
        for (index, &entry) in (0..).zip(&plan.entries) {
            entries[entry as usize].target = PlannedTarget::Own { frame, index };
        }
    }
}

fn staged(changes: &[Arc<Change>], block: Block) -> &StagedData {
    let ChangeBody::Data(data) = &changes[block.change as usize].body else {
        unreachable!("only changes with data have blocks");
    };
    data
}

fn data_of(changes: &[Arc<Change>], block: Block) -> &[u8; BLOCK_BYTES] {
    &staged(changes, block).blocks()[block.index as usize]
}

fn sum_of(changes: &[Arc<Change>], block: Block) -> u32 {
    staged(changes, block).sum_of(block.index as usize)
}

/// Checks that `used`, what has been made use of as a block, is what was received.
fn check(
    core: &Core,
    changes: &[Arc<Change>],
    block: Block,
    used: &[u8; BLOCK_BYTES],
) -> Result<(), Stopped> {
    let checked = staged(changes, block).check_block(block.index as usize, used);
    checked.map_err(|_| altered(core, &changes[block.change as usize], block.index))
}

/// Fails the pool: a block of the change is not what was received.
fn altered(core: &Core, change: &Change, index: u32) -> Stopped {
    core.staging_fault(&change.volume, change.address.plus(index.into()));
    Stopped
}

/// A frame's plain bytes without a copy, if its blocks lie together in memory.
fn contiguous_data<'a>(
    changes: &'a [Arc<Change>],
    blocks: &[Block],
    frame: &[u32],
) -> Option<&'a [u8]> {
    let first = blocks[frame[0] as usize];
    let together = (0..).zip(frame).all(|(at, &block)| {
        let block = blocks[block as usize];
        block.change == first.change && block.index == first.index + at
    });
    let data = staged(changes, first).bytes();
    let start = first.index as usize * BLOCK_BYTES;
    together.then(|| &data[start..start + frame.len() * BLOCK_BYTES])
}
