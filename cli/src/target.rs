//! Where an export goes: a file with holes, or a stream or block device that gets zeros.

use std::{
    fs::{File, Metadata, TryLockError},
    io::{self, Seek, Write},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    errors::CliError,
    holder::Holder,
    open::holds_pool,
    session::Cancellation,
    terminal::shown,
    waiting::{self, Direction},
};

/// What a pipe that can be written to takes without making its writer wait.
const PIPE_PIECE_BYTES: usize = 4096;

/// A raw image that is being written, front to back.
pub(crate) struct Target {
    name: String,
    file: File,
    kind: TargetKind,
    /// Of what is filled: how far it is.
    at: u64,
}

/// How a target is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TargetKind {
    /// A regular file: what is not written is a hole.
    Sparse,
    /// A block device, or standard output in a file, which may hold something else before the
    /// image: what is not written must be filled with zeros.
    Filled,
    /// A pipe or the like, which is filled too, and whose reader may let it wait.
    Stream,
}

/// Opens the target of an export from `pool`, for an image of `size_bytes`. Also tells whether
/// nothing was there before.
pub(crate) fn open(
    pool: &Path,
    path: &Path,
    force: bool,
    size_bytes: u64,
) -> Result<(Target, bool), CliError> {
    let name = shown(path, STDOUT);
    let open_error = |error| CliError::file("open", &name, error);
    if is_stdout(path) {
        let file = rustix::io::dup(io::stdout()).map_err(|error| open_error(error.into()))?;
        let file: File = file.into();
        let never_waits = |found: Metadata| found.is_file() || found.file_type().is_block_device();
        let kind = match file.metadata().is_ok_and(never_waits) {
            true => TargetKind::Filled,
            false => TargetKind::Stream,
        };
        return Ok((Target::new(path, file, kind), false));
    }
    let found = match std::fs::metadata(path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(open_error(error)),
    };
    let is_new = found.is_none();
    let is_block_device = found.as_ref().is_some_and(|f| f.file_type().is_block_device());
    let is_regular = found.as_ref().is_none_or(Metadata::is_file);
    if let Some(found) = &found {
        check_overwrite(found, pool, path, force)?;
    }
    let mut options = File::options();
    options.write(true).create_new(is_new);
    if is_block_device {
        // Refused while the device is mounted or claimed by another.
        options.custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
    }
    let mut file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => in_use(path),
        _ => open_error(error),
    })?;
    if is_regular || is_block_device {
        // Whoever has a pool there has it locked; and nobody makes one there meanwhile.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path)),
            Err(TryLockError::Error(error)) => return Err(CliError::file("lock", &name, error)),
        }
    }
    if is_regular && !is_new {
        file.set_len(0).map_err(open_error)?;
    }
    if is_block_device {
        let available_bytes = file.seek(io::SeekFrom::End(0)).map_err(open_error)?;
        if available_bytes < size_bytes {
            return Err(CliError::TargetTooSmall { path: path.into(), size_bytes });
        }
        file.rewind().map_err(open_error)?;
    }
    let kind = match (is_regular, is_block_device) {
        (true, _) => TargetKind::Sparse,
        (false, true) => TargetKind::Filled,
        (false, false) => TargetKind::Stream,
    };
    Ok((Target::new(path, file, kind), is_new))
}

