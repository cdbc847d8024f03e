//! A pool that is overwritten until many times its size has been written.
//!
//! `cargo bench -p siltstone-benches --bench ageing -- [OPTIONS]`
//!
//! A pool is filled so far that what lives takes a share of it, then single blocks are overwritten
//! at random, some far more often than others; ranges are discarded and written again, snapshots are
//! taken, read and deleted. Once the
//! collector is at work, each tenth of the run is a row: how fast it went, and what the device had
//! to write for it. In the end every
//! block is read back and compared, the pool is checked, everything is deleted, and the space that
//! is free then is compared with that of the new pool.
//!
//! - `counted`: a device that counts what is written to it.
//! - `load`: what clients do, and what they remember of it.
//! - `report`: rows, targets, JSON and plots.
#![forbid(unsafe_code)]

mod counted;
mod load;
mod report;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use clap::Parser;
use siltstone_benches::{
    data::{self, BLOCK_BYTES},
    drive,
};
use siltstone_device::{
    Device,
    file::{self, Access, FileOptions},
};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, SnapshotName, Volume, VolumeOptions};

use crate::{
    counted::Counted,
    load::{Lane, Source},
    report::{End, Meter, Report},
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Clients' operations at a time.
const LANES: usize = 32;
/// Of /usr, what blocks are drawn from.
const SAMPLE_BYTES: usize = 256 << 20;
const VOLUME: &str = "ageing";
/// Rounds of the collector after which it is taken to be at work.
const RUN_IN_ROUNDS: u64 = 8;

/// Overwrites a pool many times and measures what that does to it.
#[derive(Parser)]
struct Arguments {
    /// The pool's size.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(128..))]
    size_mib: u64,
    /// How much of what is free in the empty pool is filled, in percent.
    #[arg(long, default_value_t = 72, value_parser = clap::value_parser!(u64).range(1..=95))]
    fill: u64,
    /// How many times the pool's size is written.
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    times: f64,
    /// The exponent of Zipf's law: 0 is uniform.
    #[arg(long, default_value_t = 0.99, value_parser = positive)]
    skew: f64,
    /// Of what is written, how much has been written before, in percent.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=50))]
    duplicates: u64,
    /// Where the pool goes. In a directory on tmpfs it is in memory.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Writes all figures to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the plots go.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text} is not a number"))?;
    if (0.0..1000.0).contains(&number) { Ok(number) } else { Err("from 0 to 1000".into()) }
}

fn main() -> ExitCode {
    match age(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A file that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Gone already, or there is nobody left to tell.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether nothing was wrong with what was stored.
fn age(arguments: &Arguments) -> Outcome<bool> {
    if !arguments.bench {
        println!("This measures for minutes: run it by cargo bench, or with --bench.");
        return Ok(true);
    }
    let source = Source::new(data::sample(SAMPLE_BYTES)?, arguments.duplicates);
    let scratch = Scratch(arguments.directory.join("siltstone-bench-ageing"));
    let device = make_device(&scratch.0, arguments.size_mib << 20)?;
    let counted = Counted::new(device);
    let options = CreateOptions { size_bytes: Some(counted.size_bytes()), ..Default::default() };
    Pool::create_on(counted.clone(), None, &options)?;
    let pool = open(&counted)?;
    let empty_bytes = pool.free_bytes();

    let goal_bytes = (empty_bytes / 100 * arguments.fill).next_multiple_of(BLOCK_BYTES as u64);
    let (volume, mut lanes) = fill(&pool, &source, arguments.skew, goal_bytes)?;
    let threads = std::thread::available_parallelism()?.get();
    lanes = run_in(&pool, &volume, lanes, threads)?;
    let mut report = Report::new(pool.stat(), arguments.skew);
    let mut wrong_in_snapshots = 0;
    let lane_bytes = (counted.size_bytes() as f64 * arguments.times / LANES as f64) as u64;
    for tenth in 1..=10 {
        let meter = Meter::start(&pool, &counted);
        lanes.iter_mut().for_each(Lane::forget_delays);
        let part = |percent: u64| lane_bytes * ((tenth - 1) * 100 + percent) / 1000;
        lanes = overwrite(&volume, lanes, part(90), threads)?;
        // What it holds may not fit for long: the pool is full but for little.
        let snapshot = SnapshotName::new(VOLUME, &format!("tenth-{tenth}"))?;
        pool.create_snapshots(std::slice::from_ref(&snapshot))?;
        let then = lanes[0].clone();
        lanes = overwrite(&volume, lanes, part(95), threads)?;
        let frozen = pool.volume(&snapshot.to_string())?;
        wrong_in_snapshots += pollster::block_on(then.count_wrong(&frozen))?;
        drop(frozen);
        pool.delete_snapshots(&[snapshot])?;
        lanes = overwrite(&volume, lanes, part(100), threads)?;
        report.add(meter.stop(&pool, &counted, &lanes));
    }

    let stat = pool.stat();
    let wrong_blocks = wrong_in_snapshots + verify(&volume, &lanes, threads)?;
    drop(volume);
    pool.close()?;
    let pool = open(&counted)?;
    let check = pool.check(&mut |_| {})?;
    let deleting = Instant::now();
    pool.delete_volume(VOLUME)?;
    pool.collect_garbage()?;
    let deleted_ms = deleting.elapsed().as_millis() as u64;
    let end = End {
        live_blocks: lanes.iter().map(Lane::live_blocks).sum(),
        logical_bytes: stat.content.map_or(0, |content| content.logical_bytes),
        wrong_blocks,
        is_sound: check.is_sound(),
        empty_bytes,
        left_bytes: pool.free_bytes(),
        size_bytes: counted.size_bytes(),
        deleted_ms,
    };
    pool.close()?;
    let is_good = report.finish(end);
    if let Some(path) = &arguments.json {
        report.save(path)?;
    }
    if let Some(folder) = &arguments.plots {
        std::fs::create_dir_all(folder)?;
        report.draw(folder)?;
    }
    Ok(is_good)
}

fn open(device: &Arc<Counted>) -> Outcome<Pool> {
    let device = Arc::clone(device) as Arc<dyn Device>;
    Ok(Pool::open_on(device, None, &OpenOptions::default())?)
}

/// A file of which every block has been written, so that nothing has to be allocated later.
fn make_device(path: &Path, bytes: u64) -> Outcome<Arc<dyn Device>> {
    // One that an interrupted run left behind.
    let _ = std::fs::remove_file(path);
    let zeros = vec![0; 1 << 20];
    let mut file = std::fs::File::create(path)?;
    for _ in 0..bytes >> 20 {
        std::io::Write::write_all(&mut file, &zeros)?;
    }
    file.sync_all()?;
    let options = FileOptions { access: Access::Open, ..FileOptions::default() };
    let device = file::open(path, &options)?;
    let how = if device.is_direct() { "direct I/O" } else { "I/O through the page cache" };
    println!("{} MiB in {}, {how}", bytes >> 20, path.display());
    Ok(device)
}

/// Writes blocks until they take their share of the pool.
fn fill(pool: &Pool, source: &Source, skew: f64, goal_bytes: u64) -> Outcome<(Volume, Vec<Lane>)> {
    // Thin: as large as it could get if everything shrank to a sixteenth.
    let volume = pool.create_volume(VOLUME, &VolumeOptions::new(goal_bytes * 16))?;
    let mut lanes = Lane::all(LANES, source, skew);
    loop {
        for lane in &mut lanes {
            pollster::block_on(lane.grow(&volume))?;
        }
        // What is on its way does not count yet: waited for where it matters.
        if pool.counters().unit_bytes >= goal_bytes / 10 * 9 {
            pool.flush()?;
        }
        let counters = pool.counters();
        let used_bytes = counters.unit_bytes + counters.map_page_bytes;
        if used_bytes >= goal_bytes {
            break;
        }
    }
    pool.checkpoint()?;
    lanes.iter_mut().for_each(Lane::settle);
    Ok((volume, lanes))
}

/// Overwrites until the collector has ended some rounds: what comes before is the speed of a pool that
/// has room. A pool in which it never begins is left as it is after a while.
fn run_in(
    pool: &Pool,
    volume: &Volume,
    mut lanes: Vec<Lane>,
    threads: usize,
) -> Outcome<Vec<Lane>> {
    let began = Instant::now();
    let lane_blocks = lanes.iter().map(Lane::live_blocks).max().unwrap_or(0);
    for part in 1..=100 {
        lanes = overwrite(volume, lanes, lane_blocks * BLOCK_BYTES as u64 * part / 100, threads)?;
        if pool.counters().collector_rounds >= RUN_IN_ROUNDS {
            break;
        }
    }
    lanes.iter_mut().for_each(Lane::restart);
    println!("run in for {:.1} s", began.elapsed().as_secs_f64());
    Ok(lanes)
}

/// Lets every lane go on until it has written `until_bytes`.
fn overwrite(
    volume: &Volume,
    lanes: Vec<Lane>,
    until_bytes: u64,
    threads: usize,
) -> Outcome<Vec<Lane>> {
    let waiting: Vec<_> =
        lanes.into_iter().map(|lane| parking_lot::Mutex::new(Some(lane))).collect();
    let mut lanes = drive::run(threads, LANES, |number| {
        let lane = waiting[number].lock().take();
        async move {
            let mut lane = lane.expect("each lane runs once");
            lane.overwrite(volume, until_bytes).await?;
            Ok::<_, siltstone_engine::EngineError>(lane)
        }
    })?;
    pollster::block_on(volume.commit())?;
    lanes.sort_by_key(Lane::number);
    Ok(lanes)
}

/// Reads everything back; returns how many blocks are not what was written last.
fn verify(volume: &Volume, lanes: &[Lane], threads: usize) -> Outcome<u64> {
    let wrong = drive::run(threads, LANES, |number| lanes[number].count_wrong(volume))?;
    Ok(wrong.into_iter().sum())
}

const _: () = assert!(BLOCK_BYTES == siltstone_device::BLOCK_BYTES);
