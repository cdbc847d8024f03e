//! A small pool, and the structures in its image.

use std::{sync::Arc, time::Duration};

use siltstone_device::{
    BLOCK_BYTES, SeededRandom,
    header::{HEADER_BYTES, Header, Kind, MAGIC},
    sim::SimDevice,
};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Tuning, VolumeOptions};
use zerocopy::FromBytes;

/// The only volume of the pools here.
pub const VOLUME: &str = "disk";
/// Its size, in blocks.
pub const VOLUME_BLOCKS: u64 = 64;

const MIB: u64 = 1 << 20;

/// Options for a pool that takes little memory and few threads.
pub fn options() -> OpenOptions {
    let tuning = Tuning {
        staging_bytes: 256 << 10,
        batch_bytes: 32 << 10,
        frame_cache_bytes: 256 << 10,
        page_cache_bytes: 64 << 10,
        reducers: 1,
        linger: Duration::ZERO,
        memtable_entries: 50,
        checkpoint_interval: Duration::from_secs(60),
        log_commit_bytes: 64 << 10,
        mark_delay: Duration::ZERO,
        warm_index: false,
        ..Tuning::default()
    };
    OpenOptions { read_only: false, tuning }
}

/// A new pool with an empty volume, closed.
pub fn empty() -> Arc<SimDevice> {
    let device = SimDevice::new(64 * MIB);
    let options = CreateOptions {
        segment_bytes: Some(256 << 10),
        nvram_bytes: Some(MIB),
        index_memory_bytes: 64 << 10,
        ..CreateOptions::default()
    };
    Pool::create_on(device.clone(), None, &options).expect("the device is large enough");
    let pool = Pool::open_on(device.clone(), None, &self::options()).expect("it is new");
    let volume = VolumeOptions::new(VOLUME_BLOCKS * BLOCK_BYTES as u64);
    pool.create_volume(VOLUME, &volume).expect("the name is free");
    pool.close().expect("the device does not fail");
    device.snapshot()
}

/// A pool whose power was cut: patches, segments, snapshots, a clone, and records in its log.
pub fn lived_in() -> Arc<SimDevice> {
    let device = empty();
    let pool = Pool::open_on(device.clone(), None, &options()).expect("it is whole");
    let volume = pool.volume(VOLUME).expect("it is there");
    let mut random = SeededRandom::new(1);
    let block = BLOCK_BYTES as u64;
    for round in 0..24 {
        let first = random.below(VOLUME_BLOCKS - 8);
        let mut data = vec![round as u8; (1 + random.below(8)) as usize * BLOCK_BYTES];
        match round % 3 {
            0 => random.fill(&mut data),
            1 => data.chunks_mut(32).for_each(|chunk| random.fill(&mut chunk[..8])),
            _ => {}
        }
        volume.write_at(first * block, &data).expect("there is room");
        match round {
            9 => volume.discard(first * block, 3 * block).expect("there is room"),
            8 | 16 => pool.checkpoint().expect("the device does not fail"),
            6 | 14 => {
                let name = format!("{VOLUME}@{round}").parse().expect("it can be a name");
                pool.create_snapshots(&[name]).expect("the name is free");
            }
            18 => {
                let name = format!("{VOLUME}@6").parse().expect("it can be a name");
                let clone = pool.clone_snapshot(&name, "clone").expect("the name is free");
                clone.write_at(first * block, &data).expect("there is room");
            }
            _ if round % 4 == 3 => volume.flush().expect("the device does not fail"),
            _ => {}
        }
    }
    device.cut_power();
    drop(pool);
    device.crash_at(device.history_len(), &mut random)
}

/// The same, opened and closed again, with an image of its index.
pub fn with_index_image() -> Arc<SimDevice> {
    let device = lived_in();
    let mut options = options();
    options.tuning.warm_index = true;
    options.tuning.image_segments = 0;
    let pool = Pool::open_on(device.clone(), None, &options).expect("it recovers");
    pool.wait_index_warm().expect("the device does not fail");
    pool.close().expect("the device does not fail");
    device
}

/// The blocks of an image that are not zero, each after its offset.
pub fn image_bytes(device: &SimDevice) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset_bytes in (0..64 * MIB).step_by(BLOCK_BYTES) {
        let block = device.peek(offset_bytes, BLOCK_BYTES);
        if block.iter().any(|byte| *byte != 0) {
            bytes.extend_from_slice(&offset_bytes.to_le_bytes());
            bytes.extend_from_slice(&block);
        }
    }
    bytes
}

/// The image that [`image_bytes`] made into `bytes`.
pub fn image(bytes: &[u8]) -> Arc<SimDevice> {
    let device = SimDevice::new(64 * MIB);
    for block in bytes.chunks_exact(8 + BLOCK_BYTES) {
        let (offset_bytes, block) = block.split_first_chunk().expect("the chunk is longer");
        device.corrupt(u64::from_le_bytes(*offset_bytes), block);
    }
    device.snapshot()
}

/// A structure with the common header.
#[derive(Clone, Copy, Debug)]
pub struct Structure {
    /// Where it is.
    pub offset_bytes: u64,
    /// Its header.
    pub header: Header,
}

impl Structure {
    /// Its length, header included.
    pub fn len_bytes(&self) -> usize {
        self.header.length_bytes.get() as usize
    }

    /// Whether it is of that kind.
    pub fn is(&self, kind: Kind) -> bool {
        self.header.kind.get() == kind as u16
    }

    /// Its bytes.
    pub fn read(&self, device: &SimDevice) -> Vec<u8> {
        device.peek(self.offset_bytes, self.len_bytes())
    }
}

/// Every structure of an image, in order.
pub fn structures(device: &SimDevice) -> Vec<Structure> {
    let mut found = Vec::new();
    for offset_bytes in (0..64 * MIB).step_by(BLOCK_BYTES) {
        let head = device.peek(offset_bytes, HEADER_BYTES);
        let header = Header::read_from_bytes(&head).expect("the length is right");
        if header.magic == MAGIC && header.address_bytes.get() == offset_bytes {
            found.push(Structure { offset_bytes, header });
        }
    }
    found
}
