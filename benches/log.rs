//! Appending a small change to the NVRAM log: on simulated memory, where only the log's own work
//! counts, and on a file, where the device's durable write does.

use std::{path::Path, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use pollster::block_on;
use siltstone_device::{
    BlockAddress, ByteOffset, Device, Durability, LayerId, Sequence,
    file::{self, Access, FileOptions},
    request,
    sim::SimDevice,
};
use siltstone_nvram::{Change, ChangeBody, Log, LogIdentity, Region};

const RING_BYTES: u64 = 16 << 20;
const IDENTITY: LogIdentity = LogIdentity { first: 1, second: 2 };

/// Appends a block, and trims so that there is always room.
struct Appender {
    log: Log,
    sequence: Sequence,
    data: Vec<u8>,
}

impl Appender {
    fn new(device: Arc<dyn Device>) -> Self {
        let region = Region { offset: ByteOffset(0), len_bytes: RING_BYTES };
        block_on(Log::format(Arc::clone(&device), region, IDENTITY)).expect("the region fits");
        let (log, _) = block_on(Log::open(device, region, IDENTITY)).expect("it was just made");
        let data = siltstone_benches::data::sample(4096).expect("the system has files");
        Self { log, sequence: Sequence(0), data }
    }

    fn append(&mut self) {
        self.sequence = self.sequence.next();
        let change = Change {
            layer: LayerId(1),
            address: BlockAddress(self.sequence.0),
            len_blocks: 1,
            sequence: self.sequence,
            body: ChangeBody::Data(&self.data),
        };
        block_on(self.log.append(&[change])).expect("there is room");
        if self.log.used_bytes() > RING_BYTES / 2 {
            self.log.trim(self.sequence);
        }
    }
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log");
    let device = SimDevice::new(RING_BYTES);
    let mut appender = Appender::new(device.clone());
    group.bench_function("append 4 KiB, simulated device", |bencher| {
        bencher.iter(|| appender.append());
        device.forget_history();
    });

    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("siltstone-bench-log");
    let _ = std::fs::remove_file(&path);
    let access = Access::Create { size_bytes: RING_BYTES };
    let device = file::open(&path, &FileOptions { access, ..FileOptions::default() })
        .expect("the target directory takes a file");
    let mut appender = Appender::new(device.clone());
    group.bench_function("append 4 KiB, file", |bencher| bencher.iter(|| appender.append()));
    let mut buffer = Some(siltstone_device::AlignedBuffer::zeroed(4096));
    let mut at = 0;
    group.bench_function("the file's own durable 4 KiB write", |bencher| {
        bencher.iter(|| {
            let offset = ByteOffset(at % RING_BYTES);
            let taken = buffer.take().expect("it came back");
            let written = request::write(&*device, offset, taken, Durability::Immediate);
            buffer = Some(block_on(written).expect("the file takes it"));
            at += 4096;
        });
    });
    group.finish();
    // The device goes with its users; a file that stays behind is overwritten by the next run.
    let _ = std::fs::remove_file(&path);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = append
}
criterion_main!(benches);
