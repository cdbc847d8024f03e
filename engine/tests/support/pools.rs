//! Small pools in which much happens soon, and work for them.

use std::{ops::Range, sync::Arc};

use parking_lot::Mutex;
use siltstone_device::{
    SeededRandom, Threads,
    sim::{CompletionMode, SimDevice},
};
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, Tuning, VolumeOptions};
pub use siltstone_torture::pools::{BALLAST, DISK_BLOCKS, options};
use siltstone_torture::{
    clients::{Violation, World},
    content::BLOCK,
    model::Model,
};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// Where segments begin in the pools of [`create`].
pub const DATA_START: u64 = 6 * MIB + 768 * KIB;
pub const POOL_BYTES: u64 = 64 * MIB;

/// An empty pool with the smallest segments.
pub fn create() -> Arc<SimDevice> {
    create_with(256 * KIB)
}

fn create_with(segment_bytes: u64) -> Arc<SimDevice> {
    let device = SimDevice::new(POOL_BYTES);
    let options = CreateOptions {
        segment_bytes: Some(segment_bytes),
        nvram_bytes: Some(MIB),
        index_memory_bytes: 64 * KIB,
        ..CreateOptions::default()
    };
    Pool::create_on(device.clone(), None, &options).unwrap();
    device
}

/// One reducer, small batches, and caches that soon forget.
pub fn small_options(read_only: bool) -> OpenOptions {
    let tuning = Tuning {
        batch_bytes: 64 << 10,
        reducers: 1,
        frame_cache_bytes: 64 << 10,
        page_cache_bytes: 64 << 10,
        warm_index: false,
        ..Tuning::default()
    };
    OpenOptions { read_only, tuning }
}

/// Blocks of a range of the device that are not empty.
pub fn used_blocks(device: &SimDevice, range_bytes: Range<u64>) -> Vec<u64> {
    let used = |at: &u64| device.peek(*at, BLOCK).iter().any(|&byte| byte != 0);
    range_bytes.step_by(BLOCK).filter(used).collect()
}

/// A pool with a disk, and another volume that fills many segments so that the rest are reused.
pub fn base(segment_bytes: u64, ballast_mib: u64) -> Arc<SimDevice> {
    let device = create_with(segment_bytes);
    let pool = Pool::open_on(device.clone(), None, &OpenOptions::default()).unwrap();
    pool.create_volume("disk", &VolumeOptions::new(DISK_BLOCKS * BLOCK as u64)).unwrap();
    if ballast_mib > 0 {
        let ballast = pool.create_volume(BALLAST, &VolumeOptions::new(64 * MIB)).unwrap();
        let mut random = SeededRandom::new(1);
        let mut noise = vec![0; 1 << 20];
        for at in 0..ballast_mib {
            random.fill(&mut noise);
            ballast.write_at(at * MIB, &noise).unwrap();
        }
    }
    pool.close().unwrap();
    device.forget_history();
    device
}

pub fn set_completion(device: &SimDevice, random: &mut SeededRandom) {
    if random.chance(1, 2) {
        device.set_completion_mode(CompletionMode::Shuffled { seed: random.next_u64() });
    }
}

/// One to three clients at work on threads; what fails is noted in the model.
pub fn work(
    device: &Arc<SimDevice>,
    pool: &Arc<Pool>,
    model: &Arc<Mutex<Model>>,
    random: &mut SeededRandom,
    operations: u32,
    may_fail: bool,
) -> Result<(), Violation> {
    let world = World {
        device: Arc::clone(device),
        pool: Arc::clone(pool),
        model: Arc::clone(model),
        runtime: Arc::new(Threads),
        tally: Arc::default(),
        may_fail,
    };
    pollster::block_on(siltstone_torture::pools::work(&world, random, operations))
}

/// What a pool holds now.
pub fn model_of(pool: &Pool) -> Arc<Mutex<Model>> {
    Arc::new(Mutex::new(pollster::block_on(Model::of(pool, &[BALLAST])).unwrap()))
}

/// Closes a pool that nobody else holds.
pub fn close(pool: Arc<Pool>) -> Result<(), EngineError> {
    Arc::into_inner(pool).expect("nobody else holds it").close()
}
