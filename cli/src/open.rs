//! Opening and creating pools, with errors that name them.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use siltstone_device::{DeviceError, header::MAGIC};
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool};

use crate::{args::pool::PoolArgument, control::place, errors::CliError, holder::Holder};

/// How long to wait for a pool that is in use. The kernel may keep the files of a process that was
/// killed, and so their locks, until the io_uring of that process is taken down: a moment after
/// its end.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a server waits for its pool if nobody says that he has it. Where a server is started in
/// the place of one that was killed, as service managers do, the machine may be so busy that this
/// moment is a long one.
const SERVER_LOCK_PATIENCE: Duration = Duration::from_secs(10);
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
    open_unless(path, options, |waited| match elsewhere() {
        Some(found) => ControlFlow::Break(Some(found)),
        None if waited >= LOCK_PATIENCE => ControlFlow::Break(None),
        None => ControlFlow::Continue(()),
    })
}

/// Opens a pool for a server, which waits longer than others unless another server has the pool.
pub(crate) fn open_to_serve(pool: &PoolArgument, options: &OpenOptions) -> Result<Pool, CliError> {
    let mut is_told = false;
    let opened = open_unless(&pool.path, options, |waited| {
        let is_served = || matches!(place::connect(pool), Ok(Some(_)));
        if waited < LOCK_PATIENCE {
            return ControlFlow::Continue(());
        }
        if waited >= SERVER_LOCK_PATIENCE || is_served() {
            return ControlFlow::Break(None::<Infallible>);
        }
        if !is_told {
            is_told = true;
            tracing::info!(
                pool = %pool.path.display(),
                "the pool is still locked, perhaps by a server that was killed: waiting for up to {} s",
                SERVER_LOCK_PATIENCE.as_secs()
            );
        }
        ControlFlow::Continue(())
    });
    match opened? {
        Opened::Pool(pool) => Ok(pool),
        Opened::Elsewhere(never) => match never {},
    }
}

/// Opens a pool. While another process has it, asks each time how to go on after so long a wait:
/// with another attempt, with another way to the pool, or with an error.
fn open_unless<T>(
    path: &Path,
    options: &OpenOptions,
    mut go_on: impl FnMut(Duration) -> ControlFlow<Option<T>>,
) -> Result<Opened<T>, CliError> {
    let begun = Instant::now();
    let source = loop {
        match Pool::open(path, options) {
            Ok(pool) => return Ok(Opened::Pool(pool)),
            Err(locked @ EngineError::Device(DeviceError::Locked { .. })) => {
                match go_on(begun.elapsed()) {
                    ControlFlow::Continue(()) => thread::sleep(LOCK_RETRY),
                    ControlFlow::Break(Some(found)) => return Ok(Opened::Elsewhere(found)),
                    ControlFlow::Break(None) => break locked,
                }
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
        EngineError::Device(DeviceError::Locked { path: locked }) if locked == path => {
            CliError::Locked { path: path.into(), holder: Holder::of(path) }
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
    if path.is_file() {
        return Err(CliError::FileInPlace { path: path.into(), what: what_is_in(path) });
    }
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

/// What a file holds that is there.
fn what_is_in(path: &Path) -> &'static str {
    match begins_as_pool(path) {
        Ok(true) => "with a pool in it",
        Ok(false) => "with something else than a pool in it",
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => "without a pool in it",
        Err(_) => "and cannot be read",
    }
}

/// Whether there is a pool in a file, as far as that can be read.
pub(crate) fn holds_pool(path: &Path) -> bool {
    begins_as_pool(path).unwrap_or(false)
}

fn begins_as_pool(path: &Path) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    File::open(path)?.read_exact(&mut magic)?;
    Ok(magic == MAGIC)
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
