//! Garbage collection: emptying segments that are mostly dead, so that they can be freed whole.
//!
//! # A round
//! ```text
//! Idle      -> Surveying  room is short: the map is walked to see what lives where (`survey`)
//! Surveying -> Settling   victims are chosen (`victims`); reducers refuse new links into them
//! Settling  -> Sweeping   every batch that began before that is in patches: none can still link
//! Sweeping  -> Freeing    every patch that was there has been swept; what could not be moved stays
//! Freeing   -> Idle       the checkpoint that frees what is empty is being made
//! ```
//! The map itself says what lives: a sweep reads all patches and rewrites those with entries that
//! point into victims, in their own level, with new places (`mover`, `output`). An entry that was
//! superseded is moved like any other, so patches are merged first when space is short. Nothing
//! is published through the memtable, so a client's later write can never be undone by a move, and
//! versions that only snapshots see are moved like all others.
//!
//! A victim is freed like every segment: when no patch refers to it, by the checkpoint after the one
//! that covers every batch which might have linked to it. Of a round that a crash or a close ends,
//! nothing is remembered and nothing needs to be: what it had moved stays moved or becomes garbage.
//!
//! # Damage
//! Segments in which damage was found are left alone: what is lost keeps such a segment in use, so that
//! moving the rest out of it would only take room. On request ([`Collection::request_repair`]) what
//! cannot be read there, or is not what its summary says, is looked for elsewhere by its fingerprint:
//! written again to one volume, it comes back to all that shared it. A segment in which nothing is lost
//! any more is then emptied, however much lives in it.
//!
//! # Pace
//! Part of each checkpoint, since one task at a time may change patches: a checkpoint moves a
//! bounded number of blocks, so that the sealer never waits long for one. While a round is
//! under way checkpoints follow each other, with pauses that grow with the room that is left, unless
//! writers wait for room. A round is the smaller the less map there is to sweep for it: what it
//! empties comes free at its end, and little at a time keeps writers going evenly.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use siltstone_cursor::{MapError, Relocator, Rewrite, SegmentSource, Sweep, Visibility};
use siltstone_device::{BLOCK_BYTES, LayerId, SegmentId};

use crate::{checkpointer, core::Core, error::Result, segment_table::Segment, stats::add};

mod mover;
mod output;
mod survey;
mod victims;

use mover::{Expected, Moved, Mover, Victims};
use output::Output;
use survey::{Survey, Surveying};
use victims::{Bounds, Room};

/// Map pages that one step of a sweep reads or writes.
const STEP_PAGES: usize = 48;
/// Blocks that are enough for one checkpoint: about a tenth of a second of work.
const MAX_BLOCKS_A_CHECKPOINT: usize = 4096;
/// A round moves at most one part in so many of the pool, so that victims come free soon.
const MAX_SHARE_OF_POOL: u64 = 16;
/// And so many times as many bytes as the map has, which it sweeps: reading these is then no large part
/// of its work.
const TIMES_OF_MAP: u64 = 8;
/// But for one part in so many of the pool, however small the map is.
const MIN_SHARE_OF_POOL: u64 = 64;
/// And no more than this: a round remembers where each block went.
const MAX_ROUND_BYTES: u64 = 2 << 30;
/// The shortest pause between two steps that nobody waits for.
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// Most damaged segments that a round empties: each is read whole before, and the fingerprints of its
/// blocks are in memory.
const MAX_DAMAGED_SEGMENTS: usize = 4;
/// A round that finds no space in so many checkpoints ends as it is.
const MAX_TIMES_STUCK: u32 = 3;

/// What the rest of the pool sees of the collector.
#[derive(Default)]
pub(crate) struct Collection {
    /// A round is under way.
    busy: AtomicBool,
    /// Rounds are wanted until none is worth it in segments of earlier generations than this,
    /// however much room there is; 0 if they are not. What is written later does not count, or a
    /// pool in use would be collected for ever.
    forced_below: AtomicU64,
    /// How often it was asked for that damaged segments be emptied, as far as that can be.
    repairs_wanted: AtomicU64,
    /// Up to which time that is done.
    repairs_done: AtomicU64,
    /// Rounds that have ended.
    rounds: AtomicU64,
}

impl Collection {
    /// Whether a round is under way: space may come free by it.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Rounds that have ended, with what outcome ever.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }

    /// Asks for rounds until there is nothing to collect in segments of generations below this.
    pub(crate) fn force(&self, below: u64) {
        self.forced_below.fetch_max(below, Ordering::AcqRel);
    }

