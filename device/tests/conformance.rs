//! Every medium keeps the contract of `Device`: the same tests for each of them.

#![allow(clippy::unwrap_used, reason = "tests say by panicking what went wrong")]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use pollster::block_on;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, Device, DeviceError, Durability, Operation, Request,
    SeededRandom,
    file::{self, Access, FileOptions, IoEngine},
    mapped,
    request::{discard, flush, read, write},
    sim::SimDevice,
};

const SIZE_BYTES: u64 = 16 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A directory on the filesystem of the build, which does direct I/O where /tmp may not.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A way to make a device; the directory lives as long as the test.
struct Medium {
    name: &'static str,
    make: fn(&Path) -> Arc<dyn Device>,
}

fn create(path: &Path, engine: IoEngine, direct: bool, queue_depth: u32) -> Arc<file::FileDevice> {
    let access = Access::Create { size_bytes: SIZE_BYTES };
    file::open(path, &FileOptions { access, engine, direct, queue_depth }).unwrap()
}

const MEDIA: [Medium; 7] = [
    Medium { name: "io_uring", make: |path| create(path, IoEngine::Uring, true, 16) },
    Medium { name: "io_uring, depth 1", make: |path| create(path, IoEngine::Uring, true, 1) },
    Medium { name: "io_uring, buffered", make: |path| create(path, IoEngine::Uring, false, 16) },
    Medium { name: "threads", make: |path| create(path, IoEngine::Threads, true, 4) },
    Medium {
        name: "mapped",
        make: |path| mapped::open(path, Access::Create { size_bytes: SIZE_BYTES }).unwrap(),
    },
    Medium { name: "simulated", make: |_| SimDevice::new(SIZE_BYTES) },
    Medium { name: "simulated, shuffled", make: |_| SimDevice::shuffled(SIZE_BYTES, 1) },
];

/// Runs a test on every medium.
fn on_every_medium(test: impl Fn(Arc<dyn Device>)) {
    for medium in MEDIA {
        let directory = directory();
        eprintln!("on {}", medium.name);
        test((medium.make)(&directory.path().join("device")));
    }
}

fn pattern(seed: u64, len: usize) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::zeroed(len);
    SeededRandom::new(seed).fill(&mut buffer);
    buffer
}

fn read_now(device: &dyn Device, offset: u64, len: usize) -> AlignedBuffer {
    block_on(read(device, ByteOffset(offset), AlignedBuffer::zeroed(len))).unwrap()
}

#[test]
fn what_was_written_is_read_back() {
    on_every_medium(|device| {
        assert_eq!(device.size_bytes(), SIZE_BYTES);
        assert!(read_now(&*device, 0, 8192).iter().all(|&byte| byte == 0), "fresh is zero");
        let cases = [(0, 4096), (4096, 8192), (1 << 20, 3 << 20), (SIZE_BYTES - BLOCK, 4096)];
        for (offset, len) in cases {
            for durability in [Durability::Flush, Durability::Immediate] {
                let data = pattern(offset + len as u64, len);
                let written = write(&*device, ByteOffset(offset), data, durability);
                let data = block_on(written).unwrap();
                assert_eq!(data[..], pattern(offset + len as u64, len)[..], "buffer comes back");
                assert_eq!(read_now(&*device, offset, len)[..], data[..]);
            }
        }
        block_on(flush(&*device)).unwrap();
        let mut whole = AlignedBuffer::zeroed(12288);
        whole[..4096].copy_from_slice(&pattern(4096, 4096));
        whole[4096..].copy_from_slice(&pattern(4096 + 8192, 8192));
        assert_eq!(read_now(&*device, 0, 12288)[..], whole[..]);
    });
}

