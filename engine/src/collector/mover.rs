//! Moving blocks out of victims: given map entries in key order, reads what they refer to, looks for
//! the same block elsewhere, stores the rest anew, and says where everything is now.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use siltstone_cursor::{Extent, MapError, Relocating, Relocator, Target};
use siltstone_dedup::{Candidate, Fingerprint, ShortFingerprint, fingerprint, fingerprint_blocks};
use siltstone_device::{BLOCK_BYTES, BlockAddress, LayerId, Place, SegmentId};

use super::output::{Age, MovedBlocks, Output};
use crate::{core::Core, segment_table::SegmentState, staged_data, stats::add, verify};

/// Segments that are to be emptied, each in one use of it.
pub(super) type Victims = BTreeMap<SegmentId, u64>;

/// What blocks of damaged victims should be, as far as whole summaries say.
pub(super) type Expected = HashMap<Place, ShortFingerprint>;

/// Reads the summaries of damaged victims.
pub(super) async fn expected(core: &Core, victims: &Victims) -> Expected {
    let mut expected = Expected::new();
    for (&id, &generation) in victims {
        if let Some(segment) = core.table.segment(id).filter(|segment| segment.is_damaged)
            && segment.generation == generation
        {
            expected.extend(verify::fingerprints(core, id, &segment).await);
        }
    }
    expected
}

/// Where blocks that a round has moved are now, or have been: until an entry refers to a block
/// there, its segment may be freed and used anew.
#[derive(Default)]
pub(super) struct Moved {
    /// The new place, and the generation of its segment.
    places: HashMap<Place, (Place, u64)>,
}

impl Moved {
    /// How many blocks have been moved, or found elsewhere.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    fn insert(&mut self, core: &Core, old: Place, new: Place) {
        let (generation, _) = core.table.generation(new.segment()).expect("blocks are in segments");
        self.places.insert(old, (new, generation));
    }

    /// Where a block is now, if new links to it are allowed. They stay so until the checkpoint of
    /// which this is part looks for segments to free.
    fn get(&self, core: &Core, old: Place) -> Option<Place> {
        let &(new, generation) = self.places.get(&old)?;
        (core.table.generation(new.segment()) == Some((generation, true))).then_some(new)
    }
}

/// See the module's page. One for each step of a round.
pub(super) struct Mover<'a> {
    pub(super) core: &'a Core,
    pub(super) victims: &'a Victims,
    pub(super) expected: &'a Expected,
    /// Only what is damaged is dealt with.
    pub(super) mends: bool,
    pub(super) moved: &'a mut Moved,
    /// How many blocks the round will have moved when that is enough for one checkpoint.
    pub(super) enough_blocks: usize,
    /// Victims in which something cannot be read.
    pub(super) damaged: &'a mut BTreeSet<SegmentId>,
    /// Set once there is no room for a block. Those that follow stay where they are; what has been
    /// moved is not in vain.
    pub(super) is_full: &'a mut bool,
    pub(super) output: &'a mut Output,
}

impl Relocator for Mover<'_> {
    fn moves(&self, segment: SegmentId) -> bool {
        // Nothing more is moved out of a segment in which something is lost: it stays in use.
        let is_given_up = !self.mends && self.damaged.contains(&segment);
        !is_given_up
            && self.victims.get(&segment).is_some_and(|&victim| {
                let now = self.core.table.generation(segment);
                now.is_some_and(|(generation, _)| generation == victim)
            })
    }

    fn relocate<'b>(&'b mut self, extents: &'b mut [Extent]) -> Relocating<'b> {
        Box::pin(async move {
            self.output.close_damaged(self.core);
            let unmoved = self.unmoved(extents);
            for age in Age::ALL {
                let of_age = |run: &&FrameRun| self.age(run.first) == age;
                let mut moving = unmoved.iter().filter(of_age).copied().collect();
                while !*self.is_full {
                    let place = self.output.place_for(self.core, age);
                    let room = self.output.unit_blocks(self.core, place);
                    let Some(runs) = take_unit(&mut moving, room) else { break };
                    let moved_before = self.moved.len();
                    let outcome = self.move_runs(&runs, place).await;
                    self.core.throttle.note_moved((self.moved.len() - moved_before) as u64);
                    outcome?;
                }
            }
            for extent in extents {
                // A victim that came free may be in use again, at the very places.
                if let Target::Stored(old) = extent.target
                    && self.moves(old.segment())
                    && let Some(place) = self.moved.get(self.core, old)
                {
                    assert_eq!(extent.len_blocks, 1, "what is moved is moved block by block");
                    extent.target = Target::Stored(place);
                }
            }
            Ok(())
        })
    }

    fn has_enough(&self) -> bool {
        self.moved.len() >= self.enough_blocks
    }

    fn complete(&mut self) -> Relocating<'_> {
        Box::pin(self.output.complete(self.core))
    }
}

