//! The Siltstone engine: a pool of segments on a device, and thin volumes in it that are
//! deduplicated and compressed as they are written.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("pool");
//! use siltstone_engine::{CreateOptions, OpenOptions, Pool, VolumeOptions};
//!
//! let options = CreateOptions { size_bytes: Some(1 << 30), ..CreateOptions::default() };
//! Pool::create(&path, &options)?;
//! let pool = Pool::open(&path, &OpenOptions::default())?;
//! let disk = pool.create_volume("disk", &VolumeOptions::new(10 << 30))?;
//! disk.write_at(8192, b"hello")?;
//! disk.flush()?; // What was written before survives a power cut from here on.
//!
//! pool.create_snapshots(&["disk@greeting".parse()?])?;
//! disk.discard(0, 1 << 20)?;
//! let mut back = [0; 5];
//! pool.volume("disk@greeting")?.read_at(8192, &mut back)?;
//! assert_eq!(&back, b"hello");
//! pool.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! A program that embeds a pool needs this crate alone. Handles are cheap to clone and may be used from any
//! thread; every operation also comes as a future that any executor can drive (`write` beside `write_at`). What
//! fails says so in a sentence for people, and is of a [kind](ErrorKind) for programs. What an operator is to
//! know without asking goes to `tracing`.
//!
//! Below it are `siltstone-device` (what a pool lies on: give [`Pool::open_on`] a device of your own),
//! `siltstone-nvram`, `siltstone-dedup` and `siltstone-cursor`; above it the server and the program, which use
//! no more than what is public here. `examples/` has a pool in ten lines (`embed`) and one on a custom
//! device (`custom_device`).
//!
//! # The inside
//! `docs/architecture.md` tells the whole story. In the order of a write's life:
//!
//! - `volume` and `admission`: a write gets its memory, its space and its place in the total order,
//!   and is visible at once through the volume's `overlay`; `staged_data` has the checksums that
//!   its blocks carry until they are stored.
//! - `reduce` (with `compress`, `summaries`, `planned` and `unit_buffers`): on every core, a batch at a time,
//!   zeros, duplicates and compression.
//! - `sealer`: places batches as write units (`write_unit`, `frame`) in frontier segments, and
//!   publishes them once the device has them.
//! - `commit`: flushes, through the NVRAM log or the pipeline; `marks`: a note of what they made durable.
//! - `checkpointer` (with `segment_table`, `segment_count`, `frontier`, `space`, `throttle`, `record`, `catalog`):
//!   makes the state a place to recover from, and frees what nothing refers to; `discarder` gives it back to
//!   the medium.
//! - `read` (with `fetch`, `frame_cache` and `read_ahead`): overlay, map, frame.
//! - `recovery` (with `repair`, `marks`, `warm` and `index_image`): coming back.
//! - `catalog`, `epochs`, `pool/snapshots`: volumes, snapshots, and which change is before which;
//!   `adoption`: chains of their layers become shorter.
//! - `stats`, `explain`: what every stage takes, and which one bounds the rate of writes.
//! - `stat`, `accounting`, `fullness`: what the pool holds, where every byte of it is, and telling when
//!   it fills up.
//! - `check` and `scrub` (with `verify`, `lost`, `findings`, `pace`): looking at everything, offline
//!   and in use.
//!
//! `core` is what the parts of an open pool share, and has their lock order; `pipeline` has the
//! threads; `health` the failure after which nothing changes any more.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod accounting;
mod admission;
mod adoption;
mod budget;
mod catalog;
pub mod check;
mod checkpointer;
mod collector;
mod commit;
mod compress;
pub mod compression;
pub mod config;
mod core;
pub mod discarder;
mod effort;
mod epochs;
pub mod error;
mod error_kind;
pub mod estimate;
pub mod explain;
mod fetch;
pub mod findings;
mod flush_waiters;
mod frame;
mod frame_cache;
mod framing;
mod frontier;
pub mod fullness;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod index_image;
mod joined_sums;
mod layout;
mod lost;
mod marks;
mod overlay;
mod pace;
mod pipeline;
mod planned;
mod pool;
mod read;
mod read_ahead;
mod record;
mod recovery;
mod reduce;
pub mod repair;
pub mod scrub;
mod sealer;
mod segment_count;
mod segment_table;
mod small_units;
mod snapshot_name;
mod space;
mod spread;
mod staged_data;
pub mod stat;
pub mod stats;
mod summaries;
mod superblock;
mod temperature;
mod throttle;
mod unit_buffers;
mod verify;
mod volume;
mod volume_core;
mod warm;
mod write_unit;

pub use accounting::SpaceParts;
pub use check::{CheckOptions, CheckProgress, CheckReport};
pub use compression::{Compression, FrameSize, Levels};
pub use config::{CreateOptions, OpenOptions, Tuning, VolumeOptions};
pub use effort::Effort;
pub use error::{EngineError, Result};
pub use error_kind::ErrorKind;
pub use estimate::{EstimateError, EstimateOptions, EstimateProgress, EstimateReport, estimate};
pub use explain::{Activity, Bound, Explanation, StageUse};
pub use findings::{Findings, LostCause, LostRange, Problem};
pub use fullness::Fullness;
pub use pool::{Growth, Pool, SnapshotInfo, VolumeInfo};
pub use repair::Repair;
pub use scrub::{ScrubOptions, ScrubProgress, ScrubReport};
pub use snapshot_name::SnapshotName;
pub use stat::{ContentStat, PoolStat, ScrubStat, VolumeContent, VolumeStat, WrittenStat};
pub use volume::{StatusRun, Volume, VolumeIdentity, WriteBuffer};
