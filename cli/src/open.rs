//! Opening and creating pools, with errors that name them.

use std::{
    convert::Infallible,
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use siltstone_device::DeviceError;
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool};

use crate::errors::CliError;

/// How long to wait for a pool that is in use. The kernel may keep the files of a process that was
/// killed, and so their locks, until the io_uring of that process is taken down: a moment after
/// its end.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// A pool, or another way to it.
pub(crate) enum Opened<T> {
    /// It is this process's now.
    Pool(Pool),
    /// Another process has it.
    Elsewhere(T),
}

/// Opens a pool.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Pool, CliError> {
    match open_or(path, options, || None::<Infallible>)? {
        Opened::Pool(pool) => Ok(pool),
        Opened::Elsewhere(never) => match never {},
    }
}

/// Opens a pool, unless another process has it and `elsewhere` finds another way to it.
pub(crate) fn open_or<T>(
    path: &Path,
    options: &OpenOptions,
    mut elsewhere: impl FnMut() -> Option<T>,
) -> Result<Opened<T>, CliError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    let source = loop {
        match Pool::open(path, options) {
            Ok(pool) => return Ok(Opened::Pool(pool)),
            Err(locked @ EngineError::Device(DeviceError::Locked { .. })) => {
                if let Some(found) = elsewhere() {
                    return Ok(Opened::Elsewhere(found));
                }
                if Instant::now() >= deadline {
                    break locked;
                }
                thread::sleep(LOCK_RETRY);
            }
            Err(error) => break error,
        }
    };
    Err(match &source {
        EngineError::Device(DeviceError::Open { path: missing, source: cause })
            if missing == path && cause.kind() == io::ErrorKind::NotFound =>
        {
            CliError::NoPool { path: path.into() }
        }
        _ => naming(path, source),
    })
}

/// Whether those who have a pool only read it, so that others may read it, too.
pub(crate) fn is_being_read(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock_shared().is_ok())
}

/// Creates a pool. A file that a failure leaves half-made is removed, so that another attempt
/// does not stumble over it.
pub(crate) fn create(path: &Path, options: &CreateOptions) -> Result<(), CliError> {
    let is_new = |path: &PathBuf| matches!(path.try_exists(), Ok(false));
    let paths = [Some(path.to_path_buf()), options.nvram.clone()];
    let new: Vec<PathBuf> = paths.into_iter().flatten().filter(is_new).collect();
    if options.size_bytes.is_none() && new.iter().any(|new| new == path) {
        return Err(CliError::PoolSizeMissing);
    }
    Pool::create(path, options).map_err(|source| {
        for file in &new {
            let is_of_another = matches!(&source, EngineError::Device(
                DeviceError::AlreadyExists { path } | DeviceError::Locked { path }) if path == file);
            if !is_of_another {
                // The failure that led here matters more than one to clean up.
                let _ = std::fs::remove_file(file);
            }
        }
        naming(path, source)
    })
}

/// Adds the pool's path to an error that does not name the device it is about.
fn naming(path: &Path, source: EngineError) -> CliError {
    match source {
        EngineError::Device(DeviceError::Io { .. })
        | EngineError::NotAPool { .. }
        | EngineError::PoolExists
        | EngineError::NotEmpty
        | EngineError::NewerVersion { .. }
        | EngineError::Truncated { .. }
        | EngineError::Metadata(_)
        | EngineError::OpenLog(_)
        | EngineError::CheckpointRecord(_)
        | EngineError::Log(_)
        | EngineError::Map(_) => CliError::Pool { path: path.into(), source },
        other => other.into(),
    }
}