    /// Asks for rounds until every damaged segment has been tried.
    pub(crate) fn request_repair(&self) {
        self.repairs_wanted.fetch_add(1, Ordering::AcqRel);
    }

    /// The newest request that is not done.
    fn wanted_repair(&self) -> Option<u64> {
        let wanted = self.repairs_wanted.load(Ordering::Acquire);
        (wanted > self.repairs_done.load(Ordering::Acquire)).then_some(wanted)
    }

    /// Whether something that was asked for is still to be done.
    pub(crate) fn is_forced(&self) -> bool {
        self.forced_below().is_some() || self.wanted_repair().is_some()
    }

    fn forced_below(&self) -> Option<u64> {
        Some(self.forced_below.load(Ordering::Acquire)).filter(|&below| below > 0)
    }

    /// What was asked for up to a generation is done.
    fn end_forced(&self, below: u64) {
        // If something else is there, more has been asked for since.
        let _ = self.forced_below.compare_exchange(below, 0, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// The checkpointer's collector.
pub(crate) struct Collector {
    state: State,
    output: Output,
    /// What the last survey found.
    survey: Survey,
    /// Changes that had been admitted when it began; `None` once a round has ended.
    surveyed_at: Option<u64>,
    /// Segments, and their generations, in which a whole sweep left something because of damage,
    /// of blocks or of the map: trying again would find it there.
    immovable: BTreeMap<SegmentId, u64>,
    repairing: Repairing,
    /// A round has just ended: whether another one is worth it is to be seen at once.
    has_ended: bool,
}

/// The repair under way.
#[derive(Default)]
struct Repairing {
    /// Which request it is for.
    request: u64,
    /// Damaged segments that have been looked at.
    tried: Victims,
    /// Of those, segments in which nothing is lost and that are still to be emptied.
    mended: Victims,
}

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Emptying its victims.
    Empty,
    /// Mending what is lost in them.
    Mend,
}

enum State {
    Idle,
    Surveying(Surveying),
    Settling {
        aim: Aim,
        victims: Victims,
        /// Batches that had begun when links into victims were first refused.
        started: u64,
    },
    Sweeping(Round),
    Freeing,
}

struct Round {
    aim: Aim,
    victims: Victims,
    expected: Expected,
    sweep: Sweep,
    moved: Moved,
    /// Victims with blocks that could not be read, and stay where they are.
    damaged: BTreeSet<SegmentId>,
    /// There was no room for some blocks, which stay where they are.
    is_full: bool,
    /// How many blocks will have been moved when that is enough for this checkpoint.
    enough_blocks: usize,
    /// Checkpoints in a row that brought no space.
    times_stuck: u32,
}

/// What a checkpoint lends the collector.
pub(crate) struct Step<'a> {
    pub(crate) core: &'a Core,
    pub(crate) source: &'a mut (dyn SegmentSource + Send),
    pub(crate) layers: &'a (dyn Fn(LayerId) -> Visibility + Sync),
    /// Batches that patches cover.
    pub(crate) covered: u64,
    /// Asks how many batches have begun.
    pub(crate) count_started: &'a (dyn Fn() -> u64 + Sync),
    /// Space is wanted back now.
    pub(crate) is_urgent: bool,
}

impl Collector {
    pub(crate) fn new() -> Self {
        let (output, survey) = (Output::new(), Survey::default());
        let (immovable, repairing) = (BTreeMap::new(), Repairing::default());
        let (state, surveyed_at, has_ended) = (State::Idle, None, false);
        Self { state, output, survey, surveyed_at, immovable, repairing, has_ended }
    }

    /// The segments that moved blocks go to: not to be freed, even if nothing refers to them yet.
    pub(crate) fn open_segments(&self) -> BTreeSet<SegmentId> {
        self.output.open_segments()
    }

