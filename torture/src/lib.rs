//! Torture: whole pools on simulated machines whose power fails, whose disks fail and lie, until
//! somebody shows that a promise is broken.
//!
//! A *history* is one seed: a pool, clients at work on it, perhaps a bad disk, all on one simulated
//! thread, so that the seed is the whole history. Then the power is cut at many of its events; each
//! time the pool is opened again, compared with a *model* that knows what may be there, worked with,
//! cut once more (also while it recovers), opened, checked, closed.
//!
//! ```
//! use std::{ops::ControlFlow, time::Duration};
//!
//! use siltstone_torture::{
//!     campaign::{self, Plan},
//!     host::Host,
//! };
//!
//! // The history of seed 7, cut at all the moments that are worth it.
//! let plan = Plan {
//!     first_seed: 7,
//!     only_first: true,
//!     host: Host::Machine,
//!     only_cut: None,
//!     time: Duration::ZERO,
//!     jobs: 1,
//! };
//! let outcome = campaign::run(&plan, |_counts, _elapsed| ControlFlow::Continue(()))?;
//! assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
//! # Ok::<(), siltstone_torture::history::NoSuchCut>(())
//! ```
//!
//! `siltstone torture` is a front of this crate; the engine's tests use its model and its clients.
//! - [`content`]: blocks that say what they are.
//! - [`model`]: what volumes may contain after any history.
//! - [`clients`]: what clients do, noted in the model.
//! - [`disks`]: disks that fail and disks that lie.
//! - [`pools`]: small pools in which much happens soon.
//! - [`host`]: a simulated machine, or threads.
//! - [`history`]: one seed's life, and its cuts.
//! - [`report`]: words for what was expected and what was found.
//! - [`tally`]: what was survived, counted.
//! - [`campaign`]: seeds on all cores for a time.
//!
//! [`kill`] is the other half: the real program on real files, killed while it serves.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod campaign;
pub mod clients;
pub mod content;
pub mod damage;
pub mod disks;
pub mod history;
pub mod host;
pub mod kill;
pub mod model;
pub mod pools;
pub mod report;
pub mod tally;
