//! Small writes that are made durable one by one.

use std::time::Instant;

use siltstone_engine::{EngineError, Result, Volume, VolumeOptions};

use super::{Outcome, bed::Bed, overwrite::NewBlocks};
use crate::{
    raw,
    report::{Report, Target, Turns, Unit},
    sample::{Sample, Stopwatch},
};

const CLIENTS: usize = 16;
const SPAN_BYTES: u64 = 256 << 20;

/// Clients that each write a block and flush, again and again. Counts writes.
fn write_and_flush(bed: &Bed, volume: &Volume, clients: usize) -> Result<Sample> {
    let end = Instant::now() + bed.seconds;
    let stopwatch = Stopwatch::start();
    let client = |number| {
        let mut blocks = NewBlocks::new(&bed.distinct.bytes, number, clients);
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
        let clients: Vec<_> = (0..clients).map(|n| scope.spawn(move || client(n))).collect();
        clients.into_iter().map(|client| client.join().expect("a client returns")).collect()
    });
    Ok(stopwatch.stop(counts?.into_iter().sum()))
}

/// Write and flush by one client and by 16, against one client's durable writes to the device.
pub(crate) fn writes(bed: &Bed, report: &mut Report) -> Outcome {
    let unit = Unit::OperationsPerSecond;
    let mut single = Turns::new("4 KiB write + flush, 1 client", unit, Target::ratio(0.9));
    let name = format!("4 KiB write + flush, {CLIENTS} clients");
    let mut many = Turns::new(&name, unit, Target::ratio(8.0));
    for round in 1..=bed.rounds {
        let limit = raw::durable_writes(&*bed.raw, bed.raw_bytes, bed.seconds)?.rate();
        let pool = bed.fresh_pool()?;
        let volume = pool.create_volume("small", &VolumeOptions::new(SPAN_BYTES))?;
        let before = pool.activity();
        let one = write_and_flush(bed, &volume, 1)?;
        single.add(one.rate(), limit);
        let between = pool.activity();
        let all = write_and_flush(bed, &volume, CLIENTS)?;
        many.add(all.rate(), limit);
        if round == bed.rounds {
            report.explain("4 KiB write + flush, 1 client", &before, &between);
            report.explain(&name, &between, &pool.activity());
        }
        drop(volume);
        pool.close()?;
    }
    report.add(single);
    report.add(many);
    Ok(())
}