#[test]
fn batches_far_beyond_the_queue_depth_complete_each_once() {
    on_every_medium(|device| {
        let blocks = 2000_u64;
        let (sender, receiver) = mpsc::channel();
        let mut batch = Vec::new();
        for block in 0..blocks {
            let sender = sender.clone();
            batch.push(Request::Write {
                offset: ByteOffset(block * BLOCK),
                buffer: pattern(block, BLOCK_BYTES),
                durability: Durability::Flush,
                completion: Box::new(move |_, outcome| sender.send((block, outcome)).unwrap()),
            });
            if block % 100 == 99 {
                device.submit(std::mem::take(&mut batch));
            }
        }
        drop(sender);
        let mut times: HashMap<u64, u32> = HashMap::new();
        for (block, outcome) in receiver {
            outcome.unwrap();
            *times.entry(block).or_default() += 1;
        }
        assert_eq!(times.len() as u64, blocks);
        assert!(times.values().all(|&count| count == 1));

        // A mixed batch: a read of every block, with flushes and discards elsewhere in between.
        let (sender, receiver) = mpsc::channel();
        let mut batch = Vec::new();
        for block in 0..blocks {
            let reply = sender.clone();
            batch.push(Request::Read {
                offset: ByteOffset(block * BLOCK),
                buffer: AlignedBuffer::zeroed(BLOCK_BYTES),
                completion: Box::new(move |buffer, outcome| {
                    let is_right = buffer[..] == pattern(block, BLOCK_BYTES)[..];
                    reply.send(outcome.map(|()| is_right)).unwrap();
                }),
            });
            let reply = sender.clone();
            let completion = Box::new(move |outcome: Result<(), _>| {
                reply.send(outcome.map(|()| true)).unwrap();
            });
            match block % 200 {
                0 => batch.push(Request::Flush { completion }),
                50 => batch.push(Request::Discard {
                    offset: ByteOffset((blocks + block) * BLOCK),
                    len_bytes: 8192,
                    completion,
                }),
                _ => {}
            }
        }
        drop(sender);
        device.submit(batch);
        let outcomes: Vec<_> = receiver.iter().collect();
        assert_eq!(outcomes.len(), 2000 + 10 + 10);
        assert!(outcomes.into_iter().all(|outcome| outcome.unwrap()));
    });
}

#[test]
fn impossible_requests_fail_through_their_completion() {
    on_every_medium(|device| {
        let cases = [
            (SIZE_BYTES, 4096, false),
            (SIZE_BYTES - BLOCK, 8192, false),
            (u64::MAX - BLOCK + 1, 4096, false),
            (1, 4096, true),
            (512, 4096, true),
            (0, 100, true),
        ];
        for (offset, len, unaligned) in cases {
            let check = |operation, outcome: Result<(), DeviceError>| match outcome {
                Err(DeviceError::Unaligned { operation: found, .. }) if unaligned => {
                    assert_eq!(found, operation);
                }
                Err(DeviceError::OutOfRange { operation: found, size_bytes, .. }) if !unaligned => {
                    assert_eq!((found, size_bytes), (operation, SIZE_BYTES));
                }
                other => panic!("{operation} at {offset} of {len}: {other:?}"),
            };
            let offset = ByteOffset(offset);
            let buffer = AlignedBuffer::zeroed(len);
            check(Operation::Read, block_on(read(&*device, offset, buffer)).map(drop));
            let buffer = AlignedBuffer::zeroed(len);
            let written = write(&*device, offset, buffer, Durability::Flush);
            check(Operation::Write, block_on(written).map(drop));
            check(Operation::Discard, block_on(discard(&*device, offset, len as u64)));
        }
        // Nothing to do is no failure.
        assert_eq!(read_now(&*device, SIZE_BYTES, 0).len(), 0);
        block_on(discard(&*device, ByteOffset(4096), 0)).unwrap();
    });
}

#[test]
fn a_discarded_range_reads_as_zeros_or_as_before() {
    on_every_medium(|device| {
        let data = pattern(5, 3 * BLOCK_BYTES);
        block_on(write(&*device, ByteOffset(0), data, Durability::Flush)).unwrap();
        block_on(discard(&*device, ByteOffset(BLOCK), BLOCK)).unwrap();
        block_on(flush(&*device)).unwrap();
        let (before, now) = (pattern(5, 3 * BLOCK_BYTES), read_now(&*device, 0, 3 * BLOCK_BYTES));
        let middle = BLOCK_BYTES..2 * BLOCK_BYTES;
        assert!(now[middle.clone()] == before[middle.clone()] || now[middle] == [0; BLOCK_BYTES]);
        assert_eq!(now[..BLOCK_BYTES], before[..BLOCK_BYTES]);
        assert_eq!(now[2 * BLOCK_BYTES..], before[2 * BLOCK_BYTES..]);
        assert_eq!(device.size_bytes(), SIZE_BYTES);
        let data = pattern(6, BLOCK_BYTES);
        block_on(write(&*device, ByteOffset(BLOCK), data, Durability::Flush)).unwrap();
        assert_eq!(read_now(&*device, BLOCK, BLOCK_BYTES)[..], pattern(6, BLOCK_BYTES)[..]);
    });
}

#[test]
fn dropping_a_device_completes_what_is_in_flight() {
    on_every_medium(|device| {
        let completed = Arc::new(AtomicUsize::new(0));
        let batch = (0..500_u64)
            .map(|block| {
                let completed = Arc::clone(&completed);
                Request::Write {
                    offset: ByteOffset(block * BLOCK),
                    buffer: pattern(block, BLOCK_BYTES),
                    durability: Durability::Flush,
                    completion: Box::new(move |_, outcome| {
                        outcome.unwrap();
                        completed.fetch_add(1, Ordering::SeqCst);
                    }),
                }
            })
            .collect();
        device.submit(batch);
        drop(device);
        assert_eq!(completed.load(Ordering::SeqCst), 500);
    });
}

