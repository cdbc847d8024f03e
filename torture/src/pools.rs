//! Small pools in which much happens soon: segments fill, the log wraps, space runs out.

mod fill;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use siltstone_device::{
    SeededEntropy, SeededRandom,
    sim::{Machine, SimDevice},
};
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, Tuning, VolumeOptions};

use self::fill::Fill;
use crate::{
    clients::{Client, Violation, World},
    content::BLOCK,
    model::Model,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The volume that clients share, and its size.
pub const DISK: &str = "disk";
/// Its size in blocks.
pub const DISK_BLOCKS: u64 = 288;

/// A volume of noise that fills a pool: block `n` is [`ballast`]`(n)`.
pub const BALLAST: &str = "ballast";

/// A snapshot of it from when there was more of it.
pub const KEPT: &str = "ballast@all";

const POOL_BYTES: u64 = 24 * MIB;

/// What clones are called.
#[must_use]
pub fn clone_name(number: u64) -> String {
    format!("{CLONE}{number}")
}

/// With what their names begin.
pub(crate) const CLONE: &str = "clone-";

/// What a block of ballast contains.
#[must_use]
pub fn ballast(block: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    SeededRandom::new(block ^ 0x0ba1_1a57_0000_0000).fill(&mut bytes);
    bytes
}

/// A pool from which histories begin.
pub struct Base {
    /// What it is like.
    pub name: &'static str,
    /// Its device; a history begins with a snapshot of it.
    pub device: Arc<SimDevice>,
    /// How many blocks of ballast there are.
    pub ballast_blocks: u64,
    /// How many there are in [`KEPT`], a snapshot.
    pub kept_blocks: u64,
    /// What is in it.
    pub model: Model,
}

/// All of them.
pub struct Bases {
    bases: Vec<Base>,
}

impl Bases {
    /// Makes them: the same every time.
    ///
    /// # Panics
    /// If the engine cannot make and fill a pool on a device without faults.
    #[must_use]
    pub fn new() -> Self {
        let bases = vec![
            base("empty, small segments", 256 * KIB, MIB, Fill::Nothing),
            base("empty, large segments", MIB, 128 * KIB, Fill::Nothing),
            base("half full, with an index image", 256 * KIB, 128 * KIB, Fill::Ballast(7 * MIB)),
            base("nearly full, small segments", 256 * KIB, 128 * KIB, Fill::AllBut(3 * MIB)),
            base("nearly full, large segments", MIB / 2, MIB, Fill::AllBut(4 * MIB)),
            base("full, small segments", 256 * KIB, 128 * KIB, Fill::AllBut(768 * KIB)),
            base("full, smaller room", 256 * KIB, 256 * KIB, Fill::AllBut(256 * KIB)),
            base("full of garbage", 256 * KIB, 128 * KIB, Fill::HalfDead),
            base("snapshots and clones", 256 * KIB, 128 * KIB, Fill::Snapshots),
            base("chains of layers", 256 * KIB, 128 * KIB, Fill::Layers),
            base("chains of layers, large log", 256 * KIB, MIB, Fill::Layers),
            base("full of snapshots", 256 * KIB, 256 * KIB, Fill::HalfKept),
        ];
        Self { bases }
    }

    /// One of them.
    #[must_use]
    pub fn choose(&self, random: &mut SeededRandom) -> &Base {
        &self.bases[random.below(self.bases.len() as u64) as usize]
    }
}

impl Default for Bases {
    fn default() -> Self {
        Self::new()
    }
}

/// A pool with a disk.
fn base(name: &'static str, segment_bytes: u64, nvram_bytes: u64, fill: Fill) -> Base {
    let device = SimDevice::new(POOL_BYTES);
    let options = CreateOptions {
        segment_bytes: Some(segment_bytes),
        nvram_bytes: Some(nvram_bytes),
        index_memory_bytes: 64 * KIB,
        ..CreateOptions::default()
    };
    let machine = Machine::new(segment_bytes ^ nvram_bytes);
    let made = machine.run(async {
        let entropy = SeededEntropy::new(segment_bytes);
        Pool::create_from(device.clone(), None, &options, &entropy).await?;
        let open = OpenOptions { tuning: small_tuning(), ..OpenOptions::default() };
        let pool = Pool::open_in(machine.clone(), device.clone(), None, &open).await?;
        let disk = VolumeOptions::new(DISK_BLOCKS * BLOCK as u64);
        pool.create_volume_async(DISK, &disk).await?;
        let blocks = fill.fill(&pool).await?;
        let model = Model::of(&pool, &[BALLAST]).await;
        pool.close_async().await?;
        Ok::<_, EngineError>((blocks, model))
    });
    machine.kill();
    let ((ballast_blocks, kept_blocks), model) =
        made.expect("a device without faults takes a pool");
    let model = model.expect("a pool without faults can be read");
    device.forget_history();
    Base { name, device, ballast_blocks, kept_blocks, model }
}

fn small_tuning() -> Tuning {
    Tuning {
        staging_bytes: 1 << 20,
        batch_bytes: 64 << 10,
        frame_cache_bytes: 256 << 10,
        page_cache_bytes: 64 << 10,
        // An image of the index whenever a pool is closed that has room for one.
        image_segments: 0,
        ..Tuning::default()
    }
}

/// Options by which everything happens soon, or not at all.
#[must_use]
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
        checkpoint_interval: Duration::from_micros(among(&[500, 2000, 5000, 100_000]) as u64),
        log_commit_bytes: among(&[0, 16 << 10, 64 << 10, 256 << 10]),
        mark_delay: Duration::from_micros(among(&[0, 200, 2000, 50_000]) as u64),
        warm_index: among(&[0, 1, 1]) == 1,
        image_segments: among(&[0, 0, 3, 64]) as u32,
        discard_delay: Duration::from_micros(among(&[1000, 20_000, 5_000_000]) as u64),
        ..Tuning::default()
    };
    OpenOptions { read_only: false, tuning }
}

