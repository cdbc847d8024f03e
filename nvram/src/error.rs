//! What can go wrong with the log and the checkpoint slots.

use siltstone_device::{ByteOffset, DeviceError, Sequence, header::HeaderError};

use crate::Region;

/// Why an append was not made durable. Cheap to clone: one failure may concern many waiters.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// There is no room until more is trimmed. Nothing was written.
    #[error(
        "the NVRAM log is full: a record of {needed_bytes} bytes does not fit, {free_bytes} are free"
    )]
    Full {
        /// The record's size.
        needed_bytes: u64,
        /// The largest record that would fit at this moment.
        free_bytes: u64,
    },
    /// The changes would not even fit an empty log. Nothing was written.
    #[error("a record of {needed_bytes} bytes exceeds the NVRAM log's limit of {max_bytes} bytes")]
    TooLarge {
        /// The record's size.
        needed_bytes: u64,
        /// The largest record that this log takes.
        max_bytes: u64,
    },
    /// The caller's check found other data in the record than the change should have. Nothing was
    /// written.
    #[error("the data of change {sequence} is not what it should be: it was not logged")]
    Refused {
        /// The change.
        sequence: Sequence,
    },
    /// A write failed, now or earlier; the log takes nothing more until it is opened again.
    #[error("the NVRAM log failed when it wrote record {record}: {cause}")]
    Failed {
        /// The record whose write failed first.
        record: u64,
        /// Why.
        cause: DeviceError,
    },
}

/// Why a log could not be formatted, opened or replayed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The region is not made of whole blocks, is too small, or passes the device's end.
    #[error(
        "an NVRAM log cannot be {region} of a device of {device_bytes} bytes: it needs whole 4096-byte blocks, at least {min_bytes} bytes, inside the device"
    )]
    Region {
        /// The region asked for.
        region: Region,
        /// The device's size.
        device_bytes: u64,
        /// The smallest region that works.
        min_bytes: u64,
    },
    /// The device failed while the log was scanned or written.
    #[error("the NVRAM log's device failed: {0}")]
    Device(#[from] DeviceError),
    /// No record of this log is there, though a formatted log always has one: the wrong device, a
    /// wiped one, or a format that never finished.
    #[error(
        "no record of this pool's NVRAM log in {region}: it was wiped or belongs elsewhere; put the right one there, or restore it together with the pool"
    )]
    NoRecord {
        /// Where it was looked for.
        region: Region,
    },
    /// A record was written by a newer program.
    #[error(
        "the NVRAM log record at byte {address_bytes} has version {found}, newer than this program knows ({known}); use a newer siltstone"
    )]
    Version {
        /// The record's place.
        address_bytes: u64,
        /// Its version.
        found: u16,
        /// The newest version known.
        known: u16,
    },
    /// A record that was acknowledged and not trimmed is not whole: changes are lost.
    #[error(
        "the NVRAM log is damaged: record {record}, which belongs at {offset}, was acknowledged but {damage}"
    )]
    Damaged {
        /// The record's number.
        record: u64,
        /// Where it is or, if nothing of it was found, where it should begin.
        offset: ByteOffset,
        /// What is wrong with it.
        damage: LogDamage,
    },
}

/// What is wrong with an acknowledged record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDamage {
    /// Nothing of it was found.
    Missing,
    /// Its head is there, but the rest does not match its checksum.
    NotWhole,
    /// The device does not give all of it.
    Unreadable {
        /// Why not.
        cause: DeviceError,
    },
    /// A second, whole record has the same number.
    Twice {
        /// The other record's place.
        other: ByteOffset,
    },
    /// It does not stand where its neighbours say.
    Misplaced {
        /// Where it was found.
        found: ByteOffset,
    },
    /// It and the records before it fill the ring to the last block, which no log does.
    NoRoom,
}

impl std::fmt::Display for LogDamage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::NotWhole => f.write_str("does not match its checksum"),
            Self::Unreadable { cause } => write!(f, "cannot be read: {cause}"),
            Self::Twice { other } => write!(f, "there is another one at {other}"),
            Self::Misplaced { found } => write!(f, "stands at {found}"),
            Self::NoRoom => f.write_str("leaves no room in the ring"),
        }
    }
}

/// Why a checkpoint could not be stored or loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A copy of a slot overlaps another, is not whole blocks, or passes the device's end.
    #[error(
        "a checkpoint slot cannot be {copy} of a device of {device_bytes} bytes: it needs whole 4096-byte blocks, apart from the others, inside the device"
    )]
    Slots {
        /// The copy.
        copy: Region,
        /// The device's size.
        device_bytes: u64,
    },
    /// The body does not fit a slot. Nothing was written.
    #[error(
        "a checkpoint of {body_bytes} bytes does not fit its slot, which takes {max_body_bytes}"
    )]
    TooLarge {
        /// The body's size.
        body_bytes: u64,
        /// The largest body that fits.
        max_body_bytes: u64,
    },
    /// The device failed while slots were loaded or formatted.
    #[error("the checkpoint's device failed: {0}")]
    Device(#[from] DeviceError),
    /// A write failed, now or earlier; no further checkpoint is stored until the next open.
    #[error("checkpoint {number} could not be written: {cause}")]
    Failed {
        /// The checkpoint whose write failed first.
        number: u64,
        /// Why.
        cause: DeviceError,
    },
    /// Neither slot holds a whole checkpoint, and neither is empty.
    #[error("both checkpoints are damaged: {first}; {second}")]
    Damaged {
        /// What is wrong with the first slot.
        first: CopyError,
        /// What is wrong with the second slot.
        second: CopyError,
    },
    /// A checkpoint was written by a newer program, and may be the newest.
    #[error(transparent)]
    Newer(HeaderError),
    /// A checkpoint that was durable is in neither copy of its slot.
    #[error(
        "checkpoint {durable} was durable and is damaged: neither copy of it is whole ({first}; {second}), and the newest whole checkpoint, {newest}, is too old to be used"
    )]
    Lost {
        /// The checkpoint known to have been durable; there may have been a newer one.
        durable: u64,
        /// The newest whole one; 0 if there is none.
        newest: u64,
        /// Where its first copy should be.
        first: Region,
        /// Where its second copy should be.
        second: Region,
    },
}

/// Why a copy of a checkpoint does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// It is torn, damaged, or something else.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A whole checkpoint in the slot that its number never goes to.
    #[error("checkpoint record at byte {address_bytes}: number {number} belongs to the other slot")]
    WrongSlot {
        /// Where.
        address_bytes: u64,
        /// The number found.
        number: u64,
    },
    /// It is older than the other copy of its slot.
    #[error(
        "checkpoint record at byte {address_bytes}: number {found} stands there, and the other copy has number {newest}"
    )]
    Stale {
        /// Where.
        address_bytes: u64,
        /// The number found; 0 if the place is empty.
        found: u64,
        /// The other copy's number.
        newest: u64,
    },
}

/// Why the durability mark could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MarkError {
    /// The device failed.
    #[error("the durability mark's device failed: {0}")]
    Device(#[from] DeviceError),
    /// It was written by a newer program.
    #[error(transparent)]
    Newer(HeaderError),
}
