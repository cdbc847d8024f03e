//! Damage that redundancy made good.

use siltstone_device::{ByteOffset, SegmentId, Unreadable, header::HeaderError};
use siltstone_nvram::{CopyError, OpenError};

/// Something that was found damaged when the pool was opened, and of which nothing is lost. An
/// opening for writing restores it, soon if not at once.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Repair {
    /// A copy of the superblock.
    #[error("{reason}; the other copy counts")]
    Superblock {
        /// Where it is.
        offset: ByteOffset,
        /// It, and what is wrong with it.
        reason: String,
    },
    /// A copy of a checkpoint record, which power loss may also have torn.
    #[error("{0}; another copy counts")]
    Checkpoint(CopyError),
    /// A copy of a page of the segment table.
    #[error("{reason}; another copy of page {page} counts")]
    Table {
        /// Which page.
        page: u64,
        /// Where the copy is.
        offset: ByteOffset,
        /// It, and what is wrong with it.
        reason: String,
    },
    /// A durability mark.
    #[error("{0}; nothing is lost by that")]
    Mark(HeaderError),
    /// A record of the log that was durable, and is not needed.
    #[error("{0}; what it held is in segments")]
    LogRecord(OpenError),
    /// A write unit that was durable.
    #[error("{}; what it held is in the NVRAM log", unit_place(*unit, *place))]
    Unit {
        /// Its number.
        unit: u64,
        /// Its segment and where in it, if that is known.
        place: Option<(SegmentId, u64)>,
    },
    /// Blocks of the log that cannot be read, and that hold nothing that was known to be durable
    /// and is not elsewhere.
    #[error(
        "the NVRAM log: {} bytes at {} cannot be read: {}; recovery did without them",
        .0.len_bytes, .0.offset, .0.cause
    )]
    UnreadableLog(Unreadable),
    /// The same of a segment that was being written.
    #[error(
        "{segment}: {} bytes at {} cannot be read: {}; recovery did without them",
        blocks.len_bytes, blocks.offset, blocks.cause
    )]
    UnreadableSegment {
        /// The segment.
        segment: SegmentId,
        /// The blocks.
        blocks: Unreadable,
    },
}

/// Repairs as programs are told of them.
pub(crate) fn as_sentences<S: serde::Serializer>(
    repairs: &[Repair],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(repairs.iter().map(ToString::to_string))
}

/// Names a write unit that was durable and is not whole.
pub(crate) fn unit_place(unit: u64, place: Option<(SegmentId, u64)>) -> String {
    match place {
        Some((segment, offset_bytes)) => {
            format!(
                "write unit {unit}, which belongs to {segment} at byte {offset_bytes}, was \
                     durable and is damaged"
            )
        }
        None => format!(
            "write unit {unit}, which begins one of the frontier's segments, was durable and is \
             damaged"
        ),
    }
}
