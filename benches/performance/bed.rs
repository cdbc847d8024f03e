//! What all measurements stand on: the data in RAM, and two files of the same kind on the device
//! to be measured, one for pools and one to use raw. Both are written in full first, so that
//! neither pays for allocating blocks of the filesystem. Neither has a name any more by then, so that
//! nothing is left of them however this ends.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pollster::block_on;
use siltstone_device::{
    AlignedBuffer, ByteOffset, Device, Durability,
    file::{self, Access, FileDevice, FileOptions},
    request,
};
use siltstone_engine::{Compression, CreateOptions, OpenOptions, Pool, Tuning, VolumeOptions};

use super::{
    Outcome, child, ingest,
    options::{Caller, Options},
};
use crate::{
    cpu_time,
    data::{self, BLOCK_BYTES, Distinct, IMAGE_BYTES},
    error::BenchError,
    raw::{self, Amount, Load},
};

/// The pool's size in sizes of the data: overwrites take space anew.
const POOL_TIMES: u64 = 6;
/// All files' sizes in sizes of the data: the pool, the raw file, an image that was built, and the pools of
/// other processes.
const ALL_FILES_TIMES: u64 = 10;
/// The data is in memory, its distinct blocks once more, and what they compress to.
const MEMORY_TIMES: u64 = 4;
/// With less, nothing is measured but the beginning.
const MIN_DISTINCT_BYTES: u64 = 64 << 20;
/// Sizes that are chosen here are multiples of it.
const SIZE_STEP_BYTES: u64 = 64 << 20;
/// Where the superblocks are: nothing before this is left of an older pool.
const SUPERBLOCKS_BYTES: usize = 1 << 20;
/// The volume that [`Bed::load_pool`] makes.
pub(crate) const LOADED: &str = "loaded";

pub(crate) struct Bed {
    /// The data as it is.
    pub(crate) image: Vec<u8>,
    /// Its distinct blocks.
    pub(crate) distinct: Distinct,
    pub(crate) raw: Arc<dyn Device>,
    /// Of the raw file.
    pub(crate) raw_bytes: u64,
    pool: Arc<dyn Device>,
    is_direct: bool,
    pub(crate) directory: PathBuf,
    /// What a child of this program is given first.
    pub(crate) child_arguments: &'static [&'static str],
    pub(crate) cores: usize,
    /// What the rest of the machine did before this began.
    pub(crate) load: f64,
    pub(crate) seconds: Duration,
    pub(crate) rounds: u32,
    /// How long steady writes are watched.
    pub(crate) steady: Duration,
}

impl Bed {
    pub(crate) fn new(options: &Options, caller: &Caller) -> Result<Self, BenchError> {
        let load = cpu_time::load_average();
        if let Some(distinct_bytes) = options.size.filter(|size| *size < MIN_DISTINCT_BYTES) {
            let needed_bytes = MIN_DISTINCT_BYTES;
            return Err(BenchError::TooLittleData { distinct_bytes, needed_bytes });
        }
        let directory = options.directory.as_ref().unwrap_or(&caller.directory);
        data::check_directory(directory)?;
        let free_bytes = free_bytes(directory)?;
        let size_bytes = options.size.unwrap_or_else(|| fitting_size(free_bytes, memory_bytes()));
        let needed_bytes = size_bytes.max(MIN_DISTINCT_BYTES).saturating_mul(ALL_FILES_TIMES);
        if free_bytes < needed_bytes {
            let directory = directory.clone();
            return Err(BenchError::TooLittleRoom { directory, free_bytes, needed_bytes });
        }
        let image = match &options.data {
            Some(path) => data::load(path, size_bytes)?,
            None => {
                let path = data::image(directory, size_bytes.min(IMAGE_BYTES))?;
                let image = data::load(&path, size_bytes)?;
                if !caller.keeps_image {
                    fs::remove_file(&path).map_err(BenchError::file(&path))?;
                }
                image
            }
        };
        let distinct = data::distinct(&image);
        let distinct_bytes = distinct.bytes.len() as u64;
        if distinct_bytes < MIN_DISTINCT_BYTES {
            let needed_bytes = MIN_DISTINCT_BYTES;
            return Err(BenchError::TooLittleData { distinct_bytes, needed_bytes });
        }
        let raw_bytes = (image.len() as u64).next_multiple_of(SIZE_STEP_BYTES);
        let pool_bytes = raw_bytes * POOL_TIMES;
        let pool = make_file(&directory.join("siltstone-bench-pool"), pool_bytes)?;
        let raw = make_file(&directory.join("siltstone-bench-raw"), raw_bytes)?;
        let cores = std::thread::available_parallelism()
            .map_err(|source| BenchError::System { what: "count the processors", source })?;
        Ok(Self {
            image,
            distinct,
            is_direct: raw.is_direct(),
            raw,
            raw_bytes,
            pool,
            directory: directory.clone(),
            child_arguments: caller.arguments,
            cores: cores.get(),
            load,
            seconds: Duration::from_secs_f64(options.seconds),
            rounds: options.rounds,
            steady: Duration::from_secs_f64(options.steady_seconds),
        })
    }

    /// An empty pool where the last one was.
    pub(crate) fn fresh_pool(&self) -> Result<Pool, BenchError> {
        self.fresh_pool_with(&CreateOptions::default(), Tuning::default())
    }

