//! The frontier: segments that are reserved for the sealer, named in the last checkpoint record.
//!
//! The sealer takes them from the front and has one open for each [`Temperature`] at most; the
//! checkpointer adds to the back, before the sealer runs out, and only segments whose reservation a
//! stored record has made durable are handed out: recovery looks nowhere else.
//!
//! [`Temperature`]: crate::temperature::Temperature

use std::collections::{BTreeSet, VecDeque};

use event_listener::{Event, EventListener};
use siltstone_device::{SegmentId, Sequence, sync::Mutex};

use crate::{
    segment_count::SegmentCount,
    segment_table::{SegmentState, SegmentTable},
    space::reserve_segments,
};

/// Segments that lie ready if there is any room beyond the reserve.
const MIN_READY: usize = 3;

/// A frontier segment that is being written, or was, and is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrontierSegment {
    pub(crate) id: SegmentId,
    pub(crate) generation: u64,
    /// The newest change placed in it so far.
    pub(crate) last_sequence: Sequence,
    /// What the sealer may still place in it: nothing, once it is full or given up.
    pub(crate) left_bytes: u64,
}

impl FrontierSegment {
    fn is_full(&self) -> bool {
        self.left_bytes == 0
    }
}

/// See the module's page. The lock is a leaf but for the segment table's.
pub(crate) struct Frontier {
    inner: Mutex<Inner>,
    extended: Event,
    segment_count: SegmentCount,
    segment_bytes: u64,
}

struct Inner {
    /// Written or being written, in the order in which they were begun.
    begun: Vec<FrontierSegment>,
    /// In the last stored record and not begun.
    ready: VecDeque<(SegmentId, u64)>,
    /// How many of those the last checkpoint left: the most that the room allowed.
    granted: usize,
}

impl Inner {
    fn begun(&mut self, id: SegmentId) -> Option<&mut FrontierSegment> {
        self.begun.iter_mut().find(|segment| segment.id == id)
    }

    /// Bytes that can be placed in begun segments for certain: of those that are open only the
    /// emptiest counts. What is left of each may fit no unit although all of it together would.
    fn open_bytes(&self) -> u64 {
        self.begun.iter().map(|segment| segment.left_bytes).max().unwrap_or(0)
    }

    fn free_bytes(&self, segment_bytes: u64) -> u64 {
        self.ready.len() as u64 * segment_bytes + self.open_bytes()
    }
}

impl Frontier {
    pub(crate) fn new(segment_count: SegmentCount, segment_bytes: u64) -> Self {
        let (begun, ready) = Default::default();
        let inner = Inner { begun, ready, granted: 0 };
        let (inner, extended) = (Mutex::new(inner), Event::new());
        let frontier = Self { inner, extended, segment_count, segment_bytes };
        frontier.inner.lock().granted = frontier.target();
        frontier
    }

    /// How many segments shall be ready: a quarter gigabyte, so that a checkpoint has time to finish,
    /// but no more than the pool can spare.
    fn target(&self) -> usize {
        let spare = u64::from(self.segment_count.get()) / 8;
        ((256 << 20) / self.segment_bytes).min(spare).max(3) as usize
    }

    /// Free segments to leave for patches: without them no checkpoint, and without that no trim
    /// ever frees anything.
    fn keep_segments(&self) -> u64 {
        reserve_segments(self.segment_count.get())
    }

    /// Recovery only: segments with units, of which one at most is not full.
    pub(crate) fn recover(&self, begun: Vec<FrontierSegment>) {
        assert!(begun.iter().filter(|segment| !segment.is_full()).count() <= 1);
        self.inner.lock().begun = begun;
    }

    /// The segment in which recovery found room behind the last unit.
    pub(crate) fn open_segment(&self) -> Option<FrontierSegment> {
        self.inner.lock().begun.iter().find(|segment| !segment.is_full()).copied()
    }

    /// How many segments the sealer can begin without a checkpoint.
    pub(crate) fn ready_segments(&self) -> usize {
        self.inner.lock().ready.len()
    }

    /// The next segment for the sealer, if there is one. To wait for one, [`listen`](Self::listen)
    /// before this.
    pub(crate) fn next(&self) -> Option<(SegmentId, u64)> {
        let mut inner = self.inner.lock();
        let (id, generation) = inner.ready.pop_front()?;
        let last_sequence = Sequence(0);
        let left_bytes = self.segment_bytes;
        inner.begun.push(FrontierSegment { id, generation, last_sequence, left_bytes });
        Some((id, generation))
    }

    /// Ends when segments are added, a checkpoint has frozen the memtable or ended, somebody waits for what
    /// the sealer may hold back, or the pool's health has changed.
    pub(crate) fn listen(&self) -> EventListener {
        self.extended.listen()
    }

    /// The sealer has placed a unit in an open segment.
    pub(crate) fn placed(&self, id: SegmentId, last_sequence: Sequence, left_bytes: u64) {
        let mut inner = self.inner.lock();
        let open = inner.begun(id).expect("a unit is placed in a begun segment");
        open.last_sequence = last_sequence;
        open.left_bytes = left_bytes;
    }

    /// The newest change placed in a segment that is not settled.
    pub(crate) fn last_placed(&self, id: SegmentId) -> Option<Sequence> {
        let inner = self.inner.lock();
        inner.begun.iter().find(|segment| segment.id == id).map(|segment| segment.last_sequence)
    }

