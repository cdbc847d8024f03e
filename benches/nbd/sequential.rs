//! Requests of 1 MiB in order, 8 under way, beside the library in this process.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicUsize, Ordering},
};

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

pub(crate) const DEPTH: usize = 8;

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

/// A rate, and the processor time behind it: that of whoever serves, of the client, and of both beside that
/// of the library and of a socket that nobody speaks a protocol on. Less than these two no server can
/// take, and where processors are the limit, the rate is theirs.
struct Rows {
    rate: Turns,
    server: Turns,
    client: Turns,
    both: Turns,
}

impl Rows {
    fn new(name: &str) -> Self {
        let cpu = |name| Turns::new(name, Unit::MicrosecondsEach, Target::NONE);
        Self {
            rate: Turns::new(name, Unit::BytesPerSecond, Target::ratio(0.85)),
            server: cpu("the server's processor time"),
            client: cpu("the client's"),
            both: cpu("that of both beside library and socket"),
        }
    }

    /// The client's sample, the library's, and the socket's; all count pieces.
    fn add(&mut self, client: &Sample, server_cpu_seconds: f64, library: &Sample, socket: &Sample) {
        let rate = |sample: &Sample| sample.times(PIECE_BYTES as u64).rate();
        self.rate.add(rate(client), rate(library));
        let server_us = server_cpu_seconds / client.seconds() / client.rate() * 1e6;
        self.server.add(server_us, library.cpu_us_each());
        self.client.add(client.cpu_us_each(), library.cpu_us_each());
        let alone_us = library.cpu_us_each() + socket.cpu_us_each();
        self.both.add(server_us + client.cpu_us_each(), alone_us);
    }

    fn report(self, report: &mut Report) {
        for turns in [self.rate, self.server, self.client, self.both] {
            report.add(turns);
        }
    }
}

/// What is done with all pieces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// From a pool just opened.
    Read,
    /// To an empty volume, durable at the end.
    Write,
}

/// New data to an empty volume, durable at the end.
pub(crate) fn write(bed: &Bed, report: &mut Report) -> Outcome {
    measure(bed, report, Work::Write, Rows::new("sequential write, 1 MiB, qd 8"))
}

/// The same data from a pool just opened.
pub(crate) fn read(bed: &Bed, report: &mut Report) -> Outcome {
    measure(bed, report, Work::Read, Rows::new("sequential read, 1 MiB, qd 8"))
}

fn measure(bed: &Bed, report: &mut Report, work: Work, mut rows: Rows) -> Outcome {
    let prepare = || if work == Work::Write { bed.make_pool() } else { Ok(()) };
    for _ in 0..bed.rounds {
        prepare()?;
        let limit = by_library(bed, work)?;
        prepare()?;
        let server = servers::siltstone(&bed.program, &bed.pool, &[])?;
        let mut pipeline = Pipeline::new(&server.socket, server.export, DEPTH as u64)?;
        let cpu_start = server.cpu_seconds()?;
        let sample = by_client(bed, work, &mut pipeline)?;
        rows.add(&sample, server.cpu_seconds()? - cpu_start, &limit, &by_socket(bed)?);
    }
    rows.report(report);
    Ok(())
}

/// All pieces, by one client; counts them.
pub(crate) fn by_client<S: Read + Write>(
    bed: &Bed,
    work: Work,
    pipeline: &mut Pipeline<S>,
) -> std::io::Result<Sample> {
    let pieces = Pieces::of(bed);
    let stopwatch = Stopwatch::start();
    match work {
        Work::Read => _ = pipeline.read(PIECE_BYTES, || pieces.take().map(|at| at as u64))?,
        Work::Write => {
            let next = || pieces.take().map(|at| (at as u64, &bed.data[at..][..PIECE_BYTES]));
            pipeline.write(next)?;
            pipeline.flush()?;
        }
    }
    Ok(stopwatch.stop(pieces.count as u64))
}

fn by_library(bed: &Bed, work: Work) -> Result<Sample, Box<dyn std::error::Error>> {
    let pool = bed.open(Tuning::default())?;
    let volume = pool.volume(VOLUME)?;
    let pieces = Pieces::of(bed);
    let stopwatch = Stopwatch::start();
    drive::run(bed.cores, DEPTH, |_| {
        let (volume, pieces) = (&volume, &pieces);
        async move {
            let mut out = vec![0; PIECE_BYTES];
            while let Some(at) = pieces.take() {
                match work {
                    Work::Read => volume.read(at as u64, &mut out).await?,
                    Work::Write => volume.write(at as u64, &bed.data[at..][..PIECE_BYTES]).await?,
                }
            }
            Ok::<(), EngineError>(())
        }
    })?;
    if work == Work::Write {
        pool.flush()?;
    }
    let sample = stopwatch.stop(pieces.count as u64);
    drop(volume);
    pool.close()?;
    Ok(sample)
}

/// The same bytes from one thread to another, and nothing else.
fn by_socket(bed: &Bed) -> Result<Sample, Box<dyn std::error::Error>> {
    let (mut near, mut far) = UnixStream::pair()?;
    let pieces = Pieces::of(bed);
    let mut received = vec![0; PIECE_BYTES];
    let stopwatch = Stopwatch::start();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            while let Some(at) = pieces.take() {
                far.write_all(&bed.data[at..][..PIECE_BYTES])?;
            }
            far.shutdown(Shutdown::Write)
        });
        while near.read(&mut received)? > 0 {}
        sending.join().expect("it does not panic")
    })?;
    Ok(stopwatch.stop(pieces.count as u64))
}
