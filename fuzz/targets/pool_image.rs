#![no_main]
//! A pool whose structures say what no writer writes, under valid checksums.
//!
//! No two pools are alike, so the input says something only together with the pool that it
//! damages: the file named by the environment variable SILTSTONE_FUZZ_IMAGE.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use siltstone_device::{
    BLOCK_BYTES, ByteOffset,
    header::{self, HEADER_BYTES, Header, Identity, Kind},
    sim::SimDevice,
};
use siltstone_engine::{EngineError, OpenOptions, Pool};
use siltstone_fuzz::{
    pool::{self, Structure, VOLUME, VOLUME_BLOCKS},
    record,
};
use siltstone_nvram::LogIdentity;
use zerocopy::FromBytes;

/// Where the NVRAM log's nonces stand in the superblock.
const NONCES: usize = HEADER_BYTES + 40;
/// And the index's memory.
const INDEX_MEMORY: usize = HEADER_BYTES + 120;

struct Base {
    device: Arc<SimDevice>,
    structures: Vec<Structure>,
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let device = match std::env::var_os("SILTSTONE_FUZZ_IMAGE") {
        Some(path) => pool::image(&std::fs::read(path).expect("the image is readable")),
        None => pool::lived_in(),
    };
    let structures = pool::structures(&device);
    Base { device, structures }
});

const KINDS: [Kind; 8] = [
    Kind::Superblock,
    Kind::Checkpoint,
    Kind::LogRecord,
    Kind::WriteUnit,
    Kind::PatchLeaf,
    Kind::PatchFence,
    Kind::SegmentTable,
    Kind::DurabilityMark,
];

/// Makes an edited structure valid again; only its sequence number is believed.
fn seal(bytes: &mut [u8], structure: &Structure, device: &SimDevice) {
    if structure.is(Kind::Superblock) {
        // A terabyte is a valid setting, and too much for a fuzzer.
        bytes[INDEX_MEMORY..INDEX_MEMORY + 8].copy_from_slice(&(64u64 << 10).to_le_bytes());
    }
    let Some(kind) = KINDS.into_iter().find(|kind| structure.is(*kind)) else { return };
    let (edited, _) = Header::read_from_prefix(&*bytes).expect("structures have headers");
    if kind == Kind::LogRecord {
        let nonces = device.peek(NONCES as u64, 16);
        let [first, second] =
            [0, 8].map(|at| u64::from_le_bytes(nonces[at..at + 8].try_into().expect("8 bytes")));
        let identity = LogIdentity { first, second };
        return record::seal(bytes, &identity, ByteOffset(structure.offset_bytes));
    }
    let identity = Identity {
        kind,
        version: structure.header.version.get(),
        pool: structure.header.pool.get(),
        address_bytes: structure.offset_bytes,
    };
    header::seal(bytes, &identity, edited.sequence.get());
}

fn damage(device: &SimDevice, input: &mut Unstructured<'_>) -> Result<()> {
    let mut edited = BTreeSet::new();
    for _ in 0..input.int_in_range(1..=6)? {
        let which = input.choose_index(BASE.structures.len())?;
        let structure = &BASE.structures[which];
        let mut bytes = structure.read(device);
        // Sequence and body; what is most interesting stands in front.
        let room = (bytes.len() - 32).min(if input.arbitrary()? { 512 } else { usize::MAX });
        let at = 32 + usize::from(input.arbitrary::<u16>()?) % room;
        let len = input.int_in_range(1..=16)?.min(bytes.len() - at);
        input.fill_buffer(&mut bytes[at..at + len])?;
        device.corrupt(structure.offset_bytes, &bytes);
        edited.insert(which);
    }
    for which in edited {
        let structure = &BASE.structures[which];
        let mut bytes = structure.read(device);
        seal(&mut bytes, structure, device);
        device.corrupt(structure.offset_bytes, &bytes);
    }
    Ok(())
}

fn use_pool(device: &Arc<SimDevice>) -> std::result::Result<(), EngineError> {
    let mut data = vec![0; 8 * BLOCK_BYTES];
    let read_only = OpenOptions { read_only: true, ..pool::options() };
    if let Ok(pool) = Pool::open_on(device.clone(), None, &read_only) {
        let _ = pool.check(&mut |_| {});
        let volumes = pool.volumes().into_iter().map(|info| info.name);
        let snapshots = pool.snapshots().into_iter();
        let snapshots = snapshots.map(|info| format!("{}@{}", info.volume, info.snapshot));
        for name in volumes.chain(snapshots) {
            let volume = pool.volume(&name)?;
            for at in 0..VOLUME_BLOCKS.min(volume.size_bytes() / BLOCK_BYTES as u64) {
                let _ = volume.read_at(at * BLOCK_BYTES as u64, &mut data[..BLOCK_BYTES]);
            }
        }
    }
    let pool = Pool::open_on(device.clone(), None, &pool::options())?;
    let volume = pool.volume(VOLUME)?;
    data.fill(7);
    volume.write_at(5 * BLOCK_BYTES as u64, &data)?;
    volume.discard(20 * BLOCK_BYTES as u64, 3 * BLOCK_BYTES as u64)?;
    volume.write_at(1000, &data[..3000])?;
    volume.flush()?;
    let snapshot = format!("{VOLUME}@new").parse()?;
    pool.create_snapshots(std::slice::from_ref(&snapshot))?;
    volume.discard(0, 8 * BLOCK_BYTES as u64)?;
    pool.checkpoint()?;
    volume.read_at(0, &mut data)?;
    pool.roll_back(&snapshot)?.read_at(0, &mut data)?;
    pool.delete_snapshots(&[snapshot])?;
    pool.close()
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let device = BASE.device.snapshot();
    if damage(&device, &mut Unstructured::new(input)).is_ok() {
        let _ = use_pool(&device);
    }
});
