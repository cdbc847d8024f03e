//! Opening and creating pools, with errors that name them.

use std::{
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

/// Opens a pool to change it.
pub(crate) fn open(path: &Path) -> Result<Pool, CliError> {
    open_with(path, &OpenOptions::default())
}

/// Opens a pool to look at it.
pub(crate) fn open_read_only(path: &Path) -> Result<Pool, CliError> {
    open_with(path, &OpenOptions { read_only: true, ..OpenOptions::default() })
}

/// Opens a pool.
pub(crate) fn open_with(path: &Path, options: &OpenOptions) -> Result<Pool, CliError> {
    open_patiently(path, options).map_err(|source| match &source {
        EngineError::Device(DeviceError::Open { path: missing, source: cause })
            if missing == path && cause.kind() == io::ErrorKind::NotFound =>
        {
            CliError::NoPool { path: path.into() }
        }
        _ => naming(path, source),
    })
}

fn open_patiently(path: &Path, options: &OpenOptions) -> siltstone_engine::Result<Pool> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Pool::open(path, options) {
            Err(EngineError::Device(DeviceError::Locked { .. })) if Instant::now() < deadline => {
                thread::sleep(LOCK_RETRY);
            }
            opened => return opened,
        }
    }
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
