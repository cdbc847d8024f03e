//! What was survived, counted while it happens.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use serde::Serialize;
use siltstone_device::sim::fault::FaultCounters;
use siltstone_engine::Pool;

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters that many threads add to.
        #[derive(Debug, Default)]
        pub struct Tally {
            $($(#[$doc])* pub $name: AtomicU64,)*
            /// Requests that disks failed or falsified.
            pub faults: Mutex<FaultCounters>,
        }

        /// The counters at one moment.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
            /// Requests that disks failed or falsified, by kind.
            pub faults: BTreeMap<String, u64>,
        }

        impl Tally {
            /// The counters now.
            #[must_use]
            pub fn counts(&self) -> Counts {
                let faults = self.faults.lock();
                let struck = faults.iter().filter(|(_, count)| *count > 0);
                let faults = struck.map(|(kind, count)| (kind.to_string(), count)).collect();
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* faults }
            }
        }
    };
}

tally! {
    /// Seeds lived to their end.
    histories,
    /// Operations of clients.
    operations,
    /// Flushes that were acknowledged.
    flushes,
    /// Snapshots that were taken.
    snapshots,
    /// Clones that were made of them.
    clones,
    /// Volumes that went back to them.
    roll_backs,
    /// Operations that failed, as they may on a bad disk or in a full pool.
    refused,
    /// Of those, in full pools.
    refused_full,
    /// Pools that were made larger in use.
    grown,
    /// Batches written as two units.
    divided_batches,
    /// Layers that began to take over what they read of their parent.
    begun_adoptions,
    /// Layers that need their parent no more.
    adopted_layers,
    /// Garbage collections that came to an end.
    collections,
    /// Blocks that they moved.
    moved_blocks,
    /// Damaged blocks that were found stored elsewhere.
    mended_blocks,
    /// Images of the index written while a pool was open.
    index_images,
    /// Closed pools that have an image of the index.
    closed_images,
    /// Openings that took entries from an image of the index.
    loaded_images,
    /// Power cuts.
    cuts,
    /// Pools opened after a cut and found right.
    recoveries,
    /// Whole pools checked.
    checks,
    /// Blocks compared with the model.
    blocks,
    /// Damage that was reported, by a read or by opening.
    reported,
}

impl Tally {
    /// Counts what a pool has done since it was opened. For once in its life, at the end.
    pub fn note_pool(&self, pool: &Pool) {
        let counters = pool.counters();
        for (counter, count) in [
            (&self.divided_batches, counters.divided_batches),
            (&self.begun_adoptions, counters.begun_adoptions),
            (&self.adopted_layers, counters.adopted_layers),
            (&self.collections, counters.collector_rounds),
            (&self.moved_blocks, counters.collector_moved_blocks),
            (&self.mended_blocks, counters.mended_blocks),
            (&self.index_images, counters.index_images),
            (&self.loaded_images, u64::from(counters.index_loaded_entries > 0)),
        ] {
            add(counter, count);
        }
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