/// Blocks that follow each other in a frame and in their volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameRun {
    layer: LayerId,
    address: BlockAddress,
    first: Place,
    len_blocks: u32,
}

impl FrameRun {
    /// Whether a block continues it.
    fn goes_on(&self, layer: LayerId, address: BlockAddress, place: Place) -> bool {
        let len = self.len_blocks.into();
        self.layer == layer
            && self.address.plus(len) == address
            && self.first.advanced(len) == Some(place)
    }
}

impl Mover<'_> {
    fn age(&self, place: Place) -> Age {
        let generation = self.victims.get(&place.segment()).copied().unwrap_or(0);
        Age::of(self.core, generation)
    }

    /// The blocks of victims that `extents` refer to and that have not been moved, each once, in
    /// the order of the extents.
    fn unmoved(&self, extents: &[Extent]) -> Vec<FrameRun> {
        let mut seen = BTreeSet::new();
        let mut runs: Vec<FrameRun> = Vec::new();
        for extent in extents {
            let Target::Stored(first) = extent.target else { continue };
            if !self.moves(first.segment()) {
                continue;
            }
            for index in 0..extent.len_blocks {
                let place = block_of(first, index);
                if self.moved.get(self.core, place).is_some() || !seen.insert(place) {
                    continue;
                }
                let (layer, address) = (extent.layer, extent.address.plus(index.into()));
                match runs.last_mut() {
                    Some(run) if run.goes_on(layer, address, place) => run.len_blocks += 1,
                    _ => runs.push(FrameRun { layer, address, first: place, len_blocks: 1 }),
                }
            }
        }
        runs
    }

    /// Finds new places for at most a unit of blocks. One that is damaged stays where it is if it is
    /// nowhere else: its loss is for who reads it, or for a scrub, to report.
    async fn move_runs(&mut self, runs: &[FrameRun], age: Age) -> Result<(), MapError> {
        let core = self.core;
        let places: Vec<Place> = runs.iter().flat_map(blocks_of).collect();
        let addresses: Vec<_> = runs.iter().flat_map(addresses_of).collect();
        let mut plain = core.buffers.take(places.len() * BLOCK_BYTES);
        let wanted: Vec<(Place, u32)> =
            runs.iter().map(|run| (run.first, run.len_blocks)).collect();
        let failed = core.read_places(&wanted, &mut plain).await;
        let mut is_whole = vec![true; places.len()];
        for (run, error) in failed {
            let first: u32 = runs[..run].iter().map(|run| run.len_blocks).sum();
            for at in first..first + runs[run].len_blocks {
                is_whole[at as usize] = false;
            }
            tracing::warn!(%error, "a damaged block cannot be moved");
        }
        let blocks: Vec<&[u8; BLOCK_BYTES]> = plain.as_chunks().0.iter().collect();
        // Before anything else is made of them: compared with what is stored in the end.
        let sums: Vec<u32> = blocks.iter().map(|block| staged_data::sum(block)).collect();
        let mut fingerprints = vec![Fingerprint::from_bytes([0; 32]); blocks.len()];
        fingerprint_blocks(&blocks, &mut fingerprints);
        let mut shorts: Vec<ShortFingerprint> =
            fingerprints.iter().map(Fingerprint::short).collect();
        for (at, place) in places.iter().enumerate() {
            if let Some(&expected) = self.expected.get(place) {
                is_whole[at] &= shorts[at] == expected;
                shorts[at] = expected;
            }
        }
        let elsewhere = self.find_elsewhere(&shorts).await;

        let mut stored = MovedBlocks::default();
        for at in 0..places.len() {
            match elsewhere[at] {
                copy if !is_whole[at] => self.mend(places[at], copy).await,
                _ if self.mends => {}
                Some(place) if is_settled(core, place) => {
                    add(&core.stats.counters.collector_linked_blocks, 1);
                    self.moved.insert(core, places[at], place);
                }
                _ => {
                    stored.plain.extend_from_slice(blocks[at]);
                    stored.fingerprints.push(shorts[at]);
                    stored.sums.push(sums[at]);
                    stored.from.push(places[at]);
                    stored.addresses.push(addresses[at]);
                }
            }
        }
        if stored.from.is_empty() {
            return Ok(());
        }
        self.output.make_way(core).await?;
        let new = match self.output.store(core, age, &stored) {
            Err(MapError::NoSpace) => {
                *self.is_full = true;
                return Ok(());
            }
            stored => stored?,
        };
        add(&core.stats.counters.collector_moved_blocks, new.len() as u64);
        for (old, new) in stored.from.into_iter().zip(new) {
            self.moved.insert(core, old, new);
        }
        Ok(())
    }

    /// Puts a copy in the place of a damaged block, if it can be read and is what the block was.
    async fn mend(&mut self, damaged: Place, copy: Option<Place>) {
        let core = self.core;
        let (id, expected) = (damaged.segment(), self.expected.get(&damaged));
        let copy = copy.filter(|&copy| is_settled(core, copy));
        if let (Some(copy), Some(expected)) = (copy, expected) {
            let mut plain = core.buffers.take(BLOCK_BYTES);
            let unread = core.read_places(&[(copy, 1)], &mut plain).await;
            let block = plain.first_chunk().expect("the buffer has a block");
            if unread.is_empty() && fingerprint(block).short() == *expected {
                add(&core.stats.counters.mended_blocks, 1);
                self.moved.insert(core, damaged, copy);
                return;
            }
        }
        if let Some(&generation) = self.victims.get(&id) {
            core.note_damaged_segment(id, generation);
        }
        self.damaged.insert(id);
    }

    /// Where the same blocks are stored outside of victims, as far as the index knows: in published
    /// units that new links may point into.
    async fn find_elsewhere(&self, shorts: &[ShortFingerprint]) -> Vec<Option<Place>> {
        let core = self.core;
        let mut hints = Vec::new();
        core.index.lookup_batch(shorts, &mut hints);
        let mut units: Vec<_> = hints.into_iter().flatten().collect();
        units.sort_unstable();
        units.dedup();
        core.summaries.load(&units).await;
        // Those of victims would be found first where their neighbours are.
        for unit in units {
            core.summaries.linkable(unit, &core.table);
        }
        let mut candidates = Vec::new();
        core.summaries.lookup(shorts, &mut candidates);
        let place_of = |(candidate, short): (Option<Candidate>, &ShortFingerprint)| {
            let Candidate { unit, ordinal } = candidate?;
            let frames = core.summaries.linkable(unit, &core.table)?;
            frames.place(ordinal).filter(|_| frames.holds(ordinal, short))
        };
        candidates.into_iter().zip(shorts).map(place_of).collect()
    }
}

