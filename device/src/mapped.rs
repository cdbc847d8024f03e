//! A file mapped into memory: for byte-addressable non-volatile memory (DAX, battery-backed),
//! where a write is a copy and durability is a cache flush.
//!
//! Thread safety: copies out run together, a copy in runs alone (one lock for the whole device;
//! what is written to such memory is short). Durability waits happen outside the lock.
//!
//! Completions run before `submit` returns. Space is allocated when the device is opened, so
//! that no store into the mapping can fail; discarding therefore does nothing.

use std::{io, path::Path, sync::Arc};

use memmap2::MmapRaw;
use parking_lot::RwLock;
use rustix::fs::{FallocateFlags, fallocate};

use crate::{
    ByteOffset, Device, DeviceError, Durability, Request,
    lock::{Access, LockedFile, check_size},
    validate::admit,
};

/// A mapped file or block device, locked against every other opener.
pub struct MappedDevice {
    mapping: MmapRaw,
    /// Held shared while bytes are copied out of the mapping, exclusively while copied into it.
    copying: RwLock<()>,
    size_bytes: u64,
    file: LockedFile,
}

/// Opens, or creates, the file or block device at `path`, locks it and maps it.
///
/// # Errors
/// As [`crate::file::open`]; also if the space cannot be allocated or mapped, or if it is to be
/// opened for reading only.
pub fn open(path: &Path, access: Access) -> Result<Arc<MappedDevice>, DeviceError> {
    if access == Access::Read {
        // Only what will be stored to needs mapping: read it as a file instead.
        return Err(DeviceError::open(path, io::ErrorKind::Unsupported));
    }
    let file = LockedFile::open(path, access)?;
    let available_bytes = file.size_bytes()?;
    let size_bytes = match access {
        Access::Create { size_bytes } if size_bytes > 0 => size_bytes,
        _ => available_bytes,
    };
    check_size(path, size_bytes)?;
    if size_bytes > available_bytes {
        let path = path.to_owned();
        return Err(DeviceError::TooSmall { path, size_bytes, available_bytes });
    }
    if !file.is_block_device {
        // A store to a page that the filesystem finds no room for would be a fatal signal.
        fallocate(&*file, FallocateFlags::empty(), 0, size_bytes)
            .map_err(|error| DeviceError::open(path, error))?;
    }
    let len = usize::try_from(size_bytes).map_err(|_| invalid_input(path))?;
    let mapping = memmap2::MmapOptions::new()
        .len(len)
        .map_raw(&*file)
        .map_err(|error| DeviceError::open(path, error))?;
    Ok(Arc::new(MappedDevice { mapping, copying: RwLock::new(()), size_bytes, file }))
}

fn invalid_input(path: &Path) -> DeviceError {
    DeviceError::open(path, io::ErrorKind::InvalidInput)
}

impl MappedDevice {
    /// Where the device is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Where a validated range of `len` bytes at `offset` is in memory.
    fn at(&self, offset: ByteOffset, len: usize) -> *mut u8 {
        let start = offset.0 as usize;
        assert!(start.checked_add(len).is_some_and(|end| end <= self.mapping.len()));
        // SAFETY: the range is inside the mapping, as just asserted.
        unsafe { self.mapping.as_mut_ptr().add(start) }
    }

    fn read(&self, offset: ByteOffset, bytes: &mut [u8]) {
        let source = self.at(offset, bytes.len());
        let _shared = self.copying.read();
        // SAFETY: both ranges are valid for the length and do not overlap (a buffer is never
        // inside the mapping); no copy into the mapping runs at the same time.
        unsafe { std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) };
    }

    fn write(&self, offset: ByteOffset, bytes: &[u8], durability: Durability) -> io::Result<()> {
        let target = self.at(offset, bytes.len());
        let exclusive = self.copying.write();
        // SAFETY: as in `read`; the lock is held exclusively.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
        drop(exclusive);
        match durability {
            Durability::Flush => Ok(()),
            Durability::Immediate => self.mapping.flush_range(offset.0 as usize, bytes.len()),
        }
    }
}

impl Device for MappedDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn submit(&self, batch: Vec<Request>) {
        for request in batch {
            let Some(mut request) = admit(request, self.size_bytes) else { continue };
            let outcome = match &mut request {
                Request::Read { offset, buffer, .. } => {
                    self.read(*offset, buffer);
                    Ok(())
                }
                Request::Write { offset, buffer, durability, .. } => {
                    self.write(*offset, buffer, *durability)
                }
                Request::Flush { .. } => self.mapping.flush(),
                Request::Discard { .. } => Ok(()),
            };
            let outcome = outcome.map_err(|error| request.io_error(error));
            request.complete(outcome);
        }
    }
}

impl std::fmt::Debug for MappedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedDevice({}, {} bytes)", self.path().display(), self.size_bytes)
    }
}