    /// Who moves blocks while patches are merged, if a round is under way: what is merged need not be
    /// swept. With `is_bounded`, they say when that is enough for this checkpoint.
    pub(crate) fn mover<'a>(
        &'a mut self,
        core: &'a Core,
        is_bounded: bool,
    ) -> Option<impl Relocator + 'a> {
        let State::Sweeping(round) = &mut self.state else { return None };
        let (mut mover, _) = round.mover(core, &mut self.output);
        if !is_bounded {
            mover.enough_blocks = usize::MAX;
        }
        Some(mover)
    }

    /// A checkpoint begins: so much may be moved again.
    pub(crate) fn begin_checkpoint(&mut self) {
        if let State::Sweeping(round) = &mut self.state {
            round.enough_blocks = round.moved.len() + MAX_BLOCKS_A_CHECKPOINT;
        }
    }

    /// Whether this checkpoint has moved enough.
    pub(crate) fn has_enough(&self) -> bool {
        matches!(&self.state, State::Sweeping(round) if round.has_enough())
    }

    /// Does a bounded piece of work, or none if there is enough room.
    ///
    /// # Errors
    /// If the device fails, or metadata contradict each other.
    pub(crate) async fn step(&mut self, step: Step<'_>) -> Result<()> {
        // What a merge that found no space has left under way.
        self.output.complete(step.core).await?;
        match &mut self.state {
            State::Idle => self.begin(&step),
            State::Surveying(surveying) => {
                match surveying.step().await {
                    Ok(None) => return Ok(()),
                    Ok(Some(survey)) => self.survey = survey,
                    // Victims are then chosen by what the segment table says.
                    Err(error) => {
                        tracing::warn!(%error, "live blocks cannot be counted");
                        self.survey = Survey::default();
                    }
                }
                self.state = State::Idle;
                self.begin_round(&step);
            }
            State::Settling { aim, victims, started } if *started <= step.covered => {
                let aim = *aim;
                let victims = std::mem::take(victims);
                let expected = mover::expected(step.core, &victims).await;
                let sweep = step.core.map.sweep();
                self.state = State::Sweeping(Round {
                    aim,
                    victims,
                    expected,
                    sweep,
                    moved: Moved::default(),
                    damaged: BTreeSet::new(),
                    is_full: false,
                    enough_blocks: MAX_BLOCKS_A_CHECKPOINT,
                    times_stuck: 0,
                });
                self.sweep(step).await?;
            }
            State::Settling { .. } => {}
            State::Sweeping(_) => self.sweep(step).await?,
            // Whoever waits for room has to see that a round has ended before the next begins.
            State::Freeing => self.end_round(step.core),
        }
        Ok(())
    }

    /// Whether to look at what lives where, before a round or to find out if one is worth it. The
    /// references in the segment table do not say: those to a block that was overwritten count until a
    /// merge has come to it, and those to a shared one count several times.
    fn wants_survey(&mut self, step: &Step<'_>) -> bool {
        let core = step.core;
        let is_wanted = || room_of(core).live_limit(step.is_urgent).is_some();
        core.collection.forced_below().is_some() || (is_wanted() && self.is_survey_due(core))
    }

    fn begin(&mut self, step: &Step<'_>) {
        let core = step.core;
        self.has_ended = false;
        if self.wants_survey(step) {
            self.state = State::Surveying(Surveying::begin(core));
            core.throttle.note_begin(core.runtime.now(), core.usage());
            core.collection.busy.store(true, Ordering::Release);
        } else {
            self.begin_round(step);
        }
    }

    /// Begins a round if one is worth it, going by a survey or, for what was asked for, without one.
    fn begin_round(&mut self, step: &Step<'_>) {
        let core = step.core;
        self.output.close_damaged(core);
        let is_begun =
            self.begin_repair(step) || self.begin_forced(step) || self.begin_for_room(step);
        if !is_begun {
            self.output.close_dead(core);
            core.throttle.note_none();
        }
        core.collection.busy.store(is_begun, Ordering::Release);
    }

    /// Damaged segments that have not been tried, however much lives in them.
    fn begin_repair(&mut self, step: &Step<'_>) -> bool {
        let core = step.core;
        let Some(wanted) = core.collection.wanted_repair() else { return false };
        if self.repairing.request != wanted {
            self.repairing = Repairing { request: wanted, ..Repairing::default() };
        }
        let tried = &self.repairing.tried;
        let open = self.output.open_segments();
        let segments = core.table.data_segments();
        let victims: Victims = segments
            .filter(|(id, segment)| segment.is_damaged && !open.contains(id))
            .map(|(id, segment)| (id, segment.generation))
            .filter(|(id, generation)| tried.get(id) != Some(generation))
            .take(MAX_DAMAGED_SEGMENTS)
            .collect();
        self.repairing.tried.extend(&victims);
        if self.begin_with(Aim::Mend, victims, step) {
            return true;
        }
        let segment_bytes = core.superblock.layout.segment_bytes;
        let at_once = (self.output.room_bytes(core) / segment_bytes) as usize;
        let mut victims = std::mem::take(&mut self.repairing.mended);
        // Without room they stay as they are: nothing is lost in them.
        while victims.len() > at_once.min(MAX_DAMAGED_SEGMENTS) {
            self.repairing.mended.extend(victims.pop_last());
        }
        let is_begun = self.begin_with(Aim::Empty, victims, step);
        if !is_begun {
            self.repairing = Repairing { request: wanted, ..Repairing::default() };
            core.collection.repairs_done.store(wanted, Ordering::Release);
        }
        is_begun
    }

    /// What was asked for comes first, or it would never be done in a pool that is short of room.
    fn begin_forced(&mut self, step: &Step<'_>) -> bool {
        let core = step.core;
        let Some(below) = core.collection.forced_below() else { return false };
        let victims = self.choose(core, victims::LIVE_AT_MOST, below);
        let is_begun = self.begin_with(Aim::Empty, victims, step);
        if !is_begun {
            core.collection.end_forced(below);
        }
        is_begun
    }

    fn begin_for_room(&mut self, step: &Step<'_>) -> bool {
        let core = step.core;
        let Some(limit) = room_of(core).live_limit(step.is_urgent) else { return false };
        let victims = self.choose(core, limit, u64::MAX);
        self.begin_with(Aim::Empty, victims, step)
    }

    fn begin_with(&mut self, aim: Aim, victims: Victims, step: &Step<'_>) -> bool {
        if victims.is_empty() {
            return false;
        }
        tracing::debug!(segments = victims.len(), "a garbage collection begins");
        let core = step.core;
        core.throttle.note_begin(core.runtime.now(), core.usage());
        let segment = |&id| Some(self.survey.corrected(id, core.table.segment(id)?));
        let segments: Vec<Segment> = victims.keys().filter_map(segment).collect();
        let live_blocks = |segment: &Segment| segment.references.min(segment.stored_blocks.into());
        let blocks = segments.iter().map(live_blocks).sum();
        core.throttle.note_aim(blocks, segments.iter().map(victims::live_bytes).sum());
        core.table.refuse_links(victims.keys().copied());
        let started = (step.count_started)();
        self.state = State::Settling { aim, victims, started };
        true
    }

    /// Victims of generations below `below`.
    fn choose(&self, core: &Core, live_limit: u64, below: u64) -> Victims {
        let segment_bytes = core.superblock.layout.segment_bytes;
        let pool_bytes = u64::from(core.table.len()) * segment_bytes;
        let open = self.output.open_segments();
        let is_movable = |id: &SegmentId, segment: &Segment| {
            segment.generation < below
                && !segment.is_damaged
                && !open.contains(id)
                && self.immovable.get(id) != Some(&segment.generation)
        };
        let segments = core.table.data_segments();
        let segments = segments.filter(|(id, segment)| is_movable(id, segment));
        let segments = segments.map(|(id, segment)| (id, self.survey.corrected(id, segment)));
        // One segment whatever the pool's size, if there is room.
        let map_bytes = core.map.stats().pages * BLOCK_BYTES as u64;
        let share = (map_bytes * TIMES_OF_MAP)
            .clamp(pool_bytes / MIN_SHARE_OF_POOL, pool_bytes / MAX_SHARE_OF_POOL)
            .min(MAX_ROUND_BYTES)
            .max(segment_bytes);
        // The survey's estimates are a few in a hundred off, and what does not fit makes all of a round
        // worth next to nothing.
        let move_bytes = (self.output.room_bytes(core) / 4 * 3).min(share);
        let next_generation = core.table.next_generation();
        let bounds = Bounds { segment_bytes, live_limit, move_bytes, next_generation };
        let chosen = victims::choose(segments, bounds);
        let generation = |id: SegmentId| Some((id, core.table.segment(id)?.generation));
        chosen.into_iter().filter_map(generation).collect()
    }

    /// Whether a round has ended since the last survey, or so much has changed that another one may
    /// find something where that found nothing: a sixteenth of the blocks that the pool holds.
    fn is_survey_due(&mut self, core: &Core) -> bool {
        let now = core.admission.admitted().0;
        let changes = core.table.totals().stored_blocks / 16;
        let due = self.surveyed_at.is_none_or(|then| now >= then + changes.max(1));
        if due {
            self.surveyed_at = Some(now);
        }
        due
    }

    /// Sweeps until enough has been moved for one checkpoint, or all is swept.
    async fn sweep(&mut self, step: Step<'_>) -> Result<()> {
        let Step { core, source, layers, .. } = step;
        let State::Sweeping(round) = &mut self.state else { return Ok(()) };
        let is_over = loop {
            if round.has_enough() {
                break false;
            }
            let (mut mover, sweep) = round.mover(core, &mut self.output);
            let mut rewrite = Rewrite::new(source, layers, step_pages(core));
            rewrite.relocator = Some(&mut mover);
            match core.map.sweep_step(rewrite, sweep).await {
                Ok(Some(edit)) => {
                    core.apply(&edit)?;
                    round.times_stuck = 0;
                }
                Ok(None) => {
                    if round.aim == Aim::Mend {
                        let is_whole = |(id, _): &(&SegmentId, _)| !round.damaged.contains(id);
                        self.repairing.mended.extend(round.victims.iter().filter(is_whole));
                    } else if !round.is_full {
                        self.immovable.extend(round.stuck_victims(core));
                    }
                    break true;
                }
                Err(MapError::NoSpace) => {
                    self.output.complete(core).await?;
                    // The checkpoint may free what the steps so far let go of.
                    round.times_stuck += 1;
                    break round.times_stuck > MAX_TIMES_STUCK;
                }
                Err(error) if error.is_damage() => core.note_damaged_patch(&error),
                Err(error) => return Err(error.into()),
            }
            if round.is_full && round.moved.len() == 0 {
                // Nothing of what is left to sweep could change.
                break true;
            }
            if core.frontier.is_low() {
                break false;
            }
        };
        if is_over {
            core.table.allow_links(round.victims.keys().copied());
            self.state = State::Freeing;
        }
        Ok(())
    }

    /// What is empty has been condemned by the checkpoint before, and this one frees it.
    fn end_round(&mut self, core: &Core) {
        self.state = State::Idle;
        self.surveyed_at = None;
        self.has_ended = true;
        core.throttle.note_end(core.runtime.now(), core.usage(), core.collection.is_forced());
        add(&core.stats.counters.collector_rounds, 1);
        core.collection.rounds.fetch_add(1, Ordering::AcqRel);
        core.collection.busy.store(false, Ordering::Release);
    }

    /// How long to leave the device and the cores to others before the next step, after one that
    /// took `took`; `None` if there is none to do.
    pub(crate) fn pause(&self, core: &Core, took: Duration) -> Option<Duration> {
        let is_forced = core.collection.is_forced();
        if matches!(self.state, State::Idle) && !self.has_ended && !is_forced {
            return None;
        }
        let is_hurried = is_forced || core.throttle.is_holding(core.runtime.now());
        let times = if is_hurried { 0 } else { room_of(core).pause_times() };
        // While batches are on their way, there is nothing to do but to let them come.
        let pause = (took * times).max(MIN_PAUSE);
        core.throttle.note_pause(pause);
        Some(pause)
    }
}

