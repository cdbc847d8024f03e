//! What the data takes, against what the codec alone makes of its distinct blocks.

use siltstone_engine::VolumeOptions;

use super::{Outcome, bed::Bed, ingest, limit::Frames};
use crate::{
    data::BLOCK_BYTES,
    report::{Report, Target, Turns, Unit},
};

/// Stores the data as it is, zeros and repetitions included. The least that it can take is exact:
/// every distinct block once, in order, in frames of 32 KiB.
pub(crate) fn stored(bed: &Bed, report: &mut Report) -> Outcome {
    let least = Frames::compress(&bed.distinct.bytes).stored_bytes as f64;
    let pool = bed.fresh_pool()?;
    let image = &bed.image;
    // A new pool's metadata is its fixed regions alone.
    let fixed_bytes = pool.quick_stat().space.metadata_bytes;
    let volume = pool.create_volume("image", &VolumeOptions::new(image.len() as u64))?;
    let before = pool.activity();
    let written = ingest::write(bed, &pool, &volume, image)?;
    let after = pool.activity();
    pool.checkpoint()?;
    let stat = pool.stat();
    let content = stat.content.expect("the map was walked");
    let metadata_bytes = stat.space.metadata_bytes.saturating_sub(fixed_bytes);
    let mut row = |name: &str, unit, value: f64, limit: f64| {
        let mut turns = Turns::new(name, unit, Target::NONE);
        turns.add(value, limit);
        report.add(turns);
    };
    let stored = (stat.space.stored_bytes + metadata_bytes) as f64;
    row("stored, of the codec's", Unit::Bytes, stored, least);
    row("stored, of the data", Unit::Bytes, stored, image.len() as f64);
    row("metadata beside units, of stored", Unit::Bytes, metadata_bytes as f64, stored);
    let found = content.logical_bytes.saturating_sub(content.unique_bytes) / BLOCK_BYTES as u64;
    let duplicates = bed.distinct.duplicate_blocks;
    row("duplicate blocks found", Unit::Blocks, found as f64, duplicates as f64);
    let mut whole = Turns::new("the image as it is", Unit::BytesPerSecond, Target::NONE);
    whole.add_alone(written.rate());
    report.add(whole);
    report.explain("the image as it is", &before, &after);
    pool.close()?;
    Ok(())
}
