//! Small writes that are made durable one by one.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use siltstone_engine::{EngineError, Pool, Result, Volume, VolumeOptions};

use super::{
    Outcome,
    bed::Bed,
    limit::{self, PIECE_BYTES},
    overwrite::NewBlocks,
    shared_commits,
};
use crate::{
    data::BLOCK_BYTES,
    raw,
    report::{Report, Target, Turns, Unit},
    sample::{Sample, Stopwatch},
};

const CLIENTS: usize = 16;
const SPAN_BYTES: u64 = 256 << 20;

/// Who makes blocks, so that none are made twice: the single client, the 16, the one beside streams, and the streams.
const ONE: Range<usize> = 0..1;
const MANY: Range<usize> = 1..1 + CLIENTS;
const BESIDE: Range<usize> = MANY.end..MANY.end + 1;

fn blocks(bed: &Bed, maker: usize) -> NewBlocks<'_> {
    NewBlocks::new(&bed.distinct.bytes, maker, BESIDE.end + bed.cores)
}

/// Clients that each write a block and flush, again and again. Counts writes.
fn write_and_flush(bed: &Bed, volume: &Volume, clients: Range<usize>) -> Result<Sample> {
    let end = Instant::now() + bed.seconds;
    let stopwatch = Stopwatch::start();
    let client = |maker| {
        let mut blocks = blocks(bed, maker);
        let mut count = 0;
        while Instant::now() < end {
            let (offset, block) = blocks.next(SPAN_BYTES);
            volume.write_at(offset, block)?;
            volume.flush()?;
            count += 1;
        }
        Ok::<u64, EngineError>(count)
    };
    let client = &client;
    let counts: Result<Vec<u64>> = std::thread::scope(|scope| {
        let clients: Vec<_> = clients.map(|maker| scope.spawn(move || client(maker))).collect();
        clients.into_iter().map(|client| client.join().expect("a client returns")).collect()
    });
    Ok(stopwatch.stop(counts?.into_iter().sum()))
}

/// One client that writes a block and flushes, again and again, while as many others as there are cores write new
/// data as fast as they can. Counts its writes.
fn beside_streams(bed: &Bed, pool: &Pool, volume: &Volume) -> Outcome<Sample> {
    let options = VolumeOptions::new(bed.cores as u64 * SPAN_BYTES);
    let streamed = &pool.create_volume("streamed", &options)?;
    let is_over = &AtomicBool::new(false);
    let stream = |number: usize| {
        let mut blocks = blocks(bed, BESIDE.end + number);
        let mut piece = vec![0; PIECE_BYTES];
        let starts = (0..SPAN_BYTES).step_by(PIECE_BYTES).cycle();
        for start in starts.take_while(|_| !is_over.load(Ordering::Relaxed)) {
            for slot in piece.chunks_exact_mut(BLOCK_BYTES) {
                slot.copy_from_slice(blocks.next(SPAN_BYTES).1);
            }
            streamed.write_at(number as u64 * SPAN_BYTES + start, &piece)?;
        }
        Ok::<(), EngineError>(())
    };
    let stream = &stream;
    std::thread::scope(|scope| {
        let streams: Vec<_> =
            (0..bed.cores).map(|number| scope.spawn(move || stream(number))).collect();
        let written = write_and_flush(bed, volume, BESIDE);
        is_over.store(true, Ordering::Relaxed);
        streams.into_iter().try_for_each(|stream| stream.join().expect("a stream returns"))?;
        Ok(written?)
    })
}

/// How often the device alone serves so many clients by a simple program in which they share writes, if the work on
/// the blocks were done beside it on the same processors.
fn most(bed: &Bed, clients: usize) -> Outcome<f64> {
    let shared = shared_commits::run(&*bed.raw, bed.raw_bytes, clients, bed.seconds)?;
    let work = limit::run_blocks(&bed.distinct.bytes, bed.cores);
    let by_processors = bed.cores as f64 * 1e6 / (shared.cpu_us_each() + work.cpu_us_each());
    Ok(shared.rate().min(by_processors))
}

/// Write and flush by one client and by 16, against one client's durable writes to the device; those of 16 also against
/// eight times that or what [`most`] says, whichever is less.
pub(crate) fn writes(bed: &Bed, report: &mut Report) -> Outcome {
    let unit = Unit::OperationsPerSecond;
    let mut single = Turns::new("4 KiB write + flush, 1 client", unit, Target::ratio(0.9));
    let name = format!("4 KiB write + flush, {CLIENTS} clients");
    let mut many = Turns::new(&name, unit, Target::ratio(8.0));
    let name_beside = format!("the same, 1 client beside {} streams", bed.cores);
    let mut beside = Turns::new(&name_beside, unit, Target::NONE);
    let bound = "the same, of that or the work";
    let mut bounded = Turns::new(bound, unit, Target::ratio(0.9));
    for round in 1..=bed.rounds {
        let limit = raw::durable_writes(&*bed.raw, bed.raw_bytes, bed.seconds)?.rate();
        let most = most(bed, CLIENTS)?;
        let pool = bed.fresh_pool()?;
        let volume = pool.create_volume("small", &VolumeOptions::new(SPAN_BYTES))?;
        let before = pool.activity();
        let one = write_and_flush(bed, &volume, ONE)?;
        single.add(one.rate(), limit);
        let between = pool.activity();
        let all = write_and_flush(bed, &volume, MANY)?;
        many.add(all.rate(), limit);
        bounded.add(all.rate(), most.min(8.0 * limit));
        if round == bed.rounds {
            report.explain("4 KiB write + flush, 1 client", &before, &between);
            report.explain(&name, &between, &pool.activity());
        }
        beside.add_alone(beside_streams(bed, &pool, &volume)?.rate());
        drop(volume);
        pool.close()?;
    }
    report.add(single);
    report.add(many);
    report.add(bounded);
    report.add(beside);
    Ok(())
}
