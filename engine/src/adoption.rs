//! Adoption: chains of layers get shorter, and what a child has overwritten comes free.
//!
//! A layer whose volume was rolled back or deleted stays as long as another layer reads through to it,
//! with all that the view holds, also what the child has overwritten since. Once nothing but one
//! child reads it and it has no parent itself, the child *adopts* what the view holds: the entries
//! are published for the child's layer, in the view's own epoch and with the same places. Then the
//! child needs no parent, and the layer is dead. Chains shrink from their oldest end, so a hole of
//! the view is nothing.
//!
//! # Why nobody reads anything else than before
//! A lookup asks the newest part of the map first and stops at the first version that it may see, so a
//! version must not come to lie in a newer part than versions that are newer than it. An adopted
//! version is older than every change of the child (which began after the view's epoch had ended),
//! and comes into the newest memtable. Therefore, for each block, the child's own versions are read:
//!
//! - There are none: the adopted one is all there is. A change that comes later is in the same memtable,
//!   in the table of a later epoch, or in a later one.
//! - There are some, and every label of the child is of the epoch of the oldest of them or a later
//!   one: nobody sees the view's version, now or later, for new labels are of the current epoch. It
//!   is left where it is.
//! - A label is older than all of them: it sees the view's version. Then the child's versions are
//!   published again with it, so that the newest memtable has the whole stack. They have sequence
//!   number 0, so that no change which has just been published is undone by its copy.
//!
//! It is done by the checkpointer, between two checkpoints: no memtable is frozen and no patch
//! merged between reading and publishing, and the next freeze takes what was published to a patch, which
//! counts its references, before that checkpoint frees anything.
//!
//! # Order
//! ```text
//! Waiting   every change of the parent is published
//! Copying   a bounded number of entries before each checkpoint
//! Leaving   these checkpoints are stored; volumes and snapshots read without the parent from now on,
//!           and reads that began before come to their end
//! (then)    the catalog is stored in which the child has no parent, and merges drop the parent
//! ```
//! A crash before the last step leaves a child with a parent, and it begins again: what has been
//! adopted is found to be there. Damage of the map that is in the way ends it until the pool is opened
//! again.

use std::{
    collections::BTreeSet,
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use siltstone_cursor::{Epoch, Extent, ExtentCursor, MAX_BLOCKS, MapError, Run, Target, View};
use siltstone_device::{BlockAddress, LayerId, Sequence};

use crate::{core::Core, error::Result, stats::add};

/// Entries that a step publishes at most.
const MAX_ENTRIES: usize = 1 << 14;
/// Extents that a step looks at: some hundredths of a second.
const MAX_LOOKED_AT: usize = 1 << 16;
/// Memory of each of its two walks.
const WALK_BYTES: usize = 1 << 20;
/// A pause is so many times as long as what was done before.
const PAUSE_TIMES: u32 = 4;
/// The shortest pause.
const MIN_PAUSE: Duration = Duration::from_millis(1);

/// What the rest of the pool sees of adoptions.
#[derive(Default)]
pub(crate) struct Adoptions {
    /// The next checkpoint takes one further, or may begin one.
    is_busy: AtomicBool,
}

impl Adoptions {
    /// Whether more checkpoints will let go of something.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Acquire)
    }
}

/// The checkpointer's adoptions: one at a time.
#[derive(Default)]
pub(crate) struct Adopter {
    current: Option<Adoption>,
    /// Children whose part of the map, or whose parent's, cannot be read.
    given_up: BTreeSet<LayerId>,
}

struct Adoption {
    child: LayerId,
    parent: View,
    state: State,
}

enum State {
    Waiting {
        until: Sequence,
    },
    Copying {
        /// Everything before this block is adopted.
        from: u64,
    },
    Leaving {
        /// Chains with the parent that somebody may still read by.
        chains: Vec<Weak<[View]>>,
    },
}

