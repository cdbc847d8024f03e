//! Snapshots, clones of them, and volumes that go back to them.

use siltstone_engine::SnapshotName;

use super::{Change, FROM_THE_BEGINNING, Model, Sight, Span, VolumeModel, versions::Version};
use crate::{
    content::{Block, SECTORS, ZERO},
    report,
};

/// What may be in one snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotModel {
    /// Its name.
    pub name: SnapshotName,
    pub(super) made: Change,
    pub(super) gone: Option<Change>,
    /// Its size.
    pub sectors: u64,
    pub(super) holds: Holds,
}

/// What a snapshot holds.
#[derive(Clone, Debug)]
pub(super) enum Holds {
    /// Only its presence and size are checked.
    Opaque,
    /// It was there from the beginning, and was read.
    Blocks(Vec<Block>),
    /// This volume, when it was taken.
    Volume(usize),
}

impl Model {
    /// Snapshots begin to be taken together, each of the volume with the number beside it. They
    /// are one change.
    pub fn begin_snapshots(&mut self, of: &[(SnapshotName, usize)], event: usize) -> usize {
        let made = self.begin_change(event);
        let tick = self.next_tick();
        self.moments.insert(made, vec![tick]);
        for (name, volume) in of {
            let model = &self.volumes[*volume];
            let holds = if model.opaque { Holds::Opaque } else { Holds::Volume(*volume) };
            let (name, sectors) = (name.clone(), self.sectors(*volume));
            self.snapshots.push(SnapshotModel { name, made, gone: None, sectors, holds });
        }
        made
    }

    /// The call that takes them has returned; with `is_done`, they and all that was written before
    /// it are durable.
    pub fn end_snapshots(&mut self, made: usize, event: usize, is_done: bool) {
        let end = self.next_tick();
        let moments = self.moments.get_mut(&made).expect("the call has begun");
        let begun = moments[0];
        moments.extend(begun + 1..=end);
        if is_done {
            self.changes[made].done = event;
            self.end_flush(begun, event);
        }
    }

    /// The snapshots of a volume that are there.
    #[must_use]
    pub fn snapshots_of(&self, volume: &str) -> Vec<usize> {
        let is_there = |at: &usize| {
            let snapshot = &self.snapshots[*at];
            snapshot.gone.is_none() && self.is_done(snapshot.made) && snapshot.name.volume == volume
        };
        (0..self.snapshots.len()).filter(is_there).collect()
    }

    /// Whether a snapshot of this name may be there.
    #[must_use]
    pub fn may_have_snapshot(&self, name: &SnapshotName) -> bool {
        self.snapshots.iter().any(|snapshot| {
            let is_gone = snapshot.gone.is_some_and(|gone| self.is_done(gone));
            snapshot.name == *name && !is_gone
        })
    }

    /// Snapshots begin to be deleted together. They are one change.
    pub fn begin_delete_snapshots(&mut self, snapshots: &[usize], event: usize) -> usize {
        let gone = self.begin_change(event);
        for &snapshot in snapshots {
            self.snapshots[snapshot].gone = Some(gone);
        }
        gone
    }

    /// A change of the catalog is done, and durable.
    pub fn end_change(&mut self, change: usize, event: usize) {
        self.changes[change].done = event;
    }

    /// A clone of a snapshot begins to be made. What is in it is to be told by
    /// [`holds`](Self::holds).
    pub fn begin_clone(&mut self, name: &str, snapshot: usize, event: usize) -> usize {
        let made = self.begin_change(event);
        self.add_opaque(name, snapshot, made)
    }

    /// A volume begins to go back to a snapshot: another, the number of which is returned, takes
    /// its place. What is in it is to be told by [`holds`](Self::holds).
    pub fn begin_roll_back(&mut self, volume: usize, snapshot: usize, event: usize) -> usize {
        let change = self.begin_change(event);
        self.volumes[volume].gone = Some(change);
        let name = self.volumes[volume].name.clone();
        let new = self.add_opaque(&name, snapshot, change);
        self.volumes[new].shared_from = self.volumes[volume].shared_from;
        new
    }

    /// A volume that is what a snapshot is.
    fn add_opaque(&mut self, name: &str, snapshot: usize, made: Change) -> usize {
        let volume = self.add_volume(name, self.snapshots[snapshot].sectors, made);
        self.volumes[volume].opaque = true;
        volume
    }

