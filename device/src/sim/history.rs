//! What happened to a simulated medium, event by event.
//!
//! Every change has two events, its submission and its completion, numbered in one sequence.
//! A change becomes durable at the event that guarantees it: its own completion if it asked for
//! immediate durability, else the completion of a flush that was submitted after it completed.
//! After a failed flush, what that flush would have covered is never guaranteed again.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::image::{Image, Page};
use crate::{BLOCK_BYTES, Durability, Operation};

/// Events between two checkpoints, at least.
const CHECKPOINT_EVENTS: usize = 64;

/// A write, flush or discard, as a hook sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The number of its submission in the history.
    pub index: usize,
    /// What was asked.
    pub operation: Operation,
    /// Where; 0 for a flush.
    pub offset_bytes: u64,
    /// How much; 0 for a flush.
    pub len_bytes: u64,
    /// When a write must be durable; [`Durability::Flush`] for others.
    pub durability: Durability,
}

/// How the medium changes.
pub(super) enum Change {
    Write {
        offset_bytes: u64,
        /// How much of the pages lands, in whole sectors: all, unless it was struck by a fault.
        len_bytes: u64,
        pages: Vec<Arc<Page>>,
        durability: Durability,
    },
    Discard {
        offset_bytes: u64,
        len_bytes: u64,
    },
    Flush,
    /// Bytes that went bad on the medium, at any offset. Durable, unfortunately.
    Damage {
        offset_bytes: u64,
        bytes: Vec<u8>,
    },
}

impl Change {
    pub(super) fn apply(&self, image: &mut Image) {
        let block = BLOCK_BYTES as u64;
        match self {
            Self::Write { offset_bytes, len_bytes, pages, .. } => {
                for (start, page) in (0..*len_bytes).step_by(BLOCK_BYTES).zip(pages) {
                    let landed_bytes = block.min(len_bytes - start) as usize;
                    if landed_bytes == BLOCK_BYTES {
                        image.set_page((offset_bytes + start) / block, Some(Arc::clone(page)));
                    } else {
                        image.write(offset_bytes + start, &page[..landed_bytes]);
                    }
                }
            }
            Self::Discard { offset_bytes, len_bytes } => {
                for number in offset_bytes / block..(offset_bytes + len_bytes) / block {
                    image.set_page(number, None);
                }
            }
            Self::Flush => {}
            Self::Damage { offset_bytes, bytes } => image.write(*offset_bytes, bytes),
        }
    }

    /// Where the change happens: offset and length in bytes.
    pub(super) fn range(&self) -> (u64, u64) {
        match self {
            Self::Write { offset_bytes, len_bytes, .. }
            | Self::Discard { offset_bytes, len_bytes } => (*offset_bytes, *len_bytes),
            Self::Flush => (0, 0),
            Self::Damage { offset_bytes, bytes } => (*offset_bytes, bytes.len() as u64),
        }
    }

    fn touches(&self, range_bytes: &Range<u64>) -> bool {
        let (offset_bytes, len_bytes) = self.range();
        let end_bytes = offset_bytes + len_bytes;
        len_bytes > 0 && offset_bytes < range_bytes.end && range_bytes.start < end_bytes
    }

    fn is_immediate(&self) -> bool {
        matches!(self, Self::Damage { .. } | Self::Write { durability: Durability::Immediate, .. })
    }

    fn event(&self, index: usize) -> Event {
        let (operation, durability) = match self {
            Self::Write { durability, .. } => (Operation::Write, *durability),
            Self::Damage { .. } => (Operation::Write, Durability::Immediate),
            Self::Discard { .. } => (Operation::Discard, Durability::Flush),
            Self::Flush => (Operation::Flush, Durability::Flush),
        };
        let (offset_bytes, len_bytes) = self.range();
        Event { index, operation, offset_bytes, len_bytes, durability }
    }
}

/// A change and its fate. Events are numbers in the history.
pub(super) struct Entry {
    pub(super) change: Change,
    pub(super) submitted_at: usize,
    pub(super) completed_at: Option<usize>,
    /// The completion was a failure: nothing was changed.
    pub(super) failed: bool,
    /// When it became certain to survive a power cut.
    pub(super) durable_at: Option<usize>,
    /// For a flush: how many completions came before its submission.
    completions_before: u64,
}

impl Entry {
    /// Makes a flush guarantee nothing, though it succeeds.
    pub(super) fn covers_nothing(&mut self) {
        self.completions_before = 0;
    }
}

/// A moment at which everything was durable.
pub(super) struct Checkpoint {
    /// The number of the next event at that moment.
    pub(super) event: usize,
    /// The number of the next entry.
    pub(super) entry: usize,
    pub(super) image: Image,
}

pub(super) struct History {
    pub(super) entries: Vec<Entry>,
    /// In order; the first is the state in which the history began.
    checkpoints: Vec<Checkpoint>,
    events: usize,
    in_flight: usize,
    completions: u64,
    /// Completed changes that no flush has covered yet, as (completion number, entry), in order.
    dirty: VecDeque<(u64, usize)>,
    /// A flush has failed over some changes: they stay uncertain for ever.
    has_uncertain: bool,
}

