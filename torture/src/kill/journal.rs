//! What a disk may contain after its server was killed.
//!
//! Every change of a block makes a version of the whole block. One is *certain* from when it was
//! acknowledged as durable, or from when a flush was acknowledged that began after the change was.
//! A block may hold any version that has begun, except those that were over before a certain one
//! began. Once clients have seen what survived, it must stay: the journal begins anew with it.
//!
//! A snapshot shows one moment between its call's beginning and its end. A volume that goes back to a
//! snapshot changes all its blocks at once; if nobody knows whether it did, all of them or none.
//!
//! The journal lives in the memory of the process that kills, not of the one that is killed.

use std::collections::BTreeMap;

use crate::{
    content::{BLOCK, Block, ZERO, tags_of},
    report::{contents, wrong_block},
};

/// Later than everything.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Version {
    content: Block,
    /// The tick at which its change began; 0 for what was found.
    begun: u64,
    /// The tick at which its change was answered.
    over: u64,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Not answered yet.
    Open,
    /// Not done, or in part.
    Refused,
    /// Done; durable after the next flush.
    Done,
    /// Done and durable.
    Durable,
}

impl Version {
    fn found(content: Block) -> Self {
        Self { content, begun: 0, over: 0, outcome: Outcome::Durable }
    }

    fn is_done(&self) -> bool {
        matches!(self.outcome, Outcome::Done | Outcome::Durable)
    }
}

/// A change that has begun: its first block, and the number of the version it makes of each.
#[derive(Clone, Debug)]
pub struct Change {
    first_block: u64,
    versions: Vec<usize>,
}

/// A block that holds what it cannot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongBlock {
    /// Bytes that are no version of any block.
    #[error("block {block} holds what nobody wrote: {reason}")]
    Unknown {
        /// The block.
        block: u64,
        /// In which part.
        reason: String,
    },
    /// Parts of several versions, or another block's content.
    #[error("{}", wrong_block(*.block, &contents(.found), .allowed))]
    NoVersion {
        /// The block.
        block: u64,
        /// The tags of its sectors.
        found: Block,
        /// What it may hold.
        allowed: Vec<String>,
    },
    /// A version that had to be gone.
    #[error("{}", wrong_block(*.block, &format!("{}, older than a change that was acknowledged as durable", contents(.found)), .allowed))]
    Lost {
        /// The block.
        block: u64,
        /// The tags of its sectors.
        found: Block,
        /// What it may hold.
        allowed: Vec<String>,
    },
}

/// When a snapshot was taken.
#[derive(Clone, Copy, Debug)]
pub struct Taking {
    begun: u64,
    /// `NEVER` while nobody knows whether it was.
    over: u64,
    /// Whether the server that had acknowledged writes was still alive, so that all of these are in it.
    is_whole: bool,
}

/// What may be on a disk.
#[derive(Clone, Debug)]
pub struct Journal {
    tick: u64,
    /// What was done before this tick is durable.
    flushed: u64,
    /// What each block held when the server came up.
    found: Vec<Block>,
    /// The versions of blocks that were changed since, the found one first.
    changed: BTreeMap<u64, Vec<Version>>,
    /// How often the disk has begun to go back to a snapshot.
    roll_backs: u64,
    /// The last one, if nobody knows whether it was done.
    open_roll_back: Option<Change>,
}

