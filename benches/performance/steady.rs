//! Whether writes ever dip: bytes written in each tenth of a second, over a long time.
//!
//! A shared machine dips by itself. The unavoidable work alone is watched the same way before and after,
//! and stands beside, as does the device alone; and of what computes, what the windows would have been without what others took of the
//! processors ([`series`](crate::series)).

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use pollster::block_on;
use siltstone_device::{AlignedBuffer, ByteOffset, DeviceError, Durability, SeededRandom, request};
use siltstone_engine::{CreateOptions, EngineError, Pool, Result, Tuning, Volume, VolumeOptions};

use super::{
    Outcome,
    bed::Bed,
    limit::{self, FRAME_BYTES},
};
use crate::{
    data::BLOCK_BYTES,
    report::{Report, Target, Turns, Unit},
    sample::{Sample, Stopwatch},
    series::{Done, Series},
};

/// A write: small against what is written in a window.
const WRITE_BYTES: usize = 256 << 10;
/// A write to the device alone.
const DEVICE_WRITE_BYTES: usize = 1 << 20;
/// What is written again and again, each time as new data: a part of the distinct data.
const STREAM_BYTES: usize = 256 << 20;
/// The volume that is written front to back, in streams: what is overwritten dies whole segments at a time.
const VOLUME_STREAMS: u64 = 8;
/// So much of the smaller pool is filled, in hundredths, before it is overwritten at random places.
const FILLED_PERCENT: u64 = 65;
/// Rounds of collection that have ended when watching begins: by then they go on as they will.
const ROUNDS_BEFORE: u64 = 8;

/// The stream: frames of the data in random order, so that each window has much the same.
pub(crate) fn stream(bed: &Bed) -> Vec<u8> {
    let frames: Vec<&[u8]> = bed.distinct.bytes.chunks_exact(FRAME_BYTES).collect();
    let mut random = SeededRandom::new(1);
    let len = STREAM_BYTES.min(bed.distinct.bytes.len()) / (WRITE_BYTES * bed.cores);
    let mut stream = Vec::with_capacity(len * WRITE_BYTES * bed.cores);
    while stream.len() < stream.capacity() {
        stream.extend_from_slice(frames[random.below(frames.len() as u64) as usize]);
    }
    stream
}

/// Writes the stream over and over until it is over: each client a part of it, to parts of the volume that are
/// its own, with a number in each block that makes it a new one.
fn write(
    volume: &Volume,
    stream: &mut [u8],
    clients: usize,
    is_random: bool,
    bytes: &AtomicU64,
    is_over: &AtomicBool,
) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let writes = volume.size_bytes() / WRITE_BYTES as u64 / clients as u64;
    let client = |(number, data): (usize, &mut [u8])| -> Result<()> {
        let mut random = SeededRandom::new(number as u64);
        let first = number as u64 * writes;
        let mut next = 0;
        loop {
            for piece in data.chunks_exact_mut(WRITE_BYTES) {
                if is_over.load(Ordering::Relaxed) {
                    return Ok(());
                }
                for block in piece.chunks_exact_mut(BLOCK_BYTES) {
                    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                    block[2048..2056].copy_from_slice(&number.to_le_bytes());
                }
                let at = if is_random { random.below(writes) } else { next % writes };
                volume.write_at((first + at) * WRITE_BYTES as u64, piece)?;
                bytes.fetch_add(WRITE_BYTES as u64, Ordering::Relaxed);
                next += 1;
            }
        }
    };
    let client = &client;
    let part = stream.len() / clients;
    thread::scope(|scope| {
        let parts = stream.chunks_exact_mut(part).enumerate();
        let clients: Vec<_> = parts.map(|part| scope.spawn(move || client(part))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client returns"))
    })
}

fn done(pool: &Pool) -> Done {
    let counters = pool.counters();
    Done { checkpoints: counters.checkpoints, collector_rounds: counters.collector_rounds }
}

/// The unavoidable work, watched.
fn alone(bed: &Bed, stream: &[u8], time: Duration) -> Series {
    let name = "the unavoidable work alone";
    let run = |bytes: &AtomicU64, is_over: &AtomicBool| {
        limit::run_until(stream, WRITE_BYTES, bed.cores, bytes, is_over);
    };
    Series::watch(name, time, Done::default, run).0
}

