//! A pool: its life, and where its parts are: `create`, `open`, `grow`; `volumes` and `snapshots`, with
//! `changes`.

use std::{path::Path, sync::Arc};

use parking_lot::Mutex;
use siltstone_device::{
    Device,
    file::{self, Access, FileOptions},
    mapped,
};
use siltstone_nvram::{LogIdentity, Region};

use crate::{
    core::Core,
    error::{EngineError, Result},
    layout::Layout,
    pipeline::Pipeline,
    superblock::Superblock,
    warm,
};

mod changes;
mod create;
mod grow;
mod open;
mod pretended;
mod replay;
mod snapshots;
mod volumes;

pub use grow::Growth;
pub use snapshots::SnapshotInfo;
pub use volumes::VolumeInfo;

/// Largest batch, and so the largest change, in bytes.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// An open pool. Dropping it closes it; [`close`](Self::close) also says whether that went well.
///
/// What waits for the device comes in two forms: a blocking one (`checkpoint`), and an asynchronous
/// one (`checkpoint_async`) that any executor can drive. A pool that was opened in a simulation
/// ([`open_in`](Self::open_in)) has only the second, and is to be closed or
/// [abandoned](Self::abandon), not dropped.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("pool");
/// use siltstone_engine::{CreateOptions, OpenOptions, Pool, VolumeOptions};
///
/// let options = CreateOptions { size_bytes: Some(256 << 20), ..CreateOptions::default() };
/// Pool::create(&path, &options)?;
/// let pool = Pool::open(&path, &OpenOptions::default())?;
/// let disk = pool.create_volume("disk", &VolumeOptions::new(1 << 30))?;
/// disk.write_at(8192, b"hello")?;
/// disk.flush()?;
/// let mut back = [0; 5];
/// disk.read_at(8192, &mut back)?;
/// assert_eq!(&back, b"hello");
/// pool.close()?;
/// # Ok(())
/// # }
/// ```
pub struct Pool {
    core: Arc<Core>,
    /// `None` when open for reading only, or closed.
    pipeline: Mutex<Option<Pipeline>>,
}

impl Pool {
    /// Makes everything durable that was written before this call, to any volume.
    ///
    /// # Errors
    /// If the device fails.
    pub fn flush(&self) -> Result<()> {
        pollster::block_on(self.flush_async())
    }

    /// As [`flush`](Self::flush).
    ///
    /// # Errors
    /// As `flush`.
    pub async fn flush_async(&self) -> Result<()> {
        if self.core.read_only {
            return Ok(());
        }
        self.core.flush().await
    }

    /// Sends everything through the pipeline and makes a checkpoint.
    ///
    /// # Errors
    /// If the device fails.
    pub fn checkpoint(&self) -> Result<()> {
        pollster::block_on(self.checkpoint_async())
    }

    /// As [`checkpoint`](Self::checkpoint).
    ///
    /// # Errors
    /// As `checkpoint`.
    pub async fn checkpoint_async(&self) -> Result<()> {
        self.core.check_writable()?;
        let core = &self.core;
        core.drain().await?;
        core.checkpointing.run(false, || core.health.check()).await
    }

    /// Collects garbage until of what was written before this call none is left that is worth it,
    /// however much room there is, and gives all that is free back to the medium. What cannot be read stays where it is, and of the map what lies
    /// behind a damaged page: that is told in the log, and counted
    /// ([`damaged_patches`](crate::stats::CounterValues::damaged_patches)).
    ///
    /// # Errors
    /// If the device fails.
    pub fn collect_garbage(&self) -> Result<()> {
        pollster::block_on(self.collect_garbage_async())
    }

    /// As [`collect_garbage`](Self::collect_garbage).
    ///
    /// # Errors
    /// As `collect_garbage`.
    pub async fn collect_garbage_async(&self) -> Result<()> {
        self.core.check_writable()?;
        self.core.drain().await?;
        let core = &self.core;
        // What chains of layers let go of is garbage as well.
        if core.catalog.lock().adoptable(|_| true).is_some() {
            core.checkpointing.run(false, || core.health.check()).await?;
        }
        while core.adoptions.is_busy() {
            core.drain().await?;
            core.checkpointing.run(false, || core.health.check()).await?;
        }
        core.collection.force(core.table.next_generation());
        // Merged first, so that nothing is moved that a newer patch has superseded.
        core.checkpointing.run(true, || core.health.check()).await?;
        self.finish_collection().await?;
        core.table.suspect_all_undiscarded();
        core.give_everything_back(false).await;
        Ok(())
    }

