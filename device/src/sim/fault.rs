//! Failures on request.

use std::{io, ops::Range};

use crate::Operation;

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// The next so many operations that it concerns.
    Count(u32),
    /// Every one, until the faults are cleared.
    Always,
}

/// What a failed operation reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A kind of error.
    Kind(io::ErrorKind),
    /// An error number of the operating system.
    Errno(i32),
}

/// A failure that waits for its operation. What fails changes nothing on the medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which operations fail.
    pub operation: Operation,
    /// Where: operations that touch these bytes. A flush touches every byte.
    pub range_bytes: Range<u64>,
    /// How often.
    pub times: Times,
    /// How.
    pub cause: Cause,
}

/// The faults that have not been used up.
#[derive(Default)]
pub(super) struct Faults {
    waiting: Vec<Fault>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.waiting.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// The error that the first fault to concern an operation causes.
    pub(super) fn strike(
        &mut self,
        operation: Operation,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Option<io::Error> {
        let end_bytes = offset_bytes + len_bytes;
        let fault = self.waiting.iter_mut().find(|fault| {
            let Range { start, end } = fault.range_bytes;
            let touches = start < end_bytes && offset_bytes < end;
            let is_used_up = fault.times == Times::Count(0);
            fault.operation == operation
                && !is_used_up
                && (operation == Operation::Flush || touches)
        })?;
        if let Times::Count(count) = &mut fault.times {
            *count -= 1;
        }
        Some(match fault.cause {
            Cause::Kind(kind) => kind.into(),
            Cause::Errno(errno) => io::Error::from_raw_os_error(errno),
        })
    }
}
