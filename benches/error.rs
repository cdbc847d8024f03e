//! Why something could not be measured.

use std::{
    io,
    path::{Path, PathBuf},
};

use siltstone_device::{DeviceError, size::human};
use siltstone_engine::EngineError;

use crate::data::DataError;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// There is no data, or no place for the pool.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The pool failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file or a directory could not be used.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system does not do what it is asked for.
    #[error("cannot {what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No such group.
    #[error("no group's name contains {given:?}; there are {}", names.join(", "))]
    NoGroup {
        /// What was asked for.
        given: String,
        /// The groups.
        names: Vec<&'static str>,
    },
    /// The data is too little.
    #[error("the data has {} of distinct blocks; at least {} are needed", human(*distinct_bytes),
        human(*needed_bytes))]
    TooLittleData {
        /// What it has.
        distinct_bytes: u64,
        /// What it must have.
        needed_bytes: u64,
    },
    /// The directory has too little room.
    #[error(
        "{} has {} free and {} are needed; give another one by --directory, or less data by --size",
        directory.display(), human(*free_bytes), human(*needed_bytes)
    )]
    TooLittleRoom {
        /// The directory.
        directory: PathBuf,
        /// Its file system's free space.
        free_bytes: u64,
        /// What the files take.
        needed_bytes: u64,
    },
    /// A process that this one started did not do what it should.
    #[error("the process that was to {what} ended early: {how}")]
    Child {
        /// Its work.
        what: &'static str,
        /// What it said, or how it ended.
        how: String,
    },
}

impl BenchError {
    /// For `map_err`, where a file or directory is used.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::File { path, source }
    }
}