/// One to three clients at work, on ranges of their own and then on one that they share, and
/// perhaps one more that keeps snapshots. Each is a task of the world's runtime.
///
/// # Errors
/// The first promise that was found broken.
///
/// # Panics
/// If a task panics.
pub async fn work(
    world: &World,
    random: &mut SeededRandom,
    operations: u32,
) -> Result<(), Violation> {
    let share = DISK_BLOCKS / 4;
    let disk = world.pool.volume(DISK).map_err(|error| Violation(error.to_string()))?;
    let index = {
        let mut model = world.model.lock();
        let index = model.find(DISK).ok_or_else(|| Violation("the disk is missing".into()))?;
        model.volumes[index].shared_from = 3 * share;
        index
    };
    let extra = format!("extra-{}", random.next_u64());
    let clients = 1 + random.below(3);
    let administer = random.chance(1, 3);
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..clients {
        let mut client = Client::new(world.clone(), SeededRandom::new(random.next_u64()));
        let (disk, extra, outcomes) = (disk.clone(), extra.clone(), Arc::clone(&outcomes));
        let task = async move {
            let outcome = if administer && number == 0 {
                client.administer(&extra, operations / 10).await
            } else {
                let own = number * share..(number + 1) * share;
                match client.work(&disk, index, own, operations).await {
                    Ok(()) => {
                        let shared = 3 * share..4 * share;
                        client.work_shared(&disk, index, shared, operations / 4).await
                    }
                    broken => broken,
                }
            };
            outcomes.lock().push(outcome);
        };
        let task = world.runtime.spawn(&format!("client-{number}"), Box::pin(task));
        tasks.push(task.expect("there is a thread for each client"));
    }
    if random.chance(1, 2) {
        let mut keeper = Client::new(world.clone(), SeededRandom::new(random.next_u64()));
        let outcomes = Arc::clone(&outcomes);
        // Some hardly let others write in between.
        let (share, pause_us) = if random.chance(1, 4) { (1, 300) } else { (3, 3000) };
        let task = async move {
            let outcome = keeper.keep_snapshots(operations / share, pause_us).await;
            outcomes.lock().push(outcome);
        };
        let task = world.runtime.spawn("keeper", Box::pin(task));
        tasks.push(task.expect("there is a thread for it"));
    }
    for task in tasks {
        if let Err(panic) = task.await {
            std::panic::resume_unwind(panic);
        }
    }
    let outcomes = std::mem::take(&mut *outcomes.lock());
    outcomes.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or histories would tell nothing of pools that have one.
    #[test]
    fn a_pool_with_an_index_image_is_among_them() {
        let bases = Bases::new();
        let images = bases.bases.iter().filter(|base| {
            let read_only = OpenOptions { read_only: true, tuning: small_tuning() };
            let pool = Pool::open_on(base.device.clone(), None, &read_only);
            let pool = pool.expect("a base can be opened");
            let image_bytes = pool.quick_stat().index_image_bytes;
            println!("{}: {image_bytes}", base.name);
            image_bytes > 0
        });
        assert!(images.count() >= 2);
    }

    /// Or hardly any history would see one of it.
    #[test]
    fn layers_that_can_be_adopted_are_among_them() {
        let bases = Bases::new();
        let adopting = bases.bases.iter().filter(|base| {
            let options = OpenOptions { read_only: false, tuning: small_tuning() };
            let pool = Pool::open_on(base.device.snapshot(), None, &options);
            let pool = pool.expect("a base can be opened");
            pool.collect_garbage().expect("nothing is wrong with it");
            let adopted = pool.counters().adopted_layers;
            println!("{}: {adopted}", base.name);
            adopted >= 2
        });
        assert!(adopting.count() >= 2);
    }
}