impl Adopter {
    /// Does a bounded piece of work. For the checkpointer, just before it freezes the memtable, if every
    /// checkpoint that it has begun is stored.
    ///
    /// # Errors
    /// If a catalog cannot be stored, which is final.
    pub(crate) async fn step(&mut self, core: &Core) -> Result<()> {
        let mut is_busy = self.step_once(core).await?;
        if self.current.is_none() {
            is_busy = self.begin(core) && self.step_once(core).await?;
        }
        core.adoptions.is_busy.store(is_busy, Ordering::Release);
        Ok(())
    }

    /// How long to wait before the next step, after a checkpoint that took `took`; `None` if there is
    /// nothing to do.
    pub(crate) fn pause(&self, took: Duration) -> Option<Duration> {
        self.current.as_ref().map(|_| (took * PAUSE_TIMES).max(MIN_PAUSE))
    }

    fn begin(&mut self, core: &Core) -> bool {
        let next = core.catalog.lock().adoptable(|child| !self.given_up.contains(&child));
        self.current = next.map(|(child, parent)| {
            // Nobody writes to the parent any more: what it holds has been admitted.
            let state = State::Waiting { until: core.admission.admitted() };
            add(&core.stats.counters.begun_adoptions, 1);
            Adoption { child, parent, state }
        });
        self.current.is_some()
    }

    /// Goes on with the adoption under way; says whether the next step can do more.
    async fn step_once(&mut self, core: &Core) -> Result<bool> {
        let Some(adoption) = &mut self.current else { return Ok(false) };
        let pair = Some((adoption.child, adoption.parent));
        if core.catalog.lock().adoptable(|child| child == adoption.child) != pair {
            // The child is gone.
            self.current = None;
            return Ok(true);
        }
        if let State::Waiting { until } = adoption.state {
            if core.publishing.lock().sequence < until {
                return Ok(true);
            }
            adoption.state = State::Copying { from: 0 };
        }
        match &mut adoption.state {
            State::Waiting { .. } => Ok(true),
            State::Copying { from } => {
                if core.table.free_segments() < core.space.patch_segments() {
                    return Ok(false);
                }
                match copy(core, adoption.child, adoption.parent, *from).await {
                    Ok(Some(next)) => *from = next,
                    Ok(None) => adoption.state = State::Leaving { chains: Vec::new() },
                    Err(error) => {
                        tracing::warn!(%error, "a layer keeps its parent: the map cannot be read");
                        self.given_up.insert(adoption.child);
                        self.current = None;
                    }
                }
                Ok(true)
            }
            State::Leaving { chains } => {
                // Who changes volumes may wait for a checkpoint.
                let Ok(_changing) = core.changing.try_lock() else { return Ok(false) };
                let volumes: Vec<_> = core.volumes.read().values().cloned().collect();
                chains.extend(volumes.iter().filter_map(|volume| volume.leave(adoption.parent)));
                chains.retain(|chain| chain.strong_count() > 0);
                if !chains.is_empty() {
                    return Ok(false);
                }
                let mut catalog = core.catalog.lock().clone();
                catalog.leave_parent(adoption.child);
                match core.replace_catalog(catalog).await {
                    Ok(()) => add(&core.stats.counters.adopted_layers, 1),
                    Err(error) => {
                        core.health.check()?;
                        tracing::warn!(%error, "a layer keeps its parent: the catalog cannot be stored");
                        self.given_up.insert(adoption.child);
                    }
                }
                self.current = None;
                Ok(true)
            }
        }
    }
}

