//! What an estimate reads: files as they are, and what images that are not raw hold.
//!
//! An estimate reads its data several times, at any place. So such an image is converted by `qemu-img`, as
//! an import would have it, to a sparse file, which has no name: whatever ends the program, nothing is left
//! of it. It is in `$TMPDIR`, or else in `/var/tmp`, which is rarely in memory as `/tmp` may be.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use crate::{
    args::pool::ImageArguments,
    errors::CliError,
    image::{self, qemu::QemuImage},
    progress,
};

/// Where converted images are if nothing else is said.
const DIRECTORY: &str = "/var/tmp";

/// Something to estimate.
pub(super) struct Source {
    /// What to read.
    pub(super) path: PathBuf,
    /// What `path` is of, if it has no name of its own.
    _converted: Option<File>,
}

impl Source {
    /// The data of the file or block device at `path`.
    pub(super) fn of(path: &Path, arguments: &ImageArguments) -> Result<Self, CliError> {
        // What cannot be data is told by the estimate itself.
        let is_image = |path: &Path| path.is_file() || is_block_device(path);
        if path == Path::new("-") || !is_image(path) {
            return Ok(Self { path: path.into(), _converted: None });
        }
        match image::open(path, arguments)? {
            (_, _, None) => Ok(Self { path: path.into(), _converted: None }),
            (_, _, Some(image)) => Self::converted(path, &image),
        }
    }

    fn converted(path: &Path, image: &QemuImage) -> Result<Self, CliError> {
        let directory = std::env::var_os("TMPDIR").map_or(DIRECTORY.into(), PathBuf::from);
        let failed =
            |error| CliError::file("convert an image in", &directory.display().to_string(), error);
        let file = tempfile::tempfile_in(&directory).map_err(failed)?;
        file.set_len(image.size_bytes).map_err(failed)?;
        let opened = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let bar = progress::text();
        bar.set_message(format!("converting {} in {}", path.display(), directory.display()));
        let converted = image.convert_to(&opened);
        bar.finish_and_clear();
        converted?;
        Ok(Self { path: opened, _converted: Some(file) })
    }
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}
