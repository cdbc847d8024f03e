//! The arithmetic of the ring: which records occupy the region, and where the next one goes.
//!
//! Blocks are counted from the region's start. A record never wraps: if it does not fit before
//! the end, the rest of the region stays unused for that lap and the record goes to block 0.
//!
//! A record that was trimmed in memory may not be overwritten at once. If the record written over
//! it were torn, recovery would find the record before, which still calls the overwritten one
//! live: a hole that looks like damage. So there are two tails:
//!
//! ```text
//!        held                     live                 newest      next
//!   ------|------------------------|---------------------|----------|------
//!         oldest that the newest   oldest not trimmed
//!         record calls live        in memory
//! ```
//!
//! Only what precedes `held` is free. Each new record says what is live, and when it is durable,
//! `held` moves there. If a record would fit the space between the two tails, a one-block marker
//! is written first, and one block is always kept free for it.
//!
//! Invariants: `records` are `held..=newest`, never empty, do not overlap, each begins where the
//! one before ends, or at 0; `held <= live <= newest + 1`; a marker can be placed at any time.

use std::collections::VecDeque;

use siltstone_device::Sequence;

/// Blocks that a marker takes.
const MARKER_BLOCKS: u64 = 1;

/// A record's place in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordExtent {
    pub(crate) start: u64,
    pub(crate) len_blocks: u64,
    pub(crate) last_sequence: Sequence,
}

impl RecordExtent {
    fn end(&self) -> u64 {
        self.start + self.len_blocks
    }
}

/// Where the next record goes and what it must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) number: u64,
    pub(crate) start: u64,
    pub(crate) len_blocks: u64,
    pub(crate) trimmed: Sequence,
    pub(crate) oldest_live: u64,
    pub(crate) oldest_live_start: u64,
}

/// How to append a record of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Write it there.
    Record(Placement),
    /// Write this marker first, then ask again.
    Marker(Placement),
}

/// The ring.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    capacity_blocks: u64,
    records: VecDeque<RecordExtent>,
    held: u64,
    live: u64,
    trimmed: Sequence,
    /// What the newest record says is trimmed.
    recorded_trimmed: Sequence,
}

/// The part of the ring that may not be overwritten: from `tail` forward to `head`, which may be
/// behind `tail`, past the wrap.
#[derive(Clone, Copy)]
struct Occupied {
    tail: u64,
    newest_start: u64,
    head: u64,
}

impl Occupied {
    /// Whether `len_blocks` from `start` are outside of it, inside the region, and next in turn.
    fn admits(&self, start: u64, len_blocks: u64, capacity_blocks: u64) -> bool {
        let end = start + len_blocks;
        if self.newest_start < self.tail {
            start == self.head && end <= self.tail
        } else if start == self.head {
            end <= capacity_blocks
        } else {
            start == 0 && end <= self.tail
        }
    }
}

impl Ring {
    /// A ring that holds `records`, numbered from `held` on, trimmed up to `trimmed`.
    ///
    /// `None` if they leave no room for a marker, which no log does.
    ///
    /// # Panics
    /// If there is no record, or one passes the end.
    pub(crate) fn new(
        capacity_blocks: u64,
        held: u64,
        records: VecDeque<RecordExtent>,
        trimmed: Sequence,
    ) -> Option<Self> {
        assert!(!records.is_empty(), "a formatted log has a record");
        assert!(records.iter().all(|record| record.end() <= capacity_blocks));
        let recorded_trimmed = trimmed;
        let mut ring =
            Self { capacity_blocks, records, held, live: held, trimmed, recorded_trimmed };
        ring.marker_start(ring.occupied())?;
        ring.trim(trimmed);
        Some(ring)
    }

    /// The newest durable record's number.
    pub(crate) fn newest(&self) -> u64 {
        self.held + self.records.len() as u64 - 1
    }

    /// Forgets the records that hold nothing newer than `up_to`.
    pub(crate) fn trim(&mut self, up_to: Sequence) {
        self.trimmed = self.trimmed.max(up_to);
        while self.live <= self.newest() && self.extent(self.live).last_sequence <= self.trimmed {
            self.live += 1;
        }
    }

