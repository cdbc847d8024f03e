//! One place damaged in one way.

use std::{str::FromStr, sync::Arc};

use siltstone_device::{Device, SeededRandom, sim::SimDevice};

use super::{
    NoSuchTrial,
    life::{End, Life},
    structures::Kind,
    verdict::{Expected, Verdict, judge},
};
use crate::content::{BLOCK, SECTOR};

/// How a place is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// One byte is another.
    Flip,
    /// So many bytes are zero.
    Zero(Unit),
    /// They are as they were at an earlier checkpoint, of the same structure in an older use of the
    /// place if there was one: a lost write.
    Stale(Unit),
    /// They have changed places with the next of the same kind.
    Swap(Unit),
    /// No read of the block succeeds any more.
    Unreadable,
}

/// How much is damaged at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// 512 bytes.
    Sector,
    /// 4 KiB.
    Block,
}

impl Unit {
    fn bytes(self) -> usize {
        match self {
            Self::Sector => SECTOR,
            Self::Block => BLOCK,
        }
    }
}

impl Form {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Flip,
        Self::Zero(Unit::Sector),
        Self::Zero(Unit::Block),
        Self::Stale(Unit::Sector),
        Self::Stale(Unit::Block),
        Self::Swap(Unit::Sector),
        Self::Swap(Unit::Block),
        Self::Unreadable,
    ];

    /// What it is called.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Zero(Unit::Sector) => "zero-sector",
            Self::Zero(Unit::Block) => "zero-block",
            Self::Stale(Unit::Sector) => "stale-sector",
            Self::Stale(Unit::Block) => "stale-block",
            Self::Swap(Unit::Sector) => "swap-sector",
            Self::Swap(Unit::Block) => "swap-block",
            Self::Unreadable => "unreadable-block",
        }
    }

    /// Where it can be done.
    pub(super) fn needs(self) -> &'static str {
        match self {
            Self::Flip => "there is no byte",
            Self::Zero(_) => "all of it is zero",
            Self::Stale(_) => "it held nothing else at any earlier checkpoint",
            Self::Swap(_) => "nothing else of its kind differs from it",
            Self::Unreadable => "there is no block",
        }
    }

    fn unit_bytes(self) -> u64 {
        match self {
            Self::Flip => 1,
            Self::Unreadable => BLOCK as u64,
            Self::Zero(unit) | Self::Stale(unit) | Self::Swap(unit) => unit.bytes() as u64,
        }
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::label);
        let at = names.iter().position(|name| *name == text);
        at.map(|at| Self::ALL[at]).ok_or_else(|| format!("it is one of {}", names.join(", ")))
    }
}

/// One place damaged in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Which pool.
    pub end: End,
    /// How.
    pub form: Form,
    /// Where, in bytes from the pool's start.
    pub offset_bytes: u64,
    /// What is inverted of the byte; only of a flip.
    pub value: u8,
}

impl Trial {
    /// A byte's flip, by a value that depends on where it is.
    #[must_use]
    pub fn flip(end: End, offset_bytes: u64) -> Self {
        let value = SeededRandom::new(offset_bytes).below(255) as u8 + 1;
        Self { end, form: Form::Flip, offset_bytes, value }
    }

    /// How the command line is told to repeat it.
    #[must_use]
    pub fn arguments(&self) -> String {
        let Self { end, form, offset_bytes, value } = self;
        let value = match form {
            Form::Flip => format!("--value {value}"),
            _ => format!("--form {}", form.label()),
        };
        format!("--damage --pool {end} --at {offset_bytes} {value}")
    }

    /// Whether it can be made.
    ///
    /// # Errors
    /// If there is no such place, or it would stay as it is.
    pub(super) fn check(self, life: &Life) -> Result<(), NoSuchTrial> {
        let (end, offset_bytes) = (self.end, self.offset_bytes);
        let size_bytes = life.device.size_bytes();
        if offset_bytes >= size_bytes {
            return Err(NoSuchTrial::OutOfPool { end, offset_bytes, size_bytes });
        }
        let damage = self.damage(life);
        damage.map(|_| ()).ok_or(NoSuchTrial::ChangesNothing(self))
    }

    /// What it damages.
    pub(super) fn kind(&self, life: &Life) -> Kind {
        let (start, end) = self.range();
        life.structures.kind_of(start, end)
    }

    fn range(&self) -> (u64, u64) {
        let unit = self.form.unit_bytes();
        let start = self.offset_bytes - self.offset_bytes % unit;
        (start, start + unit)
    }

