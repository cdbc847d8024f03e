//! What is written to a pool, and how much of it is duplicate.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use siltstone_benches::data::BLOCK_BYTES;
use siltstone_dedup::{Fingerprint, ShortFingerprint, fingerprint_blocks, is_zero};
use siltstone_device::{SeededRandom, sparse};

/// Bytes of one write.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;
/// Versions of the image that [`Corpus::days`] makes.
const DAYS: usize = 4;
/// One block in so many changes from day to day.
const CHANGED_ONE_IN: u64 = 20;
/// The longest run of blocks that changes or is overwritten in one go.
const LONGEST_RUN: u64 = 32;
/// Of ten overwrites so many are copies of what is stored, from anywhere; the others are new.
const COPIES_IN_TEN: u64 = 7;

/// A series of writes.
pub(crate) struct Corpus {
    name: &'static str,
    kind: Kind,
}

enum Kind {
    /// Each into a volume of its own.
    Images(Vec<PathBuf>),
    /// An image, and what it is on later days, each into a volume of its own.
    Days(Vec<u8>),
    /// An image into a volume, half of which is then overwritten in short runs.
    Overwrites(Vec<u8>),
}

/// What a corpus holds, zeros apart.
pub(crate) struct Counts {
    pub(crate) data_blocks: u64,
    pub(crate) distinct_blocks: u64,
}

/// Takes (volume, offset in bytes, data); data is of whole blocks.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, u64, &[u8]) -> io::Result<()>;

impl Corpus {
    pub(crate) fn images(name: &'static str, paths: &[PathBuf]) -> Self {
        Self { name, kind: Kind::Images(paths.to_vec()) }
    }

    pub(crate) fn days(image: Vec<u8>) -> Self {
        Self { name: "similar images in time (made)", kind: Kind::Days(image) }
    }

    pub(crate) fn overwrites(image: Vec<u8>) -> Self {
        Self { name: "random overwrites", kind: Kind::Overwrites(image) }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The sizes of its volumes, in bytes.
    pub(crate) fn volumes(&self) -> io::Result<Vec<u64>> {
        match &self.kind {
            Kind::Images(paths) => {
                paths.iter().map(|path| Ok(File::open(path)?.metadata()?.len())).collect()
            }
            Kind::Days(image) => Ok(vec![image.len() as u64; DAYS]),
            Kind::Overwrites(image) => Ok(vec![image.len() as u64]),
        }
    }

    /// Makes all writes, the same each time.
    pub(crate) fn write(&self, sink: Sink<'_>) -> io::Result<()> {
        match &self.kind {
            Kind::Images(paths) => paths
                .iter()
                .enumerate()
                .try_for_each(|(volume, path)| write_image(volume, path, sink)),
            Kind::Days(image) => write_days(image, sink),
            Kind::Overwrites(image) => {
                write_whole(0, image, sink)?;
                overwrite(image, sink)
            }
        }
    }

    /// Counts exactly what a pool should find.
    pub(crate) fn count(&self) -> io::Result<Counts> {
        let mut seen: HashSet<ShortFingerprint> = HashSet::new();
        let mut data_blocks = 0;
        let mut fingerprints = Vec::new();
        self.write(&mut |_, _, data| {
            let blocks: Vec<&[u8; BLOCK_BYTES]> =
                data.as_chunks().0.iter().filter(|block| !is_zero(block)).collect();
            data_blocks += blocks.len() as u64;
            fingerprints.resize(blocks.len(), Fingerprint::from_bytes([0; 32]));
            fingerprint_blocks(&blocks, &mut fingerprints);
            seen.extend(fingerprints.iter().map(Fingerprint::short));
            Ok(())
        })?;
        Ok(Counts { data_blocks, distinct_blocks: seen.len() as u64 })
    }
}

fn write_image(volume: usize, path: &Path, sink: Sink<'_>) -> io::Result<()> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let size = size - size % BLOCK_BYTES as u64;
    let mut buffer = vec![0; PIECE_BYTES as usize];
    let mut at = 0;
    while let Some(data) = sparse::next_data(&file, at, size)? {
        at = (data.start - data.start % BLOCK_BYTES as u64).max(at);
        let end = data.end.next_multiple_of(BLOCK_BYTES as u64).min(size);
        while at < end {
            let len = (PIECE_BYTES - at % PIECE_BYTES).min(end - at);
            let piece = &mut buffer[..len as usize];
            file.read_exact_at(piece, at)?;
            sink(volume, at, piece)?;
            at += len;
        }
    }
    Ok(())
}

fn write_whole(volume: usize, image: &[u8], sink: Sink<'_>) -> io::Result<()> {
    let pieces = (0..).zip(image.chunks(PIECE_BYTES as usize));
    pieces.into_iter().try_for_each(|(at, piece)| sink(volume, at * PIECE_BYTES, piece))
}

/// New contents that compress like old ones: an old block with a mark in it.
fn renew(block: &mut [u8], mark: u64) {
    block[..8].copy_from_slice(&mark.to_le_bytes());
}

/// Short runs are as frequent as long ones, so most changed blocks are in long ones.
fn run_blocks(random: &mut SeededRandom) -> u64 {
    let scale = random.below(LONGEST_RUN.ilog2().into()) + 1;
    1 + random.below(1 << scale)
}

/// Changes runs of blocks in place: two thirds become new, one third a copy of other blocks.
fn write_days(image: &[u8], sink: Sink<'_>) -> io::Result<()> {
    let mut image = image.to_vec();
    let blocks = (image.len() / BLOCK_BYTES) as u64;
    let mut random = SeededRandom::new(1);
    for day in 0..DAYS {
        let mut to_change = if day == 0 { 0 } else { blocks / CHANGED_ONE_IN };
        while to_change > 0 {
            let run = run_blocks(&mut random).min(to_change);
            to_change -= run;
            let (from, to) = (random.below(blocks - run), random.below(blocks - run));
            let bytes = |block: u64| block as usize * BLOCK_BYTES;
            image.copy_within(bytes(from)..bytes(from + run), bytes(to));
            if random.below(3) > 0 {
                for block in image[bytes(to)..bytes(to + run)].chunks_exact_mut(BLOCK_BYTES) {
                    renew(block, random.next_u64());
                }
            }
        }
        write_whole(day, &image, sink)?;
    }
    Ok(())
}

fn overwrite(image: &[u8], sink: Sink<'_>) -> io::Result<()> {
    let blocks = (image.len() / BLOCK_BYTES) as u64;
    let mut random = SeededRandom::new(2);
    let mut to_write = blocks / 2;
    let mut piece = Vec::new();
    while to_write > 0 {
        let run = run_blocks(&mut random).min(to_write);
        to_write -= run;
        let (from, to) = (random.below(blocks - run), random.below(blocks - run));
        piece.clear();
        piece
            .extend_from_slice(&image[from as usize * BLOCK_BYTES..][..run as usize * BLOCK_BYTES]);
        if random.below(10) >= COPIES_IN_TEN {
            for block in piece.chunks_exact_mut(BLOCK_BYTES) {
                renew(block, random.next_u64());
            }
        }
        sink(0, to * BLOCK_BYTES as u64, &piece)?;
    }
    Ok(())
}
