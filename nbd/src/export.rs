//! What the server serves: the two traits that storage implements.

use std::{any::Any, future::Future, ops::Range, pin::Pin, sync::Arc};

use crate::{
    error::{BlockSizesError, ExportError},
    identity::ClientIdentity,
    traffic::Traffic,
};

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The exports of a server. Called at negotiation, never during transmission.
pub trait Catalog: Send + Sync + 'static {
    /// The names of all exports.
    fn list(&self) -> Vec<String>;

    /// The export of that name; the empty name asks for the default one, if there is one.
    fn open(&self, name: &str) -> Option<Arc<dyn Export>>;

    /// Whether a client may use the export of this name, which is an export's own name and never
    /// that of the default one. For a client that may not, the export does not exist.
    fn allows(&self, _export: &str, _client: &ClientIdentity) -> bool {
        true
    }
}

/// One virtual disk.
///
/// # Contract
/// - The server has checked every request: it lies within [`Export::size_bytes`], is not empty,
///   is a multiple of the minimum block size, and changes nothing that is read-only.
/// - Futures of one connection and of several run concurrently; the server imposes no order.
/// - A flush (or a change with `fua`) covers every change that completed before it began,
///   **on any connection**: the server tells clients that they may rely on this.
/// - A future is first polled on its connection's own task, so that an answer at hand costs no
///   task switch, and moves to a task of its own when it is woken (requests of
///   [`crate::INLINE_MAX_BYTES`] and more: at once). A first poll that takes more than some
///   microseconds delays the connection's other requests.
/// - Futures are not cancelled when the client leaves. After a shutdown whose time ran out they are dropped: one
///   that has not been woken since its first poll with its connection, others with the runtime.
pub trait Export: Send + Sync + 'static {
    /// The name by which the catalog lists it.
    fn name(&self) -> String;

    /// A line for humans, if there is one.
    fn description(&self) -> Option<String> {
        None
    }

    /// Its size. A connection keeps the size that it saw at negotiation.
    fn size_bytes(&self) -> u64;

    /// Whether changes are refused.
    fn is_read_only(&self) -> bool;

    /// The request sizes that it takes.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::DEFAULT
    }

    /// Where its requests are counted, if they are.
    fn traffic(&self) -> Option<&Traffic> {
        None
    }

    /// Memory for exactly `len` bytes, into which the network receives a write at `offset`: the
    /// storage's own kind, so that it can take it over without a copy.
    fn allocate(&self, offset: u64, len: u32) -> Box<dyn Payload>;

    /// Writes the payload, which [`Export::allocate`] returned for this place.
    fn write(
        &self,
        offset: u64,
        payload: Box<dyn Payload>,
        fua: bool,
    ) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Reads a range.
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<ReadData, ExportError>>;

    /// Makes all completed changes durable.
    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Gives up the contents of a range.
    fn trim(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Makes a range read as zeros.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Prepares for reads of a range.
    fn prefetch(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), ExportError>>;

    /// What is allocated from `offset` on: at least one extent, at most `max_extents`, without
    /// gaps; they may end before `len`, and what reaches beyond it is cut off.
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>>;
}

/// Memory that a write is received into.
pub trait Payload: Send {
    /// All of it; always the same memory and length.
    fn as_mut_slice(&mut self) -> &mut [u8];

    /// Itself, for the storage to get its own type back.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl Payload for Vec<u8> {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// Memory that holds what was read; the network sends straight from it.
pub type ReadBytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// What a read found.
pub enum ReadData {
    /// Bytes, some of which may be known to be zeros that take no space.
    Data {
        /// All bytes of the range, holes included (as zeros).
        bytes: ReadBytes,
        /// Which parts are holes: relative to the range, sorted, disjoint, not empty.
        holes: Vec<Range<u32>>,
    },
    /// The whole range is a hole.
    Hole,
}

impl ReadData {
    /// Data without holes.
    pub fn data(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::Data { bytes: Box::new(bytes), holes: Vec::new() }
    }

    /// Data, and which parts of it are holes.
    pub fn with_holes(
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
        holes: Vec<Range<u32>>,
    ) -> Self {
        Self::Data { bytes: Box::new(bytes), holes }
    }
}

/// How to write zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Keep (or make) the range allocated.
    pub no_hole: bool,
    /// Fail with [`ExportError::NotSupported`] at once rather than take as long as a write.
    pub fast: bool,
    /// Durable before completion.
    pub fua: bool,
}

/// A run with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Its length in bytes; not zero.
    pub len: u64,
    /// It takes no space.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}

/// The request sizes that an export takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

impl BlockSizes {
    /// Any byte range; 4 KiB is best; payloads up to 32 MiB.
    pub const DEFAULT: Self = Self { minimum: 1, preferred: 4096, maximum: 32 << 20 };

    /// Sizes within the protocol's rules: `minimum` a power of two up to 64 KiB, `preferred` a
    /// power of two of at least 512 and `minimum`, `maximum` at least `preferred`.
    pub fn new(minimum: u32, preferred: u32, maximum: u32) -> Result<Self, BlockSizesError> {
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            return Err(BlockSizesError::Minimum { minimum });
        }
        if !preferred.is_power_of_two() || preferred < minimum.max(512) {
            return Err(BlockSizesError::Preferred { preferred, minimum });
        }
        if maximum < preferred {
            return Err(BlockSizesError::Maximum { maximum, preferred });
        }
        Ok(Self { minimum, preferred, maximum })
    }

    /// Offsets and lengths are multiples of this.
    #[must_use]
    pub fn minimum(&self) -> u32 {
        self.minimum
    }

    /// Multiples of this are efficient.
    #[must_use]
    pub fn preferred(&self) -> u32 {
        self.preferred
    }

    /// The largest payload of a read or write.
    #[must_use]
    pub fn maximum(&self) -> u32 {
        self.maximum
    }

    /// The same sizes with payloads of at most `limit` (but not below the preferred size).
    #[must_use]
    pub(crate) fn limited_to(self, limit: u32) -> Self {
        Self { maximum: self.maximum.min(limit).max(self.preferred), ..self }
    }
}