impl History {
    /// An empty history of a medium that durably holds `image`.
    pub(super) fn new(image: Image) -> Self {
        Self {
            entries: Vec::new(),
            checkpoints: vec![Checkpoint { event: 0, entry: 0, image }],
            events: 0,
            in_flight: 0,
            completions: 0,
            dirty: VecDeque::new(),
            has_uncertain: false,
        }
    }

    /// Events so far.
    pub(super) fn len(&self) -> usize {
        self.events
    }

    /// Changes submitted and not completed.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn next_event(&mut self) -> usize {
        self.events += 1;
        self.events - 1
    }

    /// Records a submission; returns the entry's number and the event.
    pub(super) fn begin(&mut self, change: Change) -> (usize, Event) {
        let submitted_at = self.next_event();
        let event = change.event(submitted_at);
        self.entries.push(Entry {
            change,
            submitted_at,
            completed_at: None,
            failed: false,
            durable_at: None,
            completions_before: self.completions,
        });
        self.in_flight += 1;
        (self.entries.len() - 1, event)
    }

    /// Records a completion. `image` is the live medium, the change already applied.
    pub(super) fn finish(&mut self, number: usize, succeeded: bool, image: &Image) {
        let event = self.next_event();
        self.in_flight -= 1;
        let entry = &mut self.entries[number];
        assert!(entry.completed_at.is_none(), "a change completes once");
        entry.completed_at = Some(event);
        entry.failed = !succeeded;
        if matches!(entry.change, Change::Flush) {
            let covered = entry.completions_before;
            self.cover(covered, succeeded.then_some(event));
        } else if succeeded && entry.change.is_immediate() {
            entry.durable_at = Some(event);
        } else if succeeded {
            self.dirty.push_back((self.completions, number));
            self.completions += 1;
        }
        self.checkpoint(image);
    }

    /// A flush that covers the first `completions` completions has succeeded or failed.
    fn cover(&mut self, completions: u64, durable_at: Option<usize>) {
        while let Some(&(completion, number)) = self.dirty.front()
            && completion < completions
        {
            self.dirty.pop_front();
            self.entries[number].durable_at = durable_at;
            self.has_uncertain |= durable_at.is_none();
        }
    }

    /// Keeps the live image if all of it is durable, so that a crash need not replay what came
    /// before.
    fn checkpoint(&mut self, image: &Image) {
        let latest = self.checkpoints.last().expect("the first is always there");
        let all_durable = self.in_flight == 0 && self.dirty.is_empty() && !self.has_uncertain;
        if all_durable && self.events - latest.event >= CHECKPOINT_EVENTS {
            let (event, entry) = (self.events, self.entries.len());
            self.checkpoints.push(Checkpoint { event, entry, image: image.clone() });
        }
    }

    /// Whether a flush was submitted at or after one event, and completed before another.
    pub(super) fn was_flushed(&self, since: usize, before: usize) -> bool {
        let covers = |entry: &Entry| {
            matches!(entry.change, Change::Flush)
                && !entry.failed
                && entry.submitted_at >= since
                && entry.completed_at.is_some_and(|event| event < before)
        };
        self.entries.iter().rev().take_while(|entry| entry.submitted_at >= since).any(covers)
    }

    /// The latest checkpoint that is not after `event`.
    pub(super) fn checkpoint_before(&self, event: usize) -> &Checkpoint {
        let after = self.checkpoints.partition_point(|checkpoint| checkpoint.event <= event);
        &self.checkpoints[after - 1]
    }

    /// When the write or discard completed that was, of those that touch a range, the one `count`
    /// before the next; the oldest, if there are fewer. `None` if there is none.
    pub(super) fn change_before_last(&self, range_bytes: &Range<u64>, count: u32) -> Option<usize> {
        let is_asked = |entry: &&Entry| !matches!(entry.change, Change::Damage { .. });
        let mut moments: Vec<_> = self
            .landed(range_bytes)
            .filter(is_asked)
            .filter_map(|entry| entry.completed_at)
            .collect();
        moments.sort_unstable();
        let index = moments.len().saturating_sub(count as usize);
        moments.get(index).copied()
    }

    /// Copies out what a range held before the last `count` writes or discards there, as far back
    /// as is known.
    pub(super) fn read_stale(&self, range_bytes: &Range<u64>, count: u32, bytes: &mut [u8]) {
        let moment = self.change_before_last(range_bytes, count).unwrap_or(self.events);
        let is_older = |entry: &&Entry| entry.completed_at.is_some_and(|event| event < moment);
        let mut older: Vec<_> = self.landed(range_bytes).filter(is_older).collect();
        older.sort_by_key(|entry| entry.completed_at);
        let mut image = self.checkpoints[0].image.clone();
        for entry in older {
            entry.change.apply(&mut image);
        }
        image.read(range_bytes.start, bytes);
    }

    /// The changes to a range that have come about, in order of submission.
    fn landed(&self, range_bytes: &Range<u64>) -> impl Iterator<Item = &Entry> {
        let has_landed = |entry: &&Entry| entry.completed_at.is_some() && !entry.failed;
        self.entries
            .iter()
            .filter(has_landed)
            .filter(move |entry| entry.change.touches(range_bytes))
    }
}
