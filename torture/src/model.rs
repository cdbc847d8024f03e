//! What volumes and snapshots may contain after any history of writes, discards, flushes, resizes,
//! deletes, clones, going back, failures and power cuts.
//!
//! Every change of a block makes a version of the whole block. A version counts from when its
//! operation began, and is *certain* from when a flush was acknowledged that began after the
//! operation was done. After a cut a block may hold any version that had begun, except those that
//! were done before a certain one began. Moments are events of the simulated device, so that one
//! history can be judged at every cut; what happened at the same event is ordered by ticks.
//!
//! Without a cut a block reads as the last operation left it; where operations have failed, as any
//! of them or of what was there before.
//!
//! A snapshot is its volume at one tick between the call's beginning and its end, the same for all
//! that are taken together. All of its blocks must fit one such tick. Once the call has returned, no
//! cut takes anything away from that; before, what was not flushed may be missing.
//!
//! A volume that goes back to a snapshot ends, and another of the same name begins.

mod check;
mod snapshots;
mod versions;

use std::collections::BTreeMap;

use self::{
    snapshots::SnapshotModel,
    versions::{Sight, Version},
};
use crate::{
    content::{Block, SECTORS, ZERO},
    report,
};

/// When a change of the catalog may be and when it must be seen.
#[derive(Clone, Copy, Debug)]
struct Span {
    begun: usize,
    done: usize,
}

impl Span {
    fn from(event: usize) -> Self {
        Self { begun: event, done: usize::MAX }
    }

    /// Whether it may be seen after a cut.
    fn is_possible(self, event: usize) -> bool {
        self.done == 0 || self.begun < event
    }

    /// Whether it must be.
    fn is_certain(self, event: usize) -> bool {
        self.done <= event
    }
}

const BASE: Span = Span { begun: 0, done: 0 };

/// A change of the catalog, by its number: what one change does is seen whole or not at all.
type Change = usize;

/// What was there from the beginning.
const FROM_THE_BEGINNING: Change = 0;

/// What may be in one volume.
#[derive(Clone, Debug)]
pub struct VolumeModel {
    /// Its name.
    pub name: String,
    made: Change,
    gone: Option<Change>,
    /// Sizes in sectors, oldest first.
    sizes: Vec<(u64, Span)>,
    /// Blocks that may be other than zero.
    blocks: BTreeMap<u64, Vec<Version>>,
    /// What each block reads as now: one content, or several that are possible.
    visible: BTreeMap<u64, Vec<Block>>,
    /// Only its presence and size are checked.
    pub opaque: bool,
    /// From this block on several clients write, and what is visible is not known.
    pub shared_from: u64,
}

/// Versions that an operation makes: volume, and block with the version's number.
pub struct Operation {
    volume: usize,
    versions: Vec<(u64, usize)>,
}

/// What may be in a pool.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its volumes, those that are gone among them.
    pub volumes: Vec<VolumeModel>,
    /// Sizes of the pool, each with the event at which it was acknowledged.
    pool_sizes: Vec<(usize, u64)>,
    /// Its snapshots, those that are gone among them.
    pub snapshots: Vec<SnapshotModel>,
    changes: Vec<Span>,
    /// The ticks at one of which snapshots were taken, by the change that made them.
    moments: BTreeMap<Change, Vec<u64>>,
    tick: u64,
}

impl Default for Model {
    fn default() -> Self {
        let changes = vec![BASE];
        let (volumes, snapshots) = (Vec::new(), Vec::new());
        Self {
            volumes,
            pool_sizes: Vec::new(),
            snapshots,
            changes,
            moments: BTreeMap::new(),
            tick: 0,
        }
    }
}

impl Model {
    fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// The pool has this size, which it keeps or exceeds from this event on.
    pub fn note_pool_size(&mut self, event: usize, size_bytes: u64) {
        self.pool_sizes.push((event, size_bytes));
    }

    /// The least size of the pool after a cut at an event.
    #[must_use]
    pub fn least_pool_size(&self, event: usize) -> u64 {
        let known = self.pool_sizes.iter().filter(|(since, _)| *since <= event);
        known.map(|&(_, size_bytes)| size_bytes).max().unwrap_or(0)
    }

    fn begin_change(&mut self, event: usize) -> Change {
        self.changes.push(Span::from(event));
        self.changes.len() - 1
    }

    fn is_done(&self, change: Change) -> bool {
        self.changes[change].done < usize::MAX
    }

    /// Whether a volume is there, and what is in it is known.
    #[must_use]
    pub fn is_usable(&self, volume: usize) -> bool {
        let model = &self.volumes[volume];
        model.gone.is_none() && self.is_done(model.made) && !model.opaque
    }

