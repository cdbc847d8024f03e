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
        catalog.snapshots().map(|(name, record)| SnapshotInfo::new(name, record)).collect()
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
        let core = &self.core;
        core.check_writable()?;
        let _changing = self.changing.lock().await;
        let created_unix_s = core.runtime.unix_seconds();
        let snapshots = self.change_catalog(|catalog| {
            let as_of = core.epochs.read().current();
            catalog.add_snapshots(names, as_of, created_unix_s)?;
            // While the catalog is locked: a merge that meets a change of the next epoch knows the
            // snapshots that do not see it.
            let last = core.admission.at_next(|next| -> Result<Sequence> {
                core.epochs.write().begin(next)?;
                Ok(Sequence(next.0 - 1))
            })?;
            names
                .iter()
                .map(|name| {
                    let record = catalog.snapshot(name)?;
                    let chain = catalog.chain(record.view);
                    Ok(Arc::new(VolumeCore::snapshot(&name.to_string(), record, chain, last)))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        // What a snapshot holds is durable before the snapshot is.
        core.flush().await?;
        core.store_catalog().await?;
        for snapshot in snapshots {
            self.show(snapshot);
        }
        Ok(())
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
        self.core.check_writable()?;
        let _changing = self.changing.lock().await;
        self.change_catalog(|catalog| {
            catalog.delete_snapshots(names)?;
            self.hide(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
            Ok(())
        })?;
        self.core.store_catalog().await?;
        self.core.checkpointing.request();
        Ok(())
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
        self.core.check_writable()?;
        let _changing = self.changing.lock().await;
        let (record, chain) = self.change_catalog(|catalog| {
            let record = catalog.clone_snapshot(snapshot, name)?;
            let chain = catalog.chain(View::live(record.layer));
            Ok((record, chain))
        })?;
        let settled_at = self.volume(&snapshot.to_string())?.shared.settled_at();
        self.core.store_catalog().await?;
        Ok(self.show(Arc::new(VolumeCore::new(name, &record, chain, settled_at))))
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
        self.core.check_writable()?;
        let _changing = self.changing.lock().await;
        let (record, chain) = self.change_catalog(|catalog| {
            let record = catalog.roll_back(snapshot)?;
            let chain = catalog.chain(View::live(record.layer));
            self.volume(&snapshot.volume)?.shared.end(End::RolledBack);
            Ok((record, chain))
        })?;
        let settled_at = self.volume(&snapshot.to_string())?.shared.settled_at();
        self.core.store_catalog().await?;
        let shared = VolumeCore::new(&snapshot.volume, &record, chain, settled_at);
        let volume = self.show(Arc::new(shared));
        self.core.checkpointing.request();
        Ok(volume)
    }
}
