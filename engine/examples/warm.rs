//! How long an opening takes to fill the index, from summaries and from the stored image.
//! `cargo run --release -p siltstone-engine --example warm -- POOL GIB`
//!
//! Makes a pool with GIB of data that neither repeats nor compresses, and opens it a few times in either
//! way. The device is read past the system's cache.

use std::{path::Path, time::Instant};

use siltstone_device::SeededRandom;
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Tuning, VolumeOptions};

const MIB: u64 = 1 << 20;
/// Openings of each kind.
const TIMES: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, gib] = &arguments[..] else { return Err("usage: warm POOL GIB".into()) };
    let (path, data_bytes) = (Path::new(path), gib.parse::<u64>()? << 30);
    let _ = std::fs::remove_file(path);
    let create = CreateOptions {
        size_bytes: Some(data_bytes / 4 * 5 + (1 << 30)),
        // All of it fits, with a tenth to spare.
        index_memory_bytes: data_bytes / 512 / 15 * 16 / 10 * 11,
        ..CreateOptions::default()
    };
    Pool::create(path, &create)?;
    let with = |image_segments| OpenOptions {
        tuning: Tuning { image_segments, ..Tuning::default() },
        ..OpenOptions::default()
    };
    let pool = Pool::open(path, &with(u32::MAX))?;
    let volume = pool.create_volume("noise", &VolumeOptions::new(data_bytes))?;
    let mut random = SeededRandom::new(1);
    let mut noise = vec![0; MIB as usize];
    for at in (0..data_bytes).step_by(MIB as usize) {
        random.fill(&mut noise);
        volume.write_at(at, &noise)?;
    }
    drop(volume);
    pool.close()?;
    for _ in 0..TIMES {
        open("summaries", path, data_bytes, &with(u32::MAX))?.close()?;
    }
    let pool = open("summaries", path, data_bytes, &with(0))?;
    let began = Instant::now();
    pool.close()?;
    println!("closing, with an image: {:.3} s", began.elapsed().as_secs_f64());
    for _ in 0..TIMES {
        open("image", path, data_bytes, &with(u32::MAX))?.close()?;
    }
    std::fs::remove_file(path)?;
    Ok(())
}

fn open(
    what: &str,
    path: &Path,
    data_bytes: u64,
    options: &OpenOptions,
) -> siltstone_engine::Result<Pool> {
    let pool = Pool::open(path, options)?;
    let began = Instant::now();
    pool.wait_index_warm()?;
    let seconds = began.elapsed().as_secs_f64();
    let a_tib = seconds * (1_u64 << 40) as f64 / data_bytes as f64;
    let (stat, counters) = (pool.quick_stat(), pool.counters());
    println!(
        "{what}: {seconds:.3} s, {a_tib:.1} s a TiB; {} entries, {} of them loaded, {} segments read",
        stat.index_entries, counters.index_loaded_entries, counters.index_scanned_segments
    );
    Ok(pool)
}
