//! One pool: written, opened again, read.

use std::{
    collections::BTreeSet,
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use pollster::block_on;
use siltstone_device::{
    AlignedBuffer, ByteOffset, Device, DeviceError, Durability, SeededRandom,
    file::{self, Access, FileOptions},
    request,
};
use siltstone_engine::{
    CreateOptions, EngineError, OpenOptions, Pool, Tuning, VolumeOptions, stats::CounterValues,
};

use siltstone_benches::drive;

use crate::corpus::{Corpus, Counts, PIECE_BYTES};

/// Pools are sparse files of this size.
const POOL_BYTES: u64 = 24 << 30;
const RAW_BYTES: u64 = 1 << 30;
/// Too little to keep what was read.
const COLD_FRAME_CACHE_BYTES: usize = 8 << 20;
const DEPTH: usize = 32;
const READ_AT_ONCE: usize = 8;
/// Each rate is measured so often, in turns with the device's.
const ROUNDS: usize = 3;
/// Pieces that are streamed to count frames.
const STREAMED_PIECES: usize = 1024;
/// No pool takes less for its index.
const LEAST_INDEX_BYTES: u64 = 64 << 10;

/// Where pools are made, and what they are compared with.
pub(crate) struct Bed {
    directory: PathBuf,
    raw: Arc<dyn Device>,
    seconds: Duration,
    _raw_file: Removed,
}

/// A file that is removed at the end.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Gone already, or there is nobody left to tell.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What is varied.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) threshold: u32,
    pub(crate) index_bytes: u64,
}

/// What came of it.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    /// Of all duplicate blocks, those that became links.
    pub(crate) kept: f64,
    pub(crate) stored_bytes: u64,
    /// Rates by those of the raw device.
    pub(crate) sequential: f64,
    pub(crate) random: f64,
    /// Of a stream: frames that had to be read (32 hold a MiB), and processor time.
    pub(crate) frames_a_mib: f64,
    pub(crate) cpu_ms_a_mib: f64,
    pub(crate) index_bytes: u64,
    pub(crate) sample_bits: u32,
    pub(crate) map_entries: u64,
}

/// An index that surely holds so many fingerprints: its shards do not fill alike.
pub(crate) fn exact_index_bytes(distinct_blocks: u64) -> u64 {
    distinct_blocks * 8 * 16 / 15 * 21 / 20
}

impl Bed {
    pub(crate) fn new(directory: &Path, seconds: Duration) -> Result<Self, Box<dyn Error>> {
        let path = directory.join("siltstone-study-raw");
        let file = Removed(path.clone());
        let _ = std::fs::remove_file(&path);
        let access = Access::Create { size_bytes: RAW_BYTES };
        let raw = file::open(&path, &FileOptions { access, ..FileOptions::default() })?;
        let mut buffer = AlignedBuffer::zeroed(PIECE_BYTES as usize);
        SeededRandom::new(1).fill(&mut buffer);
        for at in (0..RAW_BYTES).step_by(PIECE_BYTES as usize) {
            buffer = block_on(request::write(&*raw, ByteOffset(at), buffer, Durability::Flush))?;
        }
        block_on(request::flush(&*raw))?;
        Ok(Self { directory: directory.to_owned(), raw, seconds, _raw_file: file })
    }
}

