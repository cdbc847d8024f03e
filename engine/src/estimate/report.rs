//! What an estimate says.

use std::path::PathBuf;

use serde::Serialize;

use crate::estimate::{
    EstimateOptions,
    source::{BLOCK, Sources},
    table::Table,
    tally::{RatioSample, THRESHOLDS, Tally},
    windows::Windows,
};

/// Fewer frames say nothing of a file: it is taken for one like the others.
const FRAMES_OF_A_RATIO: u64 = 64;

/// What a pool would make of some data.
///
/// Bytes: `logical = zero + data`; of the data `distinct` would remain if every duplicate became a
/// link, and `unique` does with the pool's threshold; that takes `stored`.
#[derive(Clone, Debug, Serialize)]
pub struct EstimateReport {
    /// By file, in the order given.
    pub files: Vec<FileEstimate>,
    /// Size of all files.
    pub logical_bytes: u64,
    /// Holes, and blocks full of zeros.
    pub zero_bytes: u64,
    /// All other blocks.
    pub data_bytes: u64,
    /// Different blocks.
    pub distinct_bytes: u64,
    /// Blocks that would be stored: distinct ones, and those in runs below the threshold.
    pub unique_bytes: u64,
    /// What these would take: frames, summaries and padding.
    pub stored_bytes: u64,
    /// logical / data.
    pub thin_ratio: f64,
    /// data / unique.
    pub dedup_ratio: f64,
    /// unique / stored.
    pub compression_ratio: f64,
    /// Both together, data / stored: what deduplication and compression save.
    pub reduction_ratio: f64,
    /// logical / stored: thin x dedup x compression. Of files with many holes it says little else.
    pub total_ratio: f64,
    /// How far the true ratios may be from these.
    pub errors: EstimateErrors,
    /// The threshold that was assumed.
    pub threshold: u32,
    /// The compression level that was assumed.
    pub level: i8,
    /// Lengths of runs of duplicates, as a write of 1 MiB shows them to a pool.
    pub runs: Vec<RunLengths>,
    /// What each threshold would keep.
    pub thresholds: Vec<ThresholdEstimate>,
    /// What the figures rest on.
    pub sample: SampleEstimate,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// A file's part. `logical = zero + data`, and `data = unique + shared + repeated`.
#[derive(Clone, Debug, Serialize)]
pub struct FileEstimate {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub logical_bytes: u64,
    /// Its holes, and its blocks full of zeros.
    pub zero_bytes: u64,
    /// All other blocks.
    pub data_bytes: u64,
    /// Different blocks of it that no other file has.
    pub unique_bytes: u64,
    /// Different blocks of it that other files have too.
    pub shared_bytes: u64,
    /// Blocks that it has more than once, without the first of each.
    pub repeated_bytes: u64,
    /// What its unique blocks would take.
    pub unique_stored_bytes: u64,
}

/// Halves of 95 % confidence intervals, as shares of the figures: 0.01 is 1 %. 0 is exact.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EstimateErrors {
    /// Of the dedup ratio.
    pub dedup: f64,
    /// Of the compression ratio.
    pub compression: f64,
    /// Of the reduction ratio, and of the total one: what is thin is counted exactly.
    pub total: f64,
}

/// Runs of duplicates of similar length.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RunLengths {
    /// Their least length in blocks; the most is below twice that.
    pub min_blocks: u64,
    /// Share of all duplicate blocks that is in them.
    pub share: f64,
    /// Bytes in them.
    pub bytes: u64,
    /// Their number.
    pub runs: u64,
}

/// What a threshold would keep.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ThresholdEstimate {
    /// The shortest run of duplicates that becomes a link.
    pub threshold: u32,
    /// Share of all duplicate blocks that become links.
    pub kept_share: f64,
    /// data / unique with this threshold.
    pub dedup_ratio: f64,
}

/// What the figures rest on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SampleEstimate {
    /// Of so many fingerprints one was kept; 1 = all.
    pub fingerprints_one_in: u64,
    /// Fingerprints kept at the end.
    pub fingerprints: u64,
    /// Windows of 1 MiB that runs and frames were found in; 0 = all data.
    pub windows: u64,
    /// Plain bytes that were compressed.
    pub compressed_bytes: u64,
    /// Memory of fingerprints.
    pub memory_bytes: u64,
}

