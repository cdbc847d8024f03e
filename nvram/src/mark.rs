//! The durability mark: what is known to have been durable.
//!
//! A record or a unit at the end of what was written looks the same whether power loss tore it
//! before anybody relied on it, or the medium damaged it long after it was acknowledged. The mark
//! tells: it says how far things had become durable, and recovery that comes less far than that
//! has met damage.
//!
//! It is written after the fact, and lazily: whatever a whole mark says was durable when the mark
//! was submitted, so it is true however late it gets to the medium, in whatever order, and losing
//! it costs nothing but what it would have noticed. Hence it needs no flush of its own, and two
//! marks may be under way at once.
//!
//! Marks are numbered and go to two pages in turn, number n to page n mod 2. What a mark says never
//! shrinks with its number; the newest whole one counts. It fits a sector, which a cut does not
//! tear.

use std::sync::Arc;

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, Device, Durability, Sequence,
    header::{self, HEADER_BYTES, HeaderError, Identity, Kind},
    request, salvage,
    sync::Mutex,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U64};

use crate::MarkError;

/// The version of the layout.
pub const MARK_VERSION: u16 = 1;

/// The body, after the common header. 64 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Body {
    record: U64,
    unit: U64,
    sequence: U64,
    checkpoint: U64,
    reserved: [u8; 32],
}
const _: () = assert!(size_of::<Body>() == 64);
const MARK_BYTES: usize = HEADER_BYTES + size_of::<Body>();
const SECTOR_BYTES: usize = 512;
const _: () = assert!(MARK_BYTES <= SECTOR_BYTES);

/// How far things are durable. Zeros say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The newest record of the log.
    pub record: u64,
    /// The newest write unit.
    pub unit: u64,
    /// Every change up to here: in units up to `unit`, or in records up to `record`.
    pub sequence: Sequence,
    /// The newest checkpoint.
    pub checkpoint: u64,
}

/// Two pages of the pool's device.
///
/// Thread safety: shared freely; writes may overlap.
pub struct MarkStore {
    device: Arc<dyn Device>,
    pages: [ByteOffset; 2],
    pool: u64,
    damaged_pages: Vec<HeaderError>,
    /// The last mark begun and its number: they go together, so that of two marks that are
    /// written at once the one with the higher number says all that the other one says.
    begun: Mutex<(u64, Mark)>,
    newest: Mutex<Mark>,
}

impl MarkStore {
    /// Overwrites both pages with zeros: no mark. Durable after the next flush.
    ///
    /// # Errors
    /// If a write fails.
    pub async fn format(device: &dyn Device, pages: [ByteOffset; 2]) -> Result<(), MarkError> {
        for page in pages {
            let zeros = AlignedBuffer::zeroed(BLOCK_BYTES);
            request::write(device, page, zeros, Durability::Flush).await?;
        }
        Ok(())
    }

    /// Opens the two pages of a pool and reads the newest whole mark; a pool without one has
    /// nothing marked.
    ///
    /// # Errors
    /// If the device is closed or a mark is of a newer version. One that cannot be read is damaged.
    pub async fn open(
        device: Arc<dyn Device>,
        pages: [ByteOffset; 2],
        pool: u64,
    ) -> Result<Self, MarkError> {
        let mut newest = (0, Mark::default());
        let mut damaged_pages = Vec::new();
        for page in pages {
            let read = salvage::read(&*device, page, AlignedBuffer::zeroed(BLOCK_BYTES)).await?;
            let found = match read.whole() {
                Ok(bytes) => decode(bytes, pool, page),
                Err(cause) => Err(identity(pool, page).unreadable(cause)),
            };
            match found {
                Ok((number, mark)) if number > newest.0 => newest = (number, mark),
                Ok(_) => {}
                Err(error @ HeaderError::Version { .. }) => return Err(MarkError::Newer(error)),
                Err(HeaderError::Magic { .. }) if read.bytes().iter().all(|&byte| byte == 0) => {}
                Err(error) => damaged_pages.push(error),
            }
        }
        let (number, mark) = newest;
        Ok(Self {
            device,
            pages,
            pool,
            damaged_pages,
            begun: Mutex::new((number, mark)),
            newest: Mutex::new(mark),
        })
    }

    /// What is wrong with pages that were not whole when this store was opened. Later marks
    /// overwrite them.
    #[must_use]
    pub fn damaged_pages(&self) -> &[HeaderError] {
        &self.damaged_pages
    }

    /// The newest mark that was read or written.
    #[must_use]
    pub fn newest(&self) -> Mark {
        *self.newest.lock()
    }

    /// Writes a mark; what it says is durable already. The mark itself is durable after the next
    /// flush.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn write(&self, mark: Mark) -> Result<(), MarkError> {
        let (number, mark) = {
            let mut begun = self.begun.lock();
            *begun = (begun.0 + 1, begun.1.joined(&mark));
            *begun
        };
        let page = self.pages[(number % 2) as usize];
        let buffer = encode(&mark, number, self.pool, page);
        request::write(&*self.device, page, buffer, Durability::Flush).await?;
        let mut newest = self.newest.lock();
        *newest = newest.joined(&mark);
        Ok(())
    }
}

impl Mark {
    /// All that either says.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        Self {
            record: self.record.max(other.record),
            unit: self.unit.max(other.unit),
            sequence: self.sequence.max(other.sequence),
            checkpoint: self.checkpoint.max(other.checkpoint),
        }
    }
}

fn identity(pool: u64, page: ByteOffset) -> Identity {
    Identity { kind: Kind::DurabilityMark, version: MARK_VERSION, pool, address_bytes: page.0 }
}

fn encode(mark: &Mark, number: u64, pool: u64, page: ByteOffset) -> AlignedBuffer {
    let body = Body {
        record: U64::new(mark.record),
        unit: U64::new(mark.unit),
        sequence: U64::new(mark.sequence.0),
        checkpoint: U64::new(mark.checkpoint),
        reserved: [0; 32],
    };
    let mut buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
    buffer[HEADER_BYTES..MARK_BYTES].copy_from_slice(body.as_bytes());
    header::seal(&mut buffer[..MARK_BYTES], &identity(pool, page), number);
    buffer
}

/// The number and the mark.
fn decode(bytes: &[u8], pool: u64, page: ByteOffset) -> Result<(u64, Mark), HeaderError> {
    let header = header::verify(bytes, &identity(pool, page))?;
    let length_bytes = header.length_bytes.get();
    let body = bytes[..length_bytes as usize].get(HEADER_BYTES..);
    let Some((body, _)) = body.and_then(|body| Body::read_from_prefix(body).ok()) else {
        let kind = Kind::DurabilityMark;
        return Err(HeaderError::Length { kind, address_bytes: page.0, length_bytes });
    };
    let mark = Mark {
        record: body.record.get(),
        unit: body.unit.get(),
        sequence: Sequence(body.sequence.get()),
        checkpoint: body.checkpoint.get(),
    };
    // Numbers count on from here; no program gets this far.
    Ok((header.sequence.get().min(u64::MAX >> 1), mark))
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests;
