//! Reading a region front to back: large reads, several in flight, constant memory.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, Device, DeviceError, Salvaged, Unreadable,
    header::HeaderError,
    request::{Pending, prepare_read},
    salvage,
};

use crate::{
    OpenError, Region,
    record::{
        LogIdentity, MAX_RECORD_BYTES, RECORD_VERSION, RecordError, RecordHead, decode, peek,
    },
};

/// Bytes of one read.
const CHUNK_BYTES: u64 = 1 << 20;
/// Reads in flight or held at any time.
const READ_AHEAD_CHUNKS: u64 = 8;
const _: () = assert!(MAX_RECORD_BYTES / CHUNK_BYTES < READ_AHEAD_CHUNKS);

/// Reads a region ahead of a caller who mostly moves forward. Blocks that the device does not give
/// are zeros, and remembered.
pub(crate) struct RegionReader {
    device: Arc<dyn Device>,
    region: Region,
    /// Consecutive chunks; the first has index `first`.
    chunks: VecDeque<Chunk>,
    first: u64,
    /// A view that spans chunks.
    joined: Vec<u8>,
    /// What could not be read so far, by where it is.
    unreadable: BTreeMap<ByteOffset, Unreadable>,
}

enum Chunk {
    Coming(Pending<AlignedBuffer>),
    Here(Salvaged),
}

impl RegionReader {
    pub(crate) fn new(device: Arc<dyn Device>, region: Region) -> Self {
        let (chunks, unreadable) = (VecDeque::new(), BTreeMap::new());
        Self { device, region, chunks, first: 0, joined: Vec::new(), unreadable }
    }

    /// What could not be read of the parts that were viewed, in order.
    pub(crate) fn unreadable(&self) -> impl Iterator<Item = &Unreadable> {
        self.unreadable.values()
    }

    /// The `len` bytes at `start`, counted from the region's start. They must lie in the region
    /// and be no more than the largest record.
    pub(crate) async fn view(&mut self, start: u64, len: u64) -> Result<&[u8], DeviceError> {
        assert!(len > 0 && len <= MAX_RECORD_BYTES && start + len <= self.region.len_bytes);
        let (from, to) = (start / CHUNK_BYTES, (start + len - 1) / CHUNK_BYTES);
        self.advance(from);
        for index in from..=to {
            self.arrive(index).await?;
        }
        let offset = (start - from * CHUNK_BYTES) as usize;
        let len = len as usize;
        if from == to {
            return Ok(&self.bytes(from)[offset..offset + len]);
        }
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        joined.extend_from_slice(&self.bytes(from)[offset..]);
        for index in from + 1..=to {
            let bytes = self.bytes(index);
            joined.extend_from_slice(&bytes[..bytes.len().min(len - joined.len())]);
        }
        self.joined = joined;
        Ok(&self.joined)
    }

    /// Drops the chunks before `from` and starts to read those that follow.
    fn advance(&mut self, from: u64) {
        if from < self.first || from > self.first + self.chunks.len() as u64 {
            self.chunks.clear();
            self.first = from;
        }
        while self.first < from {
            self.chunks.pop_front();
            self.first += 1;
        }
        let end = self.region.len_bytes.div_ceil(CHUNK_BYTES).min(from + READ_AHEAD_CHUNKS);
        let batch = (self.first + self.chunks.len() as u64..end)
            .map(|index| {
                let start = index * CHUNK_BYTES;
                let len = CHUNK_BYTES.min(self.region.len_bytes - start);
                let buffer = AlignedBuffer::zeroed(len as usize);
                let (request, pending) = prepare_read(self.region.offset.plus(start), buffer);
                self.chunks.push_back(Chunk::Coming(pending));
                request
            })
            .collect::<Vec<_>>();
        if !batch.is_empty() {
            self.device.submit(batch);
        }
    }

    async fn arrive(&mut self, index: u64) -> Result<(), DeviceError> {
        let chunk = &mut self.chunks[(index - self.first) as usize];
        if let Chunk::Coming(pending) = chunk {
            let outcome = pending.await;
            let start = index * CHUNK_BYTES;
            let len = CHUNK_BYTES.min(self.region.len_bytes - start) as usize;
            let offset = self.region.offset.plus(start);
            match salvage::after(&*self.device, offset, len, outcome).await {
                Ok(salvaged) => {
                    let unreadable = salvaged.unreadable().iter().cloned();
                    self.unreadable.extend(unreadable.map(|blocks| (blocks.offset, blocks)));
                    *chunk = Chunk::Here(salvaged);
                }
                Err(error) => {
                    // A later view starts afresh.
                    self.chunks.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn bytes(&self, index: u64) -> &[u8] {
        match &self.chunks[(index - self.first) as usize] {
            Chunk::Here(salvaged) => salvaged.bytes(),
            Chunk::Coming(_) => unreachable!("a view awaits its chunks first"),
        }
    }
}

/// A record's head found in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) head: RecordHead,
    /// Whether the whole record checks out.
    pub(crate) whole: bool,
}

/// Finds every head of this log's records, whole or not, front to back. Whole records are stepped
/// over, so that nothing inside them is taken for a record.
pub(crate) async fn scan(
    reader: &mut RegionReader,
    identity: &LogIdentity,
) -> Result<Vec<Sighting>, OpenError> {
    let region = reader.region;
    let mut sightings = Vec::new();
    let mut at = 0;
    while at < region.len_bytes {
        let address = region.offset.plus(at);
        let block = reader.view(at, BLOCK_BYTES as u64).await?;
        let Some(head) = peek(block, identity, address) else {
            at += BLOCK_BYTES as u64;
            continue;
        };
        let mut whole = false;
        if head.len_bytes <= region.len_bytes - at {
            let bytes = reader.view(at, head.len_bytes).await?;
            whole = match decode(bytes, identity, address) {
                Ok(_) => true,
                // Only now is the version to be believed.
                Err(RecordError::Header(HeaderError::Version { found, .. })) => {
                    let address_bytes = address.0;
                    return Err(OpenError::Version { address_bytes, found, known: RECORD_VERSION });
                }
                Err(_) => false,
            };
        }
        sightings.push(Sighting { head, whole });
        at += if whole { head.len_bytes } else { BLOCK_BYTES as u64 };
    }
    Ok(sightings)
}