/// Whether a place is in a segment of which all is in patches.
fn is_settled(core: &Core, place: Place) -> bool {
    let segment = core.table.segment(place.segment());
    segment.is_some_and(|segment| segment.state == SegmentState::Data)
}

fn block_of(first: Place, index: u32) -> Place {
    first.advanced(index.into()).expect("an extent stays within its frame")
}

fn blocks_of(run: &FrameRun) -> impl Iterator<Item = Place> {
    let first = run.first;
    (0..run.len_blocks).map(move |index| block_of(first, index))
}

fn addresses_of(run: &FrameRun) -> impl Iterator<Item = (LayerId, BlockAddress)> {
    let FrameRun { layer, address, .. } = *run;
    (0..run.len_blocks).map(move |index| (layer, address.plus(index.into())))
}

/// Takes runs of at most `room` blocks; divides the last if it must.
fn take_unit(runs: &mut VecDeque<FrameRun>, mut room: usize) -> Option<Vec<FrameRun>> {
    let mut unit = Vec::new();
    while room > 0
        && let Some(run) = runs.front_mut()
    {
        let len_blocks = run.len_blocks.min(room as u32);
        unit.push(FrameRun { len_blocks, ..*run });
        room -= len_blocks as usize;
        if len_blocks < run.len_blocks {
            run.first = block_of(run.first, len_blocks);
            run.address = run.address.plus(len_blocks.into());
            run.len_blocks -= len_blocks;
        } else {
            runs.pop_front();
        }
    }
    (!unit.is_empty()).then_some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_take_all_runs_in_order_and_no_more_than_they_hold() {
        let run = |frame: u32, len_blocks| FrameRun {
            layer: LayerId(1),
            address: BlockAddress(u64::from(frame) * 100),
            first: Place::new(SegmentId(1), frame * 4096, 1),
            len_blocks,
        };
        let all = [run(0, 5), run(1, 1), run(2, 7)];
        let mut runs = VecDeque::from(all);
        let (mut blocks, mut addresses) = (Vec::new(), Vec::new());
        while let Some(unit) = take_unit(&mut runs, 4) {
            let taken: Vec<_> = unit.iter().flat_map(blocks_of).collect();
            assert!(taken.len() == 4 || runs.is_empty());
            blocks.extend(taken);
            addresses.extend(unit.iter().flat_map(addresses_of));
        }
        assert_eq!(blocks, all.iter().flat_map(blocks_of).collect::<Vec<_>>());
        assert_eq!(addresses, all.iter().flat_map(addresses_of).collect::<Vec<_>>());
        assert_eq!(take_unit(&mut runs, 4), None);
    }
}
