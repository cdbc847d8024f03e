//! One process at a time: the lock on an open file or block device. Those that only read share it.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    ops::Deref,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{BLOCK_BYTES, DeviceError};

/// How a file or block device is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Opens what exists, for reading and writing.
    Open,
    /// Opens what exists, for reading: writes fail. Others may do the same at the same time.
    Read,
    /// Makes a new sparse file of `size_bytes`, or takes an existing block device.
    Create {
        /// The size of the file. Of a block device, how much of it to use; 0 is all.
        size_bytes: u64,
    },
}

/// An open file that no other process has open this way, unless all of them only read.
///
/// The lock is given back explicitly: an io_uring that has the file registered holds on to it
/// for a moment after the ring is closed, and the next opener must not have to wait for that.
pub(crate) struct LockedFile {
    file: File,
    pub(crate) path: PathBuf,
    pub(crate) is_block_device: bool,
}

impl LockedFile {
    /// Opens and locks `path`; a file that is created has the requested size.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, DeviceError> {
        let kind = match std::fs::metadata(path) {
            Ok(metadata) => Some(metadata.file_type()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(DeviceError::open(path, error)),
        };
        let is_block_device = kind.is_some_and(|kind| kind.is_block_device());
        if kind.is_some_and(|kind| !kind.is_file() && !kind.is_block_device()) {
            return Err(DeviceError::NotADevice { path: path.to_owned() });
        }
        let mut options = File::options();
        let read_only = access == Access::Read;
        options.read(true).write(!read_only);
        let create = match access {
            Access::Create { size_bytes } if !is_block_device => {
                check_size(path, size_bytes)?;
                options.create_new(true).mode(0o600);
                Some(size_bytes)
            }
            _ => None,
        };
        if is_block_device && !read_only {
            // Refused while the device is mounted or claimed by another.
            options.custom_flags(libc::O_EXCL);
        }
        let file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => DeviceError::AlreadyExists { path: path.to_owned() },
            io::ErrorKind::ResourceBusy => DeviceError::Locked { path: path.to_owned() },
            _ => DeviceError::open(path, error),
        })?;
        let file = Self { file, path: path.to_owned(), is_block_device };
        let lock = match read_only {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&file.file, lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DeviceError::Locked { path: path.to_owned() });
            }
            Err(error) => return Err(DeviceError::open(path, error)),
        }
        if let Some(size_bytes) = create {
            file.set_up(size_bytes).inspect_err(|_| {
                // Nobody has seen this file yet; a half-made one would only be in the way.
                let _ = std::fs::remove_file(path);
            })?;
        }
        Ok(file)
    }

    /// Gives a new file its size, and makes its existence survive a power cut.
    fn set_up(&self, size_bytes: u64) -> Result<(), DeviceError> {
        self.file.set_len(size_bytes).map_err(|error| DeviceError::size(&self.path, error))?;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.file
            .sync_all()
            .and_then(|()| File::open(parent)?.sync_all())
            .map_err(|error| DeviceError::open(&self.path, error))
    }

    /// The size at this moment, rounded down to whole blocks.
    pub(crate) fn size_bytes(&self) -> Result<u64, DeviceError> {
        // Seeking to the end works for files and block devices alike, and nothing uses the
        // file's position otherwise.
        let size = (&self.file)
            .seek(SeekFrom::End(0))
            .map_err(|error| DeviceError::size(&self.path, error))?;
        Ok(size - size % BLOCK_BYTES as u64)
    }
}

/// Whether a device can have this size.
pub(crate) fn check_size(path: &Path, size_bytes: u64) -> Result<(), DeviceError> {
    let possible = size_bytes > 0
        && size_bytes.is_multiple_of(BLOCK_BYTES as u64)
        && i64::try_from(size_bytes).is_ok();
    if possible {
        return Ok(());
    }
    Err(DeviceError::InvalidSize { path: path.to_owned(), size_bytes })
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // Closing the file would do the same later. Of a file whose lock was refused, this does
        // nothing.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}
