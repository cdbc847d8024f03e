//! Small pools in which much happens soon, and work for them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use siltstone_device::{
    SeededRandom,
    sim::{CompletionMode, SimDevice},
};
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, Tuning, VolumeOptions};

use super::{clients::Client, content::BLOCK, model::Model};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const DISK_BLOCKS: u64 = 288;
/// A volume of noise that fills a pool.
pub const BALLAST: &str = "ballast";

/// A pool with a disk, and another volume that fills many segments so that the rest are reused.
pub fn base(segment_bytes: u64, ballast_mib: u64) -> Arc<SimDevice> {
    let device = SimDevice::new(64 * MIB);
    let options = CreateOptions {
        segment_bytes: Some(segment_bytes),
        nvram_bytes: Some(MIB),
        index_memory_bytes: 64 * KIB,
        ..CreateOptions::default()
    };
    Pool::create_on(device.clone(), None, &options).unwrap();
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

/// Tuning by which everything happens soon, or not at all.
pub fn options(random: &mut SeededRandom) -> OpenOptions {
    let mut among = |values: &[usize]| values[random.below(values.len() as u64) as usize];
    let tuning = Tuning {
        staging_bytes: among(&[64 << 10, 256 << 10, 1 << 20]),
        batch_bytes: among(&[32 << 10, 64 << 10, 256 << 10]),
        frame_cache_bytes: 256 << 10,
        page_cache_bytes: 64 << 10,
        reducers: among(&[1, 2, 3]),
        linger: Duration::from_micros(among(&[0, 200, 1000, 5000]) as u64),
        memtable_entries: among(&[50, 200, 500]),
        checkpoint_interval: Duration::from_millis(among(&[1, 5, 100]) as u64),
        log_commit_bytes: among(&[0, 16 << 10, 64 << 10, 256 << 10]),
        mark_delay: Duration::from_micros(among(&[0, 200, 2000, 50_000]) as u64),
        warm_index: among(&[0, 1]) == 1,
    };
    OpenOptions { read_only: false, tuning }
}

pub fn set_completion(device: &SimDevice, random: &mut SeededRandom) {
    if random.chance(1, 2) {
        device.set_completion_mode(CompletionMode::Shuffled { seed: random.next_u64() });
    }
}

/// One to three clients at work, on ranges of their own and then on one that they share.
pub fn work(
    device: &SimDevice,
    pool: &Pool,
    model: &Mutex<Model>,
    random: &mut SeededRandom,
    operations: u32,
) -> Result<(), EngineError> {
    let disk = pool.volume("disk")?;
    let index = model.lock().unwrap().volumes.iter().position(|v| v.name == "disk").unwrap();
    let share = DISK_BLOCKS / 4;
    model.lock().unwrap().volumes[index].shared_from = 3 * share;
    let extra = format!("extra-{}", random.next_u64());
    let clients = 1 + random.below(3);
    let administer = random.chance(1, 3);
    std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for number in 0..clients {
            let seed = random.next_u64();
            let (disk, extra) = (&disk, &extra);
            handles.push(scope.spawn(move || {
                let random = SeededRandom::new(seed);
                let mut client = Client { device, pool, model, random };
                if administer && number == 0 {
                    return client.administer(extra, operations / 10);
                }
                let own = number * share..(number + 1) * share;
                client.work(disk, index, own, operations)?;
                client.work_shared(disk, index, 3 * share..4 * share, operations / 4)
            }));
        }
        handles.into_iter().try_for_each(|handle| handle.join().unwrap())
    })
}
