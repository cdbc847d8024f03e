//! Block devices as the engine sees them.
//!
//! Everything that touches a medium, the clock or randomness enters through this crate, so that
//! the whole engine runs unchanged on a simulated machine that can cut the power at any write.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("device");
//! use siltstone_device::{
//!     AlignedBuffer, BLOCK_BYTES, ByteOffset, Device, Durability,
//!     file::{self, Access, FileOptions},
//!     request,
//! };
//!
//! let access = Access::Create { size_bytes: 1 << 20 };
//! let device = file::open(&path, &FileOptions { access, ..FileOptions::default() })?;
//! let at = ByteOffset(8192);
//! let hello = AlignedBuffer::from_bytes(b"hello");
//! let back = pollster::block_on(async {
//!     request::write(&*device, at, hello, Durability::Flush).await?;
//!     request::flush(&*device).await?; // What was written before is durable from here on.
//!     request::read(&*device, at, AlignedBuffer::zeroed(BLOCK_BYTES)).await
//! })?;
//! assert_eq!(&back[..5], b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! The other crates know a medium only as a [`Device`], so who implements that trait can put the engine on
//! anything: `engine/examples/custom_device.rs` does.
//! - [`units`]: newtypes for what is counted (sequence numbers, segments, places).
//! - [`buffer`]: block-aligned memory and the pool that recycles it.
//! - [`huge_pages`]: large pages for large memory.
//! - [`request`]: batched asynchronous operations, and futures over them.
//! - [`validate`]: the check that every request passes first.
//! - [`salvage`]: reads that give what a damaged medium gives.
//! - [`header`]: the header that every metadata structure on disk begins with.
//! - [`error`]: what can go wrong; [`failures()`] counts how often it did.
//! - [`size`]: sizes as people read them.
//!
//! The media, each an implementation of [`Device`]:
//!
//! - [`mod@file`]: files and block devices, opened, locked, and driven by io_uring, or by a few
//!   threads where there is none.
//! - [`mapped`]: byte-addressable non-volatile memory, mapped.
//! - [`sim`]: a simulated medium that remembers every write, cuts the power anywhere, and does
//!   on request what bad disks do.
//!
//! And the rest of the outside world:
//!
//! - [`runtime`]: tasks and time: threads and a clock, or a simulated machine.
//! - [`environment`]: randomness, real and simulated.
//! - [`sparse`]: where the data of a sparse file is.
//! - [`sync`]: locks and atomics, real and modelled.

pub mod buffer;
mod completing;
pub mod environment;
pub mod error;
mod failures;
pub mod file;
pub mod header;
pub mod huge_pages;
mod lock;
pub mod mapped;
mod mapping;
pub mod request;
mod request_queue;
pub mod runtime;
pub mod salvage;
pub mod sim;
pub mod size;
pub mod sparse;
pub mod sync;
mod threads;
pub mod units;
mod uring;
pub mod validate;

pub use buffer::{AlignedBuffer, BufferPool};
pub use completing::when_submitted;
pub use environment::{Entropy, SeededEntropy, SeededRandom, SystemEntropy};
pub use error::{DeviceError, Operation};
pub use failures::{Failures, failures};
pub use huge_pages::prefer_huge_pages;
pub use request::{Durability, Request};
pub use runtime::{Runtime, Threads};
pub use salvage::{Salvaged, Unreadable};
pub use units::{BLOCK_BYTES, BlockAddress, ByteOffset, LayerId, Place, SegmentId, Sequence};

/// A medium that holds bytes: a file, a block device, mapped or simulated memory.
///
/// # Contract
/// - Operations of one batch and of several run concurrently and complete in any order; who needs
///   an order waits for a completion before submitting the next.
/// - Every completion is called exactly once, on any thread, possibly before `submit` returns: it
///   must not block, and a submitter must not hold a lock that a completion takes.
/// - A completed write is durable after a flush that was submitted later has completed; until
///   then power loss may keep it, lose it, or tear it at 512-byte boundaries, in any order.
/// - After a failed flush nothing may be assumed of what it covered.
/// - Reads and writes need not be atomic with respect to each other.
/// - Dropping the device completes what is in flight first.
pub trait Device: Send + Sync + 'static {
    /// The device's size at this moment, in bytes: a multiple of [`BLOCK_BYTES`].
    fn size_bytes(&self) -> u64;

    /// Looks at the size again, which somebody may have changed behind our back, and returns it.
    ///
    /// # Errors
    /// [`DeviceError::Size`] if the operating system does not tell.
    fn refresh_size(&self) -> Result<u64, DeviceError> {
        Ok(self.size_bytes())
    }

    /// Sees to it that the device has at least `size_bytes`: a file grows, sparsely, and is durably so
    /// long after the next flush; anything else has the size it has. Never makes it smaller.
    ///
    /// # Errors
    /// [`DeviceError::CannotGrow`], or why the file does not grow.
    fn grow_to(&self, size_bytes: u64) -> Result<(), DeviceError> {
        let available_bytes = self.refresh_size()?;
        if size_bytes > available_bytes {
            return Err(DeviceError::CannotGrow { size_bytes, available_bytes });
        }
        Ok(())
    }

    /// Starts every request of the batch, with as few system calls as possible.
    fn submit(&self, batch: Vec<Request>);
}
