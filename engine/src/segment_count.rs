//! How many segments an open pool has: one number, which only ever grows, for everybody.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// See the module's page. Cheap to clone; all clones are one number.
#[derive(Clone, Debug)]
pub(crate) struct SegmentCount(Arc<AtomicU32>);

impl SegmentCount {
    pub(crate) fn new(count: u32) -> Self {
        Self(Arc::new(AtomicU32::new(count)))
    }

    /// The count at this moment.
    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// There are more now. For the segment table alone, which knows the new ones by then.
    pub(crate) fn grow_to(&self, count: u32) {
        let before = self.0.fetch_max(count, Ordering::AcqRel);
        assert!(before <= count, "segments never become fewer");
    }
}
