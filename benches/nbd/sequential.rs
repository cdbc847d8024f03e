//! Requests of 1 MiB in order, 8 under way, beside the library in this process.

use std::sync::atomic::{AtomicUsize, Ordering};

use siltstone_engine::{EngineError, Tuning};

use crate::{
    Outcome,
    bed::{Bed, PIECE_BYTES, VOLUME},
    client::Pipeline,
    drive,
    report::{Report, Sample, Stopwatch, Target, Turns, Unit},
    servers,
};

const DEPTH: usize = 8;

/// Numbers pieces for several who take them.
struct Pieces {
    next: AtomicUsize,
    count: usize,
}

impl Pieces {
    fn of(bed: &Bed) -> Self {
        Self { next: AtomicUsize::new(0), count: bed.data.len() / PIECE_BYTES }
    }

    /// The next one's offset.
    fn take(&self) -> Option<usize> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.count).then_some(number * PIECE_BYTES)
    }
}

/// New data to an empty volume, durable at the end.
pub(crate) fn write(bed: &Bed, report: &mut Report) -> Outcome {
    let unit = Unit::BytesPerSecond;
    let mut turns = Turns::new("sequential write, 1 MiB, qd 8", unit, Target::ratio(0.85));
    for _ in 0..bed.rounds {
        bed.make_pool()?;
        let limit = library_write(bed)?;
        bed.make_pool()?;
        let server = servers::siltstone(&bed.program, &bed.pool, &[])?;
        let mut pipeline = Pipeline::new(&server.socket, server.export, DEPTH as u64)?;
        let pieces = Pieces::of(bed);
        let stopwatch = Stopwatch::start();
        pipeline.write(|| pieces.take().map(|at| (at as u64, &bed.data[at..][..PIECE_BYTES])))?;
        pipeline.flush()?;
        turns.add(stopwatch.stop(bed.data.len() as u64).rate(), limit.rate());
    }
    report.add(turns);
    Ok(())
}

fn library_write(bed: &Bed) -> Result<Sample, Box<dyn std::error::Error>> {
    let pool = bed.open(Tuning::default())?;
    let volume = pool.volume(VOLUME)?;
    let pieces = Pieces::of(bed);
    let stopwatch = Stopwatch::start();
    drive::run(bed.cores, DEPTH, |_| {
        let (volume, pieces) = (&volume, &pieces);
        async move {
            while let Some(at) = pieces.take() {
                volume.write(at as u64, &bed.data[at..][..PIECE_BYTES]).await?;
            }
            Ok::<(), EngineError>(())
        }
    })?;
    pool.flush()?;
    let sample = stopwatch.stop(bed.data.len() as u64);
    drop(volume);
    pool.close()?;
    Ok(sample)
}

/// The same data from a pool just opened.
pub(crate) fn read(bed: &Bed, report: &mut Report) -> Outcome {
    let unit = Unit::BytesPerSecond;
    let mut turns = Turns::new("sequential read, 1 MiB, qd 8", unit, Target::ratio(0.85));
    for _ in 0..bed.rounds {
        let limit = library_read(bed)?;
        let server = servers::siltstone(&bed.program, &bed.pool, &[])?;
        let mut pipeline = Pipeline::new(&server.socket, server.export, DEPTH as u64)?;
        let pieces = Pieces::of(bed);
        let stopwatch = Stopwatch::start();
        pipeline.read(PIECE_BYTES, || pieces.take().map(|at| at as u64))?;
        turns.add(stopwatch.stop(bed.data.len() as u64).rate(), limit.rate());
    }
    report.add(turns);
    Ok(())
}

fn library_read(bed: &Bed) -> Result<Sample, Box<dyn std::error::Error>> {
    let pool = bed.open(Tuning::default())?;
    let volume = pool.volume(VOLUME)?;
    let pieces = Pieces::of(bed);
    let stopwatch = Stopwatch::start();
    drive::run(bed.cores, DEPTH, |_| {
        let (volume, pieces) = (&volume, &pieces);
        async move {
            let mut out = vec![0; PIECE_BYTES];
            while let Some(at) = pieces.take() {
                volume.read(at as u64, &mut out).await?;
            }
            Ok::<(), EngineError>(())
        }
    })?;
    let sample = stopwatch.stop(bed.data.len() as u64);
    drop(volume);
    pool.close()?;
    Ok(sample)
}