    /// The sealer will place nothing more in a segment.
    pub(crate) fn close(&self, id: SegmentId) {
        // One that was filled to the end may be settled already.
        if let Some(open) = self.inner.lock().begun(id) {
            open.left_bytes = 0;
        }
    }

    /// Bytes that the sealer can place without a checkpoint.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.inner.lock().free_bytes(self.segment_bytes)
    }

    /// Segments in which nothing more will be placed and that are not settled.
    pub(crate) fn full_segments(&self) -> BTreeSet<SegmentId> {
        let inner = self.inner.lock();
        inner.begun.iter().filter(|segment| segment.is_full()).map(|segment| segment.id).collect()
    }

    /// Segments of which the index may not know everything yet when it knows all units up to
    /// `published`.
    pub(crate) fn unfinished(&self, published: Sequence) -> Vec<(SegmentId, u64)> {
        let inner = self.inner.lock();
        let is_known =
            |segment: &&FrontierSegment| segment.is_full() && segment.last_sequence <= published;
        let begun = inner.begun.iter().filter(|segment| !is_known(segment));
        let begun = begun.map(|segment| (segment.id, segment.generation));
        begun.chain(inner.ready.iter().copied()).collect()
    }

    /// Whether less than half is left of what the last checkpoint could give: where there is
    /// little room, that is little, and checkpoints in quick succession would not make it more.
    pub(crate) fn is_low(&self) -> bool {
        let inner = self.inner.lock();
        inner.ready.len() < inner.granted.div_ceil(2).max(1)
    }

    /// Whether less than a quarter is left, or one segment: a checkpoint that makes it more is urgent.
    pub(crate) fn is_nearly_used_up(&self) -> bool {
        let inner = self.inner.lock();
        inner.ready.len() < inner.granted.div_ceil(4).max(2)
    }

    /// Checkpoint: begun segments that are full and whose changes all lie in patches become data.
    pub(crate) fn settle(&self, table: &SegmentTable, sequence: Sequence) {
        let is_settled =
            |segment: &FrontierSegment| segment.is_full() && segment.last_sequence <= sequence;
        self.inner.lock().begun.retain(|segment| {
            if is_settled(segment) {
                table.settle(segment.id);
            }
            !is_settled(segment)
        });
    }

    /// Checkpoint: reserves segments up to the target, but no more than half of what the pool has
    /// beyond its reserve, or [`MIN_READY`]: the collector needs room as well, and what lies ready
    /// here serves nothing else. Of the reserve, half is the last resort by which a full pool still
    /// takes trims. What is promised to admitted changes is the sealer's in any case, but for what
    /// patches need: they cannot be refused any more, and it may be the collector that has taken the
    /// rest. What lies ready beyond that goes back: once what was promised has turned out to need
    /// less, the collector would else find no room, and the pool stay full of garbage.
    pub(crate) fn reserve(&self, table: &SegmentTable, promised: Promised) -> Reservation {
        let mut inner = self.inner.lock();
        let kept = self.keep_segments();
        let spare = table.free_segments().saturating_sub(kept) as usize;
        let target = self.target().min(((inner.ready.len() + spare) / 2).max(MIN_READY));
        let promised_segments =
            promised.bytes.saturating_sub(inner.open_bytes()).div_ceil(self.segment_bytes);
        while inner.ready.len() > target.max(promised_segments as usize) {
            let (unused, _) = inner.ready.pop_back().expect("more are ready than are wanted");
            table.give_back(unused);
        }
        let mut segments: Vec<_> = inner.begun.iter().map(|s| (s.id, s.generation)).collect();
        segments.extend(inner.ready.iter().copied());
        let mut added = Vec::new();
        loop {
            let count = inner.ready.len() + added.len();
            let is_promised =
                count as u64 * self.segment_bytes + inner.open_bytes() < promised.bytes;
            let keep = match count {
                _ if is_promised => promised.keep_segments,
                0 => kept / 2,
                _ if count < target => kept,
                _ => break,
            };
            if table.free_segments() <= keep {
                break;
            }
            match table.take(SegmentState::Frontier) {
                Some(segment) => added.push(segment),
                None => break,
            }
        }
        segments.extend(added.iter().copied());
        Reservation { segments, added }
    }

    /// Checkpoint: the record is stored; the sealer may use what it names.
    pub(crate) fn extend(&self, added: Vec<(SegmentId, u64)>) {
        let mut inner = self.inner.lock();
        inner.ready.extend(added);
        inner.granted = inner.ready.len();
        drop(inner);
        self.extended.notify(usize::MAX);
    }

    /// Lets the sealer look at what has changed.
    pub(crate) fn wake(&self) {
        self.extended.notify(usize::MAX);
    }
}

/// What admitted changes may need that are not placed yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promised {
    pub(crate) bytes: u64,
    /// Free segments to leave all the same.
    pub(crate) keep_segments: u64,
}

/// The frontier as a checkpoint record names it.
pub(crate) struct Reservation {
    pub(crate) segments: Vec<(SegmentId, u64)>,
    /// Those of them that are not the sealer's until the record is stored.
    pub(crate) added: Vec<(SegmentId, u64)>,
}

#[cfg(all(test, loom))]
mod models;
