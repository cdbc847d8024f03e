//! What the heads found in the ring mean: the decision table of log recovery.
//!
//! Let N be the newest whole record, and L the oldest that it calls live. The first row that
//! applies decides:
//!
//! | case            | what was found                                | verdict                    |
//! |-----------------|-----------------------------------------------|----------------------------|
//! | `NoRecord`      | no whole record                               | error: not this log        |
//! | `LostTail`      | a broken record newer than N + 1              | error: N + 1 was acked     |
//! | `Conflict`      | two whole records of one number in L..=N      | error naming both          |
//! | `Hole`          | L..=N lacks a record                          | error naming it            |
//! | `Misplaced`     | L..=N do not follow each other in the ring    | error naming the first     |
//! | `TornTail`      | a broken record N + 1                         | replay L..=N               |
//! | `Clean`         | nothing newer than N                          | replay L..=N               |
//!
//! Why a broken N + 1 is no loss: appends go one at a time, so N + 1 is the only record that power
//! loss can have torn, and it was not acknowledged; N + 2 was written only if N + 1 was durable.
//! Records older than L, whole or broken, are stale and count for nothing (rows above never look
//! at them); so are copies of records inside guests' data, which are stale ones if they are at
//! their own place at all: it was free when the record that contains them was written.
//!
//! Blocks that cannot be read were scanned as zeros, and are told as such: see [`Log::unreadable`].
//!
//! [`Log::unreadable`]: crate::Log::unreadable
//!
//! What the table cannot see: N + 1 that was acknowledged and then damaged by the medium looks
//! like a torn tail, or like nothing, if N + 2 was never begun. Who keeps a [mark](crate::mark) of
//! what was durable asks [`Replay::lost_record`](crate::Replay::lost_record). A torn tail is
//! reported besides, not passed over in silence; and a log closed after
//! [`Log::persist_trim`](crate::Log::persist_trim) ends in a record that holds nothing.

use std::collections::VecDeque;

use siltstone_device::{BLOCK_BYTES, ByteOffset, Sequence, Unreadable};

use crate::{LogDamage, OpenError, Region, ring::RecordExtent, scan::Sighting};

/// The newest record that power loss tore. It was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Its number.
    pub record: u64,
    /// Its place.
    pub offset: ByteOffset,
}

/// What recovery found to be live.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The number of the first of `records`.
    pub(crate) oldest_live: u64,
    /// The live records in order, never empty.
    pub(crate) records: VecDeque<RecordExtent>,
    /// Up to where the newest record says that everything is durable elsewhere.
    pub(crate) trimmed: Sequence,
    pub(crate) torn_tail: Option<TornTail>,
    /// Where the record after the newest is or should be, and what is wrong with it if there was
    /// one.
    pub(crate) next: (ByteOffset, LogDamage),
}

/// Applies the decision table. `unreadable` blocks were scanned as zeros: they hide nothing but what
/// damage of them would hide, and are named as the cause where they do.
pub(crate) fn decide(
    region: Region,
    sightings: &[Sighting],
    unreadable: &[Unreadable],
) -> Result<Recovered, OpenError> {
    let number = |sighting: &Sighting| sighting.head.label.number;
    let whole = || sightings.iter().filter(|sighting| sighting.whole);
    let broken = || sightings.iter().filter(|sighting| !sighting.whole);
    let Some(newest) = whole().max_by_key(|s| number(s)) else {
        return Err(match unreadable.first() {
            Some(blocks) => blocks.cause.clone().into(),
            None => OpenError::NoRecord { region },
        });
    };
    let newest = newest.head;
    let next = newest.label.number.saturating_add(1);
    // Of a record with this number that belongs there: its place, and what is wrong with it.
    let flaw = |wanted, expected: ByteOffset| match broken().find(|s| number(s) == wanted) {
        Some(Sighting { head, .. }) => {
            let offset = head.label.address;
            (offset, cause_in(offset, head.len_bytes, unreadable).unwrap_or(LogDamage::NotWhole))
        }
        None => {
            // Nothing is there, or, if the ring wraps, at the start.
            let cause = |offset| Some((offset, cause_in(offset, BLOCK_BYTES as u64, unreadable)?));
            let found = cause(expected).or_else(|| cause(region.offset));
            found.unwrap_or((expected, LogDamage::Missing))
        }
    };

    let mut chain: Vec<&Sighting> =
        whole().filter(|s| number(s) >= newest.label.oldest_live).collect();
    chain.sort_by_key(|s| number(s));
    let after_newest = flaw(next, newest.label.address.plus(newest.len_bytes));
    if broken().any(|s| number(s) > next) {
        let (offset, damage) = after_newest;
        return Err(damaged(next, offset, damage));
    }

    let mut expected = newest.label.oldest_live_address;
    let mut records = VecDeque::new();
    for (sighting, wanted) in chain.iter().zip(newest.label.oldest_live..) {
        let head = sighting.head;
        let found = head.label.address;
        if head.label.number < wanted {
            let before = chain[records.len() - 1].head.label.address;
            return Err(damaged(wanted - 1, before, LogDamage::Twice { other: found }));
        }
        if head.label.number > wanted {
            let (offset, damage) = flaw(wanted, expected);
            return Err(damaged(wanted, offset, damage));
        }
        // The first of the chain stands exactly where the newest says; later ones may wrap.
        let may_wrap = !records.is_empty();
        if found != expected && !(may_wrap && found == region.offset) {
            return Err(damaged(wanted, expected, LogDamage::Misplaced { found }));
        }
        records.push_back(RecordExtent {
            start: (found.0 - region.offset.0) / BLOCK_BYTES as u64,
            len_blocks: head.len_bytes / BLOCK_BYTES as u64,
            last_sequence: head.last_sequence,
        });
        expected = found.plus(head.len_bytes);
    }
    let torn = broken().find(|s| number(s) == next);
    Ok(Recovered {
        oldest_live: newest.label.oldest_live,
        records,
        trimmed: newest.label.trimmed,
        torn_tail: torn.map(|s| TornTail { record: next, offset: s.head.label.address }),
        next: after_newest,
    })
}

fn damaged(record: u64, offset: ByteOffset, damage: LogDamage) -> OpenError {
    OpenError::Damaged { record, offset, damage }
}

/// Why a range cannot be read, if it cannot.
pub(crate) fn cause_in<'a>(
    offset: ByteOffset,
    len_bytes: u64,
    unreadable: impl IntoIterator<Item = &'a Unreadable>,
) -> Option<LogDamage> {
    let mut unreadable = unreadable.into_iter();
    let blocks = unreadable.find(|blocks| blocks.touches(offset, len_bytes))?;
    Some(LogDamage::Unreadable { cause: blocks.cause.clone() })
}

#[cfg(test)]
mod tests;
