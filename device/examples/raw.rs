//! How fast a device is through this crate, for comparison with other programs.
//!
//! `cargo run --release -p siltstone-device --example raw -- FILE [--threads] [--buffered] [--only=PART]`
//!
//! FILE is created with 1 GiB if it does not exist, filled, and overwritten. Each line runs for a
//! second; `--only` chooses lines whose name contains PART, and does not fill the file. "Chained" requests are submitted by the completion of the one before, as an
//! engine does; "waiting" ones by a caller that blocks on each.

use std::{
    error::Error,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pollster::block_on;
use siltstone_device::{
    AlignedBuffer, ByteOffset, Device, DeviceError, Durability, Request, SeededRandom,
    file::{self, Access, FileOptions, IoEngine},
    request::write,
};

const FILE_BYTES: u64 = 1 << 30;
const RUN_TIME: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    is_read: bool,
    is_random: bool,
    durability: Durability,
    len: usize,
    depth: u64,
}

const LOADS: [Load; 5] = [
    load("sequential write 1 MiB, qd 8", false, false, 1 << 20, 8),
    load("sequential read 1 MiB, qd 8", true, false, 1 << 20, 8),
    load("random write 4 KiB, qd 32", false, true, 4096, 32),
    load("random read 4 KiB, qd 32", true, true, 4096, 32),
    Load {
        durability: Durability::Immediate,
        ..load("durable write 4 KiB, qd 1, chained", false, false, 4096, 1)
    },
];

const fn load(name: &'static str, is_read: bool, is_random: bool, len: usize, depth: u64) -> Load {
    Load { name, is_read, is_random, durability: Durability::Flush, len, depth }
}

/// One load under way: `depth` chains of requests.
struct Run {
    device: Arc<dyn Device>,
    load: Load,
    end: Instant,
    submitted: AtomicU64,
    random: Mutex<SeededRandom>,
    completed: mpsc::Sender<Result<u64, DeviceError>>,
}

impl Run {
    /// Submits a request that at its completion goes on with the next.
    fn next(self: Arc<Self>, buffer: AlignedBuffer, chain: u64) {
        let count = self.submitted.fetch_add(1, Ordering::Relaxed);
        let slots = FILE_BYTES / self.load.len as u64;
        let slot =
            if self.load.is_random { self.random.lock().below(slots) } else { count % slots };
        let offset = ByteOffset(slot * self.load.len as u64);
        let device = Arc::clone(&self.device);
        let Load { is_read, durability, .. } = self.load;
        let completion = Box::new(move |buffer, outcome: Result<(), DeviceError>| {
            if outcome.is_err() || Instant::now() >= self.end {
                // The receiver counts the chains and has not gone yet.
                let _ = self.completed.send(outcome.map(|()| chain + 1));
            } else {
                self.next(buffer, chain + 1);
            }
        });
        device.submit(vec![if is_read {
            Request::Read { offset, buffer, completion }
        } else {
            Request::Write { offset, buffer, durability, completion }
        }]);
    }
}

fn measure(device: &Arc<dyn Device>, load: Load) -> Result<(), DeviceError> {
    let (completed, chains) = mpsc::channel();
    let start = Instant::now();
    let run = Arc::new(Run {
        device: Arc::clone(device),
        load,
        end: start + RUN_TIME,
        submitted: AtomicU64::new(0),
        random: Mutex::new(SeededRandom::new(1)),
        completed,
    });
    for _ in 0..load.depth {
        let mut buffer = AlignedBuffer::zeroed(load.len);
        SeededRandom::new(2).fill(&mut buffer);
        Arc::clone(&run).next(buffer, 0);
    }
    drop(run);
    let mut requests = 0;
    for chain in chains {
        requests += chain?;
    }
    print(load.name, requests, load.len, start.elapsed());
    Ok(())
}

fn measure_waiting(device: &dyn Device) -> Result<(), DeviceError> {
    let start = Instant::now();
    let mut buffer = AlignedBuffer::zeroed(4096);
    let mut requests = 0;
    while start.elapsed() < RUN_TIME {
        let offset = ByteOffset(requests * 4096 % FILE_BYTES);
        buffer = block_on(write(device, offset, buffer, Durability::Immediate))?;
        requests += 1;
    }
    print("durable write 4 KiB, qd 1, waiting", requests, 4096, start.elapsed());
    Ok(())
}

fn print(name: &str, requests: u64, len: usize, elapsed: Duration) {
    let a_second = requests as f64 / elapsed.as_secs_f64();
    println!("{name:36} {a_second:10.0} /s {:8.0} MB/s", a_second * len as f64 / 1e6);
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let path = arguments.iter().find(|argument| !argument.starts_with("--"));
    let path = Path::new(path.ok_or("usage: raw FILE [--threads] [--buffered] [--only=PART]")?);
    let access = match path.exists() {
        true => Access::Open,
        false => Access::Create { size_bytes: FILE_BYTES },
    };
    let engine = if has("--threads") { IoEngine::Threads } else { IoEngine::Uring };
    let options =
        FileOptions { access, engine, direct: !has("--buffered"), ..FileOptions::default() };
    let device = file::open(path, &options)?;
    println!("{} {} direct: {}", path.display(), device.engine_name(), device.is_direct());
    let device: Arc<dyn Device> = device;
    let only = arguments.iter().find_map(|argument| argument.strip_prefix("--only="));
    if let Some(part) = only {
        for load in LOADS.into_iter().filter(|load| load.name.contains(part)) {
            measure(&device, load)?;
        }
        return Ok(());
    }
    let mut buffer = AlignedBuffer::zeroed(1 << 20);
    SeededRandom::new(3).fill(&mut buffer);
    for offset in (0..FILE_BYTES).step_by(1 << 20) {
        buffer = block_on(write(&*device, ByteOffset(offset), buffer, Durability::Flush))?;
    }
    for load in LOADS {
        measure(&device, load)?;
    }
    measure_waiting(&*device)?;
    Ok(())
}
