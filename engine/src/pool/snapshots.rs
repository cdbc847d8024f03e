//! The snapshots of a pool: taking, listing and deleting them, cloning them, going back to them.
//!
//! A snapshot is a label: the volume's layer as of the end of an epoch. Taking one ends the epoch,
//! for the whole pool and between two changes, so that snapshots taken together show one moment.
//! Nothing is copied, drained or merged; what was written before is made durable like a flush does,
//! and the catalog is stored.

use std::sync::Arc;

use serde::Serialize;
use siltstone_cursor::View;
use siltstone_device::Sequence;

use super::Pool;
use crate::{
    catalog::SnapshotRecord,
    core::Core,
    error::Result,
    snapshot_name::SnapshotName,
    volume::Volume,
    volume_core::{End, VolumeCore},
};

/// A snapshot's properties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotInfo {
    /// The volume that it is of.
    pub volume: String,
    /// Its own name.
    pub snapshot: String,
    /// The volume's size when it was taken.
    pub size_bytes: u64,
    /// When that was, in seconds since 1970, by the clock of then.
    pub created_unix_s: u64,
}

impl SnapshotInfo {
    fn new(name: SnapshotName, record: &SnapshotRecord) -> Self {
        let SnapshotName { volume, snapshot } = name;
        let SnapshotRecord { size_bytes, created_unix_s, .. } = *record;
        Self { volume, snapshot, size_bytes, created_unix_s }
    }
}

