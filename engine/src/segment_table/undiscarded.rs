//! Free segments of which the medium may still hold what was written there: which to use first, and which
//! to give back.

use std::collections::VecDeque;

use siltstone_device::SegmentId;

use super::{Inner, SegmentState, SegmentTable};

/// See the module's page. What was freed last is used first, so what is never needed comes to the
/// front.
#[derive(Default)]
pub(super) struct Undiscarded {
    segments: VecDeque<SegmentId>,
    /// How many of the first have been free for one period, and how many for two.
    aged: usize,
    due: usize,
}

impl Undiscarded {
    /// Segments have come free.
    pub(super) fn extend(&mut self, freed: &[SegmentId]) {
        self.segments.extend(freed);
    }

    /// The one to use next.
    pub(super) fn pop_newest(&mut self) -> Option<SegmentId> {
        let newest = self.segments.pop_back();
        self.aged = self.aged.min(self.segments.len());
        self.due = self.due.min(self.aged);
        newest
    }

    fn pop_due(&mut self) -> Option<SegmentId> {
        self.due = self.due.checked_sub(1)?;
        self.aged -= 1;
        self.segments.pop_front()
    }

    /// A period has passed. Returns whether there is anything.
    fn age(&mut self) -> bool {
        (self.due, self.aged) = (self.aged, self.segments.len());
        self.aged > 0
    }
}

impl SegmentTable {
    /// A period has passed: what was free at the last call and still is may be given back. Returns whether
    /// anything is free that was not given back.
    pub(crate) fn age_undiscarded(&self) -> bool {
        self.inner.lock().undiscarded.age()
    }

    /// All that is free and was not given back may be given back now.
    pub(crate) fn hasten_undiscarded(&self) {
        let undiscarded = &mut self.inner.lock().undiscarded;
        undiscarded.aged = undiscarded.segments.len();
        undiscarded.due = undiscarded.aged;
    }

    /// Takes a segment that has been free for a period to give it back; nobody else can take it until
    /// [`discarded`](Self::discarded).
    pub(crate) fn take_for_discard(&self) -> Option<SegmentId> {
        let mut inner = self.inner.lock();
        let id = inner.undiscarded.pop_due()?;
        let segment = &mut inner.segments[id.0 as usize];
        assert_eq!(segment.state, SegmentState::Free, "{id} is given back when it is free");
        segment.state = SegmentState::Freeing;
        inner.free -= 1;
        Some(id)
    }

    /// The medium has it back, or will not take it.
    pub(crate) fn discarded(&self, id: SegmentId) {
        self.inner.lock().set_free(id);
    }

    /// Forgets what the medium has back: whatever was ever used and is free is to be given back. After
    /// a crash nobody knows better.
    pub(crate) fn suspect_all_undiscarded(&self) {
        let mut inner = self.inner.lock();
        let was_used = |id: SegmentId| self.use_of(id).is_some_and(|generation| generation > 0);
        let ids = (0..inner.segments.len() as u32).map(SegmentId);
        let free = ids.filter(|&id| {
            inner.segments[id.0 as usize].state == SegmentState::Free && was_used(id)
        });
        let segments = free.collect();
        inner.undiscarded = Undiscarded { segments, ..Undiscarded::default() };
    }
}

impl Inner {
    /// A segment that was being freed may be taken.
    pub(super) fn set_free(&mut self, id: SegmentId) {
        let segment = &mut self.segments[id.0 as usize];
        assert_eq!(segment.state, SegmentState::Freeing, "{id} was let go of");
        segment.state = SegmentState::Free;
        self.free += 1;
    }
}
