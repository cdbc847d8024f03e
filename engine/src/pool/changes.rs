//! How volumes and snapshots are changed.
//!
//! Changes are made one after the other (`Core::changing`). Each is computed on a copy of the catalog,
//! stored, and only then true in memory and for handles: if it cannot be stored, nothing has changed.
//! Taking snapshots is the exception: merges must know them before they are stored. A change is a task
//! of its own, so that it comes to its end whether or not anyone waits for it.

use std::sync::Arc;

use crate::{
    catalog::Catalog,
    core::Core,
    error::{EngineError, Result},
    pipeline,
    volume::Volume,
    volume_core::{End, VolumeCore},
};

impl Core {
    /// Makes a change as a task, and waits for it.
    ///
    /// # Errors
    /// Those of the change; if the pool accepts no changes, or the system has no thread for it.
    pub(super) async fn to_its_end<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.check_writable()?;
        let (answer, outcome) = tokio::sync::oneshot::channel();
        let core = Arc::clone(self);
        let work = async move {
            let changing = core.changing.lock().await;
            let outcome = match core.check_writable() {
                Ok(()) => change.await,
                Err(error) => Err(error),
            };
            drop(changing);
            // Whoever asked may have given up.
            let _ = answer.send(outcome);
        };
        let started = pipeline::spawn(self, "catalog", work);
        let task = started.map_err(|source| EngineError::Thread { source: Arc::new(source) })?;
        match outcome.await {
            Ok(outcome) => outcome,
            // It has panicked, which fails the pool.
            Err(_) => {
                let _ = task.await;
                self.health.check()?;
                Err(EngineError::Closing)
            }
        }
    }

    /// What the catalog would be after `change`.
    pub(super) fn changed_catalog<T>(
        &self,
        change: impl FnOnce(&mut Catalog) -> Result<T>,
    ) -> Result<(Catalog, T)> {
        let mut catalog = self.catalog.lock().clone();
        let before_bytes = catalog.encoded_bytes();
        let outcome = change(&mut catalog)?;
        if catalog.encoded_bytes() > before_bytes {
            catalog.check_fits(self.checkpoints.max_body_bytes())?;
        }
        Ok((catalog, outcome))
    }

    /// Makes a catalog the stored one: stores the newest checkpoint record again, with this catalog.
    /// Costs what the record takes, whatever has been written since.
    ///
    /// # Errors
    /// If there is no room in the record; if the pool has failed, or the device fails, which is final.
    pub(super) async fn store_catalog(&self, catalog: &Catalog) -> Result<()> {
        let mut record = self.record.lock().await;
        self.health.check()?;
        let before = std::mem::replace(&mut record.catalog, catalog.clone());
        record.epochs = self.epochs.read().after(record.sequence);
        let body = record.encode();
        if body.len() as u64 > self.checkpoints.max_body_bytes() {
            record.catalog = before;
            return Err(catalog.full());
        }
        if let Err(error) = self.store_record(&body).await {
            // While the record is locked: nobody takes it for stored.
            self.fail(error.into());
            self.health.check()?;
        }
        drop(record);
        self.marks.note_durable();
        Ok(())
    }

    /// Stores a catalog and makes it the one that counts.
    pub(crate) async fn replace_catalog(&self, catalog: Catalog) -> Result<()> {
        self.store_catalog(&catalog).await?;
        *self.catalog.lock() = catalog;
        Ok(())
    }

    /// The same, for one in which volumes or snapshots are gone: handles to them end before merges
    /// drop what they read.
    pub(super) async fn replace_catalog_without(
        &self,
        catalog: Catalog,
        gone: &[String],
        end: End,
    ) -> Result<()> {
        self.store_catalog(&catalog).await?;
        {
            let mut volumes = self.volumes.write();
            for volume in gone.iter().filter_map(|name| volumes.remove(name)) {
                volume.end(end);
            }
        }
        *self.catalog.lock() = catalog;
        self.note_freeing();
        // What only they held is freed in the background.
        self.checkpointing.request();
        Ok(())
    }

    /// Lets a volume or snapshot be found. Comes after the catalog with it is stored: what is
    /// written to a volume that no record knows could not be recovered.
    pub(super) fn show(self: &Arc<Self>, shared: VolumeCore) -> Volume {
        let shared = Arc::new(shared);
        self.volumes.write().insert(shared.name.clone(), Arc::clone(&shared));
        Volume { core: Arc::clone(self), shared }
    }

    /// A volume or a snapshot.
    ///
    /// # Errors
    /// [`EngineError::NoSuchVolume`], [`EngineError::NoSuchSnapshot`].
    pub(super) fn find_volume(&self, name: &str) -> Result<Arc<VolumeCore>> {
        let missing = || match name.contains('@') {
            true => EngineError::NoSuchSnapshot { snapshot: name.into() },
            false => EngineError::NoSuchVolume { volume: name.into() },
        };
        self.volumes.read().get(name).cloned().ok_or_else(missing)
    }
}
