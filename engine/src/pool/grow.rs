//! Growing a pool while it is in use.
//!
//! # Order
//! ```text
//! 1  the file is made longer, and flushed; a block device has been made larger by somebody else
//! 2  superblock B, then A, with the new size: each durable before the next step
//! 3  the segment table has the new segments, all free: everyone who asks for room finds it
//! 4  a checkpoint, which writes their pages of the table and lets the sealer have some of them
//! ```
//! A cut before 2 leaves a file that is longer than the pool, which matters to nobody; in or after 2
//! an opening finds the old size or the new one, and nothing refers to new segments before 2 is over.
//! A checkpoint record says of how many segments the table has pages: those that a pool has beyond
//! them were never used.

use super::Pool;
use crate::{
    error::{EngineError, Result},
    layout::whole_blocks,
    superblock::Revision,
};

/// A pool's size before and after it was told to grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Its size before.
    pub before_bytes: u64,
    /// Its size now.
    pub size_bytes: u64,
}

impl Pool {
    /// Makes the pool larger, while it is in use: `size_bytes` large, or, without, as large as its
    /// device is now. A file is made longer if need be, sparsely; a block device must be as large
    /// already. A pool that has that size stays as it is.
    ///
    /// # Errors
    /// If the size is below the pool's, beyond what it was made for or what its device has; if the
    /// pool accepts no changes; if the device fails, when the pool has its old size or, at the next
    /// opening, the new one.
    pub fn grow(&self, size_bytes: Option<u64>) -> Result<Growth> {
        pollster::block_on(self.grow_async(size_bytes))
    }

    /// As [`grow`](Self::grow).
    ///
    /// # Errors
    /// As `grow`.
    pub async fn grow_async(&self, size_bytes: Option<u64>) -> Result<Growth> {
        let core = &self.core;
        core.check_writable()?;
        let _changing = core.changing.lock().await;
        let Revision { sequence, size_bytes: before_bytes } = *core.revision.lock();
        let layout = &core.superblock.layout;
        let device_bytes = core.device.refresh_size()?;
        if device_bytes < before_bytes {
            let (expected_bytes, actual_bytes) = (before_bytes, device_bytes);
            return Err(EngineError::Truncated { expected_bytes, actual_bytes });
        }
        let size_bytes = whole_blocks(size_bytes.unwrap_or(device_bytes));
        let (max_bytes, same) = (layout.max_size_bytes(), size_bytes == before_bytes);
        if size_bytes < before_bytes {
            return Err(EngineError::CannotShrink { size_bytes, current_bytes: before_bytes });
        }
        if size_bytes > max_bytes {
            return Err(EngineError::GrowsTooFar { size_bytes, max_bytes });
        }
        if same {
            return Ok(Growth { before_bytes, size_bytes });
        }
        core.device.grow_to(size_bytes)?;
        core.flush_device().await?;
        let revision = Revision { sequence: sequence + 1, size_bytes };
        // Whatever becomes of this one, the next is newer.
        core.revision.lock().sequence = revision.sequence;
        core.superblock.store(revision, &*core.device).await?;
        *core.revision.lock() = revision;
        core.table.grow_to(layout.segment_count(size_bytes));
        tracing::info!(before_bytes, size_bytes, "the pool has grown");
        core.checkpointing.run(false, || core.health.check()).await?;
        Ok(Growth { before_bytes, size_bytes })
    }

    /// The pool's size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.core.revision.lock().size_bytes
    }
}

#[cfg(test)]
mod tests {
    use siltstone_device::{
        Operation,
        sim::{Cause, Fault, SimDevice, Times},
    };

    use super::*;
    use crate::config::{CreateOptions, OpenOptions};

    /// Others wait for the same device, and would never hear of it.
    #[test]
    fn a_failed_flush_reaches_all_who_wait_though_a_growth_asked_for_it() {
        let device = SimDevice::new(64 << 20);
        Pool::create_on(device.clone(), None, &CreateOptions::default()).expect("room enough");
        let pool = Pool::open_on(device.clone(), None, &OpenOptions::default()).expect("a pool");
        device.inject(Fault {
            operation: Operation::Flush,
            range_bytes: 0..u64::MAX,
            times: Times::Count(1),
            cause: Cause::Errno(5),
        });
        pool.grow(Some(80 << 20)).expect_err("its flush has failed");
        assert!(pool.core.commit.failure().is_some(), "who waits for a commit was told");
    }
}
