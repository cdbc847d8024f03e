//! What all rows stand on: a pool and a raw file with the same data, on the same filesystem.

use std::{
    error::Error,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use siltstone_benches::data::{self, BLOCK_BYTES, IMAGE_BYTES};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Tuning, Volume, VolumeOptions};

/// The pool's size: room to write the data several times.
const POOL_BYTES: u64 = 5 << 30;
/// One large request, and what the data is cut into.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// The volume.
pub(crate) const VOLUME: &str = "disk";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) struct Bed {
    /// Distinct blocks of real data, in whole pieces.
    pub(crate) data: Vec<u8>,
    /// Siltstone's program.
    pub(crate) program: PathBuf,
    pub(crate) pool: PathBuf,
    pub(crate) raw: PathBuf,
    pub(crate) cores: usize,
    pub(crate) seconds: Duration,
    pub(crate) rounds: u32,
}

impl Bed {
    pub(crate) fn new(
        directory: &Path,
        image: Option<&Path>,
        program: PathBuf,
        seconds: Duration,
        rounds: u32,
    ) -> Result<Self> {
        data::check_directory(directory)?;
        let image = match image {
            Some(path) => data::load(path, IMAGE_BYTES)?,
            None => data::load(&data::image(directory, IMAGE_BYTES)?, IMAGE_BYTES)?,
        };
        let mut data = data::distinct(&image).bytes;
        data.truncate(data.len() / PIECE_BYTES * PIECE_BYTES);
        if data.len() < 128 << 20 {
            return Err("the data has less than 128 MiB of distinct blocks".into());
        }
        let bed = Self {
            data,
            program,
            pool: directory.join("siltstone-bench-nbd-pool"),
            raw: directory.join("siltstone-bench-nbd-raw"),
            cores: std::thread::available_parallelism()?.get(),
            seconds,
            rounds,
        };
        let mut raw = File::create(&bed.raw)?;
        raw.write_all(&bed.data)?;
        raw.sync_all()?;
        bed.load()?;
        Ok(bed)
    }

    /// A pool with an empty volume as long as the data, where the last pool was.
    pub(crate) fn make_pool(&self) -> Result<()> {
        // There is none at first.
        let _ = fs::remove_file(&self.pool);
        let options = CreateOptions { size_bytes: Some(POOL_BYTES), ..CreateOptions::default() };
        Pool::create(&self.pool, &options)?;
        let pool = self.open(Tuning::default())?;
        pool.create_volume(VOLUME, &VolumeOptions::new(self.data.len() as u64))?;
        Ok(pool.close()?)
    }

    pub(crate) fn open(&self, tuning: Tuning) -> Result<Pool> {
        Ok(Pool::open(&self.pool, &OpenOptions { tuning, ..OpenOptions::default() })?)
    }

    /// A pool with the data in its volume.
    pub(crate) fn load(&self) -> Result<()> {
        self.make_pool()?;
        let pool = self.open(Tuning::default())?;
        let volume: Volume = pool.volume(VOLUME)?;
        for (at, piece) in (0..).step_by(PIECE_BYTES).zip(self.data.chunks(PIECE_BYTES)) {
            volume.write_at(at, piece)?;
        }
        drop(volume);
        Ok(pool.close()?)
    }

    pub(crate) fn blocks(&self) -> u64 {
        (self.data.len() / BLOCK_BYTES) as u64
    }

    /// Nothing of the raw file is in the page cache.
    pub(crate) fn forget_raw(&self) -> Result<()> {
        let file = File::open(&self.raw)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for path in [&self.pool, &self.raw] {
            // Gone already, or there is nobody left to tell.
            let _ = fs::remove_file(path);
        }
    }
}