    /// Damages a copy of the pool and sees what comes of it; `None` if there is nothing to be
    /// damaged: what is there is zero, was never otherwise, or is alone of its kind.
    pub(super) fn run(&self, life: &Life, writable: bool) -> Option<Verdict> {
        let (start, end) = self.range();
        let damage = self.damage(life)?;
        let device = life.device.snapshot();
        let mut frames = Some(Vec::new());
        if self.form == Form::Unreadable {
            device.fail_reads(start..end);
            frames = life.structures.only_frames(start, end);
        }
        for (at, bytes) in damage {
            device.corrupt(at, &bytes);
            let here = life.structures.only_frames(at, at + (end - start));
            frames = frames.zip(here).map(|(all, here)| [all, here].concat());
        }
        Some(self.judge(life, &device, frames.as_deref(), writable))
    }

    /// Which places hold what then, none if they cannot be read; `None` if all would stay as it is.
    pub(super) fn damage(&self, life: &Life) -> Option<Vec<(u64, Vec<u8>)>> {
        let (start, end) = self.range();
        let len = (end - start) as usize;
        let now = life.device.peek(start, len);
        let mut damage = Vec::new();
        match self.form {
            Form::Flip => damage.push((start, vec![now[0] ^ self.value])),
            Form::Zero(_) => damage.push((start, vec![0; len])),
            Form::Stale(_) => damage.push((start, life.older(start, len)?)),
            Form::Swap(_) => {
                let other = self.neighbour(life)?;
                damage.push((start, life.device.peek(other, len)));
                damage.push((other, now.clone()));
            }
            Form::Unreadable => return Some(damage),
        }
        (damage[0].1 != now).then_some(damage)
    }

    fn judge(
        &self,
        life: &Life,
        device: &Arc<SimDevice>,
        frames: Option<&[(u32, u32)]>,
        writable: bool,
    ) -> Verdict {
        // A list of no frames is of padding: of that nothing may be lost.
        let (start, end) = self.range();
        // When it is opened for writing as well, everything is looked at.
        let in_segments = writable || end > life.structures.data_start();
        let expected = Expected { contents: &life.contents, frames, in_segments };
        let verdict = judge(device, &expected, writable);
        // A swap damages two places: they may be all that there is of something.
        let is_one_place = !matches!(self.form, Form::Swap(_));
        let most = life.structures.most_cost(start, end);
        if is_one_place && verdict.cost() > most && !matches!(verdict, Verdict::Silent(_)) {
            let (found, expected) = (verdict.cost().label(), most.label());
            return Verdict::Silent(format!(
                "it costs more than it must\nfound:    {found}\nexpected: {expected} at most"
            ));
        }
        verdict
    }

    /// The next place of the same kind, or the first.
    fn neighbour(&self, life: &Life) -> Option<u64> {
        let unit = self.form.unit_bytes();
        let (start, _) = self.range();
        let kind = self.kind(life);
        let stretches = life.structures.iter().filter(|stretch| stretch.kind == kind);
        let places = stretches.flat_map(|stretch| {
            let first = stretch.start - stretch.start % unit;
            (first..stretch.end).step_by(unit as usize)
        });
        // Alike in where they stand in a block, so that one can pass for the other.
        let like = |place: &u64| place % BLOCK as u64 == start % BLOCK as u64 && *place != start;
        let places: Vec<_> = places.filter(like).collect();
        places.iter().find(|place| **place > start).or(places.first()).copied()
    }
}

/// Everything that is to be tried on a pool: each byte, then each sector and each block.
pub(super) fn all(life: &Life) -> Vec<Trial> {
    let end = life.end;
    let mut trials = Vec::new();
    for stretch in life.structures.iter() {
        let offsets = (stretch.start..stretch.end).step_by(stretch.kind.stride() as usize);
        trials.extend(offsets.map(|offset| Trial::flip(end, offset)));
    }
    for form in Form::ALL.into_iter().skip(1) {
        let mut next = 0;
        for stretch in life.structures.iter().filter(|stretch| stretch.kind < Kind::Padding) {
            let unit = form.unit_bytes();
            let first = next.max(stretch.start - stretch.start % unit);
            for offset_bytes in (first..stretch.end).step_by(unit as usize) {
                trials.push(Trial { end, form, offset_bytes, value: 0 });
                next = offset_bytes + unit;
            }
        }
    }
    trials
}
