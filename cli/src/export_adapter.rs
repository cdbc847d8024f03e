//! Volumes as the NBD server's exports.
//!
//! Pools are thin: zeros are always holes, whatever a client asks for. A write of zeros with
//! NO_HOLE succeeds but reserves nothing, so a later write there can find the pool full; and every
//! write of zeros is fast enough for FAST_ZERO, as at most its two unaligned ends touch data.

use std::{
    any::Any,
    ops::Range,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use siltstone_cursor::MapError;
use siltstone_device::{AlignedBuffer, BufferPool};
use siltstone_engine::{EngineError, Pool, Volume, VolumeInfo, WriteBuffer};
use siltstone_nbd::{
    AllowLists, BoxFuture, Catalog, ClientIdentity, Export, ExportError, Payload, ReadData,
    StatusExtent, Traffic, ZeroOptions,
};

use crate::{
    connected::{Connected, ConnectedVolumes},
    monitor::traffic::VolumeTraffic,
};

/// Idle memory of reads that is kept for reuse.
const IDLE_READ_BYTES: usize = 32 << 20;
/// One answer to a block status request describes at most so much, to take a bounded time.
const MAX_STATUS_BYTES: u64 = 16 << 30;

/// A pool's volumes and snapshots, as they are at the moment of asking, or those of them that are
/// to be served.
pub(crate) struct PoolCatalog {
    /// Their names; none means all.
    only: RwLock<Vec<String>>,
    pool: Arc<Pool>,
    connected: Arc<ConnectedVolumes>,
    allowed: Arc<AllowLists>,
    traffic: Option<Arc<VolumeTraffic>>,
    buffers: BufferPool,
}

impl PoolCatalog {
    /// The volumes of `pool`, for those that are `allowed` to use them. Notes in `connected` who
    /// opens which, and counts in `traffic`, if it is given, what they do.
    pub(crate) fn new(
        pool: Arc<Pool>,
        connected: Arc<ConnectedVolumes>,
        allowed: Arc<AllowLists>,
        traffic: Option<Arc<VolumeTraffic>>,
    ) -> Self {
        let buffers = BufferPool::new(IDLE_READ_BYTES);
        Self { only: RwLock::default(), pool, connected, allowed, traffic, buffers }
    }

    /// From now on clients are served only these volumes and snapshots, or all if there are none.
    /// Clients that are connected stay.
    pub(crate) fn serve_only(&self, names: &[String]) {
        *self.only.write().unwrap_or_else(PoisonError::into_inner) = names.to_vec();
    }

    /// The volumes that clients are served.
    pub(crate) fn volumes(&self) -> Vec<VolumeInfo> {
        let only = self.only();
        let volumes = self.pool.volumes().into_iter();
        volumes.filter(|volume| is_among(&only, &volume.name)).collect()
    }

    fn only(&self) -> RwLockReadGuard<'_, Vec<String>> {
        // A list is whole whatever panicked.
        self.only.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_among(only: &[String], name: &str) -> bool {
    only.is_empty() || only.iter().any(|one| one == name)
}

impl Catalog for PoolCatalog {
    fn list(&self) -> Vec<String> {
        let volumes = self.pool.volumes().into_iter().map(|volume| volume.name);
        let snapshots = self.pool.snapshots().into_iter();
        let snapshots = snapshots.map(|info| format!("{}@{}", info.volume, info.snapshot));
        let only = self.only();
        volumes.chain(snapshots).filter(|name| is_among(&only, name)).collect()
    }

    /// The empty name opens the only volume, if just one is served.
    fn open(&self, name: &str) -> Option<Arc<dyn Export>> {
        let only = match self.volumes().as_slice() {
            [only] if name.is_empty() => Some(only.name.clone()),
            _ => None,
        };
        let name = only.as_deref().unwrap_or(name);
        let volume = self.pool.volume(name).ok().filter(|_| is_among(&self.only(), name))?;
        let connected = self.connected.connect(volume.name());
        let traffic = self.traffic.as_ref().map(|traffic| traffic.of(volume.name()));
        Some(Arc::new(VolumeExport {
            volume,
            traffic,
            buffers: self.buffers.clone(),
            _connected: connected,
        }))
    }

    /// Lists are by volume, and count for its snapshots.
    fn allows(&self, export: &str, client: &ClientIdentity) -> bool {
        let volume = export.split_once('@').map_or(export, |(volume, _snapshot)| volume);
        self.allowed.allows(volume, client)
    }
}

struct VolumeExport {
    volume: Volume,
    traffic: Option<Arc<Traffic>>,
    buffers: BufferPool,
    _connected: Connected,
}

/// The engine's own memory for a write.
struct VolumePayload(WriteBuffer);

impl Payload for VolumePayload {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// Recycled memory that holds what was read.
struct ReadMemory(AlignedBuffer);

impl AsRef<[u8]> for ReadMemory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl VolumeExport {
    async fn commit_if(&self, fua: bool) -> Result<(), ExportError> {
        if fua { self.flush().await } else { Ok(()) }
    }
}

impl Export for VolumeExport {
    fn name(&self) -> String {
        self.volume.name().into()
    }

    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.volume.is_read_only()
    }

    fn traffic(&self) -> Option<&Traffic> {
        self.traffic.as_deref()
    }

    fn allocate(&self, offset: u64, len: u32) -> Box<dyn Payload> {
        Box::new(VolumePayload(self.volume.buffer(offset, len as usize)))
    }

    fn write(
        &self,
        _offset: u64,
        payload: Box<dyn Payload>,
        fua: bool,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            let payload = payload.into_any().downcast::<VolumePayload>();
            let payload = payload.expect("payloads come from `allocate`");
            self.volume.write_buffer(payload.0).await.map_err(export_error)?;
            self.commit_if(fua).await
        })
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<ReadData, ExportError>> {
        Box::pin(async move {
            let mut memory = self.buffers.take(len as usize);
            let mut holes: Vec<Range<u32>> = Vec::new();
            // A hole lies inside the read, whose length has 32 bits.
            let mut note = |start: usize, len: usize| {
                holes.push(start as u32..(start + len) as u32);
            };
            let read = self.volume.read_noting_holes(offset, &mut memory, &mut note);
            read.await.map_err(export_error)?;
            let holes = joined(holes);
            if matches!(&holes[..], [all] if *all == (0..len)) {
                return Ok(ReadData::Hole);
            }
            Ok(ReadData::with_holes(ReadMemory(memory), holes))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move { self.volume.commit().await.map_err(export_error) })
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.volume.trim(offset, len).await.map_err(export_error)?;
            self.commit_if(fua).await
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.volume.zero(offset, len).await.map_err(export_error)?;
            self.commit_if(options.fua).await
        })
    }

    fn prefetch(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move { self.volume.prefetch(offset, len).await.map_err(export_error) })
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        Box::pin(async move {
            let runs = self.volume.status(offset, len.min(MAX_STATUS_BYTES), max_extents).await;
            let extent = |run: siltstone_engine::StatusRun| StatusExtent {
                len: run.len_bytes,
                hole: run.is_hole,
                zero: run.is_hole,
            };
            Ok(runs.map_err(export_error)?.into_iter().map(extent).collect())
        })
    }
}

/// Sorts ranges and joins those that touch.
pub(crate) fn joined(mut ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut out: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ if range.is_empty() => {}
            _ => out.push(range),
        }
    }
    out
}

fn export_error(error: EngineError) -> ExportError {
    match error {
        EngineError::NoSpace { .. } | EngineError::Map(MapError::NoSpace) => ExportError::NoSpace,
        EngineError::ReadOnly | EngineError::SnapshotReadOnly { .. } => ExportError::ReadOnly,
        EngineError::Closing => ExportError::ShuttingDown,
        // Whoever reads what the volume holds now must not take it for what it held before.
        EngineError::VolumeDeleted { .. } | EngineError::VolumeRolledBack { .. } => {
            ExportError::Deleted
        }
        EngineError::OutOfRange { .. } => ExportError::Invalid { source: error.into() },
        _ => ExportError::io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_and_overlapping_holes_become_one() {
        let holes = vec![8..12, 0..4, 4..8, 20..24, 16..18, 22..23, 30..30];
        assert_eq!(joined(holes), [0..12, 16..18, 20..24]);
    }
}