pub(super) fn report(
    sources: &Sources,
    table: &Table,
    windows: Option<&Windows>,
    tally: &Tally,
    options: &EstimateOptions,
) -> EstimateReport {
    let compression = &tally.frames;
    let frame_ratio = compression.ratio().unwrap_or(1.0);
    let files: Vec<FileEstimate> = sources
        .paths()
        .zip(table.files().iter().zip(&tally.files))
        .map(|((path, logical_bytes), (counts, frames))| {
            let data = counts.data.min(logical_bytes.div_ceil(BLOCK));
            let unique = counts.unique.clamp(0, data as i64) as u64;
            let shared = counts.shared.clamp(0, (data - unique) as i64) as u64;
            let own_ratio = frames.ratio().filter(|_| frames.count() >= FRAMES_OF_A_RATIO);
            let stored_each = own_ratio.unwrap_or(frame_ratio);
            // A file's last block may be a part of one.
            let data_bytes = (data * BLOCK).min(logical_bytes);
            FileEstimate {
                path: path.to_owned(),
                logical_bytes,
                zero_bytes: logical_bytes - data_bytes,
                data_bytes,
                unique_bytes: unique * BLOCK,
                shared_bytes: shared * BLOCK,
                repeated_bytes: (data - unique - shared) * BLOCK,
                unique_stored_bytes: ((unique * BLOCK) as f64 * stored_each) as u64,
            }
        })
        .collect();

    let data = table.files().iter().map(|file| file.data).sum::<u64>();
    let distinct = table.distinct().min(data);
    let duplicates = (data - distinct) as f64;
    // Blocks stored if that share of the duplicates becomes links.
    let stored_blocks = |kept: f64| data as f64 - duplicates * kept;
    let is_exact = table.is_exact();
    let kept_of = |sample: &RatioSample| sample.ratio().unwrap_or(1.0);
    let kept = kept_of(&tally.linked);
    let unique = match is_exact {
        true => tally.stored as f64,
        false => stored_blocks(kept),
    };
    let overhead_each = tally.overhead_bytes as f64 / tally.blocks.max(1) as f64;
    let overhead_bytes = match is_exact {
        true => tally.overhead_bytes as f64,
        false => overhead_each * data as f64,
    };
    let unique_bytes = unique * BLOCK as f64;
    let stored_bytes = unique_bytes * frame_ratio + overhead_bytes;

    // The sample is binomial: each distinct block is in it with the same chance.
    let chance = 1.0 / table.one_in() as f64;
    let distinct_error =
        distinct as f64 * 1.96 * ((1.0 - chance) / table.used().max(1) as f64).sqrt();
    let kept_error = if is_exact { 0.0 } else { tally.linked.error() };
    let dedup = (kept * distinct_error).hypot(duplicates * kept_error) / unique.max(1.0);
    let all_compressed = compression.x() >= tally.stored as f64 * BLOCK as f64;
    let compression_error = match is_exact && all_compressed {
        true => 0.0,
        false => compression.error() * unique_bytes / stored_bytes.max(1.0),
    };
    let logical_bytes = files.iter().map(|file| file.logical_bytes).sum::<u64>();
    let data_bytes = files.iter().map(|file| file.data_bytes).sum::<u64>();

    let run_blocks = tally.duplicates.max(1) as f64;
    let scale = if is_exact { 1.0 } else { duplicates / run_blocks };
    let runs = (0..).zip(tally.runs).map(|(class, (runs, blocks))| RunLengths {
        min_blocks: 1 << class,
        share: blocks as f64 / run_blocks,
        bytes: (blocks as f64 * scale) as u64 * BLOCK,
        runs: (runs as f64 * scale) as u64,
    });
    let thresholds = THRESHOLDS.into_iter().zip(&tally.kept).map(|(threshold, sample)| {
        let kept_share = kept_of(sample);
        let dedup_ratio = ratio(data as f64, stored_blocks(kept_share));
        ThresholdEstimate { threshold, kept_share, dedup_ratio }
    });
    EstimateReport {
        logical_bytes,
        zero_bytes: logical_bytes - data_bytes,
        data_bytes,
        distinct_bytes: distinct * BLOCK,
        unique_bytes: unique_bytes as u64,
        stored_bytes: stored_bytes as u64,
        thin_ratio: ratio(logical_bytes as f64, data_bytes as f64),
        dedup_ratio: ratio(data as f64, unique),
        compression_ratio: ratio(unique_bytes, stored_bytes),
        reduction_ratio: ratio(data_bytes as f64, stored_bytes),
        total_ratio: ratio(logical_bytes as f64, stored_bytes),
        errors: EstimateErrors {
            dedup,
            compression: compression_error,
            total: dedup.hypot(compression_error),
        },
        threshold: options.threshold,
        level: options.level,
        runs: runs.collect(),
        thresholds: thresholds.collect(),
        sample: SampleEstimate {
            fingerprints_one_in: table.one_in(),
            fingerprints: table.used(),
            windows: windows.filter(|_| !is_exact).map_or(0, |all| all.chosen().len() as u64),
            compressed_bytes: compression.x() as u64,
            memory_bytes: (table.bytes() + windows.map_or(0, Windows::bytes)) as u64,
        },
        files,
        elapsed_ms: 0,
    }
}

/// `whole / part`; 1 where there is nothing.
fn ratio(whole: f64, part: f64) -> f64 {
    if part > 0.0 { whole / part } else { 1.0 }
}
