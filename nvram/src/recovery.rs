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
//! What the table cannot see: N + 1 that was acknowledged and then damaged by the medium looks
//! like a torn tail, or like nothing, if N + 2 was never begun. Who keeps a [mark](crate::mark) of
//! what was durable asks [`Replay::lost_record`](crate::Replay::lost_record). A torn tail is
//! reported besides, not passed over in silence; and a log closed after
//! [`Log::persist_trim`](crate::Log::persist_trim) ends in a record that holds nothing.

use std::collections::VecDeque;

use siltstone_device::{BLOCK_BYTES, Sequence};

use crate::{LogDamage, OpenError, Region, ring::RecordExtent, scan::Sighting};

/// The newest record that power loss tore. It was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Its number.
    pub record: u64,
    /// Its place.
    pub offset: siltstone_device::ByteOffset,
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
}

/// Applies the decision table.
pub(crate) fn decide(region: Region, sightings: &[Sighting]) -> Result<Recovered, OpenError> {
    let number = |sighting: &Sighting| sighting.head.label.number;
    let whole = || sightings.iter().filter(|sighting| sighting.whole);
    let broken = || sightings.iter().filter(|sighting| !sighting.whole);
    let newest = whole().max_by_key(|s| number(s)).ok_or(OpenError::NoRecord { region })?.head;
    let next = newest.label.number.saturating_add(1);

    let mut chain: Vec<&Sighting> =
        whole().filter(|s| number(s) >= newest.label.oldest_live).collect();
    chain.sort_by_key(|s| number(s));
    if broken().any(|s| number(s) > next) {
        let lost = broken().find(|s| number(s) == next);
        let offset = lost.map(|s| s.head.label.address);
        return Err(damaged(
            next,
            offset.unwrap_or(newest.label.address.plus(newest.len_bytes)),
            offset.map_or(LogDamage::Missing, |_| LogDamage::NotWhole),
        ));
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
            let broken = broken().find(|s| number(s) == wanted);
            return Err(match broken.map(|s| s.head.label.address) {
                Some(offset) => damaged(wanted, offset, LogDamage::NotWhole),
                None => damaged(wanted, expected, LogDamage::Missing),
            });
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
    })
}

fn damaged(record: u64, offset: siltstone_device::ByteOffset, damage: LogDamage) -> OpenError {
    OpenError::Damaged { record, offset, damage }
}

#[cfg(test)]
mod tests;
