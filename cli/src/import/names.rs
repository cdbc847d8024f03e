//! The volumes that many images are imported into, named after their files.

use std::path::{Path, PathBuf};

use siltstone_engine::{Pool, config};

use crate::errors::CliError;

/// Endings that say what kind of file it is. Others are part of the name: `debian-12.5` is.
const IMAGE_ENDINGS: [&str; 14] = [
    "raw", "img", "image", "bin", "dd", "iso", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx",
    "vhd", "hdd",
];

/// A name for each file; an error if they cannot be told apart, or are taken, unless that is meant.
pub(super) fn of(files: &[PathBuf], may_exist: bool, pool: &Pool) -> Result<Vec<String>, CliError> {
    let mut names: Vec<String> = Vec::new();
    for file in files {
        let name = name(file)?;
        let shown = || file.display().to_string();
        if let Some(other) = names.iter().position(|other| *other == name) {
            let other = files[other].display().to_string();
            return Err(CliError::EachSame { file: shown(), other, volume: name });
        }
        if !may_exist && pool.volume(&name).is_ok() {
            return Err(CliError::EachExists { file: shown(), volume: name });
        }
        names.push(name);
    }
    Ok(names)
}

fn name(file: &Path) -> Result<String, CliError> {
    let shown = || file.display().to_string();
    let unnamed = || CliError::EachUnnamed { file: shown() };
    // Of a stream, too, which is not called anything.
    let whole = file.file_name().filter(|name| *name != "-").and_then(|name| name.to_str());
    let whole = whole.ok_or_else(unnamed)?;
    let stem = whole.rsplit_once('.').filter(|(stem, ending)| {
        let ending = ending.to_ascii_lowercase();
        !stem.is_empty() && IMAGE_ENDINGS.contains(&ending.as_str())
    });
    let name = stem.map_or(whole, |(stem, _)| stem);
    config::validate_name(name).map_err(|_| unnamed())?;
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_named_after_files_without_what_tells_their_kind() {
        for (file, expected) in [
            ("/images/web.qcow2", "web"),
            ("db.backup.IMG", "db.backup"),
            ("debian-12.5", "debian-12.5"),
            ("/dev/sdc", "sdc"),
            (".raw", ".raw"),
            ("größe.vhdx", "größe"),
        ] {
            assert_eq!(name(Path::new(file)).unwrap(), expected);
        }
        for file in ["-", "..", "/", "a@b.raw", "a\nb"] {
            assert!(matches!(name(Path::new(file)), Err(CliError::EachUnnamed { .. })), "{file}");
        }
    }
}
