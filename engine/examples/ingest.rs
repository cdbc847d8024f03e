//! Ingests files into a new pool, each into a volume of its own, and reads the last one back: a
//! quick look at the engine's speed and at what it finds.
//! `cargo run --release -p siltstone-engine --example ingest -- POOL INDEX_BYTES FILE...`

use std::{path::Path, sync::Mutex, time::Instant};

use siltstone_engine::{CreateOptions, OpenOptions, Pool, VolumeOptions};

const CLIENTS: u64 = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, index_bytes, files @ ..] = &arguments[..] else {
        return Err("usage: ingest POOL INDEX_BYTES FILE...".into());
    };
    let options = CreateOptions {
        size_bytes: Some(16 << 30),
        index_memory_bytes: index_bytes.parse()?,
        ..CreateOptions::default()
    };
    let _ = std::fs::remove_file(path);
    Pool::create(Path::new(path), &options)?;
    let pool = Pool::open(Path::new(path), &OpenOptions::default())?;
    for (number, file) in files.iter().enumerate() {
        let mut data = std::fs::read(file)?;
        data.truncate(data.len() / 4096 * 4096);
        let size = VolumeOptions::new(data.len() as u64);
        let volume = pool.create_volume(&number.to_string(), &size)?;
        run(&pool, &format!("write {file}"), &data, &|at, piece| volume.write_at(at, piece));
        if number + 1 == files.len() {
            run(&pool, &format!("read {file}"), &data, &|at, piece| {
                let mut back = vec![0; piece.len()];
                volume.read_at(at, &mut back)?;
                assert!(back == piece, "what is read is what was written");
                Ok(())
            });
        }
    }
    let stat = pool.stat();
    let content = stat.content.expect("the map was walked");
    println!(
        "logical {} unique {} stored {} map {} dedup {:.3} compression {:.3} sample bits {} summary loads {}",
        content.logical_bytes,
        content.unique_bytes,
        stat.space.stored_bytes,
        stat.map_bytes,
        content.dedup_ratio,
        content.compression_ratio,
        stat.index_sample_bits,
        stat.summary_loads
    );
    println!("{:?}", stat.counters);
    for stage in stat.stages {
        let each = stage.total_ns as f64 / 1e3 / stage.runs.max(1) as f64;
        println!("{:>14} {:>8} runs {:>10.1} us each", stage.stage, stage.runs, each);
    }
    pool.close()?;
    Ok(())
}

type Work<'a> = dyn Fn(u64, &[u8]) -> siltstone_engine::Result<()> + Sync + 'a;

/// Does `work` on every mebibyte of `data` from a few threads, then flushes.
fn run(pool: &Pool, what: &str, data: &[u8], work: &Work<'_>) {
    let start = Instant::now();
    let next = Mutex::new(data.chunks(1 << 20).enumerate());
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let piece = next.lock().expect("no client panicked").next();
                    let Some((at, piece)) = piece else { break };
                    work((at as u64) << 20, piece).expect("the operation succeeds");
                }
            });
        }
    });
    pool.flush().expect("the flush succeeds");
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {:.0} MB/s", data.len() as f64 / 1e6 / seconds);
}
