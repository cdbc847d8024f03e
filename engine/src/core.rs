//! What the parts of an open pool share. Wiring only: each field's type has its own page.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use siltstone_cursor::{Extent, Map};
use siltstone_dedup::{InFlight, Index};
use siltstone_device::{
    BlockAddress, BufferPool, Device, DeviceError, LayerId, Operation, Request, Runtime, Sequence,
};
use siltstone_nvram::{CheckpointError, CheckpointStore, GroupCommit, Log};

use crate::{
    admission::Admission,
    adoption::Adoptions,
    budget::Budget,
    catalog::Catalog,
    checkpointer::Checkpointing,
    collector::Collection,
    compression::{Compression, Framing},
    config::Tuning,
    discarder::Discarder,
    effort::Effort,
    epochs::Epochs,
    error::{EngineError, Result},
    flush_waiters::FlushWaiters,
    frame_cache::FrameCache,
    frontier::Frontier,
    fullness::FullnessWatch,
    health::{Health, Milestone},
    index_image::Images,
    marks::Marks,
    record::CheckpointBody,
    repair::Repair,
    segment_table::SegmentTable,
    space::{Room, Space},
    stats::{Stats, add},
    summaries::SummaryCache,
    superblock::{Revision, Superblock},
    temperature::RecentWrites,
    throttle::Throttle,
    unit_buffers::UnitBuffers,
    volume_core::VolumeCore,
};

/// The least zstd level of blocks that are moved.
const LEAST_LEVEL_OF_MOVES: i8 = 3;

/// An open pool's parts.
///
/// # Lock order
/// `changing` -> `record` -> `catalog` -> `volumes`, or `publishing` -> admission's queue -> an overlay,
/// or `epochs`;
/// `space` -> `frontier` -> the segment table; `images` -> the segment table.
/// All others are leaves. None but the first two is held across a device wait.
pub(crate) struct Core {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) superblock: Superblock,
    /// How large the pool is by its superblock; changed by whoever holds the pool's `changing`.
    pub(crate) revision: Mutex<Revision>,
    pub(crate) tuning: Tuning,
    pub(crate) read_only: bool,
    pub(crate) threshold: u32,
    pub(crate) buffers: BufferPool,
    /// Memory of staged data and of write units.
    pub(crate) write_buffers: BufferPool,
    pub(crate) health: Health,
    pub(crate) stats: Stats,
    /// Held while the device is flushed.
    pub(crate) flushing: tokio::sync::Mutex<()>,

    /// Held while volumes or snapshots are changed, or the pool grows, and until that is durable.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// What can be read: a snapshot is here before it is stored, so that merges keep what it holds;
    /// whatever is deleted, until the catalog without it is stored.
    pub(crate) catalog: Mutex<Catalog>,
    /// By name; snapshots too, whose names have an '@'.
    pub(crate) volumes: RwLock<BTreeMap<String, Arc<VolumeCore>>>,
    pub(crate) epochs: RwLock<Epochs>,

    pub(crate) staging: Budget,
    /// What of it no reducer has begun with: clients wait for a part of staging only, or a flush would wait
    /// for all of it.
    pub(crate) backlog: Budget,
    /// The buffers of write units that are being filled, or wait for the device.
    pub(crate) unit_buffers: UnitBuffers,
    pub(crate) admission: Admission,
    pub(crate) commit: GroupCommit<EngineError>,
    pub(crate) flush_waiters: FlushWaiters,
    pub(crate) log: Log,

    pub(crate) index: Index,
    pub(crate) images: Images,
    pub(crate) summaries: SummaryCache,
    pub(crate) in_flight: InFlight,
    pub(crate) recent_writes: RecentWrites,

    pub(crate) table: SegmentTable,
    pub(crate) space: Space,
    pub(crate) throttle: Throttle,
    pub(crate) frontier: Frontier,
    pub(crate) map: Map,
    /// Held while a unit is published and while a memtable is frozen, so that what is frozen ends
    /// at a unit's end.
    pub(crate) publishing: Mutex<Published>,

    pub(crate) checkpoints: CheckpointStore,
    /// The newest stored record, with the catalog that is stored. Held from deciding on the next
    /// one until that is stored, or has failed the pool.
    pub(crate) record: tokio::sync::Mutex<CheckpointBody>,
    pub(crate) checkpointing: Checkpointing,
    pub(crate) collection: Collection,
    pub(crate) adoptions: Adoptions,
    pub(crate) marks: Marks,
    pub(crate) discarder: Discarder,
    /// What redundancy made good when the pool was opened.
    pub(crate) repairs: Vec<Repair>,
    pub(crate) frame_cache: Arc<FrameCache>,
    /// Every fingerprint on the device has been told to the index.
    pub(crate) index_is_warm: Milestone,
    pub(crate) fullness: FullnessWatch,
    /// Tells background work that is not part of the pipeline to stop.
    pub(crate) stopping: AtomicBool,
}

/// How far publishing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) sequence: Sequence,
    /// The last published unit's number.
    pub(crate) unit: u64,
    /// The last published batch, counted from this opening; `None` before the first.
    pub(crate) batch: Option<u64>,
}

