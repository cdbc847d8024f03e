//! The volumes of a pool: finding, creating, changing and deleting them.

use std::sync::Arc;

use siltstone_cursor::View;
use siltstone_device::Sequence;

use super::Pool;
use crate::{
    compression::Compression,
    config::{self, VolumeOptions},
    error::Result,
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
    /// How its data is compressed.
    pub compression: Compression,
}

impl Pool {
    /// A handle to a volume, or, by a name of the form `VOLUME@SNAPSHOT`, to a snapshot, which can be
    /// read and not changed.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let shared = self.core.find_volume(name)?;
        Ok(Volume { core: Arc::clone(&self.core), shared })
    }

    /// All volumes, by name.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let volumes = self.core.volumes.read();
        let info = |volume: &Arc<VolumeCore>| VolumeInfo {
            name: volume.name.clone(),
            size_bytes: volume.size_bytes(),
            compression: volume.compression(),
        };
        volumes.values().filter(|volume| !volume.is_snapshot()).map(info).collect()
    }

    /// Creates an empty volume. It is durable when this returns.
    ///
    /// # Errors
    /// If the name is taken or impossible, the size is, or the pool accepts no changes.
    pub fn create_volume(&self, name: &str, options: &VolumeOptions) -> Result<Volume> {
        pollster::block_on(self.create_volume_async(name, options))
    }

    /// As [`create_volume`](Self::create_volume).
    ///
    /// # Errors
    /// As `create_volume`.
    pub async fn create_volume_async(&self, name: &str, options: &VolumeOptions) -> Result<Volume> {
        let (core, name, options) = (Arc::clone(&self.core), name.to_owned(), *options);
        let change = async move {
            let (catalog, record) =
                core.changed_catalog(|catalog| catalog.create(&name, &options))?;
            core.replace_catalog(catalog).await?;
            let chain = vec![View::live(record.layer)];
            Ok(core.show(VolumeCore::new(&name, &record, chain, Sequence(0))))
        };
        self.core.to_its_end(change).await
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
        let (core, name) = (Arc::clone(&self.core), name.to_owned());
        let change = async move {
            let (catalog, gone) = core.changed_catalog(|catalog| {
                let snapshots = catalog.snapshots_of(catalog.volume(&name)?.id);
                let mut gone: Vec<_> = snapshots.map(|(own, _)| format!("{name}@{own}")).collect();
                gone.push(name.clone());
                catalog.delete(&name, and_snapshots)?;
                Ok(gone)
            })?;
            core.replace_catalog_without(catalog, &gone, End::Deleted).await
        };
        self.core.to_its_end(change).await
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
        config::validate_volume_size(name, size_bytes)?;
        let (core, name) = (Arc::clone(&self.core), name.to_owned());
        let change = async move {
            let volume = Volume { shared: core.find_volume(&name)?, core: Arc::clone(&core) };
            volume.check_writable()?;
            let (catalog, ()) = core.changed_catalog(|catalog| {
                catalog.volume_mut(&name)?.size_bytes = size_bytes;
                Ok(())
            })?;
            let old_bytes = volume.size_bytes();
            if size_bytes < old_bytes {
                // In this order: what is admitted behind the new end from now on is refused, and
                // what was admitted before is covered by the zeros.
                volume.shared.set_size_bytes(size_bytes);
                if let Err(error) = volume.zero_cut_off(old_bytes).await {
                    volume.shared.set_size_bytes(old_bytes);
                    return Err(error);
                }
                volume.commit().await?;
            }
            core.replace_catalog(catalog).await?;
            volume.shared.set_size_bytes(size_bytes);
            Ok(())
        };
        self.core.to_its_end(change).await
    }

    /// Changes how a volume's data is compressed, and returns how that is now. What is stored stays as it is
    /// until it is written again or garbage collection moves it; snapshots, and so their clones, keep
    /// what they were taken with.
    ///
    /// # Errors
    /// If there is no such volume, or the pool accepts no changes.
    pub fn change_compression(
        &self,
        name: &str,
        change: impl FnOnce(Compression) -> Compression + Send + 'static,
    ) -> Result<Compression> {
        pollster::block_on(self.change_compression_async(name, change))
    }

    /// As [`change_compression`](Self::change_compression).
    ///
    /// # Errors
    /// As `change_compression`.
    pub async fn change_compression_async(
        &self,
        name: &str,
        change: impl FnOnce(Compression) -> Compression + Send + 'static,
    ) -> Result<Compression> {
        let (core, name) = (Arc::clone(&self.core), name.to_owned());
        let change = async move {
            let volume = Volume { shared: core.find_volume(&name)?, core: Arc::clone(&core) };
            volume.check_writable()?;
            let compression = change(volume.shared.compression());
            let (catalog, ()) = core.changed_catalog(|catalog| {
                catalog.volume_mut(&name)?.compression = compression;
                Ok(())
            })?;
            core.replace_catalog(catalog).await?;
            volume.shared.set_compression(compression);
            Ok(compression)
        };
        self.core.to_its_end(change).await
    }
}
