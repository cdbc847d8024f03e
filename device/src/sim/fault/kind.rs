//! Names for what can go wrong, and how often it did.

use std::{
    fmt,
    ops::{AddAssign, Index},
};

use super::Cause;
use crate::Operation;

/// What goes wrong with what: an operation and the kind of its [`Cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// A read fails.
    FailedRead,
    /// A write fails and changes nothing.
    FailedWrite,
    /// A flush fails, and nothing guarantees what it covered.
    FailedFlush,
    /// A discard fails.
    FailedDiscard,
    /// A read fails after it has filled some of the buffer.
    ShortRead,
    /// A write fails after some of it has landed.
    ShortWrite,
    /// An acknowledged write is nowhere.
    LostWrite,
    /// An acknowledged flush made nothing durable.
    LostFlush,
    /// An acknowledged write has landed in part.
    TornWrite,
    /// An acknowledged write is elsewhere.
    MisdirectedWrite,
    /// A read returns what another place holds.
    MisdirectedRead,
    /// A read returns what its place held before.
    StaleRead,
    /// A read returns other bits than the medium holds.
    FlippedRead,
    /// A write puts down other bits than it was given.
    FlippedWrite,
    /// Contents of the medium change by themselves.
    BitRot,
}

impl FaultKind {
    /// Every kind, in order.
    pub const ALL: [Self; 15] = [
        Self::FailedRead,
        Self::FailedWrite,
        Self::FailedFlush,
        Self::FailedDiscard,
        Self::ShortRead,
        Self::ShortWrite,
        Self::LostWrite,
        Self::LostFlush,
        Self::TornWrite,
        Self::MisdirectedWrite,
        Self::MisdirectedRead,
        Self::StaleRead,
        Self::FlippedRead,
        Self::FlippedWrite,
        Self::BitRot,
    ];

    /// The kind of a cause that befalls an operation; `None` if it cannot.
    pub(super) fn of(operation: Operation, cause: Cause) -> Option<Self> {
        use Operation::{Discard, Flush, Read, Write};
        Some(match (operation, cause) {
            (Read, Cause::Kind(_) | Cause::Errno(_)) => Self::FailedRead,
            (Write, Cause::Kind(_) | Cause::Errno(_)) => Self::FailedWrite,
            (Flush, Cause::Kind(_) | Cause::Errno(_)) => Self::FailedFlush,
            (Discard, Cause::Kind(_) | Cause::Errno(_)) => Self::FailedDiscard,
            (Read, Cause::Short { .. }) => Self::ShortRead,
            (Write, Cause::Short { .. }) => Self::ShortWrite,
            (Write, Cause::Lost) => Self::LostWrite,
            (Flush, Cause::Lost) => Self::LostFlush,
            (Write, Cause::Torn { .. }) => Self::TornWrite,
            (Write, Cause::Misdirected { .. }) => Self::MisdirectedWrite,
            (Read, Cause::Misdirected { .. }) => Self::MisdirectedRead,
            (Read, Cause::Stale { .. }) => Self::StaleRead,
            (Read, Cause::FlippedBits { .. }) => Self::FlippedRead,
            (Write, Cause::FlippedBits { .. }) => Self::FlippedWrite,
            (Read, Cause::BitRot { .. }) => Self::BitRot,
            _ => return None,
        })
    }

    /// The operation that goes wrong; bit rot shows in reads.
    #[must_use]
    pub fn operation(self) -> Operation {
        match self {
            Self::FailedRead
            | Self::ShortRead
            | Self::MisdirectedRead
            | Self::StaleRead
            | Self::FlippedRead
            | Self::BitRot => Operation::Read,
            Self::FailedWrite
            | Self::ShortWrite
            | Self::LostWrite
            | Self::TornWrite
            | Self::MisdirectedWrite
            | Self::FlippedWrite => Operation::Write,
            Self::FailedFlush | Self::LostFlush => Operation::Flush,
            Self::FailedDiscard => Operation::Discard,
        }
    }

    /// Whether the device says nothing: the operation reports success.
    #[must_use]
    pub fn is_silent(self) -> bool {
        !matches!(
            self,
            Self::FailedRead
                | Self::FailedWrite
                | Self::FailedFlush
                | Self::FailedDiscard
                | Self::ShortRead
                | Self::ShortWrite
        )
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FailedRead => "failed read",
            Self::FailedWrite => "failed write",
            Self::FailedFlush => "failed flush",
            Self::FailedDiscard => "failed discard",
            Self::ShortRead => "short read",
            Self::ShortWrite => "short write",
            Self::LostWrite => "lost write",
            Self::LostFlush => "lost flush",
            Self::TornWrite => "torn write",
            Self::MisdirectedWrite => "misdirected write",
            Self::MisdirectedRead => "misdirected read",
            Self::StaleRead => "stale read",
            Self::FlippedRead => "flipped read",
            Self::FlippedWrite => "flipped write",
            Self::BitRot => "bit rot",
        })
    }
}

/// How often each kind of fault has struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    counts: [u64; FaultKind::ALL.len()],
}

impl FaultCounters {
    /// Each kind that has struck, in order, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (FaultKind, u64)> {
        FaultKind::ALL.into_iter().zip(self.counts).filter(|&(_, count)| count > 0)
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(in crate::sim) fn count(&mut self, kind: FaultKind) {
        self.counts[kind as usize] += 1;
    }
}

impl Index<FaultKind> for FaultCounters {
    type Output = u64;

    fn index(&self, kind: FaultKind) -> &u64 {
        &self.counts[kind as usize]
    }
}

/// Adds up the counters of several devices, such as one machine's before and after a power cut.
impl AddAssign for FaultCounters {
    fn add_assign(&mut self, other: Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }
}
