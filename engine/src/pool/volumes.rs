//! The volumes of a pool: finding, creating, resizing and deleting them.

use std::sync::Arc;

use siltstone_cursor::View;
use siltstone_device::Sequence;

use super::Pool;
use crate::{
    catalog::Catalog,
    config::{self, VolumeOptions},
    error::{EngineError, Result},
    volume::Volume,
    volume_core::{End, VolumeCore},
};

/// A volume's properties.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its compression level.
    pub level: i8,
}

impl Pool {
    /// A handle to a volume, or, by a name of the form `VOLUME@SNAPSHOT`, to a snapshot, which can be
    /// read and not changed.
    ///
    /// # Errors
    /// [`EngineError::NoSuchVolume`], [`EngineError::NoSuchSnapshot`].
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let volumes = self.core.volumes.read();
        let missing = || match name.contains('@') {
            true => EngineError::NoSuchSnapshot { snapshot: name.into() },
            false => EngineError::NoSuchVolume { volume: name.into() },
        };
        let shared = volumes.get(name).cloned().ok_or_else(missing)?;
        Ok(Volume { core: Arc::clone(&self.core), shared })
    }

    /// All volumes, by name.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let volumes = self.core.volumes.read();
        let info = |volume: &Arc<VolumeCore>| VolumeInfo {
            name: volume.name.clone(),
            size_bytes: volume.size_bytes(),
            level: volume.level,
        };
        volumes.values().filter(|volume| !volume.is_snapshot()).map(info).collect()
    }

    /// Creates an empty volume. It is durable when this returns.
    ///
    /// # Errors
    /// If the name is taken or impossible, the size or level is, or the pool accepts no changes.
    pub fn create_volume(&self, name: &str, options: &VolumeOptions) -> Result<Volume> {
        pollster::block_on(self.create_volume_async(name, options))
    }

    /// As [`create_volume`](Self::create_volume).
    ///
    /// # Errors
    /// As `create_volume`.
    pub async fn create_volume_async(&self, name: &str, options: &VolumeOptions) -> Result<Volume> {
        self.core.check_writable()?;
        let _changing = self.changing.lock().await;
        let record = self.change_catalog(|catalog| catalog.create(name, options))?;
        self.core.store_catalog().await?;
        let chain = vec![View::live(record.layer)];
        let shared = Arc::new(VolumeCore::new(name, &record, chain, Sequence(0)));
        Ok(self.show(shared))
    }

    /// Deletes a volume and everything in it. It is gone for good when this returns; handles to
    /// it fail from then on, and its space is freed in the background.
    ///
    /// # Errors
    /// If there is no such volume, it has snapshots, or the pool accepts no changes.
    pub fn delete_volume(&self, name: &str) -> Result<()> {
        pollster::block_on(self.delete_volume_async(name))
    }

    /// As [`delete_volume`](Self::delete_volume).
    ///
    /// # Errors
    /// As `delete_volume`.
    pub async fn delete_volume_async(&self, name: &str) -> Result<()> {
        self.delete(name, false).await
    }

    /// Deletes a volume with all its snapshots. Clones of these stay.
    ///
    /// # Errors
    /// If there is no such volume, or the pool accepts no changes.
    pub fn delete_volume_and_snapshots(&self, name: &str) -> Result<()> {
        pollster::block_on(self.delete_volume_and_snapshots_async(name))
    }

    /// As [`delete_volume_and_snapshots`](Self::delete_volume_and_snapshots).
    ///
    /// # Errors
    /// As `delete_volume_and_snapshots`.
    pub async fn delete_volume_and_snapshots_async(&self, name: &str) -> Result<()> {
        self.delete(name, true).await
    }

    async fn delete(&self, name: &str, and_snapshots: bool) -> Result<()> {
        self.core.check_writable()?;
        let _changing = self.changing.lock().await;
        self.change_catalog(|catalog| {
            let volume = catalog.volume(name)?.id;
            let snapshots = catalog.snapshots_of(volume);
            let mut gone: Vec<_> = snapshots.map(|(own, _)| format!("{name}@{own}")).collect();
            gone.push(name.into());
            catalog.delete(name, and_snapshots)?;
            self.hide(&gone);
            Ok(())
        })?;
        self.core.store_catalog().await?;
        self.core.checkpointing.request();
        Ok(())
    }

    /// Changes a volume's size. What lies past a smaller size is discarded and reads as zeros if
    /// the volume grows again; its snapshots keep it.
    ///
    /// # Errors
    /// If there is no such volume, the size is impossible, or the pool accepts no changes.
    pub fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<()> {
        pollster::block_on(self.resize_volume_async(name, size_bytes))
    }

    /// As [`resize_volume`](Self::resize_volume).
    ///
    /// # Errors
    /// As `resize_volume`.
    pub async fn resize_volume_async(&self, name: &str, size_bytes: u64) -> Result<()> {
        self.core.check_writable()?;
        config::validate_volume_size(name, size_bytes)?;
        let _changing = self.changing.lock().await;
        let volume = self.volume(name)?;
        volume.check_writable()?;
        let old_bytes = volume.size_bytes();
        if size_bytes < old_bytes {
            // In this order: what is admitted behind the new end from now on is refused, and what
            // was admitted before is covered by the zeros.
            volume.shared.set_size_bytes(size_bytes);
            if let Err(error) = volume.zero_cut_off(old_bytes).await {
                volume.shared.set_size_bytes(old_bytes);
                return Err(error);
            }
            volume.commit().await?;
        }
        self.change_catalog(|catalog| {
            catalog.volume_mut(name)?.size_bytes = size_bytes;
            Ok(())
        })?;
        self.core.store_catalog().await?;
        volume.shared.set_size_bytes(size_bytes);
        Ok(())
    }

    /// Changes the catalog in memory: all that `change` does, or nothing. The caller holds
    /// `changing`, and stores the catalog afterwards.
    pub(super) fn change_catalog<T>(
        &self,
        change: impl FnOnce(&mut Catalog) -> Result<T>,
    ) -> Result<T> {
        let mut catalog = self.core.catalog.lock();
        let mut changed = catalog.clone();
        let outcome = change(&mut changed)?;
        if changed.encoded_bytes() > catalog.encoded_bytes() {
            changed.check_fits(self.core.checkpoints.max_body_bytes())?;
        }
        *catalog = changed;
        Ok(outcome)
    }

    /// Lets a volume or snapshot be found. Comes after the catalog with it is stored: what is
    /// written to a volume that no record knows could not be recovered.
    pub(super) fn show(&self, shared: Arc<VolumeCore>) -> Volume {
        self.core.volumes.write().insert(shared.name.clone(), Arc::clone(&shared));
        Volume { core: Arc::clone(&self.core), shared }
    }

    /// Volumes and snapshots are deleted: handles to them are of no use any more.
    pub(super) fn hide(&self, names: &[String]) {
        let mut volumes = self.core.volumes.write();
        for name in names {
            if let Some(gone) = volumes.remove(name) {
                gone.end(End::Deleted);
            }
        }
    }
}
