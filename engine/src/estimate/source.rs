//! The data: files and block devices one after the other, cut into batches as an import cuts them,
//! holes left out; and the workers that read batches and reduce them.

use std::{
    fs::File,
    io::{self, Seek},
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use siltstone_dedup::{Fingerprint, ShortFingerprint, fingerprint_blocks, is_zero};
use siltstone_device::{AlignedBuffer, BLOCK_BYTES, sparse};

use crate::{
    compress::Compressor,
    estimate::{
        EstimateError, EstimateOptions,
        tally::{self, BatchOutcome},
    },
};

pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;
/// Data of a batch, as the engine reduces it and an import writes it.
pub(super) const BATCH_BYTES: u64 = 1 << 20;

struct Source {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    /// Whether reads go past the page cache.
    is_direct: AtomicBool,
}

/// What is to be read.
pub(super) struct Sources(Vec<Source>);

/// How much there is.
pub(super) struct Extent {
    /// Of all files, holes included.
    pub(super) total_bytes: u64,
    /// Outside of holes.
    pub(super) data_blocks: u64,
    pub(super) batches: u64,
}

/// Data that is reduced together: ranges of one file, each of whole blocks.
pub(super) struct Batch {
    /// Counted over all files.
    pub(super) number: u64,
    pub(super) file: u32,
    ranges: Vec<Range<u64>>,
    /// Where the file's blocks begin when all are counted.
    first_position: u64,
    /// What is done when this is, the holes before it included.
    pub(super) progress_bytes: u64,
}

impl Batch {
    fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

impl Sources {
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, EstimateError> {
        paths.iter().map(|path| Source::open(path)).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.0.iter().map(|source| (source.path.as_path(), source.size_bytes))
    }

    /// Looks for holes only: reads nothing.
    pub(super) fn measure(&self) -> Result<Extent, EstimateError> {
        let mut batches = Batches::new(&self.0);
        let mut extent = Extent { total_bytes: 0, data_blocks: 0, batches: 0 };
        while let Some(batch) = batches.next()? {
            extent.data_blocks += batch.bytes() / BLOCK;
            extent.batches += 1;
        }
        extent.total_bytes = self.0.iter().map(|source| source.size_bytes).sum();
        Ok(extent)
    }

    /// Calls `each` with every batch, or with those whose numbers are `chosen` (in order), on
    /// `threads` threads. Batches are started in order.
    pub(super) fn each_batch(
        &self,
        threads: usize,
        chosen: Option<&[u64]>,
        each: &(dyn Fn(&mut Worker<'_>, &Batch) -> Result<(), EstimateError> + Sync),
    ) -> Result<(), EstimateError> {
        let batches = Mutex::new(Batches::new(&self.0));
        let failure = Mutex::new(None);
        let next = || {
            let mut batches = batches.lock();
            if failure.lock().is_some() {
                return Ok(None);
            }
            loop {
                let batch = batches.next()?;
                let is_wanted = |batch: &Batch| {
                    chosen.is_none_or(|chosen| chosen.binary_search(&batch.number).is_ok())
                };
                if batch.as_ref().is_none_or(is_wanted) {
                    return Ok(batch);
                }
            }
        };
        let work = || {
            let mut worker = Worker::new(&self.0);
            loop {
                let done = match next() {
                    Ok(Some(batch)) => each(&mut worker, &batch),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                if let Err(error) = done {
                    failure.lock().get_or_insert(error);
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for number in 0..threads {
                let thread = std::thread::Builder::new().name(format!("estimate-{number}"));
                if let Err(error) = thread.spawn_scoped(scope, work) {
                    let source = std::sync::Arc::new(error);
                    failure.lock().get_or_insert(EstimateError::Thread { source });
                    return;
                }
            }
        });
        failure.into_inner().map_or(Ok(()), Err)
    }
}

impl Source {
    fn open(path: &Path) -> Result<Self, EstimateError> {
        let failed = |error| EstimateError::file("open", path, error);
        let mut file = File::open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(EstimateError::NotData { path: path.to_owned() });
        }
        let size_bytes = file.seek(io::SeekFrom::End(0)).map_err(failed)?;
        // What is read once has no business in the page cache; where that is not to be had, it is
        // at least told what comes.
        let flags = fcntl_getfl(&file);
        let is_direct = flags.and_then(|flags| fcntl_setfl(&file, flags | OFlags::DIRECT)).is_ok();
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        let is_direct = AtomicBool::new(is_direct);
        Ok(Self { path: path.to_owned(), file, size_bytes, is_direct })
    }

    /// Reads the blocks from `at`; what lies behind the file's end is zero.
    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), EstimateError> {
        let mut done = 0;
        // A read that ends early goes on at a whole block, where direct I/O can.
        while done < out.len() && at + (done as u64) < self.size_bytes {
            match self.file.read_at(&mut out[done..], at + done as u64) {
                Ok(0) => break,
                Ok(count) if at + ((done + count) as u64) >= self.size_bytes => done += count,
                Ok(count) if count >= BLOCK_BYTES => done += count / BLOCK_BYTES * BLOCK_BYTES,
                Ok(_) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidInput
                        && self.is_direct.swap(false, Ordering::Relaxed) =>
                {
                    // A file system that promised direct I/O and cannot do this one.
                    let flags = fcntl_getfl(&self.file);
                    let set =
                        flags.and_then(|flags| fcntl_setfl(&self.file, flags - OFlags::DIRECT));
                    set.map_err(|error| self.failed(error.into()))?;
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
        out[done..].fill(0);
        Ok(())
    }

    fn failed(&self, error: io::Error) -> EstimateError {
        EstimateError::file("read", &self.path, error)
    }
}

/// Cuts sources into batches, in order.
struct Batches<'a> {
    sources: &'a [Source],
    number: u64,
    file: usize,
    at: u64,
    /// The run of data that `at` is in.
    data: Range<u64>,
    /// Up to where progress has been handed out.
    told: u64,
    first_position: u64,
}

impl<'a> Batches<'a> {
    fn new(sources: &'a [Source]) -> Self {
        Self { sources, number: 0, file: 0, at: 0, data: 0..0, told: 0, first_position: 0 }
    }

    fn next(&mut self) -> Result<Option<Batch>, EstimateError> {
        while let Some(source) = self.sources.get(self.file) {
            let mut ranges: Vec<Range<u64>> = Vec::new();
            let mut room = BATCH_BYTES;
            while let Some(end) = self.next_piece(source)? {
                if end - self.at > room {
                    break;
                }
                room -= end - self.at;
                match ranges.last_mut() {
                    Some(last) if last.end == self.at => last.end = end,
                    _ => ranges.push(self.at..end),
                }
                self.at = end;
            }
            let is_last = self.at >= source.size_bytes;
            if ranges.is_empty() && is_last {
                self.first_position += source.size_bytes.div_ceil(BLOCK);
                (self.file, self.at, self.data, self.told) = (self.file + 1, 0, 0..0, 0);
                continue;
            }
            assert!(!ranges.is_empty(), "a piece always fits into an empty batch");
            let until = self.at.min(source.size_bytes);
            let batch = Batch {
                number: self.number,
                file: self.file as u32,
                ranges,
                first_position: self.first_position,
                progress_bytes: until - self.told,
            };
            self.told = until;
            self.number += 1;
            return Ok(Some(batch));
        }
        Ok(None)
    }

    /// Moves `at` to the next data and returns where a piece of it ends: whole blocks, at most to
    /// the next multiple of a batch, as an import writes them. At the end of data `at` is the
    /// file's end.
    fn next_piece(&mut self, source: &Source) -> Result<Option<u64>, EstimateError> {
        if self.at >= self.data.end {
            let size_bytes = source.size_bytes;
            let data = sparse::next_data(&source.file, self.at.min(size_bytes), size_bytes);
            match data.map_err(|error| source.failed(error))? {
                // A run of data may begin in a block of which the last one's end was a part.
                Some(data) => {
                    let start = (data.start - data.start % BLOCK).max(self.at);
                    let end = data.end.next_multiple_of(BLOCK);
                    self.at = start;
                    self.data = start..end.max(start);
                }
                None => {
                    self.at = size_bytes.max(self.at);
                    return Ok(None);
                }
            }
        }
        let piece_end = self.at - self.at % BATCH_BYTES + BATCH_BYTES;
        Ok(Some(piece_end.min(self.data.end)))
    }
}

/// Reads batches and reduces them; one a thread.
pub(super) struct Worker<'a> {
    sources: &'a [Source],
    buffer: AlignedBuffer,
    compressor: Compressor,
    gather: Vec<u8>,
    compressed: Vec<u8>,
    fingerprints: Vec<Fingerprint>,
    shorts: Vec<ShortFingerprint>,
    /// Of each block with data, which of the buffer's blocks it is.
    at: Vec<u32>,
    /// Of each block with data, its number among all blocks of all files.
    positions: Vec<u64>,
    /// Whether it follows the block before it.
    contiguous: Vec<bool>,
    zero_blocks: u64,
    zero_runs: u64,
}

impl<'a> Worker<'a> {
    fn new(sources: &'a [Source]) -> Self {
        Self {
            sources,
            buffer: AlignedBuffer::zeroed(BATCH_BYTES as usize),
            compressor: Compressor::new(),
            gather: Vec::new(),
            compressed: vec![0; tally::FRAME_BYTES],
            fingerprints: Vec::new(),
            shorts: Vec::new(),
            at: Vec::new(),
            positions: Vec::new(),
            contiguous: Vec::new(),
            zero_blocks: 0,
            zero_runs: 0,
        }
    }

    /// Reads and fingerprints a batch.
    pub(super) fn read(&mut self, batch: &Batch) -> Result<(), EstimateError> {
        let source = &self.sources[batch.file as usize];
        let mut from = 0;
        for range in &batch.ranges {
            let len = (range.end - range.start) as usize;
            source.read(range.start, &mut self.buffer[from..from + len])?;
            from += len;
        }
        self.at.clear();
        self.positions.clear();
        self.contiguous.clear();
        (self.zero_blocks, self.zero_runs) = (0, 0);
        let blocks = self.buffer.as_chunks::<BLOCK_BYTES>().0;
        let mut with_data: Vec<&[u8; BLOCK_BYTES]> = Vec::with_capacity(blocks.len());
        let mut at = 0;
        let mut before = None;
        for range in &batch.ranges {
            let mut was_zero = false;
            for address in range.start / BLOCK..range.end / BLOCK {
                let block = &blocks[at];
                if is_zero(block) {
                    self.zero_blocks += 1;
                    self.zero_runs += u64::from(!was_zero);
                    was_zero = true;
                } else {
                    was_zero = false;
                    with_data.push(block);
                    self.at.push(at as u32);
                    self.positions.push(batch.first_position + address);
                    self.contiguous.push(before.is_some_and(|before| before + 1 == address));
                    before = Some(address);
                }
                at += 1;
            }
        }
        self.fingerprints.resize(with_data.len(), Fingerprint::from_bytes([0; 32]));
        fingerprint_blocks(&with_data, &mut self.fingerprints);
        self.shorts.clear();
        self.shorts.extend(self.fingerprints.iter().map(Fingerprint::short));
        Ok(())
    }

    /// The fingerprints of the batch's blocks with data.
    pub(super) fn shorts(&self) -> &[ShortFingerprint] {
        &self.shorts
    }

    /// Their numbers among all blocks.
    pub(super) fn positions(&self) -> &[u64] {
        &self.positions
    }

    /// How many others there are.
    pub(super) fn zero_blocks(&self) -> u64 {
        self.zero_blocks
    }

    /// What a pool makes of the batch that was read, given which blocks it has already. Of
    /// `one_in` frames one is compressed; which ones depends on the batch alone.
    pub(super) fn reduce(
        &mut self,
        batch: &Batch,
        duplicates: &[bool],
        options: &EstimateOptions,
        one_in: u32,
    ) -> BatchOutcome {
        let threshold = options.threshold as usize;
        let mut outcome = tally::plan(duplicates, &self.contiguous, threshold, self.zero_runs);
        let mut compressed = Vec::new();
        for (number, frame) in outcome.frames().enumerate() {
            if !tally::is_chosen(batch.number, number, one_in) {
                continue;
            }
            self.gather.clear();
            for &block in frame {
                let from = self.at[block as usize] as usize * BLOCK_BYTES;
                self.gather.extend_from_slice(&self.buffer[from..from + BLOCK_BYTES]);
            }
            let stored =
                self.compressor.compress(&self.gather, options.level, &mut self.compressed);
            compressed.push((self.gather.len(), stored.unwrap_or(self.gather.len())));
        }
        outcome.compressed = compressed;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(sources: &Sources) -> Vec<Batch> {
        let mut batches = Batches::new(&sources.0);
        std::iter::from_fn(|| batches.next().unwrap()).collect()
    }

    #[test]
    fn batches_cover_all_data_once_and_progress_covers_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "empty", "hole"].map(|name| folder.path().join(name));
        let sparse_file = File::create(&paths[0]).unwrap();
        sparse_file.set_len(20 << 20).unwrap();
        for at in [0, 5 << 20, (5 << 20) + 8192, 9 << 20] {
            sparse_file.write_all_at(&[7; 4096], at).unwrap();
        }
        std::fs::write(&paths[1], vec![9; (3 << 20) + 5000]).unwrap();
        File::create(&paths[2]).unwrap();
        File::create(&paths[3]).unwrap().set_len(1 << 20).unwrap();
        let sources = Sources::open(&paths).unwrap();
        let all = batches(&sources);
        assert!((0..).zip(&all).all(|(number, batch)| batch.number == number));
        assert!(all.iter().all(|batch| (1..=BATCH_BYTES).contains(&batch.bytes())));
        let second: Vec<_> = all.iter().filter(|batch| batch.file == 1).collect();
        assert_eq!(second.iter().map(|batch| batch.bytes()).sum::<u64>(), (3 << 20) + 8192);
        assert!(second.iter().all(|batch| batch.first_position == (20 << 20) / BLOCK));
        for at in [0, 5 << 20, (5 << 20) + 8192, 9 << 20] {
            let holds = |batch: &&Batch| {
                batch.file == 0 && batch.ranges.iter().any(|range| range.contains(&at))
            };
            assert_eq!(all.iter().filter(holds).count(), 1);
        }
        assert_eq!(sources.measure().unwrap().total_bytes, (24 << 20) + 5000);
        let told: u64 = all.iter().map(|batch| batch.progress_bytes).sum();
        // What is behind the last data is told by nobody: nothing is left to do then.
        assert!(((12 << 20) + 5000..=(24 << 20) + 5000).contains(&told));
    }

    #[test]
    fn what_lies_behind_the_end_of_a_file_is_zero() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [1; 5000]).unwrap();
        let source = Source::open(&path).unwrap();
        let mut out = AlignedBuffer::zeroed(8192);
        out.fill(0xee);
        source.read(0, &mut out).unwrap();
        assert!(out[..5000].iter().all(|&byte| byte == 1));
        assert!(out[5000..].iter().all(|&byte| byte == 0));
    }
}
