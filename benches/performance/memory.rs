//! What memory a process takes that has a pool open, and is written to and read from at full speed.

use siltstone_device::size::human;
use siltstone_engine::{CreateOptions, Pool, Tuning, VolumeOptions};

use super::{
    Outcome,
    bed::{Bed, ChildPool},
    child::{Child, Memory, VOLUME, Work},
};
use crate::{
    error::BenchError,
    report::{Report, Target, Turns, Unit},
};

/// What a process may take besides its budgets.
const REST_BYTES: usize = 32 << 20;

/// The simulated pool's size.
const LARGE_BYTES: u64 = 10 << 40;

/// Pools of twice the data's size and of 10 TiB, the latter simulated: most of its segments are said to be full.
pub(crate) fn resident(bed: &Bed, report: &mut Report) -> Outcome {
    let create = CreateOptions::default();
    let tuning = Tuning::default();
    let budgets_bytes = tuning.staging_bytes
        + tuning.frame_cache_bytes
        + tuning.page_cache_bytes
        + create.index_memory_bytes as usize
        + REST_BYTES;
    for (size_bytes, pretended) in [(2 * bed.raw_bytes, false), (LARGE_BYTES, true)] {
        let pool = bed.child_pool(size_bytes)?;
        match pretended {
            true => Pool::create_pretended_on(pool.device()?, &create)?,
            false => Pool::create_on(pool.device()?, None, &create)?,
        }
        let found = measure(bed, &pool)?;
        let kind = if pretended { "simulated pool" } else { "pool" };
        let mut turns = Turns::new(
            &format!("memory, {kind} of {}", human(size_bytes)),
            Unit::Bytes,
            Target::ratio(1.0).at_most(),
        );
        turns.add(found.peak_bytes as f64, budgets_bytes as f64);
        report.add(turns);
        let mut turns = Turns::new("before it was opened", Unit::Bytes, Target::NONE);
        turns.add_alone(found.before_bytes as f64);
        report.add(turns);
        let mut turns = Turns::new("after it was opened", Unit::Bytes, Target::NONE);
        turns.add_alone(found.open_bytes as f64);
        report.add(turns);
    }
    Ok(())
}

fn measure(bed: &Bed, pool: &ChildPool) -> Result<Memory, BenchError> {
    pool.create_volume(VOLUME, &VolumeOptions::new(bed.image.len() as u64))?;
    let mut child = Child::start(bed, Work::Memory)?;
    // What ends early says why itself.
    child.feed(&bed.image);
    child.finish()
}
