//! What was survived, counted while it happens.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use serde::Serialize;
use siltstone_device::sim::fault::FaultCounters;

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
    /// Pools that were made larger in use.
    grown,
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

/// Adds to a counter.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