#[test]
fn a_completion_may_submit_and_may_drop_the_device() {
    on_every_medium(|device| {
        let (sender, receiver) = mpsc::channel();
        let last = Arc::clone(&device);
        let first = Request::Write {
            offset: ByteOffset(0),
            buffer: pattern(1, BLOCK_BYTES),
            durability: Durability::Flush,
            completion: Box::new(move |buffer, outcome| {
                outcome.unwrap();
                let device = Arc::clone(&last);
                let completion = Box::new(move |buffer, outcome| {
                    // Perhaps the last reference, dropped on the device's own thread.
                    drop(last);
                    sender.send((buffer, outcome)).unwrap();
                });
                device.submit(vec![Request::Read { offset: ByteOffset(0), buffer, completion }]);
            }),
        };
        device.submit(vec![first]);
        drop(device);
        let (buffer, outcome) = receiver.recv().unwrap();
        outcome.unwrap();
        assert_eq!(buffer[..], pattern(1, BLOCK_BYTES)[..]);
    });
}

#[test]
fn many_threads_share_a_device() {
    on_every_medium(|device| {
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let device = &device;
                scope.spawn(move || {
                    let mut random = SeededRandom::new(thread);
                    for step in 0..60 {
                        let slot = random.below(64);
                        let offset = ByteOffset((thread * 64 + slot) * 4 * BLOCK);
                        let len = BLOCK_BYTES * (1 + random.below(4) as usize);
                        let seed = thread << 32 | step;
                        let data = pattern(seed, len);
                        block_on(write(&**device, offset, data, Durability::Flush)).unwrap();
                        if random.chance(1, 8) {
                            block_on(flush(&**device)).unwrap();
                        }
                        assert_eq!(read_now(&**device, offset.0, len)[..], pattern(seed, len)[..]);
                    }
                });
            }
        });
    });
}

/// A request outlives the thread that submitted it.
#[test]
fn a_submitter_may_exit_before_its_requests_complete() {
    on_every_medium(|device| {
        for _ in 0..20 {
            let inner = Arc::clone(&device);
            let pending = std::thread::spawn(move || {
                let data = pattern(1, 1 << 20);
                let written = write(&*inner, ByteOffset(0), data, Durability::Immediate);
                (written, flush(&*inner))
            });
            let (written, flushed) = pending.join().unwrap();
            block_on(written).unwrap();
            block_on(flushed).unwrap();
        }
    });
}

type Opener = fn(&Path, Access) -> Result<Arc<dyn Device>, DeviceError>;

fn open_with(
    path: &Path,
    access: Access,
    engine: IoEngine,
) -> Result<Arc<dyn Device>, DeviceError> {
    let device = file::open(path, &FileOptions { access, engine, ..FileOptions::default() })?;
    Ok(device)
}

const OPENERS: [Opener; 3] = [
    |path, access| open_with(path, access, IoEngine::Uring),
    |path, access| open_with(path, access, IoEngine::Threads),
    |path, access| Ok(mapped::open(path, access)?),
];

/// Promise 7: one opener at a time; and the lock is free as soon as the device is dropped.
#[test]
fn a_second_opener_is_refused_until_the_first_is_gone() {
    let directory = directory();
    for (index, opener) in OPENERS.iter().enumerate() {
        let path = directory.path().join(index.to_string());
        let mut device = opener(&path, Access::Create { size_bytes: SIZE_BYTES }).unwrap();
        for _ in 0..10 {
            for second in OPENERS {
                let refused = second(&path, Access::Open).map(|_| ()).unwrap_err();
                assert!(matches!(refused, DeviceError::Locked { .. }), "{refused}");
            }
            assert!(is_locked_for_another_process(&path));
            let data = pattern(9, BLOCK_BYTES);
            block_on(write(&*device, ByteOffset(0), data, Durability::Immediate)).unwrap();
            drop(device);
            device = opener(&path, Access::Open).unwrap();
            assert_eq!(read_now(&*device, 0, BLOCK_BYTES)[..], pattern(9, BLOCK_BYTES)[..]);
        }
    }
}

const CHILD_PATH: &str = "SILTSTONE_TEST_LOCKED_PATH";

fn is_locked_for_another_process(path: &Path) -> bool {
    let test = ["--exact", "in_a_child_process_the_device_is_locked", "--ignored"];
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(test).env(CHILD_PATH, path).output().unwrap();
    output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed")
}

#[test]
#[ignore = "run in a child process by another test"]
fn in_a_child_process_the_device_is_locked() {
    let path = PathBuf::from(std::env::var_os(CHILD_PATH).unwrap());
    let refused = file::open(&path, &FileOptions::default()).unwrap_err();
    assert!(matches!(refused, DeviceError::Locked { .. }), "{refused}");
}
