//! A device larger than a file may be: several sparse files, one behind the other.

use std::{fs, path::Path, sync::Arc};

use siltstone_device::{
    ByteOffset, Device, DeviceError, Request,
    file::{self, Access, FileOptions},
    request,
};

use crate::error::BenchError;

/// No file is larger; all file systems can have files of that size.
const FILE_BYTES: u64 = 8 << 40;

/// Sparse files of [`FILE_BYTES`], which have no names any more.
pub(crate) struct Spread {
    files: Vec<Arc<dyn Device>>,
    size_bytes: u64,
}

impl Spread {
    pub(crate) fn new(directory: &Path, size_bytes: u64) -> Result<Arc<Self>, BenchError> {
        let count = size_bytes.div_ceil(FILE_BYTES);
        let file = |number| -> Result<Arc<dyn Device>, BenchError> {
            let path = directory.join(format!("siltstone-bench-sparse-{number}"));
            // One that an interrupted run left behind.
            let _ = fs::remove_file(&path);
            let access = Access::Create { size_bytes: FILE_BYTES };
            let device = file::open(&path, &FileOptions { access, ..FileOptions::default() })?;
            fs::remove_file(&path).map_err(BenchError::file(&path))?;
            Ok(device)
        };
        let files = (0..count).map(file).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { files, size_bytes }))
    }

    /// The file of an offset, and the offset in it. No request crosses from one into the next: pools
    /// align what they read and write at once to less than a file's size.
    fn place(&self, offset: ByteOffset) -> (&dyn Device, ByteOffset) {
        (&*self.files[(offset.0 / FILE_BYTES) as usize], ByteOffset(offset.0 % FILE_BYTES))
    }
}

impl Device for Spread {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn submit(&self, batch: Vec<Request>) {
        for request in batch {
            match request {
                Request::Read { offset, buffer, completion } => {
                    let (file, offset) = self.place(offset);
                    file.submit(vec![Request::Read { offset, buffer, completion }]);
                }
                Request::Write { offset, buffer, durability, completion } => {
                    let (file, offset) = self.place(offset);
                    file.submit(vec![Request::Write { offset, buffer, durability, completion }]);
                }
                Request::Discard { offset, len_bytes, completion } => {
                    let (file, offset) = self.place(offset);
                    file.submit(vec![Request::Discard { offset, len_bytes, completion }]);
                }
                Request::Flush { completion } => {
                    let flushes = self.files.iter().map(|file| request::flush(&**file));
                    // All are under way before the first is awaited.
                    let flushes: Vec<_> = flushes.collect();
                    completion(flush_all(flushes));
                }
            }
        }
    }
}

fn flush_all(
    flushes: Vec<impl Future<Output = Result<(), DeviceError>>>,
) -> Result<(), DeviceError> {
    flushes.into_iter().try_for_each(pollster::block_on)
}
