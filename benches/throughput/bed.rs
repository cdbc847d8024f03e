//! What all measurements stand on: the data in RAM, and two files of the same kind on the device
//! to be measured, one for pools and one to use raw. Both are written in full first, so that
//! neither pays for allocating blocks of the filesystem.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pollster::block_on;
use siltstone_benches::data::{self, BLOCK_BYTES, Distinct};
use siltstone_device::{
    AlignedBuffer, ByteOffset, Device, Durability,
    file::{self, Access, FileDevice, FileOptions},
    request,
};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Tuning, VolumeOptions};

use crate::{
    ingest,
    raw::{self, Amount, Load},
};

/// The pool's size: several times the data, because overwrites take space anew.
const POOL_BYTES: u64 = 6 << 30;
/// The raw file's size.
pub(crate) const RAW_BYTES: u64 = 1 << 30;
/// Where the superblocks are: nothing before this is left of an older pool.
const SUPERBLOCKS_BYTES: usize = 1 << 20;
/// The volume that [`Bed::loaded_pool`] makes.
pub(crate) const LOADED: &str = "loaded";

pub(crate) struct Bed {
    /// The data as it is.
    pub(crate) image: Vec<u8>,
    /// Its distinct blocks.
    pub(crate) distinct: Distinct,
    pub(crate) raw: Arc<dyn Device>,
    pool: Arc<dyn Device>,
    is_direct: bool,
    pub(crate) cores: usize,
    /// What the rest of the machine did before this began.
    pub(crate) load: f64,
    pub(crate) seconds: Duration,
    pub(crate) rounds: u32,
    /// Last: they are removed when everything else is gone.
    _files: Files,
}

/// Files that are removed at the end.
struct Files(Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            // Gone already, or there is nobody left to tell.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Bed {
    pub(crate) fn new(
        directory: &Path,
        data: Option<&Path>,
        seconds: Duration,
        rounds: u32,
    ) -> Result<Self, Box<dyn Error>> {
        let load = load_average();
        data::check_directory(directory)?;
        let image = match data {
            Some(path) => data::load(path)?,
            None => data::load(&data::image(directory)?)?,
        };
        let distinct = data::distinct(&image);
        if distinct.bytes.len() < 64 << 20 {
            return Err("the data has less than 64 MiB of distinct blocks".into());
        }
        let paths =
            ["siltstone-bench-pool", "siltstone-bench-raw"].map(|name| directory.join(name));
        let files = Files(paths.to_vec());
        let pool = make_file(&paths[0], POOL_BYTES)?;
        let raw = make_file(&paths[1], RAW_BYTES)?;
        Ok(Self {
            image,
            distinct,
            is_direct: raw.is_direct(),
            raw,
            pool,
            cores: std::thread::available_parallelism()?.get(),
            load,
            seconds,
            rounds,
            _files: files,
        })
    }

    /// An empty pool where the last one was.
    pub(crate) fn fresh_pool(&self) -> Result<Pool, Box<dyn Error>> {
        let zeros = AlignedBuffer::zeroed(SUPERBLOCKS_BYTES);
        let wiped = request::write(&*self.pool, ByteOffset(0), zeros, Durability::Flush);
        block_on(wiped)?;
        Pool::create_on(Arc::clone(&self.pool), None, &CreateOptions::default())?;
        self.open_pool(Tuning::default())
    }

    /// The pool as the last measurement left it.
    pub(crate) fn open_pool(&self, tuning: Tuning) -> Result<Pool, Box<dyn Error>> {
        let options = OpenOptions { tuning, ..OpenOptions::default() };
        Ok(Pool::open_on(Arc::clone(&self.pool), None, &options)?)
    }

    /// Makes a pool with the distinct data in the volume [`LOADED`], merged and closed.
    pub(crate) fn load_pool(&self) -> Result<(), Box<dyn Error>> {
        let pool = self.fresh_pool()?;
        let bytes = &self.distinct.bytes;
        let volume = pool.create_volume(LOADED, &VolumeOptions::new(bytes.len() as u64))?;
        ingest::write(self, &pool, &volume, bytes)?;
        pool.close()?;
        Ok(())
    }
}

impl fmt::Display for Bed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |blocks: u64| (blocks * BLOCK_BYTES as u64) >> 20;
        write!(
            f,
            "data: {} MiB, of which {} MiB zero, {} MiB distinct, {} MiB duplicate; {} cores; \
             load {:.1}; {}",
            self.image.len() >> 20,
            mib(self.distinct.zero_blocks),
            self.distinct.bytes.len() >> 20,
            mib(self.distinct.duplicate_blocks),
            self.cores,
            self.load,
            if self.is_direct { "direct I/O" } else { "I/O through the page cache" },
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

/// How many threads wanted to run in the last minute.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// A file of which every block has been written.
fn make_file(path: &Path, bytes: u64) -> Result<Arc<FileDevice>, Box<dyn Error>> {
    // One that an interrupted run left behind.
    let _ = std::fs::remove_file(path);
    let access = Access::Create { size_bytes: bytes };
    let device = file::open(path, &FileOptions { access, ..FileOptions::default() })?;
    let handle: Arc<dyn Device> = Arc::clone(&device) as Arc<dyn Device>;
    raw::run(&handle, bytes, Load::SEQUENTIAL_WRITE, Amount::Bytes(bytes))?;
    Ok(device)
}
