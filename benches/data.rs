//! Real data: the files of the system that the benches run on, alone or as a filesystem image.
//!
//! Generated data compresses and repeats the way its generator does; a figure from it says little.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::Command,
};

use siltstone_dedup::{ShortFingerprint, fingerprint_blocks, is_zero};

/// Bytes in a block.
pub const BLOCK_BYTES: usize = 4096;
/// The usual size of an image that [`image`] builds, and of what [`load`] reads.
pub const IMAGE_BYTES: u64 = 1 << 30;
/// The files in an image, in percent of it: the filesystem's own structures need the rest.
const FILES_PERCENT: u64 = 88;
/// What an inode and a name take in the image.
const INODE_BYTES: u64 = 320;
/// Where real data is found, each with its share of the image in percent.
const ROOTS: [(&str, u64); 2] = [("/usr/lib", 65), ("/usr/share", 35)];
/// What `statfs` says of a tmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Why there is no data, or no place for it.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// `mke2fs` cannot be run.
    #[error(
        "mke2fs, which builds the filesystem image, cannot be run ({source}): install e2fsprogs, \
         or give an image by --data"
    )]
    NoMke2fs {
        /// The reason.
        source: io::Error,
    },
    /// `mke2fs` failed.
    #[error("mke2fs could not build {}: {message}", path.display())]
    Mke2fs {
        /// The image.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// There are too few files to make data of.
    #[error("/usr/lib and /usr/share hold only {found_bytes} bytes, {needed_bytes} are needed")]
    TooLittle {
        /// How much there is.
        found_bytes: u64,
        /// How much there should be.
        needed_bytes: u64,
    },
    /// The directory is in memory.
    #[error("{} is on a tmpfs: memory is no device to measure on; name another by --directory", path.display())]
    Tmpfs {
        /// The directory.
        path: PathBuf,
    },
}

type Result<T> = std::result::Result<T, DataError>;

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_owned();
    |source| DataError::File { path, source }
}

/// Refuses a directory that is not on a device.
///
/// # Errors
/// [`DataError::Tmpfs`], or if it cannot be looked at.
pub fn check_directory(directory: &Path) -> Result<()> {
    let stat = rustix::fs::statfs(directory).map_err(io::Error::from);
    let stat = stat.map_err(file_error(directory))?;
    if stat.f_type as u64 == TMPFS_MAGIC {
        return Err(DataError::Tmpfs { path: directory.to_owned() });
    }
    Ok(())
}

/// `len` bytes of the system's files, for benches of one stage.
///
/// # Errors
/// If there are too few files.
pub fn sample(len: usize) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(len);
    for (root, _) in ROOTS {
        walk(Path::new(root), &mut |path, bytes| {
            let room = (len - out.len()) as u64;
            // A file that cannot be read leaves its place to the next one.
            if bytes >= BLOCK_BYTES as u64 && room > 0 {
                let _ = File::open(path).and_then(|file| file.take(room).read_to_end(&mut out));
            }
            out.len() < len
        });
    }
    if out.len() < len {
        let (found_bytes, needed_bytes) = (out.len() as u64, len as u64);
        return Err(DataError::TooLittle { found_bytes, needed_bytes });
    }
    Ok(out)
}

/// The ext4 image of at least `bytes` in `directory`, built from /usr/lib and /usr/share unless it is there
/// already.
///
/// # Errors
/// If there is no `mke2fs`, no room or too few files.
pub fn image(directory: &Path, bytes: u64) -> Result<PathBuf> {
    let path = directory.join("siltstone-bench-image.ext4");
    if fs::metadata(&path).is_ok_and(|found| found.len() >= bytes) {
        return Ok(path);
    }
    // Told before the work, not after.
    Command::new("mke2fs").arg("-V").output().map_err(|source| DataError::NoMke2fs { source })?;
    let tree = directory.join("siltstone-bench-tree");
    remove_tree(&tree)?;
    for (root, percent) in ROOTS {
        copy_files(Path::new(root), &tree, bytes / 100 * FILES_PERCENT / 100 * percent)?;
    }
    let unfinished = path.with_extension("unfinished");
    let _ = fs::remove_file(&unfinished);
    let blocks = (bytes / BLOCK_BYTES as u64).to_string();
    let made = Command::new("mke2fs")
        // A journal would be zeros, and in a small image most of the room that files leave.
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-b", "4096", "-m", "0", "-d"])
        .args([&tree, &unfinished])
        .arg(blocks)
        .output()
        .map_err(|source| DataError::NoMke2fs { source })?;
    if !made.status.success() {
        let message = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Err(DataError::Mke2fs { path, message });
    }
    remove_tree(&tree)?;
    fs::rename(&unfinished, &path).map_err(file_error(&path))?;
    Ok(path)
}

