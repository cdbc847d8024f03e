//! Random 4 KiB reads, 32 under way on each connection, beside qemu-nbd with a raw file.

use std::{error::Error, sync::Arc, time::Instant};

use siltstone_benches::{
    drive,
    raw::{self, Amount, Load},
    report::{Report, Target, Turns, Unit},
    sample::{Sample, Stopwatch},
};
use siltstone_device::{
    Device, SeededRandom,
    file::{self, Access, FileOptions},
};
use siltstone_engine::{EngineError, Tuning};

use crate::{
    Outcome,
    bed::{Bed, VOLUME},
    client::Pipeline,
    servers::{self, QemuAccess, Server},
};

const BLOCK_BYTES: u64 = 4096;
const DEPTH: u64 = 32;
/// What is read when hot: half of the default frame cache.
const HOT_BLOCKS: u64 = (32 << 20) / BLOCK_BYTES;
/// Too little to keep what was read: a hundredth of the data.
const COLD: [&str; 2] = ["--frame-cache", "8M"];
const COLD_FRAME_CACHE_BYTES: usize = 8 << 20;
const CONNECTIONS: [usize; 2] = [1, 4];

/// A measured server: the requests that its clients made, and the processor time that it took for
/// each.
struct Served {
    requests: Sample,
    cpu_us_each: f64,
}

/// Reads single blocks among the first `blocks` for a while, by a thread for each connection.
fn read(bed: &Bed, server: &Server, connections: usize, blocks: u64) -> Result<Served, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let cpu_start = server.cpu_seconds().map_err(|error| text(&error))?;
    let stopwatch = Stopwatch::start();
    let end = Instant::now() + bed.seconds;
    let client = |number: usize| -> std::io::Result<u64> {
        let mut random = SeededRandom::new(number as u64);
        let mut pipeline = Pipeline::new(&server.socket, server.export, DEPTH)?;
        pipeline.read(BLOCK_BYTES as usize, || {
            (Instant::now() < end).then(|| random.below(blocks) * BLOCK_BYTES)
        })
    };
    let counts: std::io::Result<Vec<u64>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections).map(|n| scope.spawn(move || client(n))).collect();
        clients.into_iter().map(|client| client.join().expect("a client returns")).collect()
    });
    let count = counts.map_err(|error| text(&error))?.into_iter().sum();
    let requests = stopwatch.stop(count);
    let cpu_seconds = server.cpu_seconds().map_err(|error| text(&error))? - cpu_start;
    Ok(Served { requests, cpu_us_each: cpu_seconds * 1e6 / count as f64 })
}

/// Reads the first `blocks` in order, so that they are in whatever cache the server has; they
/// must be what was stored.
fn warm(bed: &Bed, server: &Server, blocks: u64) -> Outcome {
    let mut pipeline = Pipeline::new(&server.socket, server.export, 1)?;
    let piece_bytes = 1 << 20;
    for at in (0..(blocks * BLOCK_BYTES) as usize).step_by(piece_bytes) {
        if pipeline.contents(at as u64, piece_bytes)? != bed.data[at..][..piece_bytes] {
            return Err(format!("the server gives other data than was stored at {at}").into());
        }
    }
    Ok(())
}

/// What is in the caches of both.
pub(crate) fn hot(bed: &Bed, report: &mut Report) -> Outcome {
    for connections in CONNECTIONS {
        let mut rows = Rows::new("hot", connections);
        for _ in 0..bed.rounds {
            let server = servers::qemu(&bed.raw, QemuAccess::Default)?;
            warm(bed, &server, HOT_BLOCKS)?;
            let limit = read(bed, &server, connections, HOT_BLOCKS)?;
            drop(server);
            let server = servers::siltstone(&bed.program, &bed.pool, &[])?;
            warm(bed, &server, HOT_BLOCKS)?;
            rows.add(&read(bed, &server, connections, HOT_BLOCKS)?, &limit);
        }
        rows.report(report);
    }
    Ok(())
}

