//! Where an export goes: a file with holes, or a stream or block device that gets zeros.

use std::{
    fs::{File, Metadata},
    io::{self, Seek, Write},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::{args::ExportArguments, errors::CliError};

/// A raw image that is being written, front to back.
pub(crate) struct Target {
    path: PathBuf,
    name: String,
    file: File,
    kind: Kind,
    /// Whether nothing was there before.
    is_new: bool,
}

enum Kind {
    /// A regular file: what is not written is a hole.
    Sparse,
    /// Anything else: what is not written must be filled with zeros. Counts the bytes so far.
    Filled { at: u64 },
}

impl Target {
    /// Opens the target for an image of `size_bytes`.
    pub(crate) fn open(arguments: &ExportArguments, size_bytes: u64) -> Result<Self, CliError> {
        let path = arguments.file.clone();
        let filled = Kind::Filled { at: 0 };
        if path == Path::new("-") {
            let name = "standard output".to_owned();
            let file = rustix::io::dup(io::stdout());
            let file = file.map_err(|error| CliError::file("open", &name, error))?.into();
            return Ok(Self { path, name, file, kind: filled, is_new: false });
        }
        let name = path.display().to_string();
        let open_error = |error| CliError::file("open", &name, error);
        let found = match std::fs::metadata(&path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(open_error(error)),
        };
        let is_new = found.is_none();
        let is_block_device = found.as_ref().is_some_and(|f| f.file_type().is_block_device());
        let is_regular = found.as_ref().is_none_or(Metadata::is_file);
        if let Some(found) = &found {
            check_overwrite(found, arguments)?;
        }
        let mut options = File::options();
        options.write(true).create_new(is_new).truncate(!is_new && is_regular);
        let mut file = options.open(&path).map_err(open_error)?;
        if is_block_device {
            let available_bytes = file.seek(io::SeekFrom::End(0)).map_err(open_error)?;
            if available_bytes < size_bytes {
                return Err(CliError::TargetTooSmall { path, size_bytes });
            }
            file.rewind().map_err(open_error)?;
        }
        let kind = if is_regular { Kind::Sparse } else { filled };
        Ok(Self { path, name, file, kind, is_new })
    }

    /// What to call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the data goes to standard output.
    pub(crate) fn is_stdout(&self) -> bool {
        self.path == Path::new("-")
    }

    /// Writes data that lies behind all that was written before.
    pub(crate) fn write_at(&mut self, offset_bytes: u64, data: &[u8]) -> Result<(), CliError> {
        let written = match &mut self.kind {
            Kind::Sparse => self.file.write_all_at(data, offset_bytes),
            Kind::Filled { at } => fill(&mut self.file, at, offset_bytes).and_then(|()| {
                *at += data.len() as u64;
                self.file.write_all(data)
            }),
        };
        written.map_err(|error| CliError::file("write to", &self.name, error))
    }

    /// Gives the image its size, and makes it durable where that is possible.
    pub(crate) fn finish(&mut self, size_bytes: u64) -> Result<(), CliError> {
        let finished = match &mut self.kind {
            Kind::Sparse => self.file.set_len(size_bytes).and_then(|()| self.file.sync_all()),
            Kind::Filled { at } => fill(&mut self.file, at, size_bytes).and_then(|()| {
                match self.file.sync_all() {
                    // Pipes and terminals have nothing to make durable.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                    synced => synced,
                }
            }),
        };
        finished.map_err(|error| CliError::file("write to", &self.name, error))
    }

    /// Removes a file that was made for an export that failed.
    pub(crate) fn remove_if_new(&self) {
        if self.is_new {
            // Why the export failed matters more than a failure here.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Files and block devices are overwritten only on demand, and the pool never.
fn check_overwrite(found: &Metadata, arguments: &ExportArguments) -> Result<(), CliError> {
    let path = arguments.file.clone();
    let pool = std::fs::metadata(&arguments.pool);
    if pool.is_ok_and(|pool| (pool.dev(), pool.ino()) == (found.dev(), found.ino())) {
        return Err(CliError::FileIsPool { path });
    }
    let holds_data = found.is_file() || found.file_type().is_block_device();
    if holds_data && !arguments.force {
        return Err(CliError::FileExists { path });
    }
    Ok(())
}

/// Writes zeros from `at` to `end`.
fn fill(file: &mut File, at: &mut u64, end: u64) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    while *at < end {
        let len = (end - *at).min(ZEROS.len() as u64);
        file.write_all(&ZEROS[..len as usize])?;
        *at += len;
    }
    Ok(())
}
