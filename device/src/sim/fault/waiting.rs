//! The faults that have not been used up, and which of them an operation meets.

use std::ops::Range;

use super::{Cause, Fault, FaultCounters, FaultKind, Times};
use crate::{BLOCK_BYTES, Operation};

/// What befalls one operation.
pub(in crate::sim) struct Strike {
    pub(in crate::sim) cause: Cause,
    /// The bytes of the operation that are in the fault's range; empty for a flush.
    pub(in crate::sim) range_bytes: Range<u64>,
}

#[derive(Default)]
pub(in crate::sim) struct Faults {
    waiting: Vec<Waiting>,
    struck: FaultCounters,
}

struct Waiting {
    fault: Fault,
    kind: FaultKind,
    /// After how many operations on the device it is over.
    over_after: u64,
}

impl Faults {
    /// Adds a fault to a device that was given `submitted` operations so far.
    pub(in crate::sim) fn add(&mut self, fault: Fault, submitted: u64) {
        let Some(kind) = fault.kind() else {
            panic!("a {} cannot go wrong like this: {:?}", fault.operation, fault.cause)
        };
        if let Cause::Misdirected { to } = fault.cause {
            assert!(to.0.is_multiple_of(BLOCK_BYTES as u64), "{to} is not at a block");
        }
        let over_after = match fault.times {
            Times::During(operations) => submitted.saturating_add(operations),
            Times::Count(_) | Times::UntilWritten | Times::Always => u64::MAX,
        };
        self.waiting.push(Waiting { fault, kind, over_after });
    }

    pub(in crate::sim) fn clear(&mut self) {
        self.waiting.clear();
    }

    pub(in crate::sim) fn struck(&self) -> FaultCounters {
        self.struck
    }

    /// Counts what struck without having waited.
    pub(in crate::sim) fn count(&mut self, kind: FaultKind) {
        self.struck.count(kind);
    }

    /// The first fault that concerns an operation and would change its course, as `matters` says.
    pub(in crate::sim) fn strike(
        &mut self,
        operation: Operation,
        range_bytes: Range<u64>,
        submitted: u64,
        matters: impl Fn(Cause) -> bool,
    ) -> Option<Strike> {
        self.waiting.retain(|Waiting { fault, over_after, .. }| {
            let is_written = operation == Operation::Write
                && !intersection(&fault.range_bytes, &range_bytes).is_empty();
            let is_healed = fault.times == Times::UntilWritten && is_written;
            fault.times != Times::Count(0) && submitted <= *over_after && !is_healed
        });
        let waiting = self.waiting.iter_mut().find(|Waiting { fault, .. }| {
            let touched = intersection(&fault.range_bytes, &range_bytes);
            fault.operation == operation
                && (operation == Operation::Flush || !touched.is_empty())
                && matters(fault.cause)
        })?;
        if let Times::Count(count) = &mut waiting.fault.times {
            *count -= 1;
        }
        self.struck.count(waiting.kind);
        let range_bytes = intersection(&waiting.fault.range_bytes, &range_bytes);
        Some(Strike { cause: waiting.fault.cause, range_bytes })
    }
}

fn intersection(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    let start = one.start.max(other.start);
    start..one.end.min(other.end).max(start)
}