    /// What has been in a volume since before it could be written to.
    pub fn holds(&mut self, volume: usize, tags: &[u32]) {
        self.volumes[volume].hold(&blocks_of(tags));
    }

    /// A part of a snapshot was read, from block `first` on: whether it may read so.
    ///
    /// # Errors
    /// What is wrong.
    pub fn saw_snapshot(&mut self, at: usize, first: u64, tags: &[u32]) -> Result<(), String> {
        let snapshot = &self.snapshots[at];
        let moments = self.fitting(snapshot, first, tags, None)?;
        if let Some(moments) = moments {
            self.moments.insert(snapshot.made, moments);
        }
        Ok(())
    }

    /// The moments of all that are possible at which the snapshot can have been taken if a part of
    /// it reads so, after a cut at this event or without one; `None` of one that was always there.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) fn fitting(
        &self,
        snapshot: &SnapshotModel,
        first: u64,
        tags: &[u32],
        cut: Option<usize>,
    ) -> Result<Option<Vec<u64>>, String> {
        let found = || (first..).zip(tags.chunks(SECTORS));
        let volume = match &snapshot.holds {
            Holds::Opaque => return Ok(None),
            Holds::Blocks(blocks) => {
                for (block, found) in found() {
                    let expected = &blocks[block as usize][..found.len()];
                    if found != expected {
                        let [found, expected] = [found, expected].map(report::contents);
                        let wrong = report::wrong_block(block, &found, &[expected]);
                        return Err(format!("snapshot {}: {wrong}", snapshot.name));
                    }
                }
                return Ok(None);
            }
            Holds::Volume(volume) => &self.volumes[*volume],
        };
        let event = cut.unwrap_or(usize::MAX);
        let kept = self.changes[snapshot.made].is_certain(event);
        let sight = |moment| Sight { event, moment, kept };
        let all = &self.moments[&snapshot.made];
        let mut moments = all.clone();
        for (block, found) in found() {
            let versions = volume.blocks.get(&block);
            let fits = |moment: &u64| sight(*moment).may_see(versions, found);
            let before = moments.len();
            moments.retain(fits);
            if moments.is_empty() && before > 0 {
                let reason = match all.iter().any(fits) {
                    true => format!("block {block} is of another moment than the blocks before it"),
                    false => sight(all[all.len() - 1]).explain(block, versions, found),
                };
                return Err(format!("snapshot {}: {reason}", snapshot.name));
            }
        }
        Ok(Some(moments))
    }

    /// A snapshot that was there from the beginning.
    pub(super) fn add_known_snapshot(&mut self, name: SnapshotName, sectors: u64, holds: Holds) {
        let made = FROM_THE_BEGINNING;
        self.snapshots.push(SnapshotModel { name, made, gone: None, sectors, holds });
    }

    /// Whether something may be there after a cut.
    pub(super) fn may_be_there(&self, made: Change, gone: Option<Change>, event: usize) -> bool {
        let is_gone = gone.is_some_and(|gone| self.changes[gone].is_certain(event));
        self.changes[made].is_possible(event) && !is_gone
    }

    /// Whether a change may be seen after a cut.
    pub(super) fn is_possible(&self, change: Option<Change>, event: usize) -> bool {
        change.is_some_and(|change| self.changes[change].is_possible(event))
    }

    /// Whether a change must be seen after a cut.
    pub(super) fn is_certain(&self, change: Change, event: usize) -> bool {
        self.changes[change].is_certain(event)
    }
}

impl VolumeModel {
    /// What is in it from its beginning.
    pub(super) fn hold(&mut self, blocks: &[Block]) {
        for (block, content) in (0..).zip(blocks) {
            self.blocks.insert(block, vec![Version::base(*content)]);
            self.visible.insert(block, vec![*content]);
        }
        self.opaque = false;
    }
}

/// Whole blocks; the rest of the last one is zeros.
pub(super) fn blocks_of(tags: &[u32]) -> Vec<Block> {
    let block = |tags: &[u32]| {
        let mut block = ZERO;
        block[..tags.len()].copy_from_slice(tags);
        block
    };
    tags.chunks(SECTORS).map(block).collect()
}

impl Span {
    /// Whether it is open after a cut what has become of it.
    pub(super) fn is_open(self, event: usize) -> bool {
        self.is_possible(event) && !self.is_certain(event)
    }
}
