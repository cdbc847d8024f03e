//! Requests of 1 MiB in order, 8 under way, beside the library in this process.

use std::sync::atomic::{AtomicUsize, Ordering};

use siltstone_benches::{
    drive,
    report::{Report, Target, Turns, Unit},
    sample::{Sample, Stopwatch},
};
use siltstone_engine::{EngineError, Tuning};

use crate::{
    Outcome,
    bed::{Bed, PIECE_BYTES, VOLUME},
    client::Pipeline,
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

/// A rate, and the processor time behind it: that of whoever serves, and of the client.
struct Rows {
    rate: Turns,
    server: Turns,
    client: Turns,
}

impl Rows {
    fn new(name: &str) -> Self {
        let cpu = |name| Turns::new(name, Unit::MicrosecondsEach, Target::NONE);
        Self {
            rate: Turns::new(name, Unit::BytesPerSecond, Target::ratio(0.85)),
            server: cpu("the server's processor time"),
            client: cpu("the client's"),
        }
    }

    /// The client's sample, and the library's; both count pieces.
    fn add(&mut self, client: &Sample, server_cpu_seconds: f64, library: &Sample) {
        let rate = |sample: &Sample| sample.times(PIECE_BYTES as u64).rate();
        self.rate.add(rate(client), rate(library));
        let server_us = server_cpu_seconds / client.seconds() / client.rate() * 1e6;
        self.server.add(server_us, library.cpu_us_each());
        self.client.add(client.cpu_us_each(), library.cpu_us_each());
    }

    fn report(self, report: &mut Report) {
        for turns in [self.rate, self.server, self.client] {
            report.add(turns);
        }
    }
}

/// New data to an empty volume, durable at the end.
pub(crate) fn write(bed: &Bed, report: &mut Report) -> Outcome {
    let mut rows = Rows::new("sequential write, 1 MiB, qd 8");
    for _ in 0..bed.rounds {
        bed.make_pool()?;
        let limit = library_write(bed)?;
        bed.make_pool()?;
        let server = servers::siltstone(&bed.program, &bed.pool, &[])?;
        let mut pipeline = Pipeline::new(&server.socket, server.export, DEPTH as u64)?;
        let pieces = Pieces::of(bed);
        let cpu_start = server.cpu_seconds()?;
        let stopwatch = Stopwatch::start();
        pipeline.write(|| pieces.take().map(|at| (at as u64, &bed.data[at..][..PIECE_BYTES])))?;
        pipeline.flush()?;
        let sample = stopwatch.stop(pieces.count as u64);
        rows.add(&sample, server.cpu_seconds()? - cpu_start, &limit);
    }
    rows.report(report);
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
    let sample = stopwatch.stop(pieces.count as u64);
    drop(volume);
    pool.close()?;
    Ok(sample)
}

/// The same data from a pool just opened.
pub(crate) fn read(bed: &Bed, report: &mut Report) -> Outcome {
    let mut rows = Rows::new("sequential read, 1 MiB, qd 8");
    for _ in 0..bed.rounds {
        let limit = library_read(bed)?;
        let server = servers::siltstone(&bed.program, &bed.pool, &[])?;
        let mut pipeline = Pipeline::new(&server.socket, server.export, DEPTH as u64)?;
        let pieces = Pieces::of(bed);
        let cpu_start = server.cpu_seconds()?;
        let stopwatch = Stopwatch::start();
        pipeline.read(PIECE_BYTES, || pieces.take().map(|at| at as u64))?;
        let sample = stopwatch.stop(pieces.count as u64);
        rows.add(&sample, server.cpu_seconds()? - cpu_start, &limit);
    }
    rows.report(report);
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
    let sample = stopwatch.stop(pieces.count as u64);
    drop(volume);
    pool.close()?;
    Ok(sample)
}