    /// Blocks from the oldest live record to the newest one's end, with the gap where the ring
    /// wraps; the newest record counts even when it is trimmed.
    pub(crate) fn used_blocks(&self) -> u64 {
        let tail = self.extent(self.live.min(self.newest())).start;
        let newest = self.extent(self.newest());
        if newest.start < tail {
            self.capacity_blocks - tail + newest.end()
        } else {
            newest.end() - tail
        }
    }

    /// The largest record that can be appended now.
    pub(crate) fn free_blocks(&self) -> u64 {
        // What fits at some place also fits there when shorter, so bisection is exact.
        let (mut fits, mut too_large) = (0, self.capacity_blocks + 1);
        while too_large - fits > 1 {
            let middle = fits.midpoint(too_large);
            if self.plan(middle).is_some() {
                fits = middle;
            } else {
                too_large = middle;
            }
        }
        fits
    }

    /// How a record of `len_blocks` can be appended now; not at all until more is trimmed, if
    /// `None`.
    pub(crate) fn plan(&self, len_blocks: u64) -> Option<Plan> {
        let number = self.newest() + 1;
        if let Some(start) = self.place(self.occupied(), self.live_start(), len_blocks) {
            return Some(Plan::Record(self.placement(number, start, len_blocks)));
        }
        if self.live > self.held {
            let marker = self.marker();
            // A marker is trimmed as soon as it is written.
            let live_start = self.live_start();
            let after = Occupied {
                tail: live_start.unwrap_or(marker.start),
                newest_start: marker.start,
                head: marker.start + marker.len_blocks,
            };
            if self.place(after, live_start, len_blocks).is_some() {
                return Some(Plan::Marker(marker));
            }
        }
        None
    }

    /// The marker that makes the trimming durable, if that would free a record.
    pub(crate) fn marker_for_trim(&self) -> Option<Placement> {
        (self.live > self.held && self.trimmed > self.recorded_trimmed).then(|| self.marker())
    }

    /// The record placed by `placement` is durable: whatever it does not call live is free.
    pub(crate) fn commit(&mut self, placement: &Placement, last_sequence: Sequence) {
        let Placement { number, start, len_blocks, trimmed, oldest_live, .. } = *placement;
        assert_eq!(number, self.newest() + 1, "records become durable one after the other");
        self.records.push_back(RecordExtent { start, len_blocks, last_sequence });
        while self.held < oldest_live {
            self.records.pop_front();
            self.held += 1;
        }
        assert!(!self.records.is_empty() && self.held <= self.live);
        self.recorded_trimmed = trimmed;
        self.trim(self.trimmed);
    }

    fn extent(&self, number: u64) -> &RecordExtent {
        &self.records[(number - self.held) as usize]
    }

    fn occupied(&self) -> Occupied {
        let newest = self.extent(self.newest());
        let tail = self.extent(self.held).start;
        Occupied { tail, newest_start: newest.start, head: newest.end() }
    }

    /// Where the oldest live record begins, if any is live.
    fn live_start(&self) -> Option<u64> {
        (self.live <= self.newest()).then(|| self.extent(self.live).start)
    }

    /// A start for `len_blocks` outside `occupied` that leaves room for a marker when only the
    /// records from `live_start` on (and the new one) are occupied.
    fn place(&self, occupied: Occupied, live_start: Option<u64>, len_blocks: u64) -> Option<u64> {
        [occupied.head, 0].into_iter().find(|&start| {
            let head = start + len_blocks;
            let after = Occupied { tail: live_start.unwrap_or(start), newest_start: start, head };
            occupied.admits(start, len_blocks, self.capacity_blocks)
                && self.marker_start(after).is_some()
        })
    }

    fn marker_start(&self, occupied: Occupied) -> Option<u64> {
        [occupied.head, 0]
            .into_iter()
            .find(|&start| occupied.admits(start, MARKER_BLOCKS, self.capacity_blocks))
    }

    fn marker(&self) -> Placement {
        let start = self.marker_start(self.occupied());
        let start = start.expect("one block is always kept free for a marker");
        self.placement(self.newest() + 1, start, MARKER_BLOCKS)
    }

    fn placement(&self, number: u64, start: u64, len_blocks: u64) -> Placement {
        Placement {
            number,
            start,
            len_blocks,
            trimmed: self.trimmed,
            oldest_live: self.live.min(number),
            oldest_live_start: self.live_start().unwrap_or(start),
        }
    }
}

#[cfg(test)]
mod tests;