impl Core {
    /// What becomes of a layer's blocks when they are moved: they are likely to stay, and nobody waits for
    /// them.
    pub(crate) fn framing_of_moves(&self, layer: LayerId) -> Framing {
        let volumes = self.volumes.read();
        let owner = volumes.values().find(|volume| volume.layer == layer);
        // A layer that only clones look through has none.
        let compression = owner.map_or(Compression::default(), |volume| volume.compression());
        let framing = compression.framing(Effort::Great);
        Framing { level: framing.level.max(LEAST_LEVEL_OF_MOVES), ..framing }
    }

    /// Flushes the device. The only way to do so: the completion itself makes a failure the pool's,
    /// whoever waits and whether anyone still does, before anyone can flush again and take the next
    /// success for this one's (the system reports a failed write-back once). One flush is under way
    /// at a time for the same reason.
    pub(crate) async fn flush_device(self: &Arc<Self>) -> Result<()> {
        let _alone = self.flushing.lock().await;
        self.health.check()?;
        // A unit is published after its write has completed.
        let unit = self.publishing.lock().unit;
        let (answer, outcome) = tokio::sync::oneshot::channel();
        let core = Arc::downgrade(self);
        let completion = Box::new(move |flushed: std::result::Result<(), DeviceError>| {
            if let (Err(error), Some(core)) = (&flushed, core.upgrade()) {
                core.fail(error.clone().into());
            }
            // Whoever asked may have given up.
            let _ = answer.send(flushed);
        });
        self.device.submit(vec![Request::Flush { completion }]);
        let closed = DeviceError::Closed { operation: Operation::Flush };
        outcome.await.unwrap_or(Err(closed))?;
        self.marks.note_flushed(unit);
        Ok(())
    }

    /// Gives the entries of a unit their epochs. Comes before they are published.
    pub(crate) fn date(&self, entries: &mut [(Extent, Sequence)]) {
        let epochs = self.epochs.read();
        for (extent, sequence) in entries {
            extent.epoch = epochs.of(*sequence);
        }
    }

    /// Stores a checkpoint record, and counts it; returns its number. For whoever has `record` locked.
    pub(crate) async fn store_record(
        &self,
        body: &[u8],
    ) -> std::result::Result<u64, CheckpointError> {
        let record_bytes = CheckpointStore::bytes_written(body.len());
        add(&self.stats.counters.record_bytes, record_bytes);
        self.checkpoints.store(body).await
    }

    /// Waits until the map has all that a snapshot holds, or a clone's: what was written to another
    /// volume before may still be in that one's overlay.
    ///
    /// # Errors
    /// If the pool fails meanwhile.
    pub(crate) async fn await_inherited(&self, volume: &VolumeCore) -> Result<()> {
        if volume.has_inherited() {
            return Ok(());
        }
        self.drain_to(volume.inherited_up_to()).await?;
        volume.note_inherited();
        Ok(())
    }

    /// Sends every change up to `target` through the pipeline and waits until it is published.
    ///
    /// # Errors
    /// If the pool has failed.
    pub(crate) async fn drain_to(&self, target: Sequence) -> Result<()> {
        self.admission.drain_to(target);
        self.frontier.wake();
        self.admission.wait_published(target, || self.health.check()).await
    }

    /// The same for every change that has been admitted.
    ///
    /// # Errors
    /// As `drain_to`.
    pub(crate) async fn drain(&self) -> Result<()> {
        self.drain_to(self.admission.admitted()).await
    }

    /// Where there may be room for changes.
    pub(crate) fn room(&self) -> Room<'_> {
        Room { table: &self.table, frontier: &self.frontier }
    }

    /// What the device has behind the pool's end. Somebody may have made it larger meanwhile.
    pub(crate) fn unused_bytes(&self) -> u64 {
        let device_bytes = self.device.refresh_size().unwrap_or_else(|_| self.device.size_bytes());
        device_bytes.saturating_sub(self.revision.lock().size_bytes)
    }

    /// Makes a failure final and wakes everyone who waits for what will not come.
    pub(crate) fn fail(&self, error: EngineError) {
        self.health.fail(error);
        let cause = self.health.failure().expect("it has just been set");
        self.commit.fail(EngineError::Failed { cause });
        self.staging.close();
        self.backlog.close();
        self.unit_buffers.close();
        self.in_flight.gate().close();
        self.admission.close();
        self.checkpointing.stop();
        self.wake_all();
    }

    /// A block of staging is not what was received: counts it, and makes it a failure of the pool,
    /// for what one bit of a memory did another may do.
    pub(crate) fn staging_fault(&self, volume: &VolumeCore, address: BlockAddress) -> EngineError {
        add(&self.stats.counters.staging_faults, 1);
        let fault = EngineError::StagingDamaged { volume: volume.name.clone(), address };
        self.fail(fault.clone());
        fault
    }

    /// Makes a failure of the checkpointer or of background work final.
    pub(crate) fn fail_with(&self, outcome: Result<()>) {
        match outcome {
            Ok(()) | Err(EngineError::Failed { .. } | EngineError::Closing) => {}
            Err(error) => self.fail(error),
        }
    }

    /// Lets everyone who waits look at the pool's health again.
    pub(crate) fn wake_all(&self) {
        self.admission.wake();
        self.frontier.wake();
        self.checkpointing.wake();
        self.marks.wake();
        self.discarder.wake();
        self.index_is_warm.wake();
        self.images.wake();
    }

    /// Whether background work is to end: the pool is being closed, or has failed.
    pub(crate) fn is_ending(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.health.check().is_err()
    }
}
