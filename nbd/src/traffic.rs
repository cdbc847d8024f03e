//! What clients did with an export: for whoever watches a server.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{
    latency::{Histogram, Latencies},
    request::Command,
};

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Trims.
    Trim,
    /// Writes of zeros.
    WriteZeroes,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Read, Self::Write, Self::Flush, Self::Trim, Self::WriteZeroes];

    /// The name that programs use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write_zeroes",
        }
    }
}

/// What a request asks for, and of how many bytes, if it is counted.
pub(crate) fn counted(command: &Command) -> Option<(Operation, u64)> {
    Some(match *command {
        Command::Read { len, .. } => (Operation::Read, len.into()),
        Command::Write { len, .. } => (Operation::Write, len.into()),
        Command::Flush => (Operation::Flush, 0),
        Command::Trim { len, .. } => (Operation::Trim, len),
        Command::WriteZeroes { len, .. } => (Operation::WriteZeroes, len),
        Command::Disconnect | Command::Prefetch { .. } | Command::BlockStatus { .. } => {
            return None;
        }
    })
}

/// Counts an export's requests, from their complete receipt until their outcome is known. Thread-safe; no
/// lock. An export that has one ([`Export::traffic`](crate::Export::traffic)) is counted.
#[derive(Default)]
pub struct Traffic {
    operations: [Counters; Operation::ALL.len()],
}

/// Of one operation, away from those of others: clients of several threads count here.
#[derive(Default)]
#[repr(align(128))]
struct Counters {
    latency: Histogram,
    bytes: AtomicU64,
    failures: AtomicU64,
}

/// What was counted of one operation up to one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationTraffic {
    /// How long its requests took.
    pub latencies: Latencies,
    /// The bytes that they were about, failed ones included.
    pub bytes: u64,
    /// How many of them failed.
    pub failures: u64,
}

impl Traffic {
    /// Counts a request.
    pub(crate) fn record(
        &self,
        (operation, bytes): (Operation, u64),
        latency: Duration,
        failed: bool,
    ) {
        let counters = &self.operations[operation as usize];
        counters.latency.record(latency);
        if bytes > 0 {
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        if failed {
            counters.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted of an operation.
    #[must_use]
    pub fn of(&self, operation: Operation) -> OperationTraffic {
        let counters = &self.operations[operation as usize];
        OperationTraffic {
            latencies: counters.latency.latencies(),
            bytes: counters.bytes.load(Ordering::Relaxed),
            failures: counters.failures.load(Ordering::Relaxed),
        }
    }
}