/// What both have to get from the device, qemu-nbd by whichever interface is faster.
pub(crate) fn cold(bed: &Bed, report: &mut Report) -> Outcome {
    for connections in CONNECTIONS {
        let mut rows = Rows::new("cold", connections);
        let (unit, none) = (Unit::OperationsPerSecond, Target::NONE);
        let mut rate = Turns::new("of the library's own rate", unit, none);
        let mut cost = Turns::new("processor time of both", Unit::MicrosecondsEach, none);
        let mut device = Turns::new("qemu-nbd beside the device alone", unit, none);
        for _ in 0..bed.rounds {
            let mut limit: Option<Served> = None;
            for access in QemuAccess::DIRECT {
                bed.forget_raw()?;
                let server = servers::qemu(&bed.raw, access)?;
                let served = read(bed, &server, connections, bed.blocks())?;
                if limit.as_ref().is_none_or(|l| l.requests.rate() < served.requests.rate()) {
                    limit = Some(served);
                }
            }
            let server = servers::siltstone(&bed.program, &bed.pool, &COLD)?;
            let served = read(bed, &server, connections, bed.blocks())?;
            let limit = limit.ok_or("qemu-nbd was not measured")?;
            rows.add(&served, &limit);
            drop(server);
            device.add(limit.requests.rate(), raw_device(bed)?.rate());
            let alone = library(bed, connections * DEPTH as usize)?;
            rate.add(served.requests.rate(), alone.rate());
            cost.add(served.cpu_us_each, alone.cpu_us_each());
        }
        rows.report(report);
        for turns in [rate, cost, device] {
            report.add(turns);
        }
    }
    Ok(())
}

/// The device's own random reads, 32 under way: no server of raw files can have more.
fn raw_device(bed: &Bed) -> Result<Sample, Box<dyn Error>> {
    let options = FileOptions { access: Access::Read, ..FileOptions::default() };
    let device: Arc<dyn Device> = file::open(&bed.raw, &options)?;
    let span_bytes = bed.data.len() as u64;
    Ok(raw::run(&device, span_bytes, Load::RANDOM_READ, Amount::Time(bed.seconds))?)
}

/// The same reads by the library in this process, so many of them under way.
fn library(bed: &Bed, lanes: usize) -> Result<Sample, Box<dyn Error>> {
    let tuning = Tuning { frame_cache_bytes: COLD_FRAME_CACHE_BYTES, ..Tuning::default() };
    let pool = bed.open(tuning)?;
    let volume = pool.volume(VOLUME)?;
    let end = Instant::now() + bed.seconds;
    let stopwatch = Stopwatch::start();
    let counts = drive::run(bed.cores, lanes, |lane| {
        let mut random = SeededRandom::new(lane as u64);
        let volume = &volume;
        async move {
            let mut out = [0; BLOCK_BYTES as usize];
            let mut count = 0_u64;
            while Instant::now() < end {
                volume.read(random.below(bed.blocks()) * BLOCK_BYTES, &mut out).await?;
                count += 1;
            }
            Ok::<u64, EngineError>(count)
        }
    })?;
    let sample = stopwatch.stop(counts.into_iter().sum());
    drop(volume);
    pool.close()?;
    Ok(sample)
}

/// A rate, and the processor time behind it.
struct Rows {
    rate: Turns,
    cost: Turns,
}

impl Rows {
    fn new(what: &str, connections: usize) -> Self {
        let plural = if connections == 1 { "" } else { "s" };
        let name = format!("{what} 4 KiB read, qd 32, {connections} connection{plural}");
        Self {
            rate: Turns::new(&name, Unit::OperationsPerSecond, Target::ratio(1.5)),
            cost: Turns::new("the server's processor time", Unit::MicrosecondsEach, Target::NONE),
        }
    }

    fn add(&mut self, served: &Served, limit: &Served) {
        self.rate.add(served.requests.rate(), limit.requests.rate());
        self.cost.add(served.cpu_us_each, limit.cpu_us_each);
    }

    fn report(self, report: &mut Report) {
        report.add(self.rate);
        report.add(self.cost);
    }
}
