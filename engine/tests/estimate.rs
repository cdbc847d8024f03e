//! An estimate says what a pool would make of the data: held against exact counts, and against real
//! pools that took the same data.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

use std::{
    collections::{HashMap, HashSet},
    fs,
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Mutex,
};

use proptest::prelude::*;
use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{
    CreateOptions, EstimateError, EstimateOptions, EstimateProgress, EstimateReport, OpenOptions,
    Pool, PoolStat, VolumeOptions, estimate,
};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

/// Block `n`'s contents: 0 is zero; others are noise in `n % 4` quarters of the block.
fn block(n: u64) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    if n > 0 {
        SeededRandom::new(n).fill(&mut out[..BLOCK / 4 * (1 + n as usize % 4)]);
    }
    out
}

/// Files in a folder that is removed at the end, and their paths.
struct Files {
    _folder: TempDir,
    paths: Vec<PathBuf>,
}

impl Files {
    fn new(contents: &[Vec<u8>]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |(number, contents): (usize, &Vec<u8>)| {
            let path = folder.path().join(format!("image-{number}"));
            fs::write(&path, contents).unwrap();
            path
        };
        let paths = contents.iter().enumerate().map(write).collect();
        Self { _folder: folder, paths }
    }

    fn of_blocks(files: &[Vec<u64>]) -> Self {
        let contents = |blocks: &Vec<u64>| blocks.iter().flat_map(|&n| block(n)).collect();
        Self::new(&files.iter().map(contents).collect::<Vec<_>>())
    }

    fn estimate(&self, options: &EstimateOptions) -> EstimateReport {
        estimate(&self.paths, options, &|_| ()).unwrap()
    }
}

/// A file like an image: runs of new blocks, of copies of earlier ones, and of zeros.
fn image_like(random: &mut SeededRandom, earlier: &[u64], next: &mut u64, len: usize) -> Vec<u64> {
    let mut out = Vec::new();
    while out.len() < len {
        let scale = random.below(8);
        let run = 1 + random.below(1 << scale);
        match random.below(8) {
            0 => out.extend(std::iter::repeat_n(0, run as usize)),
            1..=4 if !earlier.is_empty() => {
                let from = random.below(earlier.len() as u64) as usize;
                out.extend(earlier[from..].iter().take(run as usize));
            }
            _ => {
                out.extend(*next..*next + run);
                *next += run;
            }
        }
    }
    out.truncate(len);
    out
}

fn images(seed: u64, count: usize, len: usize) -> Vec<Vec<u64>> {
    let mut random = SeededRandom::new(seed);
    let mut next = 1;
    let mut files: Vec<Vec<u64>> = Vec::new();
    for _ in 0..count {
        let earlier: Vec<u64> = files.concat();
        files.push(image_like(&mut random, &earlier, &mut next, len));
    }
    files
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn with_enough_memory_every_count_is_exact(
        seed in any::<u64>(), count in 1..4_usize, len in 1..1500_usize, threads in 1..5_usize,
    ) {
        let files = images(seed, count, len);
        let report =
            Files::of_blocks(&files).estimate(&EstimateOptions { threads, ..Default::default() });
        let mut holders: HashMap<u64, HashSet<usize>> = HashMap::new();
        for (file, blocks) in files.iter().enumerate() {
            for &n in blocks.iter().filter(|&&n| n > 0) {
                holders.entry(n).or_default().insert(file);
            }
        }
        let bytes = |blocks: usize| (blocks * BLOCK) as u64;
        prop_assert_eq!(report.distinct_bytes, bytes(holders.len()));
        prop_assert_eq!(report.unique_bytes, bytes(holders.len()), "at threshold 1");
        prop_assert_eq!(report.sample.fingerprints_one_in, 1);
        prop_assert_eq!(report.errors.total, 0.0, "so little is compressed whole");
        for (file, (found, blocks)) in report.files.iter().zip(&files).enumerate() {
            let of = |alone: bool| holders.values().filter(|held_by| {
                held_by.contains(&file) && (held_by.len() == 1) == alone
            }).count();
            let zeros = blocks.iter().filter(|&&n| n == 0).count();
            prop_assert_eq!(found.logical_bytes, bytes(len));
            prop_assert_eq!(found.zero_bytes, bytes(zeros));
            prop_assert_eq!(found.unique_bytes, bytes(of(true)));
            prop_assert_eq!(found.shared_bytes, bytes(of(false)));
            let parts = found.unique_bytes + found.shared_bytes + found.repeated_bytes;
            prop_assert_eq!(parts, found.data_bytes);
        }
        let duplicates = report.data_bytes - report.distinct_bytes;
        prop_assert_eq!(report.runs.iter().map(|class| class.bytes).sum::<u64>(), duplicates);
    }
}