    /// Mends segments in which damage was found ([`scrub`](Self::scrub) and reading find it), as far as
    /// that can be: what is damaged is looked for elsewhere by its fingerprint, so that contents that
    /// were written again to one volume come back to all that had them. Segments in which nothing is
    /// lost any more are emptied. What is nowhere else, as far as the index knows, stays lost, and its
    /// segment stays as it is; it can be tried again at any time.
    ///
    /// # Errors
    /// If the device fails.
    pub fn repair(&self) -> Result<()> {
        pollster::block_on(self.repair_async())
    }

    /// As [`repair`](Self::repair).
    ///
    /// # Errors
    /// As `repair`.
    pub async fn repair_async(&self) -> Result<()> {
        let core = &self.core;
        core.check_writable()?;
        loop {
            let mended_before = self.counters().mended_blocks;
            // Only what is settled can be emptied, or linked to.
            core.drain().await?;
            let given_up = self.pipeline.lock().as_ref().map(Pipeline::give_up_segments);
            if let Some(given_up) = given_up {
                given_up.await.or_else(|_| core.check_writable())?;
            }
            core.checkpointing.run(false, || core.health.check()).await?;
            core.collection.request_repair();
            self.finish_collection().await?;
            // What was moved may be the copy that something else lacks.
            if self.counters().mended_blocks == mended_before {
                return Ok(());
            }
        }
    }

    /// Waits until everything that was asked of the collector is done, and what it emptied is free.
    async fn finish_collection(&self) -> Result<()> {
        let core = &self.core;
        while core.collection.is_forced() {
            // A round begins when every batch that is under way has been published.
            core.drain().await?;
            core.checkpointing.run(false, || core.health.check()).await?;
        }
        // What the last round has emptied is condemned by one checkpoint and freed by the next.
        for _ in 0..2 {
            core.checkpointing.run(false, || core.health.check()).await?;
        }
        Ok(())
    }

    /// Waits until the index knows every fingerprint on the device, as far as it has room: what is
    /// written before that after an opening may be stored again. In a pool that is open for
    /// reading only, fills the index now; nothing else does.
    ///
    /// # Errors
    /// If the pool fails or is closed meanwhile.
    pub fn wait_index_warm(&self) -> Result<()> {
        pollster::block_on(self.wait_index_warm_async())
    }

    /// As [`wait_index_warm`](Self::wait_index_warm).
    ///
    /// # Errors
    /// As `wait_index_warm`.
    pub async fn wait_index_warm_async(&self) -> Result<()> {
        let core = &self.core;
        if core.read_only && !core.index_is_warm.is_set() {
            warm::warm_index(core).await;
        }
        core.index_is_warm.wait(|| core.health.check_open()).await
    }

    /// Finishes what was written, makes it durable and closes the pool. Handles that still exist
    /// refuse further changes; the device stays locked until the last of them is dropped.
    ///
    /// # Errors
    /// The failure after which the pool accepted no more changes, if there was one.
    pub fn close(self) -> Result<()> {
        pollster::block_on(self.stop())
    }

    /// As [`close`](Self::close).
    ///
    /// # Errors
    /// As `close`.
    pub async fn close_async(self) -> Result<()> {
        self.stop().await
    }

    /// Lets go of the pool much as the end of its process would: what was not flushed may be lost.
    /// Its tasks end by themselves, or are dropped by the simulation that runs them.
    pub fn abandon(self) {
        self.core.fail(EngineError::Abandoned);
        drop(self.pipeline.lock().take());
    }

    async fn stop(&self) -> Result<()> {
        // A change of volumes that is under way comes to its end.
        let _changing = self.core.changing.lock().await;
        let pipeline = self.pipeline.lock().take();
        match pipeline {
            Some(pipeline) => pipeline.stop(&self.core).await,
            None => Ok(()),
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.core.runtime.can_block() {
            return;
        }
        if let Err(error) = pollster::block_on(self.stop()) {
            tracing::error!(%error, "the pool could not be closed in order; it recovers when opened");
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({:016x})", self.core.superblock.pool)
    }
}

fn open_nvram(path: &Path, access: Access, map_it: bool) -> Result<Arc<dyn Device>> {
    Ok(if map_it {
        mapped::open(path, access)?
    } else {
        file::open(path, &FileOptions { access, ..FileOptions::default() })?
    })
}

fn log_identity(superblock: &Superblock) -> LogIdentity {
    let [first, second] = superblock.nvram_nonce;
    LogIdentity { first, second }
}

fn log_region(layout: &Layout) -> Region {
    Region { offset: layout.nvram_offset, len_bytes: layout.nvram_bytes }
}
