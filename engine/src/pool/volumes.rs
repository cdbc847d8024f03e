//! The volumes of a pool: finding, creating, resizing and deleting them.

use std::sync::Arc;

use super::Pool;
use crate::{
    config::{self, VolumeOptions},
    error::{EngineError, Result},
    volume::Volume,
    volume_core::VolumeCore,
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
    /// A handle to a volume.
    ///
    /// # Errors
    /// [`EngineError::NoSuchVolume`].
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let volumes = self.core.volumes.read();
        let missing = || EngineError::NoSuchVolume { volume: name.into() };
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
        volumes.values().map(info).collect()
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
        let (record, chain) = {
            let mut catalog = self.core.catalog.lock();
            let record = catalog.create(name, options)?;
            // The other half of a checkpoint slot is the patches'.
            if catalog.encoded_bytes() > self.core.checkpoints.max_body_bytes() / 2 {
                catalog.delete(name)?;
                return Err(EngineError::CatalogFull { volumes: catalog.volumes.len() });
            }
            let chain = catalog.chain(record.layer);
            (record, chain)
        };
        self.store_catalog().await?;
        let shared = Arc::new(VolumeCore::new(name, &record, chain));
        self.core.volumes.write().insert(name.into(), Arc::clone(&shared));
        Ok(Volume { core: Arc::clone(&self.core), shared })
    }

    /// Deletes a volume and everything in it. It is gone for good when this returns; handles to
    /// it fail from then on, and its space is freed in the background.
    ///
    /// # Errors
    /// If there is no such volume, or the pool accepts no changes.
    pub fn delete_volume(&self, name: &str) -> Result<()> {
        pollster::block_on(self.delete_volume_async(name))
    }

    /// As [`delete_volume`](Self::delete_volume).
    ///
    /// # Errors
    /// As `delete_volume`.
    pub async fn delete_volume_async(&self, name: &str) -> Result<()> {
        self.core.check_writable()?;
        let _changing = self.changing.lock().await;
        let shared = self.core.volumes.write().remove(name);
        let missing = || EngineError::NoSuchVolume { volume: name.into() };
        let shared = shared.ok_or_else(missing)?;
        shared.mark_deleted();
        // What was admitted before goes through first, so that nothing of the layer follows.
        self.core.drain().await?;
        self.core.catalog.lock().delete(name)?;
        self.store_catalog().await
    }

    /// Changes a volume's size. What lies past a smaller size is discarded and reads as zeros if
    /// the volume grows again.
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
        self.core.catalog.lock().volume_mut(name)?.size_bytes = size_bytes;
        self.store_catalog().await?;
        volume.shared.set_size_bytes(size_bytes);
        Ok(())
    }
}
