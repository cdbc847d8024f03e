//! Pools that say they are full and hold nothing: for measuring what opening a large one takes.

use std::sync::Arc;

use siltstone_device::{Device, SystemEntropy};

use super::{Pool, create::create_on};
use crate::{config::CreateOptions, error::Result, segment_table::SegmentTable};

impl Pool {
    /// Makes a pool of which nine tenths of the segments are said to be full, by a table that is as it
    /// would be then. Nothing is stored in them and no volume refers to them, which `check` finds; so a
    /// device of a hundred tebibytes can be sparse. For benches.
    ///
    /// # Errors
    /// As [`create_on`](Self::create_on).
    #[doc(hidden)]
    pub fn create_pretended_on(device: Arc<dyn Device>, options: &CreateOptions) -> Result<()> {
        let table = SegmentTable::pretended;
        pollster::block_on(create_on(device, None, options, &SystemEntropy, table))
    }
}
