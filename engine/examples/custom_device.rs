//! A device of one's own under the engine: memory that counts what it is asked for.
//!
//! `cargo run --release -p siltstone-engine --example custom_device` writes the same mebibyte twice and
//! shows that the second time hardly anything arrives at the device.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use siltstone_device::{Device, Request, SeededRandom, validate::admit};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Result, VolumeOptions};

/// Bytes in memory. Nothing survives the process, so every write is as durable as it can be when it
/// completes, and a flush has nothing to do.
pub(crate) struct CountingRam {
    bytes: RwLock<Vec<u8>>,
    requests: AtomicU64,
    written_bytes: AtomicU64,
}

impl CountingRam {
    /// Zeros; `size_bytes` is a multiple of 4096.
    pub(crate) fn new(size_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: RwLock::new(vec![0; size_bytes]),
            requests: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        })
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }
}

impl Device for CountingRam {
    fn size_bytes(&self) -> u64 {
        self.bytes.read().len() as u64
    }

    // A device with a queue would start the requests here and complete them later, on a thread of its
    // own and in any order. One that fails completes a request with `DeviceError::io`.
    fn submit(&self, batch: Vec<Request>) {
        for request in batch {
            self.requests.fetch_add(1, Ordering::Relaxed);
            // What is unaligned or beyond the end is refused, and completed, here.
            let Some(mut request) = admit(request, self.size_bytes()) else { continue };
            let (offset, len_bytes) = request.range();
            let range = offset.0 as usize..(offset.0 + len_bytes) as usize;
            match &mut request {
                Request::Read { buffer, .. } => buffer.copy_from_slice(&self.bytes.read()[range]),
                Request::Write { buffer, .. } => {
                    self.bytes.write()[range].copy_from_slice(buffer);
                    self.written_bytes.fetch_add(len_bytes, Ordering::Relaxed);
                }
                Request::Discard { .. } => self.bytes.write()[range].fill(0),
                Request::Flush { .. } => {}
            }
            // No lock is held: the engine's completion may submit the next request at once.
            request.complete(Ok(()));
        }
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let device = CountingRam::new(256 << 20);
    for (time, written_bytes) in ["first", "second"].iter().zip(write_twice(&device)?) {
        println!("the {time} mebibyte: {written_bytes} bytes written to the device");
    }
    println!("{} requests in all", device.requests());
    Ok(())
}

/// Makes a pool on the device, and writes the same to two volumes, one after the other; returns how many
/// bytes the device got for each.
pub(crate) fn write_twice(device: &Arc<CountingRam>) -> Result<[u64; 2]> {
    Pool::create_on(device.clone(), None, &CreateOptions::default())?;
    let pool = Pool::open_on(device.clone(), None, &OpenOptions::default())?;
    let mut data = vec![0; 1 << 20];
    SeededRandom::new(1).fill(&mut data);
    let mut written = [0; 2];
    for (name, written_bytes) in ["one", "two"].into_iter().zip(&mut written) {
        let volume = pool.create_volume(name, &VolumeOptions::new(1 << 30))?;
        let before = device.written_bytes();
        volume.write_at(0, &data)?;
        // All the way to its place, not only to the NVRAM log.
        pool.checkpoint()?;
        *written_bytes = device.written_bytes() - before;
        let mut back = vec![1; data.len()];
        volume.read_at(0, &mut back)?;
        assert!(back == data, "what was written is read");
    }
    pool.close()?;
    Ok(written)
}
