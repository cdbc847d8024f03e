//! Files and block devices: opening them, and choosing how to drive them.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

pub use crate::lock::Access;
use crate::{
    Device, DeviceError, Request,
    lock::{LockedFile, check_size},
    threads::ThreadEngine,
    uring::UringEngine,
    validate::admit_all,
};

/// Threads of the fallback engine, at most.
const MAX_THREADS: u32 = 16;

/// Which mechanism carries requests to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring; where the kernel lacks or forbids it, threads, with a warning.
    Auto,
    /// io_uring, or an error.
    Uring,
    /// A few threads and ordinary system calls.
    Threads,
}

/// How to open a file or block device.
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    /// Whether to open what exists or to create.
    pub access: Access,
    /// How to drive it.
    pub engine: IoEngine,
    /// Whether to go past the page cache (O_DIRECT). A filesystem that refuses is warned about,
    /// and used through its cache.
    pub direct: bool,
    /// Requests that the kernel is given at a time; the rest wait in a queue.
    pub queue_depth: u32,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { access: Access::Open, engine: IoEngine::Auto, direct: true, queue_depth: 128 }
    }
}

/// An open file or block device, locked against every other opener (or every writer, if it was
/// opened for reading).
pub struct FileDevice {
    // Engines before the file: they finish what is in flight before the lock is given back.
    engine: Engine,
    /// Block devices discard by an ioctl that blocks, away from the ring.
    discards: Option<ThreadEngine>,
    file: Arc<LockedFile>,
    is_direct: bool,
    /// How much of a block device was asked for; no limit otherwise.
    limit_bytes: u64,
    size_bytes: AtomicU64,
}

enum Engine {
    Uring(UringEngine),
    Threads(ThreadEngine),
}

/// Opens, or creates, the file or block device at `path`, and locks it.
///
/// # Errors
/// [`DeviceError::Locked`] if it is in use, [`DeviceError::AlreadyExists`] if a file was to be
/// created where one is, and the other opening errors as their names say.
pub fn open(path: &Path, options: &FileOptions) -> Result<Arc<FileDevice>, DeviceError> {
    let file = LockedFile::open(path, options.access)?;
    let available_bytes = file.size_bytes()?;
    let limit_bytes = match options.access {
        Access::Create { size_bytes } if file.is_block_device && size_bytes > 0 => {
            check_size(path, size_bytes)?;
            if size_bytes > available_bytes {
                let path = path.to_owned();
                return Err(DeviceError::TooSmall { path, size_bytes, available_bytes });
            }
            size_bytes
        }
        _ => u64::MAX,
    };
    let is_direct = options.direct && go_direct(&file);
    if options.direct && !is_direct {
        tracing::warn!(
            path = %path.display(),
            "the filesystem refuses direct I/O: data passes through the page cache, which costs \
             memory and speed; flushes still make it durable (fdatasync)"
        );
    }
    let file = Arc::new(file);
    let engine = start_engine(&file, options)?;
    let discards = match (&engine, file.is_block_device) {
        (Engine::Uring(_), true) => Some(ThreadEngine::start(&file, 1)?),
        _ => None,
    };
    let size_bytes = AtomicU64::new(available_bytes.min(limit_bytes));
    Ok(Arc::new(FileDevice { engine, discards, file, is_direct, limit_bytes, size_bytes }))
}

/// Asks for direct I/O; false if the filesystem refuses.
fn go_direct(file: &std::fs::File) -> bool {
    fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT)).is_ok()
}

fn start_engine(file: &Arc<LockedFile>, options: &FileOptions) -> Result<Engine, DeviceError> {
    let threads = options.queue_depth.clamp(1, MAX_THREADS);
    if options.engine == IoEngine::Threads {
        return Ok(Engine::Threads(ThreadEngine::start(file, threads)?));
    }
    match UringEngine::start(file, options.queue_depth) {
        Ok(engine) => Ok(Engine::Uring(engine)),
        Err(error) if options.engine == IoEngine::Auto && is_unavailable(&error) => {
            tracing::warn!(
                path = %file.path.display(),
                %error,
                "io_uring is not available (old kernel, or forbidden by sysctl or seccomp): using \
                 {threads} threads instead, which is slower"
            );
            Ok(Engine::Threads(ThreadEngine::start(file, threads)?))
        }
        Err(error) => Err(DeviceError::open(&file.path, error)),
    }
}

/// Whether io_uring failed because this machine does not offer it.
fn is_unavailable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
}

impl FileDevice {
    /// Where the device is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Whether I/O goes past the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// How requests reach the kernel: "io_uring" or "threads".
    #[must_use]
    pub fn engine_name(&self) -> &'static str {
        match self.engine {
            Engine::Uring(_) => "io_uring",
            Engine::Threads(_) => "threads",
        }
    }

    /// Whether this is a block device rather than a file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.file.is_block_device
    }
}

impl Device for FileDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn refresh_size(&self) -> Result<u64, DeviceError> {
        let size_bytes = self.file.size_bytes()?.min(self.limit_bytes);
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(size_bytes)
    }

    fn grow_to(&self, size_bytes: u64) -> Result<(), DeviceError> {
        let path = self.path();
        check_size(path, size_bytes)?;
        let available_bytes = self.refresh_size()?;
        if self.is_block_device() {
            return match size_bytes > available_bytes {
                true => {
                    Err(DeviceError::TooSmall { path: path.into(), size_bytes, available_bytes })
                }
                false => Ok(()),
            };
        }
        if size_bytes > available_bytes {
            self.file.set_len(size_bytes).map_err(|error| DeviceError::size(path, error))?;
            self.refresh_size()?;
        }
        Ok(())
    }

    fn submit(&self, batch: Vec<Request>) {
        let mut batch = admit_all(batch, self.size_bytes());
        if let Some(helper) = &self.discards {
            let is_discard = |request: &mut Request| matches!(request, Request::Discard { .. });
            let discards: Vec<_> = batch.extract_if(.., is_discard).collect();
            helper.submit(discards);
        }
        match &self.engine {
            Engine::Uring(engine) => engine.submit(batch),
            Engine::Threads(engine) => engine.submit(batch),
        }
    }
}

impl std::fmt::Debug for FileDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, engine) = (self.path().display(), self.engine_name());
        write!(f, "FileDevice({path}, {} bytes, {engine})", self.size_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_direct_io_is_noticed() {
        // A character device stands for a filesystem that cannot do it.
        assert!(!go_direct(&std::fs::File::open("/dev/null").unwrap()));
    }

    #[test]
    fn only_a_missing_io_uring_makes_way_for_threads() {
        for errno in [libc::ENOSYS, libc::EPERM] {
            assert!(is_unavailable(&io::Error::from_raw_os_error(errno)));
        }
        assert!(!is_unavailable(&io::Error::from_raw_os_error(libc::ENOMEM)));
    }
}
