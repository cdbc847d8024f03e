//! Real data in two halves: one that dictionaries are made from, one that is framed.

use std::{
    fs::{self, File},
    io::Read,
    path::PathBuf,
};

use siltstone_benches::data::{self, BLOCK_BYTES};
use siltstone_device::SeededRandom;

use crate::{
    codec::{Encoder, FRAME_BYTES},
    way,
};

/// Of one file, so that no single one makes up a corpus.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Of an image, pieces of this size belong to one half or the other.
const IMAGE_PIECE_BYTES: usize = 8 << 20;
const ROOTS: [&str; 2] = ["/usr/lib", "/usr/share"];
const TEXT_EXTENSION: &str = "py";
const SEED: u64 = 5;

/// Whole frames of distinct blocks. Frames that do not compress are left out of both halves: they
/// are stored as they are, whatever the way.
pub(crate) struct Corpus {
    pub(crate) name: &'static str,
    pub(crate) training: Vec<u8>,
    pub(crate) test: Vec<u8>,
}

impl Corpus {
    fn new(name: &'static str, training: &[u8], test: &[u8]) -> Self {
        Self { name, training: compressible(training), test: compressible(test) }
    }

    /// The same test data in random order but for runs of so many blocks, as random writes of that
    /// size would frame them.
    pub(crate) fn scattered(&self, name: &'static str, run_blocks: usize) -> Self {
        let mut runs: Vec<_> = self.test.chunks(run_blocks * BLOCK_BYTES).collect();
        shuffle(&mut runs);
        Self { name, training: self.training.clone(), test: compressible(&runs.concat()) }
    }
}

/// Files of both roots, half of them for training.
pub(crate) fn files(bytes: usize) -> Corpus {
    let mut files = files_below(&ROOTS);
    let (training, test) = (take(&mut files, bytes), take(&mut files, bytes));
    Corpus::new("files", &training, &test)
}

/// Training on programs and libraries, and then other data comes.
pub(crate) fn drifted(bytes: usize) -> Corpus {
    let training = take(&mut files_below(&ROOTS[..1]), bytes);
    let test = take(&mut files_below(&ROOTS[1..]), bytes);
    Corpus::new("drifted", &training, &test)
}

/// Files of one kind, half of them for training: what dictionaries are best at.
pub(crate) fn text(bytes: usize) -> Corpus {
    let mut files = files_below(&ROOTS);
    files.retain(|path| path.extension().is_some_and(|extension| extension == TEXT_EXTENSION));
    let (training, test) = (take(&mut files, bytes), take(&mut files, bytes));
    Corpus::new("text", &training, &test)
}

/// A filesystem image: pieces of it in turns.
pub(crate) fn image(image: &[u8], bytes: usize) -> Corpus {
    let mut halves = [Vec::new(), Vec::new()];
    // Of each piece as much as makes the halves long enough together.
    let pieces = image.len().div_ceil(2 * IMAGE_PIECE_BYTES).max(1);
    let share = (bytes / pieces).next_multiple_of(FRAME_BYTES).min(IMAGE_PIECE_BYTES);
    for (index, piece) in image.chunks(IMAGE_PIECE_BYTES).enumerate() {
        halves[index % 2].extend_from_slice(&piece[..share.min(piece.len())]);
    }
    Corpus::new("image", &halves[0], &halves[1])
}

/// Regular files, in random order, the same each time.
fn files_below(roots: &[&str]) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut directories: Vec<PathBuf> = roots.iter().map(PathBuf::from).collect();
    while let Some(directory) = directories.pop() {
        // What cannot be listed is passed over.
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(kind) if kind.is_file() => out.push(entry.path()),
                _ => {}
            }
        }
    }
    out.sort();
    shuffle(&mut out);
    out
}

/// Whole blocks of files from the end of the list, which are taken out of it.
fn take(files: &mut Vec<PathBuf>, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        let Some(path) = files.pop() else { break };
        let start = out.len();
        // A file that cannot be read leaves its place to the next one.
        let read =
            File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut out));
        if read.is_err() || out.len() - start < BLOCK_BYTES {
            out.truncate(start);
        }
        // A file's last block is filled up with zeros, as filesystems do.
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    }
    out.truncate(bytes);
    out
}

/// The frames of the distinct blocks in `data` that compress.
fn compressible(data: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(&way::baseline(), &[]);
    let distinct = data::distinct(data).bytes;
    let frames = distinct.chunks_exact(FRAME_BYTES);
    frames.filter(|frame| encoder.encode(frame).is_some()).flatten().copied().collect()
}

fn shuffle<T>(items: &mut [T]) {
    let mut random = SeededRandom::new(SEED);
    for at in (1..items.len()).rev() {
        items.swap(at, random.below(at as u64 + 1) as usize);
    }
}
