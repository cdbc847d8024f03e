//! The memory of write units, from when a reducer fills one until the device has it.
//!
//! Units are placed in the order of their batches, so a batch that waits for memory must not be behind later ones
//! that have it: memory is taken in that order, by who has the turn at the gate. A batch that goes past the
//! gate, because all of it was found, needs little. That comes from a part that is set aside, so that no batch
//! before it ever waits for it; if there is none left it goes through the gate like others.
//!
//! While the device is behind, units wait for it in memory of their own size rather than of the most that
//! they could have needed, so that reducers go on through longer pauses of it.

use siltstone_dedup::Turn;

use crate::{
    budget::{Budget, BudgetClosed},
    config::Tuning,
};

/// Write units that the device may have at a time, at their largest, beyond one for each reducer.
const UNITS_ON_THEIR_WAY: usize = 12;

/// See the module's page. Thread-safe.
pub(crate) struct UnitBuffers {
    in_turn: Budget,
    past_the_gate: Budget,
    /// What reducers are filling at most.
    filling_bytes: usize,
}

/// What a batch has taken; to be given back.
#[derive(Debug)]
#[must_use = "it is to be given back"]
pub(crate) struct Held {
    bytes: usize,
    is_past_the_gate: bool,
}

impl Held {
    /// Whether it is of the part set aside, for which nobody ever waits: it may be held for a while.
    pub(crate) fn is_past_the_gate(&self) -> bool {
        self.is_past_the_gate
    }
}

impl UnitBuffers {
    /// As many as keep the device and the reducers busy. Less if staging, whose data they hold, is small.
    pub(crate) fn new(tuning: &Tuning) -> Self {
        let unit_bytes = tuning.unit_buffer_bytes();
        let filling_bytes = tuning.reducers * unit_bytes;
        let most = filling_bytes + UNITS_ON_THEIR_WAY * unit_bytes;
        Self {
            in_turn: Budget::new(most.min(tuning.staging_bytes).max(unit_bytes)),
            past_the_gate: Budget::new(unit_bytes / 2),
            filling_bytes,
        }
    }

    /// Waits for the memory of the batch whose turn it is.
    ///
    /// # Errors
    /// [`BudgetClosed`] once the pool has failed.
    pub(crate) async fn take(&self, _: &Turn<'_>, bytes: usize) -> Result<Held, BudgetClosed> {
        self.in_turn.take(bytes).await?.keep();
        Ok(Held { bytes, is_past_the_gate: false })
    }

    /// Takes memory for a batch that does not come to the gate, if there is enough set aside.
    pub(crate) fn try_take_past_the_gate(&self, bytes: usize) -> Option<Held> {
        self.past_the_gate.try_take(bytes)?.keep();
        Some(Held { bytes, is_past_the_gate: true })
    }

    /// Whether units have to wait for the device: of what is not being filled, more than half is taken.
    pub(crate) fn is_device_behind(&self) -> bool {
        let waiting_bytes = self.in_turn.used_bytes().saturating_sub(self.filling_bytes);
        waiting_bytes > self.in_turn.limit_bytes().saturating_sub(self.filling_bytes) / 2
    }

    /// Gives back all but `kept_bytes`, if that is less than what is held.
    pub(crate) fn shrink(&self, held: &mut Held, kept_bytes: usize) {
        if kept_bytes < held.bytes {
            self.budget_of(held).give_back_but(held.bytes, kept_bytes);
            held.bytes = kept_bytes;
        }
    }

    pub(crate) fn give_back(&self, held: Held) {
        self.budget_of(&held).give_back(held.bytes);
    }

    fn budget_of(&self, held: &Held) -> &Budget {
        if held.is_past_the_gate { &self.past_the_gate } else { &self.in_turn }
    }

    /// Ends all waiting, now and later.
    pub(crate) fn close(&self) {
        self.in_turn.close();
        self.past_the_gate.close();
    }

    /// Bytes taken.
    pub(crate) fn used_bytes(&self) -> usize {
        self.in_turn.used_bytes() + self.past_the_gate.used_bytes()
    }

    /// Bytes in all.
    pub(crate) fn limit_bytes(&self) -> usize {
        self.in_turn.limit_bytes() + self.past_the_gate.limit_bytes()
    }
}

#[cfg(test)]
mod tests {
    use siltstone_dedup::OrderGate;

    use super::*;

    /// Room for one unit in all.
    fn small() -> (UnitBuffers, usize) {
        let tuning = Tuning { staging_bytes: 4096, reducers: 2, ..Tuning::default() };
        (UnitBuffers::new(&tuning), tuning.unit_buffer_bytes())
    }

    #[test]
    fn later_batches_that_pass_the_gate_take_nothing_from_earlier_ones() {
        let (buffers, unit_bytes) = small();
        let mut passing = Vec::new();
        while let Some(held) = buffers.try_take_past_the_gate(16 << 10) {
            passing.push(held);
        }
        assert_eq!(passing.len(), unit_bytes / 2 / (16 << 10));
        let gate = OrderGate::new();
        // Larger than any other: a change of a replayed log.
        let held = pollster::block_on(async {
            let turn = gate.enter(0).await.expect("the gate is open");
            buffers.take(&turn, 8 << 20).await
        });
        buffers.give_back(held.expect("the budget is open"));
        passing.into_iter().for_each(|held| buffers.give_back(held));
        assert_eq!(buffers.used_bytes(), 0);
    }

    #[test]
    fn what_is_too_large_does_not_pass_the_gate() {
        let (buffers, unit_bytes) = small();
        assert!(buffers.try_take_past_the_gate(unit_bytes).is_none());
        let mut held = buffers.try_take_past_the_gate(unit_bytes / 2).expect("it fits");
        buffers.shrink(&mut held, 4096);
        assert_eq!(buffers.used_bytes(), 4096);
        buffers.shrink(&mut held, 8192);
        assert_eq!(buffers.used_bytes(), 4096, "nothing grows");
        buffers.give_back(held);
        assert_eq!(buffers.used_bytes(), 0);
    }
}
