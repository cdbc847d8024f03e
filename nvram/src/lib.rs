//! What makes small changes durable before they reach a segment: the NVRAM log, the commits that
//! share it, and the checkpoint record.
//!
//! Everything here is told where it lives, an `Arc<dyn Device>` and a [`Region`] of it, and does
//! not care whether that is the pool's own device, a file beside it, or mapped memory. Nothing
//! here knows volumes, blocks the calling thread, or starts one.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use siltstone_device::{BlockAddress, ByteOffset, LayerId, SeededRandom, Sequence, sim::SimDevice};
//! use siltstone_nvram::{Change, ChangeBody, Log, LogIdentity, Region};
//!
//! let device = SimDevice::new(1 << 20);
//! let region = Region { offset: ByteOffset(0), len_bytes: 256 << 10 };
//! let identity = LogIdentity { first: 1, second: 2 };
//! pollster::block_on(async {
//!     Log::format(device.clone(), region, identity).await?;
//!     let (log, _) = Log::open(device.clone(), region, identity).await?;
//!     let change = Change {
//!         layer: LayerId(1),
//!         address: BlockAddress(7),
//!         len_blocks: 1,
//!         sequence: Sequence(1),
//!         body: ChangeBody::Data(&[42; 4096]),
//!     };
//!     log.append(&[change]).await?; // One device write, and the change is durable.
//!
//!     // The power fails, as late as it can. Whoever opens the log again finds the change.
//!     let after = device.crash_at(device.history_len(), &mut SeededRandom::new(1));
//!     let (_log, mut replay) = Log::open(after, region, identity).await?;
//!     let record = replay.next_record().await?.expect("the change was acknowledged");
//!     assert_eq!(record.changes().next(), Some(change));
//!     Ok(())
//! })
//! # }
//! ```
//!
//! The engine's flushes go this way when little is waiting; when much is, it goes to its segments at once, and
//! is acknowledged from there. A checkpoint trims what it covers.
//! - [`log`]: the ring of records; [`Log::append`] makes changes durable by one device write.
//! - [`record`]: a record on disk.
//! - [`replay`]: reading the live records back after [`Log::open`].
//! - [`group`]: [`GroupCommit`], by which concurrent flushes share one commit.
//! - [`checkpoint`]: [`CheckpointStore`], two slots of two copies, of which the newer whole one counts.
//! - [`mark`]: [`MarkStore`], what is known to have been durable, so that damage is told from power
//!   loss.
//! - `ring` (pure): which records occupy the region, where the next one goes.
//! - `recovery` (pure): the decision table of log recovery.
//! - `scan`: reading the region in large pieces and finding heads of records.
//!
//! # What is assumed of the medium
//! 1. A write with [`Durability::Immediate`](siltstone_device::Durability) that completed survives
//!    power loss; so does what completed before a flush.
//! 2. A write that did not complete may leave any subset of its 512-byte sectors, each old or new.
//! 3. What was durable may still be damaged later, and is then noticed by its CRC-32. A medium that
//!    forges checksums, or returns old contents of the whole device, is not noticed.
//! 4. A block that cannot be read is a damaged one, no more and no less: power loss in the midst of
//!    a write leaves such blocks, too. Opening says where they are, and goes on if what was durable
//!    is found without them; before anything else is written, those in the ring are overwritten, so
//!    that what was ignored once never counts later.
//!
//! # An append, cut at any point
//! | power is lost                   | the ring holds                                | replayed      |
//! |---------------------------------|-----------------------------------------------|---------------|
//! | before the write                | records up to N                               | live ones ..N |
//! | during the write                | N, and a torn N + 1, or nothing seen of it    | live ones ..N |
//! | after the write, before the ack | N + 1                                         | .. N + 1      |
//! | after the ack                   | N + 1                                         | .. N + 1      |
//!
//! The write of N + 1 overwrites only records that N itself no longer calls live (see `ring`), so
//! a torn one takes nothing with it. It is not begun before N is durable, so no hole can arise
//! but by damage. A trim is durable with the next record; until then its records are replayed
//! once more, which is harmless: later sequence numbers win.
//!
//! A process may also die without power loss, and leave a write in a volatile cache that nobody
//! saw completed. Opening takes it for durable, hence flushes the device after it has read; else
//! power loss after N + 2 was acknowledged could still take N + 1 away. Checkpoints do likewise.
//!
//! # A checkpoint, cut at any point
//! | power is lost                                | the slots hold             | recovered |
//! |----------------------------------------------|----------------------------|-----------|
//! | before the write (the caller's flush is done)| n, n - 1                   | n         |
//! | during the writes of the two copies          | n, torn n + 1              | n         |
//! |                                              | n, one whole copy of n + 1 | n + 1     |
//! | after them                                   | n, n + 1                   | n + 1     |
//!
//! The caller flushes before it stores n + 1, so n + 1 never refers to what is not durable; it
//! frees what only n refers to after `store` returned, so n stays usable until n + 1 counts.
//!
//! # Failure is final
//! After a failed write, a [`Log`], a [`CheckpointStore`] and a [`GroupCommit`] give the same error
//! to everyone until they are opened again: nothing is retried until it seems to succeed.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod error;
pub mod group;
pub mod log;
pub mod mark;
pub mod record;
mod recovery;
mod region;
pub mod replay;
mod ring;
mod scan;

pub use checkpoint::CheckpointStore;
pub use error::{CheckpointError, CopyError, LogDamage, LogError, MarkError, OpenError};
pub use group::GroupCommit;
pub use log::{Log, LogStats};
pub use mark::{Mark, MarkStore};
pub use record::{Change, ChangeBody, LogIdentity, RecordView, record_bytes_for};
pub use region::Region;
pub use replay::{Replay, TornTail};

#[cfg(test)]
mod testing;