/// Imports files into volumes of a new pool, one after the other.
fn import(files: &[Vec<u64>], threshold: u32) -> PoolStat {
    let device = SimDevice::new(512 * MIB);
    // In smaller segments batches would be smaller than those of larger pools.
    let segment_bytes = Some(8 * MIB);
    let options = CreateOptions { threshold, segment_bytes, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let pool = Pool::open_on(device, None, &OpenOptions::default()).unwrap();
    for (number, blocks) in files.iter().enumerate() {
        let bytes = (blocks.len() * BLOCK) as u64;
        let volume = pool.create_volume(&number.to_string(), &VolumeOptions::new(bytes)).unwrap();
        for (at, piece) in (0..).zip(blocks.chunks(256)) {
            let data: Vec<u8> = piece.iter().flat_map(|&n| block(n)).collect();
            volume.write_at(at * MIB, &data).unwrap();
        }
    }
    pool.checkpoint().unwrap();
    pool.stat()
}

#[track_caller]
fn assert_near(what: &str, found: f64, expected: f64, percent: f64) {
    let difference = (found / expected - 1.0).abs() * 100.0;
    assert!(difference <= percent, "{what}: {found}, the pool has {expected}");
}

#[test]
fn an_estimate_is_what_a_pool_makes_of_the_data() {
    for (seed, threshold) in [(1, 1), (2, 4)] {
        let images = images(seed, 3, 16_000);
        let options = EstimateOptions { threshold, ..EstimateOptions::default() };
        let report = Files::of_blocks(&images).estimate(&options);
        let stat = import(&images, threshold);
        let content = stat.content.unwrap();
        assert_near("data", report.data_bytes as f64, content.logical_bytes as f64, 0.0);
        assert_near("unique", report.unique_bytes as f64, content.unique_bytes as f64, 2.0);
        assert_near("stored", report.stored_bytes as f64, stat.space.stored_bytes as f64, 2.0);
        assert_near("dedup ratio", report.dedup_ratio, content.dedup_ratio, 2.0);
        assert_near("compression ratio", report.compression_ratio, content.compression_ratio, 2.0);
        // And nearly so if not all fingerprints fit.
        let sampled = EstimateOptions { memory_bytes: 512 << 10, ..options };
        let sampled = Files::of_blocks(&images).estimate(&sampled);
        assert_near("sampled", sampled.stored_bytes as f64, stat.space.stored_bytes as f64, 5.0);
        assert_near("sampled ratio", sampled.dedup_ratio, content.dedup_ratio, 5.0);
    }
}

#[test]
fn with_too_little_memory_the_estimate_is_near_and_says_how_near() {
    for (seed, threshold) in [(3, 1), (4, 4)] {
        let images = images(seed, 4, 16_000);
        let files = Files::of_blocks(&images);
        let options = EstimateOptions { threshold, ..EstimateOptions::default() };
        let exact = files.estimate(&options);
        let memory_bytes = 512 << 10;
        let report = files.estimate(&EstimateOptions { memory_bytes, ..options });
        assert!(report.sample.memory_bytes <= memory_bytes as u64, "{:?}", report.sample);
        assert!(report.sample.fingerprints_one_in > 1 && report.sample.windows > 0);
        assert_eq!(report.data_bytes, exact.data_bytes);
        for (what, found, expected, error) in [
            ("dedup", report.dedup_ratio, exact.dedup_ratio, report.errors.dedup),
            (
                "compression",
                report.compression_ratio,
                exact.compression_ratio,
                report.errors.compression,
            ),
            ("total", report.total_ratio, exact.total_ratio, report.errors.total),
        ] {
            assert_near(what, found, expected, 5.0);
            // One in a thousand would be further off than 1.7 times that; these seeds are not.
            assert!((found / expected - 1.0).abs() <= 1.7 * error, "{what}: {error}, {report:?}");
            assert!(error < 0.1, "{what} is a guess: {error}");
        }
        for (found, expected) in report.thresholds.iter().zip(&exact.thresholds) {
            assert!((found.kept_share - expected.kept_share).abs() < 0.05);
        }
    }
}

#[test]
fn the_outcome_does_not_depend_on_threads() {
    let files = Files::of_blocks(&images(5, 3, 9000));
    let report = |threads, memory_bytes| {
        let options = EstimateOptions { threads, memory_bytes, ..EstimateOptions::default() };
        let mut report = files.estimate(&options);
        report.elapsed_ms = 0;
        report
    };
    for memory_bytes in [64 << 20, 256 << 10] {
        let (one, many) = (report(1, memory_bytes), report(8, memory_bytes));
        assert_eq!(one.files.len(), many.files.len());
        for (one, many) in one.files.iter().zip(&many.files) {
            assert_eq!(
                (one.unique_bytes, one.shared_bytes),
                (many.unique_bytes, many.shared_bytes)
            );
        }
        assert_eq!(one.unique_bytes, many.unique_bytes);
        // Sums of floating point numbers may differ in their last bits.
        assert_near("stored", one.stored_bytes as f64, many.stored_bytes as f64, 1e-6);
    }
}

#[test]
fn a_file_named_twice_is_counted_twice() {
    let files = Files::of_blocks(&images(6, 1, 3000));
    let once = files.estimate(&EstimateOptions::default());
    let paths = [files.paths[0].clone(), files.paths[0].clone()];
    let twice = estimate(&paths, &EstimateOptions::default(), &|_| ()).unwrap();
    assert_eq!(twice.logical_bytes, 2 * once.logical_bytes);
    assert_eq!(twice.distinct_bytes, once.distinct_bytes);
    for file in &twice.files {
        assert_eq!(file.unique_bytes, 0);
        assert_eq!(file.shared_bytes, once.distinct_bytes);
    }
}

#[test]
fn holes_are_zero_and_a_file_may_end_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse");
    let file = fs::File::create(&path).unwrap();
    file.write_all_at(&block(1), 40 * MIB).unwrap();
    file.write_all_at(&[7; 100], 50 * MIB).unwrap();
    let report = estimate(&[path], &EstimateOptions::default(), &|_| ()).unwrap();
    assert_eq!(report.logical_bytes, 50 * MIB + 100);
    assert_eq!(report.distinct_bytes, 2 * BLOCK as u64);
    assert_eq!(report.zero_bytes, 50 * MIB + 100 - 2 * BLOCK as u64);
    // Nothing at all is no reason to divide by zero.
    let empty = folder.path().join("empty");
    fs::write(&empty, []).unwrap();
    let report = estimate(&[empty], &EstimateOptions::default(), &|_| ()).unwrap();
    assert_eq!((report.stored_bytes, report.total_ratio), (0, 1.0));
}