    /// The same, made and opened as these say.
    pub(crate) fn fresh_pool_with(
        &self,
        options: &CreateOptions,
        tuning: Tuning,
    ) -> Result<Pool, BenchError> {
        let zeros = AlignedBuffer::zeroed(SUPERBLOCKS_BYTES);
        let wiped = request::write(&*self.pool, ByteOffset(0), zeros, Durability::Flush);
        block_on(wiped)?;
        Pool::create_on(Arc::clone(&self.pool), None, options)?;
        self.open_pool(tuning)
    }

    /// A sparse file for a pool of other processes, removed at the end.
    pub(crate) fn child_pool(&self, size_bytes: u64) -> Result<ChildPool, BenchError> {
        let pool = ChildPool { path: self.directory.join(child::POOL) };
        // One that an interrupted run left behind.
        let _ = fs::remove_file(&pool.path);
        let access = Access::Create { size_bytes };
        file::open(&pool.path, &FileOptions { access, ..FileOptions::default() })?;
        Ok(pool)
    }

    /// The pool as the last measurement left it.
    pub(crate) fn open_pool(&self, tuning: Tuning) -> Result<Pool, BenchError> {
        let options = OpenOptions { tuning, ..OpenOptions::default() };
        Ok(Pool::open_on(Arc::clone(&self.pool), None, &options)?)
    }

    /// Makes a pool with the distinct data in the volume [`LOADED`], merged and closed.
    pub(crate) fn load_pool(&self) -> Result<(), BenchError> {
        self.load_pool_with(Compression::default(), Tuning::default())
    }

    /// The same with a volume compressed like this, by a pool opened like that.
    pub(crate) fn load_pool_with(&self, compression: Compression, tuning: Tuning) -> Outcome {
        let pool = self.fresh_pool_with(&CreateOptions::default(), tuning)?;
        let bytes = &self.distinct.bytes;
        let options = VolumeOptions::new(bytes.len() as u64).with_compression(compression);
        let volume = pool.create_volume(LOADED, &options)?;
        ingest::write(self, &pool, &volume, bytes)?;
        pool.close()?;
        Ok(())
    }
}

/// The file of a pool of other processes.
pub(crate) struct ChildPool {
    path: PathBuf,
}

impl ChildPool {
    /// It, until that is dropped.
    pub(crate) fn device(&self) -> Result<Arc<dyn Device>, BenchError> {
        Ok(file::open(&self.path, &FileOptions::default())?)
    }

    /// Makes a volume in it.
    pub(crate) fn create_volume(&self, name: &str, options: &VolumeOptions) -> Outcome {
        let tuning = Tuning { warm_index: false, ..Tuning::default() };
        let pool = Pool::open(&self.path, &OpenOptions { tuning, ..OpenOptions::default() })?;
        pool.create_volume(name, options)?;
        Ok(pool.close()?)
    }
}

impl Drop for ChildPool {
    fn drop(&mut self) {
        // Gone already, or there is nobody left to tell.
        let _ = fs::remove_file(&self.path);
    }
}

impl fmt::Display for Bed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |blocks: u64| (blocks * BLOCK_BYTES as u64) >> 20;
        write!(
            f,
            "data: {} MiB, of which {} MiB zero, {} MiB distinct, {} MiB duplicate; {} cores; \
             load {:.1}; {} in {}",
            self.image.len() >> 20,
            mib(self.distinct.zero_blocks),
            self.distinct.bytes.len() >> 20,
            mib(self.distinct.duplicate_blocks),
            self.cores,
            self.load,
            if self.is_direct { "direct I/O" } else { "I/O through the page cache" },
            self.directory.display(),
        )?;
        if self.load > self.cores as f64 / 4.0 {
            write!(
                f,
                "\nOther work keeps this machine busy. The engine has more threads than its limits \
                 have, so it gets more of the processors, and ratios of time flatter it, even \
                 beyond 100 %. The rows by processor time hold all the same."
            )?;
        }
        Ok(())
    }
}

/// What is free in a directory's file system.
fn free_bytes(directory: &Path) -> Result<u64, BenchError> {
    let stat = rustix::fs::statvfs(directory).map_err(std::io::Error::from);
    let stat = stat.map_err(BenchError::file(directory))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The memory that is available, or plenty if the system does not say.
fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib << 10)
}

/// How much data there may be: a gibibyte, or what leaves half of the free space and of the memory alone.
fn fitting_size(free_bytes: u64, memory_bytes: u64) -> u64 {
    let most = (free_bytes / 2 / ALL_FILES_TIMES).min(memory_bytes / 2 / MEMORY_TIMES);
    let fits = most.min(IMAGE_BYTES) / SIZE_STEP_BYTES * SIZE_STEP_BYTES;
    fits.max(2 * SIZE_STEP_BYTES)
}

/// A file of which every block has been written, and which has no name.
fn make_file(path: &Path, bytes: u64) -> Result<Arc<FileDevice>, BenchError> {
    let access = Access::Create { size_bytes: bytes };
    let device = file::open(path, &FileOptions { access, ..FileOptions::default() })?;
    fs::remove_file(path).map_err(BenchError::file(path))?;
    let handle: Arc<dyn Device> = Arc::clone(&device) as Arc<dyn Device>;
    raw::run(&handle, bytes, Load::SEQUENTIAL_WRITE, Amount::Bytes(bytes))?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_that_is_chosen_leaves_half_of_disk_and_memory_alone() {
        let gib = 1 << 30;
        assert_eq!(fitting_size(1000 * gib, 1000 * gib), gib);
        assert_eq!(fitting_size(10 * gib, 1000 * gib), gib / 2);
        assert_eq!(fitting_size(1000 * gib, 4 * gib), gib / 2);
        // What does not fit then is refused, and says how much is needed.
        assert_eq!(fitting_size(gib, gib), gib / 8);
    }
}
