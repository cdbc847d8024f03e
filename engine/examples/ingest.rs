//! Ingests a file into a new pool twice and reads it back: a quick look at the engine's speed.
//! `cargo run --release -p siltstone-engine --example ingest -- POOL FILE [CLIENTS]`

use std::{path::Path, sync::Mutex, time::Instant};

use siltstone_engine::{CreateOptions, OpenOptions, Pool, VolumeOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, file, ..] = &arguments[..] else {
        return Err("usage: ingest POOL FILE [CLIENTS]".into());
    };
    let clients = arguments.get(3).map_or(Ok(2), |count| count.parse::<u64>())?;
    let data = std::fs::read(file)?;
    let data = &data[..data.len() / 4096 * 4096];
    let options = CreateOptions { size_bytes: Some(8 << 30), ..CreateOptions::default() };
    let _ = std::fs::remove_file(path);
    Pool::create(Path::new(path), &options)?;
    let pool = Pool::open(Path::new(path), &OpenOptions::default())?;
    let run = |what: &str, work: &(dyn Fn(u64, &[u8]) -> siltstone_engine::Result<()> + Sync)| {
        let start = Instant::now();
        let next = Mutex::new(data.chunks(1 << 20).enumerate());
        std::thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    loop {
                        let Some((at, piece)) = next.lock().expect("not poisoned").next() else {
                            break;
                        };
                        work((at as u64) << 20, piece).expect("the operation succeeds");
                    }
                });
            }
        });
        pool.flush().expect("the flush succeeds");
        let seconds = start.elapsed().as_secs_f64();
        println!("{what}: {:.0} MB/s", data.len() as f64 / 1e6 / seconds);
    };
    for name in ["first", "second"] {
        let volume = pool.create_volume(name, &VolumeOptions::new(data.len() as u64))?;
        run(&format!("write {name}"), &|at, piece| volume.write_at(at, piece));
    }
    let volume = pool.volume("first")?;
    run("read", &|at, piece| {
        let mut back = vec![0; piece.len()];
        volume.read_at(at, &mut back)?;
        assert!(back == piece, "what is read is what was written");
        Ok(())
    });
    let stat = pool.stat()?;
    println!(
        "logical {} unique {} stored {} metadata {} dedup {:.3} compression {:.3}",
        stat.logical_bytes,
        stat.unique_bytes,
        stat.stored_bytes,
        stat.metadata_bytes,
        stat.dedup_ratio,
        stat.compression_ratio
    );
    println!("{:?}", stat.counters);
    for stage in stat.stages {
        let each = stage.total_ns as f64 / 1e3 / stage.runs.max(1) as f64;
        println!("{:>14} {:>8} runs {:>10.1} us each", stage.stage, stage.runs, each);
    }
    pool.close()?;
    Ok(())
}