#[test]
fn what_cannot_be_read_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let paths = |path: &PathBuf| [path.clone()];
    let options = EstimateOptions::default();
    let failed = estimate(&paths(&missing), &options, &|_| ()).unwrap_err();
    assert!(
        matches!(&failed, EstimateError::File { action: "open", path, .. } if *path == missing)
    );
    assert!(failed.to_string().contains("missing"));
    let directory = folder.path().to_owned();
    let failed = estimate(&paths(&directory), &options, &|_| ()).unwrap_err();
    assert!(matches!(&failed, EstimateError::NotData { path } if *path == directory));
    for wrong in [
        EstimateOptions { threshold: 0, ..options.clone() },
        EstimateOptions { level: 20, ..options.clone() },
        EstimateOptions { compress_one_in: 0, ..options.clone() },
    ] {
        let failed = estimate(&paths(&missing), &wrong, &|_| ()).unwrap_err();
        assert!(matches!(failed, EstimateError::Option { .. }), "{failed}");
    }
    let little = EstimateOptions { memory_bytes: 1000, ..options };
    let failed = estimate(&paths(&missing), &little, &|_| ()).unwrap_err();
    assert!(matches!(failed, EstimateError::Memory { memory_bytes: 1000 }));
}

#[test]
fn progress_ends_at_the_end_of_the_data() {
    let files = Files::of_blocks(&images(7, 2, 3000));
    let all: Mutex<Vec<EstimateProgress>> = Mutex::default();
    let push = |progress| all.lock().unwrap().push(progress);
    let report = estimate(&files.paths, &EstimateOptions::default(), &push).unwrap();
    let all = all.into_inner().unwrap();
    let range: Range<u64> = 0..report.logical_bytes + 1;
    assert!(all.iter().all(|progress| range.contains(&progress.bytes)));
    assert!(all.iter().all(|progress| progress.total_bytes == report.logical_bytes));
    assert_eq!(all.iter().map(|progress| progress.bytes).max(), Some(report.logical_bytes));
}
