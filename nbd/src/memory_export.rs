//! An export in memory, for tests and examples: sparse, without durability.

use std::{any::Any, ops::Range, sync::Arc};

use parking_lot::RwLock;

use crate::{
    error::ExportError,
    export::{
        BlockSizes, BoxFuture, Catalog, Export, Payload, ReadData, StatusExtent, ZeroOptions,
    },
};

/// The unit in which memory is locked.
const CHUNK_BYTES: usize = 64 << 10;
/// The unit in which memory counts as allocated.
const BLOCK_BYTES: usize = 4096;

/// A virtual disk in memory. Blocks (4 KiB) that were never written, or were trimmed whole, are
/// holes.
pub struct MemoryExport {
    name: String,
    size_bytes: u64,
    is_read_only: bool,
    block_sizes: BlockSizes,
    chunks: Box<[RwLock<Chunk>]>,
}

/// Bytes of blocks that are not allocated are zero.
#[derive(Default)]
struct Chunk {
    bytes: Option<Box<[u8]>>,
    /// One bit a block.
    allocated: u16,
}

const _: () = assert!(CHUNK_BYTES / BLOCK_BYTES == u16::BITS as usize);

impl Chunk {
    fn fill(&mut self, range: Range<usize>, source: &[u8]) {
        self.allocated |= blocks_touched(&range);
        let bytes = self.bytes.get_or_insert_with(|| vec![0; CHUNK_BYTES].into());
        bytes[range].copy_from_slice(source);
    }

    fn clear(&mut self, range: Range<usize>, keep_allocated: bool) {
        if keep_allocated {
            self.allocated |= blocks_touched(&range);
            self.bytes.get_or_insert_with(|| vec![0; CHUNK_BYTES].into())[range].fill(0);
            return;
        }
        self.allocated &= !blocks_covered(&range);
        match &mut self.bytes {
            Some(_) if self.allocated == 0 => self.bytes = None,
            Some(bytes) => bytes[range].fill(0),
            None => {}
        }
    }

    fn is_allocated(&self, offset: usize) -> bool {
        self.allocated & (1 << (offset / BLOCK_BYTES)) != 0
    }
}

fn block_bits(blocks: Range<usize>) -> u16 {
    blocks.fold(0, |bits, block| bits | 1 << block)
}

fn blocks_touched(range: &Range<usize>) -> u16 {
    block_bits(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES))
}

fn blocks_covered(range: &Range<usize>) -> u16 {
    block_bits(range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES)
}

impl MemoryExport {
    /// An empty disk. Costs a few bytes for each 64 KiB of its size until it is written.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64) -> Self {
        let chunks = usize::try_from(size_bytes.div_ceil(CHUNK_BYTES as u64))
            .expect("what is to fit the memory fits its addresses");
        Self {
            name: name.to_owned(),
            size_bytes,
            is_read_only: false,
            block_sizes: BlockSizes::DEFAULT,
            chunks: (0..chunks).map(|_| RwLock::default()).collect(),
        }
    }

    /// The same disk, read-only.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// The same disk with other block sizes.
    #[must_use]
    pub fn with_block_sizes(self, block_sizes: BlockSizes) -> Self {
        Self { block_sizes, ..self }
    }

    /// Copies bytes into the disk, whether or not it is read-only.
    ///
    /// # Panics
    /// If they pass its end.
    pub fn fill(&self, offset: u64, source: &[u8]) {
        assert!(offset + source.len() as u64 <= self.size_bytes, "within the disk");
        let mut source = source;
        for (chunk, range) in self.pieces(offset, source.len() as u64) {
            let (piece, rest) = source.split_at(range.len());
            chunk.write().fill(range, piece);
            source = rest;
        }
    }

    /// The chunks that a range touches, and what it touches of each.
    fn pieces(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (&RwLock<Chunk>, Range<usize>)> {
        let chunk_bytes = CHUNK_BYTES as u64;
        let end = offset + len;
        (offset / chunk_bytes..end.div_ceil(chunk_bytes)).map(move |index| {
            let base = index * chunk_bytes;
            let start = offset.max(base) - base;
            let end = end.min(base + chunk_bytes) - base;
            (&self.chunks[index as usize], start as usize..end as usize)
        })
    }

    fn clear(&self, offset: u64, len: u64, keep_allocated: bool) {
        for (chunk, range) in self.pieces(offset, len) {
            chunk.write().clear(range, keep_allocated);
        }
    }

    fn read_now(&self, offset: u64, len: u32) -> ReadData {
        let mut bytes: Vec<u8> = Vec::with_capacity(len as usize);
        let mut holes: Vec<Range<u32>> = Vec::new();
        for (chunk, range) in self.pieces(offset, len.into()) {
            let chunk = chunk.read();
            let position = bytes.len();
            for (block, hole) in statuses(&chunk, &range) {
                let start = (position + block.start - range.start) as u32;
                let end = start + block.len() as u32;
                match holes.last_mut() {
                    Some(last) if hole && last.end == start => last.end = end,
                    _ if hole => holes.push(start..end),
                    _ => {}
                }
            }
            match &chunk.bytes {
                Some(source) => bytes.extend_from_slice(&source[range]),
                None => bytes.resize(position + range.len(), 0),
            }
        }
        if holes.first() == Some(&(0..len)) {
            ReadData::Hole
        } else {
            ReadData::with_holes(bytes, holes)
        }
    }
}

