//! Small durable writes of many clients by a simple program, one write under way at a time: what gathers
//! while the device writes is its next write, and a client waits until its own is done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pollster::block_on;
use siltstone_device::{
    AlignedBuffer, ByteOffset, Device, DeviceError, Durability, SeededRandom, request,
};

use crate::{
    data::BLOCK_BYTES,
    sample::{Sample, Stopwatch},
};

const WAITING: u8 = 0;
/// It is to write what has gathered, its own with it.
const LEADING: u8 = 1;
const DONE: u8 = 2;

/// A client that waits.
struct Waiter {
    state: AtomicU8,
    thread: Thread,
}

impl Waiter {
    fn tell(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.thread.unpark();
    }
}

#[derive(Default)]
struct Gathered {
    is_writing: bool,
    waiters: Vec<Arc<Waiter>>,
}

struct Commits<'a> {
    device: &'a dyn Device,
    blocks: u64,
    gathered: Mutex<Gathered>,
}

impl Commits<'_> {
    /// Makes a block of the caller's durable, together with those of all who wait. `buffer` has room for all.
    fn commit(
        &self,
        waiter: &Arc<Waiter>,
        random: &mut SeededRandom,
        mut buffer: AlignedBuffer,
    ) -> Result<AlignedBuffer, DeviceError> {
        {
            let mut gathered = self.gathered.lock();
            if gathered.is_writing {
                waiter.state.store(WAITING, Ordering::Relaxed);
                gathered.waiters.push(Arc::clone(waiter));
                drop(gathered);
                while waiter.state.load(Ordering::Acquire) == WAITING {
                    thread::park();
                }
                if waiter.state.load(Ordering::Acquire) == DONE {
                    return Ok(buffer);
                }
            } else {
                gathered.is_writing = true;
            }
        }
        let others = std::mem::take(&mut self.gathered.lock().waiters);
        let blocks = 1 + others.len();
        buffer.set_len(blocks * BLOCK_BYTES);
        let offset = ByteOffset(random.below(self.blocks - blocks as u64) * BLOCK_BYTES as u64);
        let written = block_on(request::write(self.device, offset, buffer, Durability::Immediate));
        let mut gathered = self.gathered.lock();
        let next = gathered.waiters.pop();
        gathered.is_writing = next.is_some();
        drop(gathered);
        // The device first.
        if let Some(next) = next {
            next.tell(LEADING);
        }
        others.iter().for_each(|other| other.tell(DONE));
        written
    }
}

/// Clients that each make a block durable, again and again. Counts blocks.
///
/// # Errors
/// If the device fails.
pub(crate) fn run(
    device: &dyn Device,
    span_bytes: u64,
    clients: usize,
    time: Duration,
) -> Result<Sample, DeviceError> {
    let blocks = span_bytes / BLOCK_BYTES as u64;
    let commits = Commits { device, blocks, gathered: Mutex::default() };
    let end = Instant::now() + time;
    let stopwatch = Stopwatch::start();
    let client = |number: usize| {
        let waiter = Waiter { state: AtomicU8::new(WAITING), thread: thread::current() };
        let waiter = Arc::new(waiter);
        let mut random = SeededRandom::new(number as u64);
        let mut buffer = AlignedBuffer::zeroed(clients * BLOCK_BYTES);
        random.fill(&mut buffer);
        let mut count = 0_u64;
        while Instant::now() < end {
            buffer = commits.commit(&waiter, &mut random, buffer)?;
            count += 1;
        }
        Ok::<u64, DeviceError>(count)
    };
    let client = &client;
    let counts: Result<Vec<u64>, DeviceError> = thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|n| scope.spawn(move || client(n))).collect();
        clients.into_iter().map(|client| client.join().expect("a client returns")).collect()
    });
    Ok(stopwatch.stop(counts?.into_iter().sum()))
}
