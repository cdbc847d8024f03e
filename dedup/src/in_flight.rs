//! The in-flight table: blocks that batches in the pipeline are about to store.
//!
//! Between the moment a batch decides to store a block and the moment its write unit is published,
//! the index does not know the block. Batches are reduced on many cores at once, so without this
//! table two of them could store the same block twice. Here the first batch to register a
//! fingerprint owns it, and later ones learn whose block to link to.
//!
//! # Order
//! Batches register strictly in the order of their numbers ([`OrderGate`]), so that a duplicate
//! always points to an earlier batch, or to an earlier block of its own: links between batches
//! never form a circle, and a batch can be sealed when the batches before it have been.
//!
//! # Retirement
//! A batch is done with here when the index knows its blocks, but not at once. Consider batch B:
//!
//! ```text
//! B: looks in the index, does not find f
//!                                          A: published, f enters the index, A retires
//! B: registers f here
//! ```
//!
//! If A's entries had gone with its retirement, B would own f and store it a second time. B had
//! started before A retired; whoever starts later finds f in the index. So [`InFlight::retire`] is
//! told the newest batch that had started by then, and A's entries stay until that one has passed
//! the gate. Until then B's duplicate names A, a published batch: its owner still knows where A's
//! blocks went (as long as [`InFlight::oldest`] is not past A).
//!
//! # Bounds
//! The table holds the blocks of the batches in the pipeline, published ones included until those
//! started before their retirement have registered: at most twice the pipeline's batches, each
//! with at most its own number of blocks.

use std::collections::{BTreeMap, HashMap};

use siltstone_device::sync::Mutex;

use crate::fingerprint::{FingerprintHash, ShortFingerprint};
use crate::gate::{OrderGate, Turn};

/// What became of a fingerprint that a batch has registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Registration {
    /// The first to come: this batch stores the block.
    Owner,
    /// The block is being stored already.
    Duplicate {
        /// By this batch: an earlier one, or the same.
        batch: u64,
        /// As this one of the fingerprints that it registered.
        position: u32,
    },
}

/// Fingerprints of blocks that are being stored and not yet in the index. See the module's
/// documentation for the protocol.
///
/// A duplicate that ends up in a run too short for links is stored again; the table keeps naming
/// its first owner, and either copy serves later duplicates.
///
/// Lock order: the table's, then the gate's; both are leaves for everyone else.
#[derive(Default)]
pub struct InFlight {
    gate: OrderGate,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    owners: HashMap<ShortFingerprint, (u64, u32), FingerprintHash>,
    batches: BTreeMap<u64, Batch>,
}

/// A batch that owns entries.
struct Batch {
    owned: Vec<ShortFingerprint>,
    /// Once retired: the batch that must pass before the entries go.
    stays_until_passed: Option<u64>,
}

impl InFlight {
    /// An empty table; batch 0 registers first.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The gate through which batches come to register.
    #[must_use]
    pub fn gate(&self) -> &OrderGate {
        &self.gate
    }

    /// Registers the fingerprints of the blocks that a batch has found nowhere, in stream order,
    /// and appends to `out` what became of each.
    ///
    /// # Panics
    /// If the turn is at another gate, or the batch has registered before.
    pub fn register_batch(
        &self,
        turn: &Turn<'_>,
        fingerprints: &[ShortFingerprint],
        out: &mut Vec<Registration>,
    ) {
        assert!(turn.is_at(&self.gate), "a turn at this table's gate");
        let batch = turn.batch();
        let mut table = self.table.lock();
        table.reclaim(batch);
        out.reserve(fingerprints.len());
        let mut owned = Vec::new();
        for (position, fingerprint) in (0..).zip(fingerprints) {
            let mut registration = Registration::Owner;
            table
                .owners
                .entry(*fingerprint)
                .and_modify(|&mut (batch, position)| {
                    registration = Registration::Duplicate { batch, position };
                })
                .or_insert((batch, position));
            if registration == Registration::Owner {
                owned.push(*fingerprint);
            }
            out.push(registration);
        }
        if !owned.is_empty() {
            let before = table.batches.insert(batch, Batch { owned, stays_until_passed: None });
            assert!(before.is_none(), "a batch registers once");
        }
    }

    /// A batch is published: the index (or the neighbourhood) has its fingerprints. Its entries go
    /// when `newest_started` has passed the gate: the newest batch that may have looked in the
    /// index before that. Read it *after* the index was told.
    ///
    /// # Panics
    /// If the batch has not passed the gate, or is newer than `newest_started`.
    pub fn retire(&self, batch: u64, newest_started: u64) {
        let mut table = self.table.lock();
        let next = self.gate.next();
        assert!(batch < next, "a batch registers before it is published");
        assert!(batch <= newest_started, "a batch starts before it is published");
        // A batch that owns nothing has no entries that could stay.
        if let Some(retired) = table.batches.get_mut(&batch) {
            retired.stays_until_passed = Some(newest_started);
        }
        table.reclaim(next);
    }

    /// The oldest batch that a registration can still name as the owner of a block, if any. What
    /// is kept to resolve such duplicates may be forgotten for all batches before it.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.table.lock().batches.first_key_value().map(|(&batch, _)| batch)
    }

    /// Fingerprints in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().owners.len()
    }

    /// Whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    /// Drops the entries of the batches that are retired and waited for nobody from `next` on.
    fn reclaim(&mut self, next: u64) {
        let owners = &mut self.owners;
        self.batches.retain(|_, batch| {
            let stays = batch.stays_until_passed.is_none_or(|until| until >= next);
            if !stays {
                for fingerprint in &batch.owned {
                    let owner = owners.remove(fingerprint);
                    assert!(owner.is_some(), "an entry goes with its batch");
                }
            }
            stays
        });
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests;
