//! What was survived, counted while it happens.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters that many threads add to.
        #[derive(Debug, Default)]
        pub struct Tally {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// The counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Tally {
            /// The counters now.
            #[must_use]
            pub fn counts(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
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
    /// Operations that failed, as they may on a bad disk or in a full pool.
    refused,
    /// Power cuts.
    cuts,
    /// Pools opened after a cut and found right.
    recoveries,
    /// Whole pools checked.
    checks,
    /// Blocks compared with the model.
    blocks,
    /// Requests that a disk failed.
    failures,
    /// Requests that a disk falsified.
    lies,
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