pub(crate) fn run(
    bed: &Bed,
    corpus: &Corpus,
    counts: &Counts,
    setting: Setting,
) -> Result<Outcome, Box<dyn Error>> {
    let path = bed.directory.join("siltstone-study-pool");
    let _ = std::fs::remove_file(&path);
    let _pool_file = Removed(path.clone());
    let options = CreateOptions {
        size_bytes: Some(POOL_BYTES),
        threshold: setting.threshold,
        index_memory_bytes: setting.index_bytes.max(LEAST_INDEX_BYTES),
        ..CreateOptions::default()
    };
    Pool::create(&path, &options)?;
    let pool = Pool::open(&path, &OpenOptions::default())?;
    let mut volumes = Vec::new();
    for (number, size) in corpus.volumes()?.into_iter().enumerate() {
        volumes.push(pool.create_volume(&number.to_string(), &VolumeOptions::new(size))?);
    }
    let last = volumes.len() - 1;
    // Where the volume that is read has data.
    let mut pieces = BTreeSet::new();
    corpus.write(&mut |volume, offset, data| {
        if volume == last {
            pieces.insert(offset / PIECE_BYTES);
        }
        volumes[volume].write_at(offset, data).map_err(io::Error::other)
    })?;
    pool.checkpoint()?;
    let stat = pool.stat();
    let linked = stat.counters.linked_blocks;
    drop(volumes);
    pool.close()?;

    let tuning = Tuning {
        frame_cache_bytes: COLD_FRAME_CACHE_BYTES,
        warm_index: false,
        ..Tuning::default()
    };
    let pool = Pool::open(&path, &OpenOptions { tuning, ..OpenOptions::default() })?;
    let volume = pool.volume(&last.to_string())?;
    let pieces: Vec<u64> = pieces.into_iter().collect();
    let mut reads = Reads { bed, pieces: &pieces, next_piece: 0, seed: 0 };
    let (mut sequential, mut random) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let device = reads.device_in_order()?;
        let mut out = vec![0; PIECE_BYTES as usize];
        let found = reads.in_order(&mut |offset| Ok(volume.read_at(offset, &mut out)?))?;
        sequential.push(found / device);
        let device = reads.device_at_random()?;
        let volume = &volume;
        let found =
            reads.at_random(|offset| async move { volume.read(offset, &mut [0; 4096]).await })?;
        random.push(found / device);
    }
    // What does not depend on how busy the machine is: how a stream is spread over the device.
    let frames = |counters: &CounterValues| counters.frame_reads + counters.read_ahead_frames;
    let before = pool.counters();
    let cpu_before = cpu_seconds();
    let streamed = &pieces[..pieces.len().min(STREAMED_PIECES)];
    let mut out = vec![0; PIECE_BYTES as usize];
    streamed.iter().try_for_each(|piece| volume.read_at(piece * PIECE_BYTES, &mut out))?;
    let cpu = cpu_seconds() - cpu_before;
    let after = pool.counters();
    let streamed = streamed.len() as f64;
    drop(volume);
    pool.close()?;
    Ok(Outcome {
        frames_a_mib: (frames(&after) - frames(&before)) as f64 / streamed,
        cpu_ms_a_mib: cpu * 1e3 / streamed,
        kept: linked as f64 / (counts.data_blocks - counts.distinct_blocks).max(1) as f64,
        stored_bytes: stat.space.stored_bytes,
        sequential: median(sequential),
        random: median(random),
        index_bytes: stat.index_bytes,
        sample_bits: stat.index_sample_bits,
        map_entries: stat.map_entries,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Rates of reads, for a while each.
struct Reads<'a> {
    bed: &'a Bed,
    pieces: &'a [u64],
    next_piece: usize,
    seed: u64,
}

impl Reads<'_> {
    /// One reader that goes on where it stopped; bytes a second.
    fn in_order(
        &mut self,
        read: &mut dyn FnMut(u64) -> Result<(), Box<dyn Error>>,
    ) -> Result<f64, Box<dyn Error>> {
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < self.bed.seconds {
            read(self.pieces[self.next_piece % self.pieces.len()] * PIECE_BYTES)?;
            self.next_piece += 1;
            count += 1;
        }
        Ok((count * PIECE_BYTES) as f64 / start.elapsed().as_secs_f64())
    }

    /// So many requests at a time in order; bytes a second.
    fn device_in_order(&self) -> Result<f64, DeviceError> {
        let raw = &self.bed.raw;
        let start = Instant::now();
        let end = start + self.bed.seconds / 2;
        let counts = drive::run(1, READ_AT_ONCE, |lane| async move {
            let mut buffer = AlignedBuffer::zeroed(PIECE_BYTES as usize);
            let mut count = 0;
            while Instant::now() < end {
                let piece = (count * READ_AT_ONCE + lane) as u64 % (RAW_BYTES / PIECE_BYTES);
                buffer = request::read(&**raw, ByteOffset(piece * PIECE_BYTES), buffer).await?;
                count += 1;
            }
            Ok::<_, DeviceError>(count as u64)
        })?;
        let bytes = counts.iter().sum::<u64>() * PIECE_BYTES;
        Ok(bytes as f64 / start.elapsed().as_secs_f64())
    }

    /// Blocks a second, at random places of the pieces.
    fn at_random<F: Future<Output = Result<(), EngineError>>>(
        &mut self,
        read: impl Fn(u64) -> F + Sync,
    ) -> Result<f64, EngineError> {
        self.seed += 1;
        let (seed, pieces, read) = (self.seed, self.pieces, &read);
        let start = Instant::now();
        let end = start + self.bed.seconds;
        let counts = drive::run(cores(), DEPTH, |lane| async move {
            let mut random = SeededRandom::new(seed * DEPTH as u64 + lane as u64);
            let mut count = 0_u64;
            while Instant::now() < end {
                let piece = pieces[random.below(pieces.len() as u64) as usize];
                read(piece * PIECE_BYTES + random.below(PIECE_BYTES / 4096) * 4096).await?;
                count += 1;
            }
            Ok::<_, EngineError>(count)
        })?;
        Ok(counts.iter().sum::<u64>() as f64 / start.elapsed().as_secs_f64())
    }

    /// The same of the device.
    fn device_at_random(&self) -> Result<f64, DeviceError> {
        let raw = &self.bed.raw;
        let start = Instant::now();
        let end = start + self.bed.seconds / 2;
        let counts = drive::run(cores(), DEPTH, |lane| async move {
            let mut random = SeededRandom::new(lane as u64);
            let mut buffer = AlignedBuffer::zeroed(4096);
            let mut count = 0_u64;
            while Instant::now() < end {
                let offset = ByteOffset(random.below(RAW_BYTES / 4096) * 4096);
                buffer = request::read(&**raw, offset, buffer).await?;
                count += 1;
            }
            Ok::<_, DeviceError>(count)
        })?;
        Ok(counts.iter().sum::<u64>() as f64 / start.elapsed().as_secs_f64())
    }
}

/// Of this process.
fn cpu_seconds() -> f64 {
    siltstone_device::runtime::processor_ns() as f64 / 1e9
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
