//! The volumes that many images are imported into, named after their files.

use std::path::Path;

use siltstone_engine::{Pool, config};

use super::beginning;
use crate::{args::pool::ImportArguments, errors::CliError};

/// Endings that say what kind of file it is. Others are part of the name: `debian-12.5` is.
const IMAGE_ENDINGS: [&str; 14] = [
    "raw", "img", "image", "bin", "dd", "iso", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx",
    "vhd", "hdd",
];

/// A name for each file; an error if they cannot be told apart, or if something is written in a volume of
/// that name, unless that is meant.
pub(super) fn of(arguments: &ImportArguments, pool: &Pool) -> Result<Vec<String>, CliError> {
    let ImportArguments { each: files, resume, force, .. } = arguments;
    let may_be_replaced = *resume || *force;
    let mut names: Vec<String> = Vec::new();
    for file in files {
        let name = name(file)?;
        let shown = || file.display().to_string();
        if let Some(other) = names.iter().position(|other| *other == name) {
            let other = files[other].display().to_string();
            return Err(CliError::EachSame { file: shown(), other, volume: name });
        }
        if !may_be_replaced && let Ok(volume) = pool.volume(&name) {
            let written_bytes = beginning::written_bytes(&volume)?;
            if written_bytes > 0 {
                return Err(CliError::EachExists { file: shown(), volume: name, written_bytes });
            }
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
