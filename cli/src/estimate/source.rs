//! What an estimate reads: files as they are, and what images that are not raw hold.
//!
//! An estimate reads its data several times, at any place. So such an image is converted by `qemu-img`, as
//! an import would have it, to a sparse file, which has no name: whatever ends the program, nothing is left
//! of it. It is in `$TMPDIR`, or else in `/var/tmp`, which is rarely in memory as `/tmp` may be.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use siltstone_engine::EstimateError;

use crate::{
    args::pool::ImageArguments,
    errors::CliError,
    image::{self, qemu::QemuImage},
    progress,
};

/// Where converted images are if nothing else is said.
const DIRECTORY: &str = "/var/tmp";

/// Something to estimate, as it was found.
pub(super) struct Found<'a> {
    path: &'a Path,
    /// What has to convert it.
    image: Option<QemuImage>,
}

impl<'a> Found<'a> {
    /// The data of the file or block device at `path`, of which nothing is converted yet.
    pub(super) fn at(path: &'a Path, arguments: &ImageArguments) -> Result<Self, CliError> {
        let open_error = |error| EstimateError::File {
            action: "open",
            path: path.into(),
            source: Arc::new(error),
        };
        let kind = fs::metadata(path).map_err(open_error)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(EstimateError::NotData { path: path.into() }.into());
        }
        // That is a stream to an import, and a file here.
        if path == Path::new("-") {
            return Ok(Self { path, image: None });
        }
        let (_, _, image) = image::open(path, arguments)?;
        Ok(Self { path, image })
    }

    /// What to read of it.
    pub(super) fn source(self) -> Result<Source, CliError> {
        match self.image {
            None => Ok(Source { path: self.path.into(), _converted: None }),
            Some(image) => Source::converted(self.path, &image),
        }
    }
}

/// Something to read.
pub(super) struct Source {
    /// What to read.
    pub(super) path: PathBuf,
    /// What `path` is of, if it has no name of its own.
    _converted: Option<File>,
}

impl Source {
    fn converted(path: &Path, image: &QemuImage) -> Result<Self, CliError> {
        let directory = std::env::var_os("TMPDIR").map_or(DIRECTORY.into(), PathBuf::from);
        let failed = |source| CliError::NotConvertedIn {
            file: path.display().to_string(),
            directory: directory.clone(),
            source,
        };
        let file = tempfile::tempfile_in(&directory).map_err(failed)?;
        file.set_len(image.size_bytes).map_err(failed)?;
        let opened = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let bar = progress::text();
        bar.set_message(format!("converting {} in {}", path.display(), directory.display()));
        let converted = image.convert_to(&opened, &directory);
        bar.finish_and_clear();
        converted?;
        Ok(Self { path: opened, _converted: Some(file) })
    }
}
