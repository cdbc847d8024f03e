//! A pool inside a program: made, opened, written to and read, in ten lines.
//!
//! `cargo run --release -p siltstone-engine --example embed -- POOL`, where POOL is a file that does not
//! exist yet.

use std::{error::Error, path::Path};

use siltstone_engine::{CreateOptions, OpenOptions, Pool, Result, VolumeOptions};

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: embed POOL")?;
    let read = embed(Path::new(&path))?;
    println!("{}", String::from_utf8_lossy(&read));
    Ok(())
}

pub(crate) fn embed(path: &Path) -> Result<[u8; 5]> {
    let options = CreateOptions { size_bytes: Some(1 << 30), ..CreateOptions::default() };
    Pool::create(path, &options)?;
    let pool = Pool::open(path, &OpenOptions::default())?;
    let disk = pool.create_volume("disk", &VolumeOptions::new(10 << 30))?;
    disk.write_at(8192, b"hello")?;
    disk.flush()?; // What was written before survives a power cut from here on.
    let mut back = [0; 5];
    disk.read_at(8192, &mut back)?;
    pool.close()?;
    Ok(back)
}