/// The device, watched: writes of 1 MiB in order, one at a time.
fn device_alone(bed: &Bed, time: Duration) -> Result<Series> {
    let name = "the device alone";
    let run = |bytes: &AtomicU64, is_over: &AtomicBool| -> std::result::Result<(), DeviceError> {
        let mut buffer = AlignedBuffer::zeroed(DEVICE_WRITE_BYTES);
        SeededRandom::new(1).fill(&mut buffer);
        for at in (0..bed.raw_bytes).step_by(DEVICE_WRITE_BYTES).cycle() {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let write = request::write(&*bed.raw, ByteOffset(at), buffer, Durability::Flush);
            buffer = block_on(write)?;
            bytes.fetch_add(DEVICE_WRITE_BYTES as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    let (series, written) = Series::watch(name, time, Done::default, run);
    written.map(|()| series).map_err(EngineError::from)
}

/// Steady ingest, and steady overwrites with garbage collection at work.
pub(crate) fn writes(bed: &Bed, report: &mut Report) -> Outcome {
    let mut stream = stream(bed);
    let mut alone_all = alone(bed, &stream, bed.steady / 2);

    let pool = bed.fresh_pool()?;
    let size_bytes = VOLUME_STREAMS * stream.len() as u64;
    let volume = pool.create_volume("front to back", &VolumeOptions::new(size_bytes))?;
    let before = pool.activity();
    let name = "steady ingest";
    let (ingest, written) = Series::watch(
        name,
        bed.steady,
        || done(&pool),
        |bytes, is_over| write(&volume, &mut stream, bed.cores, false, bytes, is_over),
    );
    written?;
    report.explain(name, &before, &pool.activity());
    drop(volume);
    pool.close()?;

    let options = CreateOptions { size_bytes: Some(4 * bed.raw_bytes), ..CreateOptions::default() };
    let pool = bed.fresh_pool_with(&options, Tuning::default())?;
    let volume = fill(bed, &pool, &mut stream)?;
    let rounds = || pool.counters().collector_rounds;
    write_while(bed, &volume, &mut stream, true, |_| rounds() < ROUNDS_BEFORE)?;
    let before = pool.activity();
    let name = "steady random overwrites, with collection";
    let (collected, written) = Series::watch(
        name,
        bed.steady,
        || done(&pool),
        |bytes, is_over| write(&volume, &mut stream, bed.cores, true, bytes, is_over),
    );
    written?;
    report.explain(name, &before, &pool.activity());
    drop(volume);
    pool.close()?;

    alone_all.extend(alone(bed, &stream, bed.steady / 2));
    let device = device_alone(bed, bed.steady / 2)?;
    let met = Target::ratio(0.75);
    for (names, series, target) in [
        (["slowest 100 ms of ingest, of median", "by the processors left to it"], &ingest, met),
        (["the same, overwrites + collection", "by the processors left to them"], &collected, met),
        (["the same, unavoidable work alone", "by those left to that"], &alone_all, Target::NONE),
    ] {
        let outcomes = [series.slowest_and_median(), series.slowest_and_median_alone()];
        for (name, (slowest, median)) in names.into_iter().zip(outcomes) {
            let mut turns = Turns::new(name, Unit::BytesPerSecond, target);
            turns.add(slowest, median);
            report.add(turns);
        }
    }
    let (slowest, median) = device.slowest_and_median();
    let mut turns = Turns::new("the same, device alone", Unit::BytesPerSecond, Target::NONE);
    turns.add(slowest, median);
    report.add(turns);
    report.add_series("steady-ingest", ingest, &alone_all)?;
    report.add_series("steady-collection", collected, &alone_all)
}

/// Fills a pool as far as it is meant to be, in a volume of that size.
fn fill(bed: &Bed, pool: &Pool, stream: &mut [u8]) -> Result<Volume> {
    let room = |pool: &Pool| pool.quick_stat().space.free_bytes;
    let empty = room(pool);
    let first = pool.create_volume("to see how it compresses", &VolumeOptions::new(1 << 30))?;
    let sample_bytes = stream.len() / 4;
    for (at, piece) in stream[..sample_bytes].chunks_exact(WRITE_BYTES).enumerate() {
        first.write_at((at * WRITE_BYTES) as u64, piece)?;
    }
    pool.checkpoint()?;
    let stored_share = (empty - room(pool)) as f64 / sample_bytes as f64;
    drop(first);
    pool.delete_volume("to see how it compresses")?;
    let fits = (empty / 100 * FILLED_PERCENT) as f64 / stored_share;
    let step = (WRITE_BYTES * bed.cores) as u64;
    let size_bytes = (fits as u64 / step).max(1) * step;
    let volume = pool.create_volume("at random", &VolumeOptions::new(size_bytes))?;
    write_while(bed, &volume, stream, false, |bytes| bytes < size_bytes)?;
    pool.checkpoint()?;
    Ok(volume)
}

/// Writes the stream to random places for so long. Counts bytes.
pub(crate) fn write_for(
    bed: &Bed,
    volume: &Volume,
    stream: &mut [u8],
    time: Duration,
) -> Result<Sample> {
    let stopwatch = Stopwatch::start();
    let bytes = write_while(bed, volume, stream, true, |_| stopwatch.elapsed() < time)?;
    Ok(stopwatch.stop(bytes))
}

/// Writes the stream as long as `goes_on` says so, which is asked now and then with the bytes so far.
fn write_while(
    bed: &Bed,
    volume: &Volume,
    stream: &mut [u8],
    is_random: bool,
    goes_on: impl Fn(u64) -> bool,
) -> Result<u64> {
    let (bytes, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let work = || write(volume, stream, bed.cores, is_random, &bytes, &is_over);
        let writing = scope.spawn(work);
        while goes_on(bytes.load(Ordering::Relaxed)) && !writing.is_finished() {
            thread::sleep(Duration::from_millis(5));
        }
        is_over.store(true, Ordering::Relaxed);
        writing.join().expect("the clients return")
    })?;
    Ok(bytes.into_inner())
}
