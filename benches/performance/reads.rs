//! Reading back: cold and in order, cold and at random, and hot.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use siltstone_device::SeededRandom;
use siltstone_engine::{Compression, Effort, EngineError, Result, Tuning, Volume};

use super::{
    Outcome,
    bed::{Bed, LOADED},
    frame_reads::FrameReads,
    limit::{Frames, PIECE_BYTES},
};
use crate::{
    drive,
    raw::{self, Amount, Load},
    report::{Report, Target, Turns, Unit},
    sample::{Latencies, Sample, Stopwatch},
};

/// Too little to keep what was read: a hundredth of the data.
const COLD_FRAME_CACHE_BYTES: usize = 8 << 20;
const DEPTH: usize = 32;
/// What is read when hot: half of the default frame cache.
const HOT_BYTES: u64 = 32 << 20;
/// Reads between two looks at the clock.
const READS_A_LOOK: u64 = 256;

fn cold() -> Tuning {
    let frame_cache_bytes = COLD_FRAME_CACHE_BYTES;
    Tuning { frame_cache_bytes, warm_index: false, ..Tuning::default() }
}

/// Each reader goes through a part of its own in order. Counts bytes.
fn read_in_order(volume: &Volume, readers: usize) -> Result<Sample> {
    let pieces = volume.size_bytes() as usize / PIECE_BYTES;
    let stopwatch = Stopwatch::start();
    let reader = |number: usize| {
        let mut out = vec![0; PIECE_BYTES];
        (pieces * number / readers..pieces * (number + 1) / readers)
            .try_for_each(|piece| volume.read_at((piece * PIECE_BYTES) as u64, &mut out))
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..readers).map(|n| scope.spawn(move || reader(n))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a reader returns"))
    })?;
    Ok(stopwatch.stop((pieces * PIECE_BYTES) as u64))
}

/// Sequential reads of a pool just opened, by one reader and by one for each core, against the
/// slower of the device and the codec.
pub(crate) fn sequential(bed: &Bed, report: &mut Report) -> Outcome {
    bed.load_pool()?;
    let frames = Frames::compress(&bed.distinct.bytes);
    let per_second = Unit::BytesPerSecond;
    let name = format!("sequential read, {} readers", bed.cores);
    let mut every = Turns::new(&name, per_second, Target::ratio(0.9));
    let mut single = Turns::new("sequential read, 1 reader", per_second, Target::NONE);
    for _ in 0..bed.rounds {
        let amount = Amount::Time(bed.seconds / 2);
        let device = raw::run_bytes(&bed.raw, bed.raw_bytes, Load::SEQUENTIAL_READ, amount)?;
        let limit = device.rate().min(frames.decompress(bed.cores).rate());
        for (readers, turns) in [(bed.cores, &mut every), (1, &mut single)] {
            let pool = bed.open_pool(cold())?;
            turns.add(read_in_order(&pool.volume(LOADED)?, readers)?.rate(), limit);
            pool.close()?;
        }
    }
    report.add(every);
    report.add(single);
    Ok(())
}

/// Random single blocks of a pool just opened, of a volume as it is made by default, and of one for such
/// reads: in frames of 8 KiB, all of which were compressed as well as its levels allow.
pub(crate) fn random(bed: &Bed, report: &mut Report) -> Outcome {
    let frames = Frames::compress(&bed.distinct.bytes);
    let least = frames.stored_bytes as f64;
    bed.load_pool()?;
    random_of(bed, report, "random 4 KiB cold read, qd 32", least, &frames)?;
    let frame = "8K".parse().expect("there are frames of that size");
    let tuning = Tuning { effort: Some(Effort::Great), ..Tuning::default() };
    bed.load_pool_with(Compression { frame, ..Compression::default() }, tuning)?;
    let level = Compression::default().levels.idle().into();
    let frames = Frames::compress_with(&bed.distinct.bytes, 8 << 10, level);
    random_of(bed, report, "the same, of frames of 8 KiB", least, &frames)
}

