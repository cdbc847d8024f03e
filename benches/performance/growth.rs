//! Whether reads and writes become slower as the map grows: by ten times, and by ten times again.
//!
//! Maps of any size need little space: the same data is written again and again, as other blocks of the
//! volume, with the blocks of each mebibyte in another order, so that each has an entry of its own. The caches
//! are so small that already the second map does not fit.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Instant,
};

use siltstone_device::SeededRandom;
use siltstone_engine::{CreateOptions, EngineError, Result, Tuning, Volume, VolumeOptions};

use super::{
    Outcome,
    bed::Bed,
    limit::{self, PIECE_BYTES, Work},
    steady,
};
use crate::{
    data::BLOCK_BYTES,
    drive,
    error::BenchError,
    raw::{self, Amount, Load},
    report::{Report, Target, Turns, Unit},
    sample::{Sample, Stopwatch},
};

/// Sizes of the map.
const SCALES: [u64; 3] = [1, 10, 100];
/// Of the frame cache and of the page cache.
const CACHE_BYTES: usize = 1 << 20;
const DEPTH: usize = 32;
const VOLUME: &str = "grown";

/// What was found with one size of the map: figures and their limits, by round.
struct Found {
    entries: u64,
    reads: Vec<(Sample, Sample)>,
    writes: Vec<(Sample, Sample)>,
}

/// What counts of a sample.
type Figure = fn(&Sample) -> f64;

/// Random reads and writes of new data with each size, and the last against the one before.
pub(crate) fn rates(bed: &Bed, report: &mut Report) -> Outcome {
    let base = permuted(bed);
    let mut all = Vec::new();
    for scale in SCALES {
        let found = with_map(bed, &base, scale, report)?;
        let entries = found.entries;
        for (name, unit, figures) in [
            ("random read", Unit::OperationsPerSecond, &found.reads),
            ("new data", Unit::BytesPerSecond, &found.writes),
        ] {
            let name = format!("{name}, map of {entries} entries");
            let mut turns = Turns::new(&name, unit, Target::NONE);
            figures.iter().for_each(|(found, limit)| turns.add(found.rate(), limit.rate()));
            report.add(turns);
        }
        all.push(found);
    }
    let [_, middle, last] = &all[..] else { unreachable!("there are three scales") };
    let by_time: Figure = Sample::rate;
    for (name, figure, middle, last) in [
        ("random read, 100x of 10x", by_time, &middle.reads, &last.reads),
        ("new data, 100x of 10x", by_time, &middle.writes, &last.writes),
        ("the same by processor time", Sample::cpu_rate, &middle.writes, &last.writes),
    ] {
        // They were not measured in turns with each other: both count by their limits.
        let mut turns = Turns::new(name, Unit::Share, Target::ratio(0.8));
        let share = |(found, limit): &(Sample, Sample)| figure(found) / figure(limit);
        for (last, middle) in last.iter().zip(middle) {
            turns.add(share(last), share(middle));
        }
        report.add(turns);
    }
    Ok(())
}

/// A quarter of the data, with the blocks of each piece in random order.
fn permuted(bed: &Bed) -> Vec<u8> {
    let len = bed.distinct.bytes.len() / 4 / PIECE_BYTES * PIECE_BYTES;
    let mut base = bed.distinct.bytes[..len].to_vec();
    let mut random = SeededRandom::new(1);
    for piece in base.chunks_exact_mut(PIECE_BYTES) {
        let blocks = piece.as_chunks_mut::<BLOCK_BYTES>().0;
        for at in (1..blocks.len()).rev() {
            blocks.swap(at, random.below(at as u64 + 1) as usize);
        }
    }
    base
}

fn with_map(
    bed: &Bed,
    base: &[u8],
    scale: u64,
    report: &mut Report,
) -> std::result::Result<Found, BenchError> {
    let small = Tuning {
        frame_cache_bytes: CACHE_BYTES,
        page_cache_bytes: CACHE_BYTES,
        ..Tuning::default()
    };
    let pool = bed.fresh_pool_with(&CreateOptions::default(), small.clone())?;
    // In the order in which it is stored, so that each frame has neighbours, as it would elsewhere.
    let stored = &bed.distinct.bytes[..base.len()];
    let first = pool.create_volume("first", &VolumeOptions::new(base.len() as u64))?;
    super::ingest::write(bed, &pool, &first, stored)?;
    let size = VolumeOptions::new(scale * base.len() as u64);
    write_times(bed, &pool.create_volume(VOLUME, &size)?, base, scale)?;
    drop(first);
    pool.close()?;

    let pool = bed.open_pool(Tuning { warm_index: false, ..small.clone() })?;
    let volume = pool.volume(VOLUME)?;
    let entries = pool.quick_stat().map_entries;
    let mut reads = Vec::new();
    for round in 0..bed.rounds {
        let amount = Amount::Time(bed.seconds);
        let limit = raw::run(&bed.raw, bed.raw_bytes, Load::RANDOM_READ, amount)?;
        reads.push((read(bed, &volume, round.into())?, limit));
    }
    drop(volume);
    pool.close()?;

    let pool = bed.open_pool(small)?;
    let volume = pool.volume(VOLUME)?;
    let mut stream = steady::stream(bed);
    let mut writes = Vec::new();
    let before = pool.activity();
    for _ in 0..bed.rounds {
        let limit = limit::run(&stream, Work::Store, bed.cores);
        let sample = steady::write_for(bed, &volume, &mut stream, bed.seconds)?;
        writes.push((sample, limit));
    }
    report.explain(&format!("new data, map of {entries} entries"), &before, &pool.activity());
    drop(volume);
    pool.close()?;
    Ok(Found { entries, reads, writes })
}

/// Writes `base` into the volume so many times, one behind the other.
fn write_times(bed: &Bed, volume: &Volume, base: &[u8], times: u64) -> Result<()> {
    let pieces = base.len() / PIECE_BYTES;
    let next = AtomicUsize::new(0);
    let client = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number as u64 >= pieces as u64 * times {
                return Ok(());
            }
            let piece = &base[number % pieces * PIECE_BYTES..][..PIECE_BYTES];
            volume.write_at((number * PIECE_BYTES) as u64, piece)?;
        }
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..bed.cores).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client returns"))
    })
}

/// Random single blocks, 32 at a time. Counts reads.
fn read(bed: &Bed, volume: &Volume, seed: u64) -> Result<Sample> {
    let blocks = volume.size_bytes() / BLOCK_BYTES as u64;
    let end = Instant::now() + bed.seconds;
    let stopwatch = Stopwatch::start();
    let count = AtomicU64::new(0);
    drive::run(bed.cores, DEPTH, |lane| {
        let mut random = SeededRandom::new(seed * DEPTH as u64 + lane as u64);
        let count = &count;
        async move {
            let mut out = [0; BLOCK_BYTES];
            while Instant::now() < end {
                volume.read(random.below(blocks) * BLOCK_BYTES as u64, &mut out).await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), EngineError>(())
        }
    })?;
    Ok(stopwatch.stop(count.into_inner()))
}
