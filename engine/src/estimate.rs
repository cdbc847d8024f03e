//! What a pool would make of data that is elsewhere, without a pool: read once, and nothing written.
//!
//! The data is cut into batches as an import cuts it (`source`), every batch is fingerprinted, and
//! the fingerprints are entered in order into a `table` that says which blocks have been seen. From
//! there on a batch is treated as the write path treats it (`tally`): runs, threshold, frames,
//! compression of some of them, and what headers and summaries add.
//!
//! # When fingerprints do not all fit
//! The table keeps a consistent sample, as the pool's index does: each block it keeps stands for
//! 2^n. That gives the number of distinct blocks, but tells no longer of every block whether it was
//! seen before, which runs and frames need. So, if the data could be too much for the table, some
//! batches at random, the *windows*, are read beforehand, and the table's smaller sister
//! (`windows`) notes where each of their blocks is first seen. At the end they are read again, and
//! runs and frames are those of the windows.
//!
//! # Memory
//! [`EstimateOptions::memory_bytes`] for the two tables. Beside it, for each thread, a batch and a
//! compressor, about 3 MiB; and some dozens of bytes for each file.
//!
//! Thread safety: workers read, fingerprint and compress batches in parallel. What depends on order
//! is done in the order of batches (`ordered`), so the outcome does not depend on timing.

mod ordered;
mod report;
mod source;
mod table;
mod tally;
mod windows;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use siltstone_device::size::exact;

use crate::{
    config::{CreateOptions, MAX_THRESHOLD},
    estimate::{ordered::Ordered, source::Sources, table::Table, tally::Tally, windows::Windows},
};

pub use report::{
    EstimateErrors, EstimateReport, FileEstimate, RunLengths, SampleEstimate, ThresholdEstimate,
};

/// Least memory for fingerprints.
pub const MIN_MEMORY_BYTES: usize = 256 << 10;
/// Memory for windows, if there is twice as much: 64 of them.
const MIN_WINDOWS_BYTES: usize = 512 << 10;
/// Data of up to this much is compressed whole: a sample of it would say little.
const SMALL_BYTES: u64 = 64 << 20;

/// How to estimate.
#[derive(Clone, Debug)]
pub struct EstimateOptions {
    /// Memory for fingerprints.
    pub memory_bytes: usize,
    /// The pool's threshold: the shortest run of duplicates that is stored as a link.
    pub threshold: u32,
    /// zstd level of the frames, -7..=19.
    pub level: i8,
    /// Of so many frames one is compressed; 1 = all.
    pub compress_one_in: u32,
    /// Threads; 0 = two for each core, as half of them wait for the device.
    pub threads: usize,
}

impl Default for EstimateOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            threshold: CreateOptions::default().threshold,
            level: 1,
            compress_one_in: 16,
            threads: 0,
        }
    }
}

/// How far an estimate is, in bytes of the files, holes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EstimateProgress {
    /// Done.
    pub bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
}

/// Why there is no estimate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EstimateError {
    /// A file could not be opened or read.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Neither a file nor a block device.
    #[error("{} is neither a file nor a block device; name raw images, other files or devices", path.display())]
    NotData {
        /// What was named.
        path: PathBuf,
    },
    /// The memory is too small or cannot be had.
    #[error(
        "{} of memory for fingerprints is too little, or more than the system gives; at least {} is \
         needed",
        exact(*.memory_bytes as u64), exact(MIN_MEMORY_BYTES as u64)
    )]
    Memory {
        /// What was asked for.
        memory_bytes: usize,
    },
    /// An option is out of range.
    #[error("{option} is {given}; it must be from {least} to {most}")]
    Option {
        /// Which.
        option: &'static str,
        /// What was given.
        given: i64,
        /// The least.
        least: i64,
        /// The most.
        most: i64,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {source}")]
    Thread {
        /// Why.
        source: Arc<io::Error>,
    },
}