/// Adopts some of what the view holds from a block on. Returns how far it has come, `None` at the
/// end.
async fn copy(
    core: &Core,
    child: LayerId,
    parent: View,
    from: u64,
) -> std::result::Result<Option<u64>, MapError> {
    let (oldest_label, current) = {
        let catalog = core.catalog.lock();
        let label = catalog.labels(child).min();
        let current = core.epochs.read().current();
        (label, current)
    };
    // Labels that are not known here are of the current epoch or a later one.
    let hides_all =
        |oldest: Epoch| oldest <= current && oldest_label.is_none_or(|label| oldest <= label);
    let map = &core.map;
    let end = BlockAddress(MAX_BLOCKS);
    let mut theirs = map.cursor(&[parent], BlockAddress(from), end, WALK_BYTES);
    let mut own = Stacks::of(map.layer_cursor(child, BlockAddress(from), WALK_BYTES));
    let mut entries: Vec<(Extent, Sequence)> = Vec::new();
    let mut looked_at = 0;
    let max_entries = MAX_ENTRIES.min(core.space.memtable_entries() / 8);
    let next = 'runs: loop {
        looked_at += 1;
        let Some(run) = theirs.next().await? else { break None };
        let run = adopted(run, child, parent.as_of);
        let (mut at, run_end) = (run.address.0, end_of(&run));
        while at < run_end {
            own.skip_to(at).await?;
            let begin = own.stack.first().map_or(u64::MAX, |first| first.address.0);
            if begin > at {
                let to = run_end.min(begin);
                entries.push((slice(&run, at, to), Sequence(0)));
                at = to;
            } else {
                let to = run_end.min(end_of(&own.stack[0]));
                let oldest = own.stack[own.stack.len() - 1].epoch;
                // If it is of the view's epoch, it was adopted before.
                if oldest > parent.as_of && !hides_all(oldest) {
                    let versions = own.stack.iter().chain([&run]);
                    entries.extend(versions.map(|version| (slice(version, at, to), Sequence(0))));
                }
                at = to;
            }
            if entries.len() >= max_entries || looked_at + own.looked_at >= MAX_LOOKED_AT {
                break 'runs Some(at);
            }
        }
    };
    if entries.len() > core.space.memtable_entries() / 2 {
        // Versions of a single block.
        return Err(MapError::NoSpace);
    }
    let published = core.publishing.lock();
    if map.memtable_len() + entries.len() > core.space.memtable_entries() {
        // Not before the next checkpoint, which begins with an empty one.
        return Ok(Some(from));
    }
    map.publish(&entries);
    drop(published);
    add(&core.stats.counters.adopted_extents, entries.len() as u64);
    Ok(next)
}

/// A run of the view as the child's.
fn adopted(run: Run, child: LayerId, epoch: Epoch) -> Extent {
    let Run { address, len_blocks, target } = run;
    Extent { layer: child, epoch, address, len_blocks, target }
}

fn end_of(extent: &Extent) -> u64 {
    extent.address.0 + u64::from(extent.len_blocks)
}

/// The part in `[from, to)`, which lies in the extent.
fn slice(extent: &Extent, from: u64, to: u64) -> Extent {
    let target = match extent.target {
        Target::Hole => Target::Hole,
        stored @ Target::Stored(_) => stored.advanced(from - extent.address.0),
    };
    Extent { address: BlockAddress(from), len_blocks: (to - from) as u32, target, ..*extent }
}

/// A layer's stacks: versions of the same blocks, newest first.
struct Stacks {
    cursor: ExtentCursor,
    /// The one at hand; empty at the end.
    stack: Vec<Extent>,
    ahead: Option<Extent>,
    is_begun: bool,
    looked_at: usize,
}

impl Stacks {
    fn of(cursor: ExtentCursor) -> Self {
        Self { cursor, stack: Vec::new(), ahead: None, is_begun: false, looked_at: 0 }
    }

    /// Makes the first stack that ends after a block the one at hand.
    async fn skip_to(&mut self, block: u64) -> std::result::Result<(), MapError> {
        while !self.is_begun || self.stack.first().is_some_and(|first| end_of(first) <= block) {
            if !self.is_begun {
                self.ahead = self.next().await?;
                self.is_begun = true;
            }
            self.stack.clear();
            let Some(first) = self.ahead.take() else { return Ok(()) };
            self.stack.push(first);
            self.ahead = loop {
                match self.next().await? {
                    Some(next) if next.address == first.address => self.stack.push(next),
                    other => break other,
                }
            };
        }
        Ok(())
    }

    async fn next(&mut self) -> std::result::Result<Option<Extent>, MapError> {
        self.looked_at += 1;
        self.cursor.next().await
    }
}