/// The file's whole blocks, up to `bytes` of them.
///
/// # Errors
/// If it cannot be read.
pub fn load(path: &Path, bytes: u64) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let file = File::open(path).map_err(file_error(path))?;
    file.take(bytes).read_to_end(&mut data).map_err(file_error(path))?;
    data.truncate(data.len() / BLOCK_BYTES * BLOCK_BYTES);
    Ok(data)
}

/// The distinct blocks of some data, and how many there were of the others.
pub struct Distinct {
    /// Every block that is not zero, once, in the order of its first appearance.
    pub bytes: Vec<u8>,
    /// Blocks that are zero.
    pub zero_blocks: u64,
    /// Blocks, not zero, that had appeared before.
    pub duplicate_blocks: u64,
}

/// Takes zeros and repetitions out of `data`, exactly.
#[must_use]
pub fn distinct(data: &[u8]) -> Distinct {
    let mut seen: HashSet<ShortFingerprint> = HashSet::new();
    let mut out = Distinct { bytes: Vec::new(), zero_blocks: 0, duplicate_blocks: 0 };
    let mut fingerprints = Vec::new();
    for piece in data.as_chunks::<BLOCK_BYTES>().0.chunks(256) {
        let blocks: Vec<&[u8; BLOCK_BYTES]> =
            piece.iter().filter(|block| !is_zero(block)).collect();
        out.zero_blocks += (piece.len() - blocks.len()) as u64;
        fingerprints.resize(blocks.len(), siltstone_dedup::Fingerprint::from_bytes([0; 32]));
        fingerprint_blocks(&blocks, &mut fingerprints);
        for (block, fingerprint) in blocks.iter().zip(&fingerprints) {
            if seen.insert(fingerprint.short()) {
                out.bytes.extend_from_slice(*block);
            } else {
                out.duplicate_blocks += 1;
            }
        }
    }
    out
}

/// Copies files from `root` under `tree`, in order of name, until they have `limit_bytes`.
fn copy_files(root: &Path, tree: &Path, limit_bytes: u64) -> Result<()> {
    let mut copied = 0;
    let mut failure = None;
    walk(root, &mut |path, bytes| {
        let bytes = bytes.next_multiple_of(BLOCK_BYTES as u64) + INODE_BYTES;
        if copied + bytes > limit_bytes {
            return copied < limit_bytes / 100 * 99;
        }
        match copy_file(path, tree) {
            Ok(()) => copied += bytes,
            Err(error) => failure = Some(error),
        }
        failure.is_none()
    });
    failure.map_or(Ok(()), Err)
}

/// Copies a file that can be read; one that cannot is left out.
fn copy_file(path: &Path, tree: &Path) -> Result<()> {
    let Ok(contents) = fs::read(path) else { return Ok(()) };
    let target = tree.join(path.strip_prefix("/").unwrap_or(path));
    let parent = target.parent().unwrap_or(tree);
    fs::create_dir_all(parent).map_err(file_error(parent))?;
    let written = File::create(&target).and_then(|mut file| file.write_all(&contents));
    written.map_err(file_error(&target))
}

/// Visits the regular files below `root`, ordered by name, as `visit(path, bytes)`, until that is
/// false. What cannot be listed is passed over.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path, u64) -> bool) -> bool {
    let Ok(entries) = fs::read_dir(root) else { return true };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.iter().all(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => walk(&entry.path(), visit),
        Ok(metadata) if metadata.is_file() => visit(&entry.path(), metadata.len()),
        _ => true,
    })
}

fn remove_tree(tree: &Path) -> Result<()> {
    match fs::remove_dir_all(tree) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(tree)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ratios are computed from these counts, so each kind of block must be counted once.
    #[test]
    fn zeros_and_repetitions_are_told_apart() {
        let block = |fill: u8| [fill; BLOCK_BYTES];
        let data = [block(1), block(0), block(2), block(1), block(1), block(0)].concat();
        let found = distinct(&data);
        assert_eq!(found.bytes, [block(1), block(2)].concat());
        assert_eq!((found.zero_blocks, found.duplicate_blocks), (2, 2));
    }

    #[test]
    fn files_are_visited_in_order_until_enough() {
        let all = sample(1 << 20).unwrap();
        assert_eq!(all.len(), 1 << 20);
        assert_eq!(sample(5000).unwrap(), all[..5000]);
        assert!(distinct(&all).bytes.len() > 1 << 19, "system files are not mostly zeros");
    }
}