impl EstimateError {
    fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

/// Reads files and block devices and says what a pool would make of them, in the order given: a
/// block that was in an earlier one is a duplicate. One that is named twice is counted twice.
///
/// `progress` is called now and then, by any thread.
///
/// # Errors
/// If something cannot be read, or an option makes no sense.
pub fn estimate(
    paths: &[PathBuf],
    options: &EstimateOptions,
    progress: &(dyn Fn(EstimateProgress) + Sync),
) -> Result<EstimateReport, EstimateError> {
    let started = Instant::now();
    validate(options)?;
    let sources = Sources::open(paths)?;
    let extent = sources.measure()?;
    let threads = match options.threads {
        0 => 2 * std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };

    let out_of_memory = || EstimateError::Memory { memory_bytes: options.memory_bytes };
    let needs_windows = extent.data_blocks > Table::capacity(options.memory_bytes);
    // An eighth, but of little memory half: a few windows say nothing.
    let windows_bytes = match needs_windows {
        true => (options.memory_bytes / 8).max(MIN_WINDOWS_BYTES.min(options.memory_bytes / 2)),
        false => 0,
    };
    let windows = match needs_windows {
        true => Some(Windows::choose(windows_bytes, extent.batches).ok_or_else(out_of_memory)?),
        false => None,
    };
    let table_bytes = options.memory_bytes - windows_bytes;
    let table = Table::new(table_bytes, paths.len()).ok_or_else(out_of_memory)?;

    // Only the pass over everything is progress that is worth showing.
    let done = AtomicU64::new(0);
    let windows = match windows {
        Some(windows) => {
            let chosen = windows.chosen().to_vec();
            let filling = Mutex::new(windows);
            sources.each_batch(threads, Some(&chosen), &|worker, batch| {
                worker.read(batch)?;
                filling.lock().watch(worker.shorts());
                Ok(())
            })?;
            Some(filling.into_inner())
        }
        None => None,
    };

    let one_in = match extent.data_blocks * source::BLOCK <= SMALL_BYTES {
        true => 1,
        false => options.compress_one_in,
    };
    let inline = Mutex::new(Tally::new(paths.len()));
    let ordered = Ordered::new((table, windows));
    sources.each_batch(threads, None, &|worker, batch| {
        worker.read(batch).inspect_err(|_| ordered.stop())?;
        let mut duplicates = Vec::with_capacity(worker.shorts().len());
        let entered = ordered.in_turn(batch.number, |(table, windows)| {
            table.enter(batch.file, worker.zero_blocks(), worker.shorts(), &mut duplicates);
            if let Some(windows) = windows {
                windows.enter(worker.positions(), worker.shorts());
            }
            table.is_exact()
        });
        // Otherwise another worker has failed, or the windows have taken over.
        if entered == Some(true) {
            let outcome = worker.reduce(batch, &duplicates, options, one_in);
            inline.lock().add(batch.file, &outcome);
        }
        let bytes = done.fetch_add(batch.progress_bytes, Ordering::Relaxed) + batch.progress_bytes;
        progress(EstimateProgress { bytes, total_bytes: extent.total_bytes });
        Ok(())
    })?;

    let (table, windows) = ordered.into_inner();
    let tally = match &windows {
        Some(windows) if !table.is_exact() => {
            let tally = Mutex::new(Tally::new(paths.len()));
            sources.each_batch(threads, Some(windows.chosen()), &|worker, batch| {
                worker.read(batch)?;
                let duplicates = windows.duplicates(worker.positions(), worker.shorts());
                let outcome = worker.reduce(batch, &duplicates, options, 1);
                tally.lock().add(batch.file, &outcome);
                Ok(())
            })?;
            tally.into_inner()
        }
        _ => inline.into_inner(),
    };
    let mut report = report::report(&sources, &table, windows.as_ref(), &tally, options);
    report.elapsed_ms = started.elapsed().as_millis() as u64;
    Ok(report)
}

fn validate(options: &EstimateOptions) -> Result<(), EstimateError> {
    if options.memory_bytes < MIN_MEMORY_BYTES {
        return Err(EstimateError::Memory { memory_bytes: options.memory_bytes });
    }
    let check = |option, given: i64, least: i64, most: i64| match (least..=most).contains(&given) {
        true => Ok(()),
        false => Err(EstimateError::Option { option, given, least, most }),
    };
    check("the threshold", options.threshold.into(), 1, MAX_THRESHOLD.into())?;
    check("the compression level", options.level.into(), -7, 19)?;
    check("the share of frames to compress", options.compress_one_in.into(), 1, u32::MAX.into())?;
    // A sanity limit: threads beyond it only cost memory.
    check("the number of threads", options.threads as i64, 0, 1024)
}