impl Pool {
    /// All snapshots, by volume and name.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let catalog = self.core.catalog.lock();
        // Not those that are still being taken.
        let volumes = self.core.volumes.read();
        let snapshots =
            catalog.snapshots().filter(|(name, _)| volumes.contains_key(&name.to_string()));
        snapshots.map(|(name, record)| SnapshotInfo::new(name, record)).collect()
    }

    /// Takes snapshots of one moment: each holds what had been written to its volume before some
    /// point in the order of all writes, and nothing later. All writes that had completed before the
    /// call are before it. They are durable when this returns, all of them; if it fails, none is
    /// taken.
    ///
    /// # Errors
    /// If a volume does not exist, a name is taken, there is no room in the catalog, or the pool
    /// accepts no changes.
    pub fn create_snapshots(&self, names: &[SnapshotName]) -> Result<()> {
        pollster::block_on(self.create_snapshots_async(names))
    }

    /// As [`create_snapshots`](Self::create_snapshots).
    ///
    /// # Errors
    /// As `create_snapshots`.
    pub async fn create_snapshots_async(&self, names: &[SnapshotName]) -> Result<()> {
        let (core, names) = (Arc::clone(&self.core), names.to_vec());
        self.core.to_its_end(async move { take(&core, &names).await }).await
    }

    /// Deletes snapshots: all, or, if one does not exist, none. What only they held is freed in the
    /// background; clones of them stay.
    ///
    /// # Errors
    /// If a snapshot does not exist, or the pool accepts no changes.
    pub fn delete_snapshots(&self, names: &[SnapshotName]) -> Result<()> {
        pollster::block_on(self.delete_snapshots_async(names))
    }

    /// As [`delete_snapshots`](Self::delete_snapshots).
    ///
    /// # Errors
    /// As `delete_snapshots`.
    pub async fn delete_snapshots_async(&self, names: &[SnapshotName]) -> Result<()> {
        let (core, names) = (Arc::clone(&self.core), names.to_vec());
        let change = async move {
            let (catalog, ()) = core.changed_catalog(|catalog| catalog.delete_snapshots(&names))?;
            let gone: Vec<_> = names.iter().map(ToString::to_string).collect();
            core.replace_catalog_without(catalog, &gone, End::Deleted).await
        };
        self.core.to_its_end(change).await
    }

    /// Creates a volume that holds what a snapshot does, and goes its own way from there.
    ///
    /// # Errors
    /// If the snapshot does not exist, the name is taken or impossible, or the pool accepts no
    /// changes.
    pub fn clone_snapshot(&self, snapshot: &SnapshotName, name: &str) -> Result<Volume> {
        pollster::block_on(self.clone_snapshot_async(snapshot, name))
    }

    /// As [`clone_snapshot`](Self::clone_snapshot).
    ///
    /// # Errors
    /// As `clone_snapshot`.
    pub async fn clone_snapshot_async(
        &self,
        snapshot: &SnapshotName,
        name: &str,
    ) -> Result<Volume> {
        let core = Arc::clone(&self.core);
        let (snapshot, name) = (snapshot.clone(), name.to_owned());
        let change = async move {
            let inherited_up_to = core.find_volume(&snapshot.to_string())?.inherited_up_to();
            let (catalog, record) =
                core.changed_catalog(|catalog| catalog.clone_snapshot(&snapshot, &name))?;
            let chain = catalog.chain(View::live(record.layer));
            core.replace_catalog(catalog).await?;
            Ok(core.show(VolumeCore::new(&name, &record, chain, inherited_up_to)))
        };
        self.core.to_its_end(change).await
    }

    /// Gives a volume the contents and the size that one of its snapshots has. All its snapshots
    /// stay; handles to the volume fail from then on, and what was written since is freed in the
    /// background where no other snapshot holds it.
    ///
    /// # Errors
    /// If the snapshot does not exist, or the pool accepts no changes.
    pub fn roll_back(&self, snapshot: &SnapshotName) -> Result<Volume> {
        pollster::block_on(self.roll_back_async(snapshot))
    }

    /// As [`roll_back`](Self::roll_back).
    ///
    /// # Errors
    /// As `roll_back`.
    pub async fn roll_back_async(&self, snapshot: &SnapshotName) -> Result<Volume> {
        let (core, snapshot) = (Arc::clone(&self.core), snapshot.clone());
        let change = async move {
            let inherited_up_to = core.find_volume(&snapshot.to_string())?.inherited_up_to();
            let (catalog, record) = core.changed_catalog(|catalog| catalog.roll_back(&snapshot))?;
            let chain = catalog.chain(View::live(record.layer));
            let name = snapshot.volume;
            let gone = std::slice::from_ref(&name);
            core.replace_catalog_without(catalog, gone, End::RolledBack).await?;
            Ok(core.show(VolumeCore::new(&name, &record, chain, inherited_up_to)))
        };
        self.core.to_its_end(change).await
    }
}

/// Takes snapshots, while nobody else changes the catalog.
async fn take(core: &Arc<Core>, names: &[SnapshotName]) -> Result<()> {
    let created_unix_s = core.runtime.unix_seconds();
    let max_body_bytes = core.checkpoints.max_body_bytes();
    let (before, catalog, last) = {
        let mut known = core.catalog.lock();
        let mut catalog = known.clone();
        let as_of = core.epochs.read().current();
        catalog.add_snapshots(names, as_of, created_unix_s)?;
        catalog.check_fits(max_body_bytes)?;
        // While the catalog is locked: a merge that meets a change of the next epoch knows the
        // snapshots that do not see it.
        let last = core.admission.at_next(|next| -> Result<Sequence> {
            core.epochs.write().begin(next)?;
            Ok(Sequence(next.0 - 1))
        })?;
        let before = std::mem::replace(&mut *known, catalog.clone());
        (before, catalog, last)
    };
    // What a snapshot holds is durable before the snapshot is.
    let mut stored = core.flush().await;
    if stored.is_ok() {
        stored = core.store_catalog(&catalog).await;
    }
    if stored.is_err() {
        *core.catalog.lock() = before;
        return stored;
    }
    for name in names {
        let record = catalog.snapshot(name)?;
        let chain = catalog.chain(record.view);
        core.show(VolumeCore::snapshot(&name.to_string(), record, chain, last));
    }
    Ok(())
}
