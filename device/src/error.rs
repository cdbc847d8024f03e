//! What can go wrong with a device.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::size::exact;

/// What a device was asked to do when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush of the volatile write cache.
    Flush,
    /// A discard (hole punch).
    Discard,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        })
    }
}

/// A device operation's failure. Cheap to clone: one failure may concern many waiters.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// The operating system (or the simulated machine) refused one operation.
    #[error("{operation} of {len_bytes} bytes at byte {offset_bytes} failed: {source}")]
    Io {
        /// What was asked.
        operation: Operation,
        /// Where, in bytes from the start of the device.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The operation reaches past the end of the device.
    #[error(
        "{operation} of {len_bytes} bytes at byte {offset_bytes} passes the end of the device ({size_bytes} bytes)"
    )]
    OutOfRange {
        /// What was asked.
        operation: Operation,
        /// Where.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
        /// The device's size.
        size_bytes: u64,
    },
    /// Offset or length is not a multiple of [`crate::BLOCK_BYTES`].
    #[error("{operation} of {len_bytes} bytes at byte {offset_bytes} is not aligned to 4096 bytes")]
    Unaligned {
        /// What was asked.
        operation: Operation,
        /// Where.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
    },
    /// The device could not be opened or created.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file or block device.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Another process holds the device.
    #[error("{path} is in use by another process; stop that process first")]
    Locked {
        /// The file or block device.
        path: PathBuf,
    },
    /// A new device was asked for where a file exists already.
    #[error("{path} exists already and is left as it is; remove it or name another file")]
    AlreadyExists {
        /// The file.
        path: PathBuf,
    },
    /// The path names something that cannot hold a device.
    #[error("{path} is neither a regular file nor a block device; a pool is one of these")]
    NotADevice {
        /// What was named.
        path: PathBuf,
    },
    /// A size that no device can have.
    #[error(
        "{path} cannot be {} large: a size is a positive multiple of 4096 bytes",
        exact(*.size_bytes)
    )]
    InvalidSize {
        /// The file or block device.
        path: PathBuf,
        /// The size that was asked for.
        size_bytes: u64,
    },
    /// A block device has less room than was asked for.
    #[error(
        "{path} has {}, less than the {} asked for; ask for less, or for no size to take all of it",
        exact(*.available_bytes), exact(*.size_bytes)
    )]
    TooSmall {
        /// The block device.
        path: PathBuf,
        /// The size that was asked for.
        size_bytes: u64,
        /// The size that it has.
        available_bytes: u64,
    },
    /// A device that is no file is smaller than it was to become.
    #[error(
        "the device has {} and cannot be made {} long; make the device itself larger first",
        exact(*.available_bytes), exact(*.size_bytes)
    )]
    CannotGrow {
        /// The size that was asked for.
        size_bytes: u64,
        /// What it has.
        available_bytes: u64,
    },
    /// The file's size could not be read or changed.
    #[error("cannot read or change the size of {path}: {source}")]
    Size {
        /// The file or block device.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The device was shut down while the operation waited.
    #[error("the device was closed before the {operation} completed")]
    Closed {
        /// What was asked.
        operation: Operation,
    },
}

/// Failures are equal if they say the same; errors of the operating system cannot be compared
/// otherwise.
impl PartialEq for DeviceError {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for DeviceError {}

impl DeviceError {
    /// An [`DeviceError::Io`] from its parts.
    #[must_use]
    pub fn io(operation: Operation, offset_bytes: u64, len_bytes: u64, source: io::Error) -> Self {
        Self::Io { operation, offset_bytes, len_bytes, source: Arc::new(source) }
    }

    /// An [`DeviceError::Open`] from its parts.
    pub(crate) fn open(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Open { path: path.to_owned(), source: Arc::new(source.into()) }
    }

    /// A [`DeviceError::Size`] from its parts.
    pub(crate) fn size(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Size { path: path.to_owned(), source: Arc::new(source.into()) }
    }
}
