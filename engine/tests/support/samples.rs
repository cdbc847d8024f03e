//! Small pools that were closed or lost power, in which each way to make data durable was used, and
//! where their structures are.

use std::{sync::Arc, thread, time::Duration};

use siltstone_device::sim::SimDevice;
use siltstone_engine::{CheckReport, EngineError, OpenOptions, Pool, Tuning, VolumeOptions};

use super::{
    content::{BLOCK, Block, SECTORS, bytes_of, tags_of},
    pools::{self, KIB, MIB},
};

pub const DISK_BLOCKS: u64 = 24;
pub const SUPERBLOCKS: [u64; 2] = [0, 512 * KIB];
pub const MARKS: [u64; 2] = [256 * KIB, 768 * KIB];
/// First copies, then second copies, of the slots of even and odd numbers.
pub const CHECKPOINT_COPIES: [[u64; 2]; 2] = [[MIB, 3 * MIB], [2 * MIB, 4 * MIB]];
pub const LOG: std::ops::Range<u64> = 5 * MIB..6 * MIB;
/// First copies, then as many second copies.
pub const TABLE: u64 = 6 * MIB;

/// How flushes reach the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Log,
    Units,
    /// Through the log, and soon after through units as well.
    Both,
    /// First one, then the other, so that each has something the other has not.
    UnitsThenLog,
    LogThenUnits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    /// Power was lost when the pool had been idle for longer than the mark's delay.
    PowerLost,
}

pub fn options(read_only: bool, log_commit_bytes: usize) -> OpenOptions {
    let tuning = Tuning {
        reducers: 1,
        staging_bytes: 1 << 20,
        frame_cache_bytes: 64 << 10,
        page_cache_bytes: 64 << 10,
        linger: Duration::from_millis(1),
        checkpoint_interval: Duration::from_secs(3600),
        log_commit_bytes,
        mark_delay: Duration::from_millis(1),
        warm_index: false,
        ..Tuning::default()
    };
    OpenOptions { read_only, tuning }
}

/// A pool, the contents of its disk, and the device as it was at earlier moments.
pub struct Sample {
    pub device: Arc<SimDevice>,
    pub blocks: Vec<Block>,
    pub earlier: Vec<Arc<SimDevice>>,
}

pub fn wait_for_mark(pool: &Pool, way: Way) {
    loop {
        let stat = pool.stat();
        let is_published = stat.pending_changes == 0 || way == Way::Log;
        if is_published && stat.marked_sequence == stat.durable_sequence {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

pub fn content(version: u32, block: u64) -> Block {
    std::array::from_fn(|sector| (version * 10_000 + block as u32 * 8 + sector as u32) | 1 << 24)
}

impl Sample {
    pub fn new(way: Way, end: End) -> Self {
        let device = pools::create();
        let pool = Pool::open_on(device.clone(), None, &options(false, 1 << 20)).unwrap();
        let size = VolumeOptions::new(DISK_BLOCKS * BLOCK as u64);
        pool.create_volume("disk", &size).unwrap();
        pool.close().unwrap();

        let mut sample =
            Self { device, blocks: vec![[0; SECTORS]; DISK_BLOCKS as usize], earlier: Vec::new() };
        let ways = match way {
            Way::Log | Way::Units | Way::Both => [way, way],
            Way::UnitsThenLog => [Way::Units, Way::Log],
            Way::LogThenUnits => [Way::Log, Way::Units],
        };
        // An age that checkpoints cover, then one that is only flushed: in two processes, for what
        // is logged and what is not is the process's to choose.
        sample.live(ways[0], 1, true, End::Closed);
        sample.live(ways[0], 3, false, End::PowerLost);
        sample.live(ways[1], 5, false, end);
        sample
    }

    /// Opens the pool, writes and flushes two versions, and closes it or cuts the power.
    fn live(&mut self, way: Way, version: u32, checkpoint: bool, end: End) {
        let mut options = options(false, if way == Way::Units { 0 } else { 1 << 20 });
        if way == Way::Log {
            // Not in units by themselves.
            options.tuning.linger = Duration::from_secs(3600);
        }
        let pool = Pool::open_on(self.device.clone(), None, &options).unwrap();
        let disk = pool.volume("disk").unwrap();
        for version in version..version + 2 {
            for block in (0..DISK_BLOCKS).filter(|block| block % 5 != u64::from(version) % 5) {
                let contents = content(version, block);
                disk.write_at(block * BLOCK as u64, &bytes_of(&contents)).unwrap();
                self.blocks[block as usize] = contents;
            }
            disk.flush().unwrap();
            self.earlier.push(self.device.snapshot());
            if checkpoint {
                pool.checkpoint().unwrap();
            }
        }
        wait_for_mark(&pool, way);
        match end {
            End::Closed => {
                pool.close().unwrap();
                self.device = self.device.snapshot();
            }
            End::PowerLost => {
                let lost = self.device.snapshot();
                self.device.cut_power();
                drop(pool);
                self.device = lost;
            }
        }
    }

    /// Blocks of a range of the device that are not empty.
    pub fn used(&self, range_bytes: std::ops::Range<u64>) -> Vec<u64> {
        pools::used_blocks(&self.device, range_bytes)
    }

    /// What becomes of the pool's opening and reading after some damage.
    pub fn outcome(&self, device: &Arc<SimDevice>, read_only: bool) -> Result<(), EngineError> {
        let pool = Pool::open_on(device.clone(), None, &options(read_only, 1 << 20))?;
        let disk = pool.volume("disk")?;
        let mut found = vec![0; BLOCK];
        for (block, expected) in (0..).zip(&self.blocks) {
            disk.read_at(block * BLOCK as u64, &mut found)?;
            if found != bytes_of(expected) {
                let found = tags_of(&found);
                panic!("block {block} reads {found:?}, not {expected:?}");
            }
        }
        if read_only { Ok(()) } else { pool.close() }
    }

    pub fn damaged(&self, damage: impl FnOnce(&SimDevice)) -> Arc<SimDevice> {
        let device = self.device.snapshot();
        damage(&device);
        device
    }
}

pub fn check(device: &Arc<SimDevice>) -> CheckReport {
    let pool = Pool::open_on(device.clone(), None, &options(true, 0)).unwrap();
    pool.check(&mut |_| {}).unwrap()
}

/// The number of the structure at `at`.
pub fn number(device: &SimDevice, at: u64) -> u64 {
    let header = device.peek(at, 40);
    if header[..4] != *b"SLTS" {
        return 0;
    }
    u64::from_le_bytes(header[32..40].try_into().unwrap())
}

pub fn newest_checkpoint(device: &SimDevice) -> [u64; 2] {
    CHECKPOINT_COPIES.into_iter().max_by_key(|slot| number(device, slot[0])).unwrap()
}

pub fn newest_record(device: &SimDevice) -> u64 {
    LOG.step_by(BLOCK).max_by_key(|&at| number(device, at)).unwrap()
}

pub const WAYS: [Way; 5] = [Way::Log, Way::Units, Way::Both, Way::UnitsThenLog, Way::LogThenUnits];
