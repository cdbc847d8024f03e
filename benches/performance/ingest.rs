//! Streams of new data, of the same again, and of data that does not compress.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use siltstone_device::SeededRandom;
use siltstone_engine::{Pool, Result, Tuning, Volume, VolumeOptions};

use super::{
    Outcome,
    bed::Bed,
    limit::{self, PIECE_BYTES, Work},
    noise_writes,
};
use crate::{
    raw::{self, Amount, Load},
    report::{Report, Target, Turns, Unit},
    sample::{Sample, Stopwatch},
};

/// Noise that goes through a pool before it is measured: three times the staging memory.
const WARM_BYTES: usize = 96 << 20;

/// Writes `data` to the volume from its start in pieces of 1 MiB, by as many clients as there are
/// cores, and makes it durable. Counts bytes.
pub(crate) fn write(bed: &Bed, pool: &Pool, volume: &Volume, data: &[u8]) -> Result<Sample> {
    let next = AtomicUsize::new(0);
    let client = || -> Result<()> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed) * PIECE_BYTES;
            let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) else {
                return Ok(());
            };
            volume.write_at(at as u64, &rest[..rest.len().min(PIECE_BYTES)])?;
        }
    };
    let stopwatch = Stopwatch::start();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..bed.cores).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client returns"))
    })?;
    pool.flush()?;
    Ok(stopwatch.stop(data.len() as u64))
}

/// Distinct blocks against all the work that they need; then all of them again, against the work
/// that recognising them needs; and the same once more when the pool has been closed and opened.
pub(crate) fn data(bed: &Bed, report: &mut Report) -> Outcome {
    let data = &bed.distinct.bytes;
    let per_second = Unit::BytesPerSecond;
    let mut unique = Turns::new("unique data", per_second, Target::ratio(0.92));
    let mut duplicate = Turns::new("the same again", per_second, Target::value(4e9));
    let mut restarted = Turns::new("the same, after a restart", per_second, Target::value(4e9));
    let target = Target::value(60e3).at_most();
    let mut warm = Turns::new("from restart to a full index", Unit::Milliseconds, target);
    let by_cpu = |name| Turns::new(name, per_second, Target::NONE);
    let mut unique_cpu = by_cpu("unique data, a core's second");
    let mut duplicate_cpu = by_cpu("the same again, a core's second");
    for round in 1..=bed.rounds {
        let limit = limit::run(data, Work::Store, bed.cores);
        let pool = bed.fresh_pool()?;
        warm_memory(bed, &pool, 2)?;
        let size = VolumeOptions::new(data.len() as u64);
        let before = pool.activity();
        let first = write(bed, &pool, &pool.create_volume("first", &size)?, data)?;
        unique.add(first.rate(), limit.rate());
        unique_cpu.add_cpu(&first, &limit);
        let between = pool.activity();
        let limit = limit::run(data, Work::Recognise, bed.cores);
        let before_again = pool.activity();
        let second = write(bed, &pool, &pool.create_volume("second", &size)?, data)?;
        duplicate.add(second.rate(), limit.rate());
        duplicate_cpu.add_cpu(&second, &limit);
        if round == bed.rounds {
            report.explain("unique data", &before, &between);
            report.explain("the same again", &before_again, &pool.activity());
        }
        pool.close()?;
        let opened = Instant::now();
        let pool = bed.open_pool(Tuning::default())?;
        pool.wait_index_warm()?;
        warm.add_alone(opened.elapsed().as_secs_f64() * 1e3);
        warm_memory(bed, &pool, 3)?;
        let limit = limit::run(data, Work::Recognise, bed.cores);
        let third = write(bed, &pool, &pool.create_volume("third", &size)?, data)?;
        restarted.add(third.rate(), limit.rate());
        pool.close()?;
    }
    for turns in [unique, unique_cpu, duplicate, duplicate_cpu, restarted, warm] {
        report.add(turns);
    }
    Ok(())
}

/// Other noise into a volume that is deleted then: the buffers and the index's pages have been touched, which a
/// pool pays once after it was opened. The limits' memory is warm, too.
fn warm_memory(bed: &Bed, pool: &Pool, seed: u64) -> Outcome {
    let mut noise = vec![0; WARM_BYTES];
    SeededRandom::new(seed).fill(&mut noise);
    let volume = pool.create_volume("scratch", &VolumeOptions::new(WARM_BYTES as u64))?;
    // It returns when all is durable.
    write(bed, pool, &volume, &noise)?;
    drop(volume);
    Ok(pool.delete_volume("scratch")?)
}

/// Noise against sequential writes to the device, and against those with the work that noise needs.
pub(crate) fn incompressible(bed: &Bed, report: &mut Report) -> Outcome {
    let mut noise = vec![0; bed.raw_bytes as usize / 2];
    SeededRandom::new(1).fill(&mut noise);
    let target = Target::ratio(0.8).or_value(2.5e9);
    let mut turns = Turns::new("incompressible data", Unit::BytesPerSecond, target);
    let name = "the same, of the work and writing alone";
    let mut bounded = Turns::new(name, Unit::BytesPerSecond, Target::ratio(0.9));
    for round in 1..=bed.rounds {
        let bound = noise_writes::run(bed, &noise)?;
        let amount = Amount::Bytes(noise.len() as u64);
        let limit = raw::run_bytes(&bed.raw, bed.raw_bytes, Load::SEQUENTIAL_WRITE, amount)?;
        let pool = bed.fresh_pool()?;
        warm_memory(bed, &pool, 2)?;
        let volume = pool.create_volume("noise", &VolumeOptions::new(noise.len() as u64))?;
        let before = pool.activity();
        let written = write(bed, &pool, &volume, &noise)?;
        turns.add(written.rate(), limit.rate());
        bounded.add(written.rate(), bound.rate());
        if round == bed.rounds {
            report.explain("incompressible data", &before, &pool.activity());
        }
        pool.close()?;
    }
    report.add(turns);
    report.add(bounded);
    Ok(())
}
