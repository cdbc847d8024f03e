//! What snapshots and discards cost: taking and cloning snapshots, among a thousand and on a volume of 1 TiB; and
//! reading a volume that has a thousand of them, with writes in between, against the same volume
//! with the same writes and none.
//!
//! `cargo bench -p siltstone-benches --bench snapshots -- --help`
#![forbid(unsafe_code)]

use std::{
    error::Error,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use pollster::block_on;
use serde::Serialize;
use siltstone_device::{
    Device, SeededRandom,
    file::{self, Access, FileOptions},
    request,
};
use siltstone_engine::{
    CreateOptions, OpenOptions, Pool, SnapshotName, Tuning, Volume, VolumeOptions,
};

const BLOCK: u64 = 4096;

#[derive(Debug, Parser)]
#[command(about = "Measure what snapshots cost")]
struct Arguments {
    /// Where pools are put while it lasts; they take about 4 GiB.
    #[arg(long, default_value = "/var/tmp")]
    directory: PathBuf,
    /// Snapshots that are taken of one volume.
    #[arg(long, default_value_t = 1000)]
    snapshots: u32,
    /// Random 4 KiB writes between two of them.
    #[arg(long, default_value_t = 256)]
    writes: u32,
    /// The volume's data, in MiB.
    #[arg(long, default_value_t = 512)]
    data_mib: u64,
    /// How long reads of each kind are measured, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Write the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Serialize)]
struct Figures {
    /// Milliseconds each: the least, the median, the most.
    flush_ms: [f64; 3],
    create_ms: [f64; 3],
    clone_ms: [f64; 3],
    roll_back_ms: [f64; 3],
    delete_ms: [f64; 3],
    map_bytes_without: u64,
    map_bytes_with: u64,
    /// Microseconds for each cold random read of 4 KiB.
    read_us_without: f64,
    read_us_with: f64,
    read_us_oldest: f64,
    read_us_middle: f64,
    read_us_newest: f64,
    /// Milliseconds for discarding all of the volume, 1 TiB, and a flush.
    discard_ms: f64,
    /// Bytes free in the pool without snapshots: with its volume, with all of that discarded and
    /// collected, and when it was new.
    free_bytes: [u64; 3],
}

/// A pool in a file that is removed at the end.
struct Bed {
    path: PathBuf,
    device: Arc<dyn Device>,
}

impl Bed {
    fn new(path: PathBuf, size_bytes: u64) -> Result<Self, Box<dyn Error>> {
        let options =
            FileOptions { access: Access::Create { size_bytes }, ..FileOptions::default() };
        let device: Arc<dyn Device> = file::open(&path, &options)?;
        Pool::create_on(Arc::clone(&device), None, &CreateOptions::default())?;
        Ok(Self { path, device })
    }

    /// With caches that hold next to nothing.
    fn open(&self) -> Result<Pool, Box<dyn Error>> {
        let tuning = Tuning {
            frame_cache_bytes: 1 << 20,
            page_cache_bytes: 1 << 20,
            warm_index: false,
            ..Tuning::default()
        };
        let options = OpenOptions { tuning, ..OpenOptions::default() };
        Ok(Pool::open_on(Arc::clone(&self.device), None, &options)?)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Gone already, or there is nobody left to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A block that compresses to about half.
fn block(number: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    SeededRandom::new(number).fill(&mut block[..BLOCK as usize / 2]);
    block
}

fn spread(mut times: Vec<Duration>) -> [f64; 3] {
    times.sort();
    let ms = |at: usize| times[at].as_secs_f64() * 1e3;
    [ms(0), ms(times.len() / 2), ms(times.len() - 1)]
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}

/// Fills a volume of 1 TiB here and there, and overwrites it at random; after each round, `between`.
fn live(
    pool: &Pool,
    arguments: &Arguments,
    between: &mut dyn FnMut(u32) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let disk = pool.create_volume("disk", &VolumeOptions::new(1 << 40))?;
    let blocks = arguments.data_mib << 20 >> 12;
    let mut number = 0;
    for first in (0..blocks).step_by(64) {
        let mut data = Vec::with_capacity(64 * BLOCK as usize);
        for _ in 0..64 {
            number += 1;
            data.extend(block(number));
        }
        disk.write_at(place(first), &data)?;
    }
    pool.checkpoint()?;
    let mut random = SeededRandom::new(1);
    for round in 0..arguments.snapshots {
        for _ in 0..arguments.writes {
            number += 1;
            disk.write_at(place(random.below(blocks)), &block(number))?;
        }
        between(round)?;
    }
    pool.checkpoint()?;
    Ok(())
}

/// Where a block of the data is: in pieces of 4 MiB all over the volume.
fn place(number: u64) -> u64 {
    let (piece, within) = (number / 1024, number % 1024);
    (piece << 33) % (1 << 40) + (piece << 33 >> 40 << 22) + within * BLOCK
}

/// Microseconds for each random read, of alternating volumes, a second of each at a time.
fn read(volumes: &[&Volume], arguments: &Arguments) -> Result<Vec<f64>, Box<dyn Error>> {
    let blocks = arguments.data_mib << 20 >> 12;
    let mut totals = vec![(0u64, Duration::ZERO); volumes.len()];
    let mut random = SeededRandom::new(2);
    let mut out = [0; BLOCK as usize];
    for _ in 0..arguments.seconds {
        for (volume, (count, time)) in volumes.iter().zip(&mut totals) {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(1) {
                for _ in 0..16 {
                    volume.read_at(place(random.below(blocks)), &mut out)?;
                    *count += 1;
                }
            }
            *time += start.elapsed();
        }
    }
    Ok(totals.iter().map(|(count, time)| time.as_secs_f64() * 1e6 / *count as f64).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let name = |what: &str| arguments.directory.join(format!("siltstone-snapshots-{what}"));
    let pool_bytes = 4 * (arguments.data_mib << 20)
        + 4 * u64::from(arguments.snapshots) * u64::from(arguments.writes) * BLOCK
        + (1 << 30);
    let plain = Bed::new(name("without"), pool_bytes)?;
    let kept = Bed::new(name("with"), pool_bytes)?;
    let pool = plain.open()?;
    let free_new = pool.free_bytes();
    live(&pool, &arguments, &mut |_| Ok(()))?;
    pool.close()?;

    let pool = kept.open()?;
    let (mut flushes, mut creates) = (Vec::new(), Vec::new());
    live(&pool, &arguments, &mut |round| {
        // Beside it, what the device takes to flush.
        flushes.push(timed(|| block_on(request::flush(&*kept.device))).0);
        let name = SnapshotName::new("disk", &format!("s{round}"))?;
        let (time, taken) = timed(|| pool.create_snapshots(&[name]));
        creates.push(time);
        Ok(taken?)
    })?;
    // With all of them there.
    let (mut clones, mut back, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
    let snapshot = |round: u32| SnapshotName::new("disk", &format!("s{round}"));
    for round in 0..20 {
        let clone = format!("clone{round}");
        let (time, made) = timed(|| pool.clone_snapshot(&snapshot(round).expect("a name"), &clone));
        clones.push(time);
        made?;
        let taken: SnapshotName = format!("{clone}@s").parse()?;
        pool.create_snapshots(std::slice::from_ref(&taken))?;
        let (time, done) = timed(|| pool.roll_back(&taken));
        back.push(time);
        done?;
        let (time, done) = timed(|| pool.delete_snapshots(std::slice::from_ref(&taken)));
        deletes.push(time);
        done?;
        pool.delete_volume(&clone)?;
    }
    pool.close()?;

    let (without, with) = (plain.open()?, kept.open()?);
    let last = arguments.snapshots - 1;
    let snapshots = [0, last / 2, last].map(|round| with.volume(&format!("disk@s{round}")));
    let [oldest, middle, newest] = snapshots;
    let (oldest, middle, newest) = (oldest?, middle?, newest?);
    let (disk_without, disk_with) = (without.volume("disk")?, with.volume("disk")?);
    let times = read(&[&disk_without, &disk_with, &oldest, &middle, &newest], &arguments)?;
    let map_bytes = |pool: &Pool| pool.quick_stat().map_bytes;
    let (map_bytes_without, map_bytes_with) = (map_bytes(&without), map_bytes(&with));
    without.collect_garbage()?;
    let free_full = without.free_bytes();
    let discarded = || disk_without.discard(0, 1 << 40).and_then(|()| disk_without.flush());
    let (discard, done) = timed(discarded);
    done?;
    without.collect_garbage()?;
    let figures = Figures {
        flush_ms: spread(flushes),
        create_ms: spread(creates),
        clone_ms: spread(clones),
        roll_back_ms: spread(back),
        delete_ms: spread(deletes),
        map_bytes_without,
        map_bytes_with,
        read_us_without: times[0],
        read_us_with: times[1],
        read_us_oldest: times[2],
        read_us_middle: times[3],
        read_us_newest: times[4],
        discard_ms: discard.as_secs_f64() * 1e3,
        free_bytes: [free_full, without.free_bytes(), free_new],
    };
    report(&arguments, &figures);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)?;
    }
    without.close()?;
    with.close()?;
    Ok(())
}

fn report(arguments: &Arguments, figures: &Figures) {
    let Arguments { snapshots, writes, data_mib, .. } = arguments;
    println!("{snapshots} snapshots of 1 TiB with {data_mib} MiB in it, {writes} writes between");
    println!("{:<28} {:>8} {:>8} {:>8}", "ms each", "least", "median", "most");
    for (what, [least, median, most]) in [
        ("device flush, beside", figures.flush_ms),
        ("take a snapshot", figures.create_ms),
        ("clone one", figures.clone_ms),
        ("roll back to one", figures.roll_back_ms),
        ("delete one", figures.delete_ms),
    ] {
        println!("{what:<28} {least:>8.2} {median:>8.2} {most:>8.2}");
    }
    println!("{:<28} {:>8} {:>8}", "cold random 4 KiB reads", "us each", "ratio");
    for (what, us) in [
        ("no snapshots", figures.read_us_without),
        ("all snapshots", figures.read_us_with),
        ("of the oldest snapshot", figures.read_us_oldest),
        ("of the middle one", figures.read_us_middle),
        ("of the newest", figures.read_us_newest),
    ] {
        println!("{what:<28} {us:>8.1} {:>8.2}", us / figures.read_us_without);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (without, with) = (figures.map_bytes_without, figures.map_bytes_with);
    println!("map: {:.1} MiB without, {:.1} MiB with snapshots", mib(without), mib(with));
    let [full, empty, new] = figures.free_bytes.map(mib);
    println!("discard of all of 1 TiB, and a flush: {:.1} ms;", figures.discard_ms);
    println!("then, collected, {empty:.0} MiB of {new:.0} are free again, of which {full:.0} were");
}