    /// The number of the volume of this name that can be used.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        (0..self.volumes.len()).rfind(|&at| self.volumes[at].name == name && self.is_usable(at))
    }

    /// Whether a volume is on its way out, or gone.
    #[must_use]
    pub fn is_going(&self, volume: usize) -> bool {
        self.volumes[volume].gone.is_some()
    }

    /// An operation begins that will make these blocks look like that.
    pub fn begin(&mut self, volume: usize, event: usize, blocks: &[(u64, Block)]) -> Operation {
        let begun = self.next_tick();
        let model = &mut self.volumes[volume];
        let mut versions = Vec::new();
        for &(block, content) in blocks {
            let list = model.blocks.entry(block).or_insert_with(|| vec![Version::base(ZERO)]);
            versions.push((block, list.len()));
            let (done, certain) = (u64::MAX, usize::MAX);
            list.push(Version { content, begun_event: event, begun, done, certain });
            model.visible.entry(block).or_insert_with(|| vec![ZERO]).push(content);
        }
        Operation { volume, versions }
    }

    /// An operation was acknowledged.
    pub fn done(&mut self, operation: &Operation) {
        let done = self.next_tick();
        let volume = &mut self.volumes[operation.volume];
        for (block, version) in &operation.versions {
            let list = volume.blocks.get_mut(block).expect("it began with this block");
            list[*version].done = done;
            volume.visible.insert(*block, vec![list[*version].content]);
        }
    }

    /// The tick at which a flush begins.
    pub fn begin_flush(&mut self) -> u64 {
        self.next_tick()
    }

    /// A flush that began at tick `begun` was acknowledged before `event`.
    pub fn end_flush(&mut self, begun: u64, event: usize) {
        let lists = self.volumes.iter_mut().flat_map(|volume| volume.blocks.values_mut());
        for version in lists.flatten() {
            if version.done < begun {
                version.certain = version.certain.min(event);
            }
        }
    }

    /// What a block reads as, unless that is not known.
    #[must_use]
    pub fn visible(&self, volume: usize, block: u64) -> Option<Block> {
        match self.volumes[volume].visible.get(&block).map(Vec::as_slice) {
            None => Some(ZERO),
            Some([content]) => Some(*content),
            Some(_) => None,
        }
    }

    /// A block was read: whether it may read so. From now on it must.
    pub fn saw(&mut self, volume: usize, block: u64, found: &[u32]) -> Result<(), String> {
        let model = &mut self.volumes[volume];
        if block >= model.shared_from {
            return Ok(());
        }
        let zero = vec![ZERO];
        let possible = model.visible.get(&block).unwrap_or(&zero);
        let same = possible.iter().find(|content| *found == content[..found.len()]);
        match same.copied() {
            Some(content) => {
                model.visible.insert(block, vec![content]);
                Ok(())
            }
            None => {
                let expected: Vec<_> =
                    possible.iter().map(|content| report::contents(content)).collect();
                let wrong = report::wrong_block(block, &report::contents(found), &expected);
                Err(format!("a read of volume {}: {wrong}", model.name))
            }
        }
    }

    /// A volume begins to be made.
    pub fn begin_create(&mut self, name: &str, sectors: u64, event: usize) -> usize {
        let made = self.begin_change(event);
        self.add_volume(name, sectors, made)
    }

    fn add_volume(&mut self, name: &str, sectors: u64, made: Change) -> usize {
        self.volumes.push(VolumeModel {
            name: name.into(),
            made,
            gone: None,
            sizes: vec![(sectors, BASE)],
            blocks: BTreeMap::new(),
            visible: BTreeMap::new(),
            opaque: false,
            shared_from: u64::MAX,
        });
        self.volumes.len() - 1
    }

    /// The volume was made.
    pub fn end_create(&mut self, volume: usize, event: usize) {
        self.changes[self.volumes[volume].made].done = event;
    }

    /// A volume begins to be deleted, and with it the snapshots that it has.
    pub fn begin_delete(&mut self, volume: usize, event: usize) {
        let gone = self.begin_change(event);
        self.volumes[volume].gone = Some(gone);
        for snapshot in self.snapshots_of(&self.volumes[volume].name.clone()) {
            self.snapshots[snapshot].gone = Some(gone);
        }
    }

    /// The volume was deleted.
    pub fn end_delete(&mut self, volume: usize, event: usize) {
        if let Some(gone) = self.volumes[volume].gone {
            self.changes[gone].done = event;
        }
    }

    /// A volume's size in sectors.
    #[must_use]
    pub fn sectors(&self, volume: usize) -> u64 {
        self.volumes[volume].sizes.last().map_or(0, |(sectors, _)| *sectors)
    }

    /// A resize begins; what it cuts off becomes zeros. `None` if it cuts a block of which nobody
    /// knows what it holds.
    pub fn begin_resize(&mut self, volume: usize, sectors: u64, event: usize) -> Option<Operation> {
        let old = self.sectors(volume);
        let mut cut = Vec::new();
        for block in sectors / SECTORS as u64..old.div_ceil(SECTORS as u64) {
            let mut content = self.visible(volume, block)?;
            let keep = sectors.saturating_sub(block * SECTORS as u64).min(SECTORS as u64) as usize;
            content[keep..].fill(0);
            cut.push((block, content));
        }
        let operation = self.begin(volume, event, if sectors < old { &cut } else { &[] });
        self.volumes[volume].sizes.push((sectors, Span::from(event)));
        Some(operation)
    }

    /// The resize is done, and durable.
    pub fn end_resize(&mut self, operation: &Operation, event: usize) {
        self.done(operation);
        let volume = &mut self.volumes[operation.volume];
        for (block, version) in &operation.versions {
            let list = volume.blocks.get_mut(block).expect("it began with this block");
            list[*version].certain = event;
        }
        if let Some((_, span)) = volume.sizes.last_mut() {
            span.done = event;
        }
    }
}

#[cfg(test)]
mod tests;
