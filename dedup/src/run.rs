//! Runs: which duplicates become links and which blocks are stored (again). Pure functions.
//!
//! Two steps, with the in-flight table between them (see the crate's tour):
//! 1. [`extend`] checks candidates against the summaries and finds duplicates around them, forwards
//!    and backwards, that neither the sample nor a lookup could know of.
//! 2. [`plan`] applies the one threshold: of consecutive duplicates at consecutive addresses, at
//!    least `threshold` become links. Shorter runs are stored again, so that whoever reads the
//!    volume in sequence does not pay a device read for a few blocks.

use std::sync::Arc;

use crate::bucket::UnitAddress;
use crate::fingerprint::ShortFingerprint;
use crate::neighbourhood::Candidate;

/// Where [`extend`] finds loaded summaries.
pub trait Summaries {
    /// The unit's fingerprints in the order of its summary, if it is loaded.
    fn fingerprints(&self, unit: UnitAddress) -> Option<Arc<[ShortFingerprint]>>;
}

/// What a duplicate block is a duplicate of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// A block of a published write unit.
    Stored(Candidate),
    /// A block that a batch in the pipeline is storing.
    InFlight {
        /// The batch that stores it.
        batch: u64,
        /// The block's position among those that the batch registered.
        position: u32,
    },
}

impl Target {
    /// Whether this is the block after `before` in the same unit or batch.
    #[must_use]
    pub fn follows(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Stored(this), Self::Stored(before)) => this.follows(before),
            (
                Self::InFlight { batch, position },
                Self::InFlight { batch: batch_before, position: position_before },
            ) => batch == batch_before && position_before.checked_add(1) == Some(*position),
            _ => false,
        }
    }
}

/// Consecutive blocks of a batch that are treated alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first of them, counted from the batch's start.
    pub first: usize,
    /// Their number, at least 1.
    pub len: usize,
    /// What becomes of them.
    pub kind: Kind,
}

/// What becomes of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Its blocks are stored.
    Store,
    /// Its blocks become links to as many blocks from this one on.
    Link {
        /// The target of the run's first block.
        first_target: Target,
    },
}

/// Checks every candidate against its unit's summary and extends from those that hold, in both
/// directions, as long as the summary and the batch agree.
///
/// Afterwards a candidate is `Some` only if the block's fingerprint stands in that place of a
/// loaded summary. A candidate that continues the one before it replaces one that does not: fewer,
/// longer pieces.
///
/// # Panics
/// If there are not as many candidates as fingerprints.
pub fn extend(
    fingerprints: &[ShortFingerprint],
    candidates: &mut [Option<Candidate>],
    summaries: &impl Summaries,
) {
    assert_eq!(fingerprints.len(), candidates.len(), "a candidate or none for each block");
    let mut loaded = LastLoaded { summaries, last: None };

    let mut before: Option<Candidate> = None;
    for (fingerprint, candidate) in fingerprints.iter().zip(&mut *candidates) {
        let continuation = before.and_then(|before| {
            let next = Candidate { ordinal: before.ordinal.checked_add(1)?, ..before };
            loaded.holds(next, fingerprint).then_some(next)
        });
        *candidate =
            continuation.or_else(|| candidate.filter(|found| loaded.holds(*found, fingerprint)));
        before = *candidate;
    }

    let mut after: Option<Candidate> = None;
    for (fingerprint, candidate) in fingerprints.iter().zip(&mut *candidates).rev() {
        if candidate.is_none() {
            *candidate = after.and_then(|after| {
                let previous = Candidate { ordinal: after.ordinal.checked_sub(1)?, ..after };
                loaded.holds(previous, fingerprint).then_some(previous)
            });
        }
        after = *candidate;
    }
}

/// The summary asked for last: consecutive questions are nearly always about the same unit.
struct LastLoaded<'a, S> {
    summaries: &'a S,
    last: Option<(UnitAddress, Option<Arc<[ShortFingerprint]>>)>,
}

impl<S: Summaries> LastLoaded<'_, S> {
    fn holds(&mut self, candidate: Candidate, fingerprint: &ShortFingerprint) -> bool {
        if self.last.as_ref().is_none_or(|(unit, _)| *unit != candidate.unit) {
            self.last = Some((candidate.unit, self.summaries.fingerprints(candidate.unit)));
        }
        let held = self.last.as_ref().and_then(|(_, held)| held.as_deref());
        held.and_then(|held| held.get(candidate.ordinal as usize)) == Some(fingerprint)
    }
}

/// Decides for every block of a batch whether it is stored or linked, and appends the decisions
/// to `out`, in order and without gaps.
///
/// `targets` says what each block is a duplicate of, and `contiguous_with_previous` whether its
/// address follows that of the block before it (the first block's value does not matter).
/// Duplicates at consecutive addresses count as one run even if their targets are not consecutive;
/// they come out as one link for each piece whose targets are.
///
/// # Panics
/// If the lengths differ, or `threshold` is 0.
pub fn plan(
    targets: &[Option<Target>],
    contiguous_with_previous: &[bool],
    threshold: usize,
    out: &mut Vec<Run>,
) {
    assert_eq!(targets.len(), contiguous_with_previous.len(), "one flag a block");
    assert!(threshold >= 1, "a run has a block");
    let mut first_stored = 0;
    let mut at = 0;
    while at < targets.len() {
        let first = at;
        at += 1;
        if targets[first].is_none() {
            continue;
        }
        while at < targets.len() && targets[at].is_some() && contiguous_with_previous[at] {
            at += 1;
        }
        if at - first >= threshold {
            store(first_stored, first, out);
            link(first, &targets[first..at], out);
            first_stored = at;
        }
    }
    store(first_stored, targets.len(), out);
}

fn store(first: usize, end: usize, out: &mut Vec<Run>) {
    if first < end {
        out.push(Run { first, len: end - first, kind: Kind::Store });
    }
}

/// One link for each piece of a run of duplicates whose targets follow each other.
fn link(first: usize, targets: &[Option<Target>], out: &mut Vec<Run>) {
    let follows = |before: &Option<Target>, this: &Option<Target>| {
        before.zip(*this).is_some_and(|(before, this)| this.follows(&before))
    };
    let mut first = first;
    for piece in targets.chunk_by(follows) {
        let first_target = piece[0].expect("a run of duplicates");
        out.push(Run { first, len: piece.len(), kind: Kind::Link { first_target } });
        first += piece.len();
    }
}

#[cfg(test)]
mod tests;
