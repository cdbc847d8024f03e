//! The Siltstone engine: pools and volumes.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod admission;
mod budget;
mod catalog;
pub mod check;
mod checkpointer;
mod commit;
mod compress;
pub mod config;
mod core;
pub mod error;
mod frame;
mod frame_cache;
mod frontier;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod layout;
mod overlay;
mod pipeline;
mod pool;
mod read;
mod read_ahead;
mod record;
mod recovery;
mod reduce;
mod sealer;
mod segment_table;
mod space;
pub mod stat;
pub mod stats;
mod summaries;
mod superblock;
mod volume;
mod volume_core;
mod write_unit;

pub use check::{CheckProgress, CheckReport, Problem};
pub use config::{CreateOptions, OpenOptions, Tuning, VolumeOptions};
pub use error::{EngineError, Result};
pub use pool::{Pool, VolumeInfo};
pub use stat::{PoolStat, VolumeStat};
pub use volume::{StatusRun, Volume, WriteBuffer};