/// The blocks that a range of a chunk touches, cut to the range, and whether each is a hole.
fn statuses(chunk: &Chunk, range: &Range<usize>) -> impl Iterator<Item = (Range<usize>, bool)> {
    let range = range.clone();
    let mut start = range.start;
    std::iter::from_fn(move || {
        if start >= range.end {
            return None;
        }
        let end = range.end.min((start / BLOCK_BYTES + 1) * BLOCK_BYTES);
        let status = (start..end, !chunk.is_allocated(start));
        start = end;
        Some(status)
    })
}

fn ready<T: Send + 'static>(result: T) -> BoxFuture<'static, Result<T, ExportError>> {
    Box::pin(std::future::ready(Ok(result)))
}

impl Export for MemoryExport {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn description(&self) -> Option<String> {
        Some("a disk in memory".to_owned())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn allocate(&self, _offset: u64, len: u32) -> Box<dyn Payload> {
        Box::new(vec![0; len as usize])
    }

    fn write(
        &self,
        offset: u64,
        payload: Box<dyn Payload>,
        _fua: bool,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            let bytes: Box<dyn Any + Send> = payload.into_any();
            let bytes: Box<Vec<u8>> = bytes.downcast().expect("allocate returns no other kind");
            self.fill(offset, &bytes);
            Ok(())
        })
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<ReadData, ExportError>> {
        Box::pin(async move { Ok(self.read_now(offset, len)) })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(())
    }

    fn trim(&self, offset: u64, len: u64, _fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.clear(offset, len, false);
            Ok(())
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            if options.fast && options.no_hole {
                // Memory has to be filled, as by a write.
                return Err(ExportError::NotSupported);
            }
            self.clear(offset, len, options.no_hole);
            Ok(())
        })
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(())
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        Box::pin(async move {
            let mut extents: Vec<StatusExtent> = Vec::new();
            for (chunk, range) in self.pieces(offset, len) {
                for (block, hole) in statuses(&chunk.read(), &range) {
                    let len = block.len() as u64;
                    let is_full = extents.len() == max_extents;
                    match extents.last_mut() {
                        Some(last) if last.hole == hole => last.len += len,
                        _ if is_full => return Ok(extents),
                        _ => extents.push(StatusExtent { len, hole, zero: hole }),
                    }
                }
            }
            Ok(extents)
        })
    }
}

/// A fixed set of exports; the only one, if it is that, is also the default one.
pub struct FixedCatalog {
    exports: Vec<Arc<dyn Export>>,
}

impl FixedCatalog {
    /// A catalog of these exports.
    #[must_use]
    pub fn new(exports: Vec<Arc<dyn Export>>) -> Self {
        Self { exports }
    }
}

impl Catalog for FixedCatalog {
    fn list(&self) -> Vec<String> {
        self.exports.iter().map(|export| export.name()).collect()
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Export>> {
        match &*self.exports {
            [only] if name.is_empty() => Some(only.clone()),
            exports => exports.iter().find(|export| export.name() == name).cloned(),
        }
    }
}