impl Journal {
    /// A disk of zeros.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        Self::of(vec![ZERO; blocks as usize])
    }

    /// A disk that holds this.
    #[must_use]
    pub fn of(found: Vec<Block>) -> Self {
        let changed = BTreeMap::new();
        Self { tick: 0, flushed: 0, found, changed, roll_backs: 0, open_roll_back: None }
    }

    /// The disk's size in blocks.
    #[must_use]
    pub fn len_blocks(&self) -> u64 {
        self.found.len() as u64
    }

    fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// A change begins that will make the blocks from `first_block` on look like `contents`.
    ///
    /// # Panics
    /// If they are not on the disk.
    pub fn begin(&mut self, first_block: u64, contents: &[Block]) -> Change {
        let begun = self.next_tick();
        let version = |(block, content): (u64, &Block)| {
            let found = Version::found(self.found[block as usize]);
            let versions = self.changed.entry(block).or_insert_with(|| vec![found]);
            versions.push(Version {
                content: *content,
                begun,
                over: NEVER,
                outcome: Outcome::Open,
            });
            versions.len() - 1
        };
        let versions = (first_block..).zip(contents).map(version).collect();
        Change { first_block, versions }
    }

    /// A change was acknowledged, perhaps as durable.
    pub fn acknowledge(&mut self, change: &Change, is_durable: bool) {
        self.end(change, if is_durable { Outcome::Durable } else { Outcome::Done });
    }

    /// A change was refused: it may have been done in part.
    pub fn refuse(&mut self, change: &Change) {
        self.end(change, Outcome::Refused);
    }

    fn end(&mut self, change: &Change, outcome: Outcome) {
        let over = self.next_tick();
        for (block, number) in (change.first_block..).zip(&change.versions) {
            let versions = self.changed.get_mut(&block).expect("the change began with this block");
            let version = &mut versions[*number];
            assert_eq!(version.outcome, Outcome::Open, "a change is answered once");
            (version.over, version.outcome) = (over, outcome);
        }
    }

    /// A flush begins; by the tick it is acknowledged.
    pub fn begin_flush(&mut self) -> u64 {
        self.next_tick()
    }

    /// The flush that began at tick `begun` was acknowledged.
    pub fn acknowledge_flush(&mut self, begun: u64) {
        self.flushed = self.flushed.max(begun);
    }

    /// The disk begins to go back to a snapshot that holds this.
    pub fn begin_roll_back(&mut self, contents: &[Block]) {
        self.roll_backs += 1;
        self.open_roll_back = Some(self.begin(0, contents));
    }

    /// It has gone back.
    pub fn acknowledge_roll_back(&mut self) {
        if let Some(change) = self.open_roll_back.take() {
            self.acknowledge(&change, true);
        }
    }

    /// How often the disk has begun to go back: who was connected before is refused from then on.
    #[must_use]
    pub fn roll_backs(&self) -> u64 {
        self.roll_backs
    }

    /// How often it has come to its end.
    #[must_use]
    pub fn roll_backs_over(&self) -> u64 {
        self.roll_backs - u64::from(self.open_roll_back.is_some())
    }

    /// A snapshot begins to be taken.
    pub fn begin_snapshot(&mut self) -> Taking {
        Taking { begun: self.next_tick(), over: NEVER, is_whole: false }
    }

    /// It was taken. Unless `is_whole`, by somebody who may have found the disk as a kill left it.
    pub fn acknowledge_snapshot(&mut self, taking: &mut Taking, is_whole: bool) {
        (taking.over, taking.is_whole) = (self.next_tick(), is_whole);
    }

    /// What a block reads as while the server lives; `None` if several contents are possible.
    /// Only for blocks that one client changes, one change after the other.
    #[must_use]
    pub fn visible(&self, block: u64) -> Option<Block> {
        let Some(versions) = self.changed.get(&block) else {
            return Some(self.found[block as usize]);
        };
        let done = versions.iter().filter(|version| version.is_done());
        let newest = done.map(|version| version.begun).max();
        let newest = newest.expect("what was found is there");
        let mut possible = versions.iter().filter(|version| version.over >= newest);
        let first = possible.next()?.content;
        possible.all(|version| version.content == first).then_some(first)
    }

    fn is_certain(&self, version: &Version) -> bool {
        match version.outcome {
            Outcome::Open | Outcome::Refused => false,
            Outcome::Done => version.over < self.flushed,
            Outcome::Durable => true,
        }
    }

    /// Whether blocks may read so after the server was killed.
    ///
    /// # Errors
    /// The first block that may not.
    pub fn judge(&self, first_block: u64, found: &[Block]) -> Result<(), WrongBlock> {
        let judge = |journal: &Self| {
            (first_block..)
                .zip(found)
                .try_for_each(|(block, found)| journal.judge_block(block, found))
        };
        let Some(change) = &self.open_roll_back else { return judge(self) };
        let mut undone = self.clone();
        undone.forget(change);
        judge(&undone).or_else(|_| {
            let mut done = self.clone();
            done.acknowledge_roll_back();
            judge(&done)
        })
    }

    /// A change was never made.
    fn forget(&mut self, change: &Change) {
        for (block, number) in (change.first_block..).zip(&change.versions) {
            let versions = self.changed.get_mut(&block).expect("the change began with this block");
            versions.remove(*number);
        }
    }

    /// Whether a snapshot may hold this.
    ///
    /// # Errors
    /// The first block that may not be so, at all or together with those before.
    pub fn judge_snapshot(&self, taking: &Taking, found: &[Block]) -> Result<(), WrongBlock> {
        let end = taking.over.min(self.tick);
        let mut moments: Vec<u64> = (taking.begun..=end).collect();
        for (&block, versions) in &self.changed {
            let content = &found[block as usize];
            moments.retain(|&moment| {
                let settled = versions.iter().filter(|version| {
                    let is_kept = taking.is_whole && version.is_done();
                    version.over <= moment && (is_kept || self.is_certain(version))
                });
                let newest = settled.map(|version| version.begun).max().unwrap_or(0);
                let mut allowed = versions
                    .iter()
                    .filter(|version| version.begun <= moment && version.over >= newest);
                allowed.any(|version| version.content == *content)
            });
            if moments.is_empty() {
                let list = versions.iter().map(|version| self.describe(version)).collect();
                return Err(WrongBlock::NoVersion { block, found: *content, allowed: list });
            }
        }
        for (block, (found, before)) in (0..).zip(found.iter().zip(&self.found)) {
            if !self.changed.contains_key(&block) && found != before {
                let allowed = vec![contents(before)];
                return Err(WrongBlock::NoVersion { block, found: *found, allowed });
            }
        }
        Ok(())
    }

    fn describe(&self, version: &Version) -> String {
        let state = match version.outcome {
            _ if version.begun == 0 => "there when the server started",
            Outcome::Open => "not acknowledged",
            Outcome::Refused => "refused",
            Outcome::Done | Outcome::Durable if self.is_certain(version) => "durable",
            Outcome::Done | Outcome::Durable => "acknowledged, not flushed",
        };
        format!("{}, {state}", contents(&version.content))
    }

    fn judge_block(&self, block: u64, found: &Block) -> Result<(), WrongBlock> {
        let unchanged = [Version::found(self.found[block as usize])];
        let versions = self.changed.get(&block).map_or(&unchanged[..], Vec::as_slice);
        let certain = versions.iter().filter(|version| self.is_certain(version));
        let newest_certain = certain.map(|version| version.begun).max();
        let newest_certain = newest_certain.expect("what was found is certain");
        let is_allowed = |version: &Version| version.over >= newest_certain;
        let mut same = versions.iter().filter(|version| version.content == *found);
        if same.clone().any(is_allowed) {
            return Ok(());
        }
        let allowed = versions
            .iter()
            .filter(|version| is_allowed(version))
            .map(|version| self.describe(version))
            .collect();
        Err(match same.next_back() {
            Some(_) => WrongBlock::Lost { block, found: *found, allowed },
            None => WrongBlock::NoVersion { block, found: *found, allowed },
        })
    }

    /// Begins anew with the contents that were found, which must stay from now on.
    ///
    /// # Panics
    /// If they are not the whole disk's.
    pub fn settle(&mut self, contents: Vec<Block>) {
        assert_eq!(contents.len(), self.found.len(), "the whole disk was read");
        *self = Self::of(contents);
    }
}

/// Blocks from bytes of which the first belong to `first_block`.
///
/// # Errors
/// The first block that nobody wrote.
pub fn blocks_of(first_block: u64, bytes: &[u8]) -> Result<Vec<Block>, WrongBlock> {
    let blocks = (first_block..).zip(bytes.chunks(BLOCK)).map(|(block, bytes)| {
        let unknown = |reason| WrongBlock::Unknown { block, reason };
        let tags = tags_of(bytes).map_err(unknown)?;
        let short = || unknown(format!("only {} sectors of it were read", tags.len()));
        tags.as_slice().try_into().map_err(|_| short())
    });
    blocks.collect()
}

#[cfg(test)]
mod tests;