impl Round {
    /// Who moves blocks, and how far the map has been swept.
    fn mover<'a>(
        &'a mut self,
        core: &'a Core,
        output: &'a mut Output,
    ) -> (Mover<'a>, &'a mut Sweep) {
        let Self { aim, victims, expected, sweep, moved, damaged, is_full, .. } = self;
        let (mends, enough_blocks) = (*aim == Aim::Mend, self.enough_blocks);
        let mover = Mover {
            core,
            victims,
            expected,
            mends,
            moved,
            enough_blocks,
            damaged,
            is_full,
            output,
        };
        (mover, sweep)
    }

    fn has_enough(&self) -> bool {
        self.moved.len() >= self.enough_blocks
    }

    /// Victims, with their generations, to which something still refers that no other round will
    /// move: they have damaged blocks, or a patch refers to them that cannot be rewritten. In others,
    /// what is left came late.
    fn stuck_victims(&self, core: &Core) -> BTreeMap<SegmentId, u64> {
        let is_map_damaged = core.map.has_damaged();
        let is_stuck = |&(id, &generation): &(&SegmentId, &u64)| {
            let is_left = core
                .table
                .segment(*id)
                .is_some_and(|segment| segment.generation == generation && segment.references > 0);
            is_left && (is_map_damaged || self.damaged.contains(id))
        };
        self.victims.iter().filter(is_stuck).map(|(&id, &generation)| (id, generation)).collect()
    }
}

/// How the pool's bytes are used.
fn room_of(core: &Core) -> Room {
    let dead = |(_, segment): (SegmentId, Segment)| {
        u64::from(segment.used_bytes) - victims::live_bytes(&segment)
    };
    Room {
        free: core.space.free_bytes(core.room()),
        dead: core.table.data_segments().map(dead).sum(),
        total: u64::from(core.table.len()) * core.superblock.layout.segment_bytes,
    }
}

pub(crate) fn step_pages(core: &Core) -> usize {
    STEP_PAGES.min(checkpointer::merge_pages(core))
}