/// The file beside `path` that an export to it writes until it is complete.
pub(crate) fn partial_path(pool: &Path, path: &Path, force: bool) -> Result<PathBuf, CliError> {
    let name = shown(path, STDOUT);
    let open_error = |error| CliError::file("open", &name, error);
    match std::fs::metadata(path) {
        Ok(found) if is_stdout(path) || !found.is_file() => {
            return Err(CliError::TargetResumed { file: name });
        }
        Ok(found) => check_overwrite(&found, pool, path, force)?,
        Err(_) if is_stdout(path) => return Err(CliError::TargetResumed { file: name }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(open_error(error)),
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    Ok(PathBuf::from(partial))
}

/// Opens such a file for nobody else to write: what an earlier export left, if there is anything, or a
/// new one.
pub(crate) fn open_partial(path: &Path, is_new: bool) -> io::Result<File> {
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = File::options().write(true).create_new(is_new).custom_flags(no_link).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another command is writing it")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What standard output is called.
const STDOUT: &str = "standard output";

/// Whether a path means standard output.
pub(crate) fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

impl Target {
    /// The target that was opened as `path`.
    pub(crate) fn new(path: &Path, file: File, kind: TargetKind) -> Self {
        Self { name: shown(path, STDOUT), file, kind, at: 0 }
    }

    /// What it is, for [`Target::new`] elsewhere.
    pub(crate) fn into_parts(self) -> (File, TargetKind) {
        (self.file, self.kind)
    }

    /// What to call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Writes data that lies behind all that was written before.
    pub(crate) fn write_at(
        &mut self,
        offset_bytes: u64,
        data: &[u8],
        cancellation: &Cancellation,
    ) -> Result<(), CliError> {
        if self.kind == TargetKind::Sparse {
            let written = self.file.write_all_at(data, offset_bytes);
            return written.map_err(|error| CliError::file("write to", &self.name, error));
        }
        self.fill(offset_bytes, cancellation)?;
        self.append(data, cancellation)
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> Result<(), CliError> {
        let synced = self.file.sync_data();
        synced.map_err(|error| CliError::file("write to", &self.name, error))
    }

    /// Gives the image its size, and makes it durable where that is possible.
    pub(crate) fn finish(
        &mut self,
        size_bytes: u64,
        cancellation: &Cancellation,
    ) -> Result<(), CliError> {
        let sized = match self.kind {
            TargetKind::Sparse => self.file.set_len(size_bytes),
            TargetKind::Filled | TargetKind::Stream => {
                self.fill(size_bytes, cancellation)?;
                Ok(())
            }
        };
        let finished = sized.and_then(|()| match self.file.sync_all() {
            // Pipes and terminals have nothing to make durable.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        });
        finished.map_err(|error| CliError::file("write to", &self.name, error))
    }

    /// Writes zeros up to `end`.
    fn fill(&mut self, end: u64, cancellation: &Cancellation) -> Result<(), CliError> {
        const ZEROS: &[u8] = &[0; 64 << 10];
        while self.at < end {
            let len = (end - self.at).min(ZEROS.len() as u64);
            self.append(&ZEROS[..len as usize], cancellation)?;
        }
        Ok(())
    }

    /// Writes data at the end.
    fn append(&mut self, data: &[u8], cancellation: &Cancellation) -> Result<(), CliError> {
        let piece_bytes = match self.kind {
            TargetKind::Stream => PIPE_PIECE_BYTES,
            TargetKind::Sparse | TargetKind::Filled => data.len().max(1),
        };
        for piece in data.chunks(piece_bytes) {
            if self.kind == TargetKind::Stream {
                waiting::until(&self.file, Direction::Write, || cancellation().is_err());
            }
            cancellation()?;
            let written = self.file.write_all(piece);
            written.map_err(|error| CliError::file("write to", &self.name, error))?;
            self.at += piece.len() as u64;
        }
        Ok(())
    }
}

fn in_use(path: &Path) -> CliError {
    CliError::Locked { path: path.into(), holder: Holder::of(path) }
}

/// Files and block devices are overwritten only on demand, and files with pools in them never.
fn check_overwrite(
    found: &Metadata,
    pool: &Path,
    path: &Path,
    force: bool,
) -> Result<(), CliError> {
    let path = path.to_owned();
    let pool = std::fs::metadata(pool);
    if pool.is_ok_and(|pool| (pool.dev(), pool.ino()) == (found.dev(), found.ino())) {
        return Err(CliError::FileIsPool { path });
    }
    let holds_data = found.is_file() || found.file_type().is_block_device();
    if holds_data && !force {
        return Err(CliError::FileExists { path });
    }
    if found.is_file() && holds_pool(&path) {
        return Err(CliError::FileHoldsPool { path });
    }
    Ok(())
}
