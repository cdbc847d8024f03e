//! The device alone, through the same crate that the engine uses.

use std::{
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
    AlignedBuffer, ByteOffset, Device, DeviceError, Durability, Request, SeededRandom, request,
};

use crate::sample::{Latencies, Sample, Stopwatch};

/// How long to go on.
#[derive(Clone, Copy)]
pub enum Amount {
    /// So many bytes.
    Bytes(u64),
    /// For so long.
    Time(Duration),
}

/// A stream of equal requests.
#[derive(Clone, Copy)]
pub struct Load {
    is_read: bool,
    is_random: bool,
    len_bytes: usize,
    depth: u64,
}

impl Load {
    /// 1 MiB writes in order, 8 under way.
    pub const SEQUENTIAL_WRITE: Self =
        Self { is_read: false, is_random: false, len_bytes: 1 << 20, depth: 8 };
    /// Such reads.
    pub const SEQUENTIAL_READ: Self = Self { is_read: true, ..Self::SEQUENTIAL_WRITE };
    /// 4 KiB writes at random places, 32 under way.
    pub const RANDOM_WRITE: Self =
        Self { is_read: false, is_random: true, len_bytes: 4096, depth: 32 };
    /// Such reads.
    pub const RANDOM_READ: Self = Self { is_read: true, ..Self::RANDOM_WRITE };
}

/// A load under way: `depth` chains, in each of which a completion submits the next request. No
/// thread but the device's own is woken, so nothing can drive the device with less.
struct Run {
    device: Arc<dyn Device>,
    load: Load,
    slots: u64,
    /// Requests to submit, or none but the time's.
    limit: u64,
    end: Option<Instant>,
    submitted: AtomicU64,
    random: Mutex<SeededRandom>,
    ended: mpsc::Sender<Result<Latencies, DeviceError>>,
}

impl Run {
    fn next(self: Arc<Self>, buffer: AlignedBuffer, mut done: Latencies) {
        let number = self.submitted.fetch_add(1, Ordering::Relaxed);
        if number >= self.limit || self.end.is_some_and(|end| Instant::now() >= end) {
            // The receiver counts the chains and has not gone.
            let _ = self.ended.send(Ok(done));
            return;
        }
        let slot = match self.load.is_random {
            true => self.random.lock().below(self.slots),
            false => number % self.slots,
        };
        let offset = ByteOffset(slot * self.load.len_bytes as u64);
        let device = Arc::clone(&self.device);
        let is_read = self.load.is_read;
        let start = Instant::now();
        let completion = Box::new(move |buffer, outcome: Result<(), DeviceError>| match outcome {
            Ok(()) => {
                done.add(start);
                self.next(buffer, done);
            }
            Err(error) => {
                let _ = self.ended.send(Err(error));
            }
        });
        let durability = Durability::Flush;
        device.submit(vec![if is_read {
            Request::Read { offset, buffer, completion }
        } else {
            Request::Write { offset, buffer, durability, completion }
        }]);
    }
}

/// Runs a load over the first `span_bytes`; writes are flushed at the end. Counts requests.
///
/// # Errors
/// If the device fails.
pub fn run(
    device: &Arc<dyn Device>,
    span_bytes: u64,
    load: Load,
    amount: Amount,
) -> Result<Sample, DeviceError> {
    Ok(run_timed(device, span_bytes, load, amount)?.0)
}

/// The same, with how long each request took.
///
/// # Errors
/// If the device fails.
pub fn run_timed(
    device: &Arc<dyn Device>,
    span_bytes: u64,
    load: Load,
    amount: Amount,
) -> Result<(Sample, Latencies), DeviceError> {
    let buffers: Vec<_> = (0..load.depth)
        .map(|chain| {
            let mut buffer = AlignedBuffer::zeroed(load.len_bytes);
            SeededRandom::new(chain).fill(&mut buffer);
            buffer
        })
        .collect();
    let (ended, chains) = mpsc::channel();
    let stopwatch = Stopwatch::start();
    let (limit, end) = match amount {
        Amount::Bytes(bytes) => (bytes / load.len_bytes as u64, None),
        Amount::Time(time) => (u64::MAX, Some(Instant::now() + time)),
    };
    let run = Arc::new(Run {
        device: Arc::clone(device),
        load,
        slots: span_bytes / load.len_bytes as u64,
        limit,
        end,
        submitted: AtomicU64::new(0),
        random: Mutex::new(SeededRandom::new(1)),
        ended,
    });
    for buffer in buffers {
        Arc::clone(&run).next(buffer, Latencies::default());
    }
    drop(run);
    let mut requests = Latencies::default();
    for chain in chains {
        requests.extend(chain?);
    }
    if !load.is_read {
        block_on(request::flush(&**device))?;
    }
    Ok((stopwatch.stop(requests.count()), requests))
}

/// The same in bytes.
///
/// # Errors
/// If the device fails.
pub fn run_bytes(
    device: &Arc<dyn Device>,
    span_bytes: u64,
    load: Load,
    amount: Amount,
) -> Result<Sample, DeviceError> {
    Ok(run(device, span_bytes, load, amount)?.times(load.len_bytes as u64))
}

/// One client that waits for each durable 4 KiB write, at random places. Counts writes.
///
/// # Errors
/// If the device fails.
pub fn durable_writes(
    device: &dyn Device,
    span_bytes: u64,
    time: Duration,
) -> Result<Sample, DeviceError> {
    let mut buffer = AlignedBuffer::zeroed(4096);
    let mut random = SeededRandom::new(1);
    random.fill(&mut buffer);
    let stopwatch = Stopwatch::start();
    let mut writes = 0;
    while stopwatch.elapsed() < time {
        let offset = ByteOffset(random.below(span_bytes / 4096) * 4096);
        buffer = block_on(request::write(device, offset, buffer, Durability::Immediate))?;
        writes += 1;
    }
    Ok(stopwatch.stop(writes))
}