/// Random single blocks of the loaded pool, 32 at a time, against the device's, and against reading and decoding
/// `frames` alone; and what the pool has stored, against the least that frames of 32 KiB at level 1 take.
fn random_of(
    bed: &Bed,
    report: &mut Report,
    name: &str,
    least_bytes: f64,
    frames: &Frames,
) -> Outcome {
    let mut rate = Turns::new(name, Unit::OperationsPerSecond, Target::ratio(0.8));
    let name = "processor time of one such read";
    let mut cost = Turns::new(name, Unit::MicrosecondsEach, Target::value(8.0).at_most());
    let alone = "the same, of reading and decoding alone";
    let mut bounded_rate = Turns::new(alone, Unit::OperationsPerSecond, Target::ratio(0.9));
    let most = Target::ratio(1.0 / 0.9).at_most();
    let mut bounded_cost = Turns::new(alone, Unit::MicrosecondsEach, most);
    let name = "the slowest hundredth take, at least";
    let mut slow = Turns::new(name, Unit::MicrosecondsEach, Target::ratio(3.0).at_most());
    let mut stored =
        Turns::new("what they are stored in", Unit::Bytes, Target::ratio(1.15).at_most());
    let pool = bed.open_pool(cold())?;
    stored.add(pool.quick_stat().space.stored_bytes as f64, least_bytes);
    let volume = pool.volume(LOADED)?;
    let blocks = volume.size_bytes() / 4096;
    let frame_reads = FrameReads::store(bed, frames)?;
    for round in 0..bed.rounds {
        let amount = Amount::Time(bed.seconds);
        let bound = frame_reads.run(DEPTH, bed.seconds)?;
        let (limit, mut of_limit) =
            raw::run_timed(&bed.raw, bed.raw_bytes, Load::RANDOM_READ, amount)?;
        let end = Instant::now() + bed.seconds;
        let stopwatch = Stopwatch::start();
        let lanes = drive::run(bed.cores, DEPTH, |lane| {
            let mut random = SeededRandom::new((round as usize * DEPTH + lane) as u64);
            let volume = &volume;
            async move {
                let mut out = [0; 4096];
                let mut reads = Latencies::default();
                loop {
                    let start = Instant::now();
                    if start >= end {
                        return Ok::<_, EngineError>(reads);
                    }
                    volume.read(random.below(blocks) * 4096, &mut out).await?;
                    reads.add(start);
                }
            }
        })?;
        let mut reads = Latencies::default();
        let count = lanes.iter().map(Latencies::count).sum();
        let read = stopwatch.stop(count);
        lanes.into_iter().for_each(|lane| reads.extend(lane));
        rate.add(read.rate(), limit.rate());
        slow.add(reads.us_at(0.99), of_limit.us_at(0.99));
        cost.add(read.cpu_us_each(), limit.cpu_us_each());
        bounded_rate.add(read.rate(), bound.rate());
        bounded_cost.add(read.cpu_us_each(), bound.cpu_us_each());
    }
    for turns in [rate, bounded_rate, slow, cost, bounded_cost, stored] {
        report.add(turns);
    }
    drop(volume);
    pool.close()?;
    Ok(())
}

/// Random single blocks from the frame cache, on every core, by processor time.
pub(crate) fn hot(bed: &Bed, report: &mut Report) -> Outcome {
    bed.load_pool()?;
    let target = Target::value(1e6);
    let unit = Unit::OperationsPerSecond;
    let mut single = Turns::new("hot random 4 KiB read, of one core", unit, target);
    let name = format!("the same on {} cores, of each", bed.cores);
    let mut every = Turns::new(&name, unit, target);
    let pool = bed.open_pool(Tuning { warm_index: false, ..Tuning::default() })?;
    let volume = pool.volume(LOADED)?;
    let mut out = vec![0; PIECE_BYTES];
    for at in (0..HOT_BYTES).step_by(PIECE_BYTES) {
        volume.read_at(at, &mut out)?;
    }
    for _ in 0..bed.rounds {
        for (readers, turns) in [(1, &mut single), (bed.cores, &mut every)] {
            let end = Instant::now() + bed.seconds / 2;
            let seed = AtomicUsize::new(0);
            let stopwatch = Stopwatch::start();
            let reader = || {
                let mut random = SeededRandom::new(seed.fetch_add(1, Ordering::Relaxed) as u64);
                let mut out = [0; 4096];
                let mut count = 0;
                while Instant::now() < end {
                    for _ in 0..READS_A_LOOK {
                        volume.read_at(random.below(HOT_BYTES / 4096) * 4096, &mut out)?;
                    }
                    count += READS_A_LOOK;
                }
                Ok::<u64, EngineError>(count)
            };
            let counts: Result<Vec<u64>> = std::thread::scope(|scope| {
                let readers: Vec<_> = (0..readers).map(|_| scope.spawn(reader)).collect();
                readers.into_iter().map(|reader| reader.join().expect("it returns")).collect()
            });
            turns.add_alone(stopwatch.stop(counts?.into_iter().sum()).cpu_rate());
        }
    }
    report.add(single);
    report.add(every);
    drop(volume);
    pool.close()?;
    Ok(())
}
