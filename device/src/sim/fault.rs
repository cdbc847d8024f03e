//! What bad disks do, on request.
//!
//! A [`Fault`] waits on a [`SimDevice`](super::SimDevice) for an operation that it concerns, and
//! makes it go wrong in the way of its [`Cause`]:
//!
//! | cause | of a | what happens | what is reported |
//! |---|---|---|---|
//! | [`Kind`](Cause::Kind), [`Errno`](Cause::Errno) | read, write, flush, discard | nothing | that error |
//! | [`Short`](Cause::Short) | read, write | the first sectors are moved, the rest is not | an error |
//! | [`Lost`](Cause::Lost) | write, flush | nothing | success |
//! | [`Torn`](Cause::Torn) | write | the first sectors land, the rest does not | success |
//! | [`Misdirected`](Cause::Misdirected) | read, write | it happens elsewhere | success |
//! | [`Stale`](Cause::Stale) | read | older contents are returned | success |
//! | [`FlippedBits`](Cause::FlippedBits) | read, write | bits change on the way | success |
//! | [`BitRot`](Cause::BitRot) | read | bits change on the medium, for good, and are read so | success |
//!
//! [`Times`] says how long it lasts. Of several faults that concern an operation, the one injected
//! first strikes, alone. What really happened is what history and crash images know: a lost write
//! is in none of them, a misdirected one is where it landed. A fault that would change nothing
//! (a misdirection to where the operation was going, a tear behind its end, a stale read of what
//! has no older contents) waits for another operation.
//!
//! [`FaultKind`] names the pairs of operation and cause; [`FaultCounters`] counts what struck;
//! [`Fault::random`] makes faults for torture runs. Damage that waits for no operation is done
//! by [`SimDevice::corrupt`](super::SimDevice::corrupt) and
//! [`flip_bit`](super::SimDevice::flip_bit).

mod kind;
mod random;
mod waiting;

use std::{io, ops::Range};

pub use kind::{FaultCounters, FaultKind};
pub(super) use waiting::{Faults, Strike};

use crate::{ByteOffset, Operation};

/// A misbehaviour that waits for its operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which operations go wrong.
    pub operation: Operation,
    /// Where: operations that touch these bytes. A flush touches every byte.
    pub range_bytes: Range<u64>,
    /// How often.
    pub times: Times,
    /// How.
    pub cause: Cause,
}

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// The next so many operations that it concerns.
    Count(u32),
    /// Every one, until so many further operations of any kind have been submitted to the device
    /// since the fault was injected; the last of these can still be struck.
    During(u64),
    /// Every one, until a write touches these bytes: a disk has other sectors for those that went
    /// bad, and takes them when they are written.
    UntilWritten,
    /// Every one, until the faults are cleared.
    Always,
}

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It fails with a kind of error, and changes nothing.
    Kind(io::ErrorKind),
    /// It fails with an error number of the operating system, and changes nothing.
    Errno(i32),
    /// A read or write moves only its first sectors, and the device will not move more. A
    /// [`Device`](crate::Device) moves all or fails: the file devices ask again for the rest, so
    /// a passing short read is never seen above them, and fail with
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) (a write: with
    /// [`WriteZero`](io::ErrorKind::WriteZero)) when nothing more comes. So does this one.
    Short {
        /// How many sectors of [`SECTOR_BYTES`](super::SECTOR_BYTES) are moved.
        sectors: u64,
    },
    /// A write is acknowledged and changes nothing, ever; a flush is acknowledged and makes
    /// nothing durable, which the next one does.
    Lost,
    /// A write is acknowledged, but only its first sectors land.
    Torn {
        /// How many sectors of [`SECTOR_BYTES`](super::SECTOR_BYTES) land.
        sectors: u64,
    },
    /// A write lands at another offset, and its place keeps what it held; a read returns what
    /// another offset holds.
    Misdirected {
        /// Where to: a multiple of [`BLOCK_BYTES`](crate::BLOCK_BYTES).
        to: ByteOffset,
    },
    /// A read returns what its range held before the last writes or discards there: as far back as
    /// is known. The history knows all since it began.
    Stale {
        /// How many of them it misses, 1 or more.
        changes: u32,
    },
    /// Distinct bits are inverted on the way: in what a read returns, while the medium is as it
    /// was, or in what a write puts down. Only bytes in the fault's range change.
    FlippedBits {
        /// How many bits.
        bits: u32,
        /// Chooses which.
        seed: u64,
    },
    /// Distinct bits of what is read have inverted on the medium, durably. Only bytes in the
    /// fault's range change.
    BitRot {
        /// How many bits.
        bits: u32,
        /// Chooses which.
        seed: u64,
    },
}

impl Fault {
    /// What the device counts when it strikes; `None` if its operation cannot go wrong like this.
    #[must_use]
    pub fn kind(&self) -> Option<FaultKind> {
        FaultKind::of(self.operation, self.cause)
    }
}

impl Cause {
    /// What is reported of the operation; `None` is success.
    pub(super) fn error(self, operation: Operation) -> Option<io::Error> {
        match self {
            Self::Kind(kind) => Some(kind.into()),
            Self::Errno(errno) => Some(io::Error::from_raw_os_error(errno)),
            Self::Short { .. } if operation == Operation::Read => {
                Some(io::ErrorKind::UnexpectedEof.into())
            }
            Self::Short { .. } => Some(io::ErrorKind::WriteZero.into()),
            _ => None,
        }
    }

    /// Whether the operation does nothing at all.
    pub(super) fn prevents(self) -> bool {
        matches!(self, Self::Kind(_) | Self::Errno(_))
    }
}
