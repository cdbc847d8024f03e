//! From damage to what volumes lose by it: a walk over the whole map, past its own damage, that
//! looks at every reference to what is in doubt.
//!
//! A reference counts as lost only if its frame, read once more, cannot give its blocks, and if
//! afterwards nothing newer is staged for the block, the map still says the same, and the segment is
//! still in the use that was in doubt: only then was the frame read while it was what the map means.

use std::{collections::BTreeMap, sync::Arc};

use siltstone_cursor::{Epoch, Extent, MAX_BLOCKS, Run, Salvaged, Target, View};
use siltstone_device::{BLOCK_BYTES, BlockAddress, LayerId, Place};

use crate::{
    core::Core,
    findings::{Findings, LostCause, LostRange},
    pace::Pace,
    verify,
    volume_core::VolumeCore,
};

/// Memory of a walk over the map.
const WALK_BUDGET_BYTES: usize = 8 << 20;
/// What an extent takes in a page of the map.
const ENTRY_BYTES: u64 = 24;
/// Extents between two looks at the pace.
const PACE_EXTENTS: u64 = 4096;

/// What is known of the frame that an extent refers to.
pub(crate) enum Judgement {
    /// Somebody else looks at it, or it is beyond doubt.
    Fine,
    /// It is looked at here: in this use of its segment the frame may be damaged.
    Doubtful {
        /// The use.
        generation: u64,
    },
    /// Blocks of a whole frame hold something else: a bit for each block of the frame.
    Wrong {
        /// The use.
        generation: u64,
        /// The blocks.
        blocks: u64,
    },
    /// Nothing can be there.
    Impossible,
}

/// How a walk is made.
pub(crate) struct Walk {
    /// The pool may be in use: segments may be freed meanwhile.
    pub(crate) online: bool,
    /// Believe no page of the map because it is cached.
    pub(crate) thorough: bool,
    /// Report what damaged pages of the map hide.
    pub(crate) hidden: bool,
}

/// A layer that somebody can read.
struct Reader {
    /// `None` if no volume writes to the layer.
    volume: Option<Arc<VolumeCore>>,
    name: String,
    chain: Arc<[View]>,
}

/// Walks over the map and reports every reference to a frame that `judge` is not content with and
/// that cannot be read.
pub(crate) async fn walk(
    core: &Core,
    walk: Walk,
    judge: &mut (dyn FnMut(Place, u32) -> Judgement + Send),
    findings: &mut Findings,
    pace: &mut Pace<'_>,
) {
    let readers = readers(core);
    let layers = readers.iter().map(|(&layer, reader)| {
        let blocks = reader.volume.as_ref().map_or(MAX_BLOCKS, |volume| volume.len_blocks());
        (layer, blocks)
    });
    let mut cursor = core.map.salvage_cursor(layers.collect(), WALK_BUDGET_BYTES, walk.thorough);
    let mut unpaced = 0;
    while let Some(item) = cursor.next().await {
        match item {
            Salvaged::Extent(extent) => {
                unpaced += 1;
                if unpaced == PACE_EXTENTS {
                    pace.take(unpaced * ENTRY_BYTES).await;
                    unpaced = 0;
                }
                let Target::Stored(place) = extent.target else { continue };
                let judgement = judge(place, extent.len_blocks);
                let reader = &readers[&extent.layer];
                judged(core, &walk, reader, &extent, judgement, findings, pace).await;
            }
            Salvaged::Unknown { layer, address, len_blocks, as_of: Epoch::MAX, .. }
                if walk.hidden =>
            {
                let reader = &readers[&layer];
                let (from, to) = (address.0, address.0 + len_blocks);
                for (from, to) in without_newer(core, reader, layer, from, to) {
                    report(reader, from, to, LostCause::Map, findings);
                }
            }
            Salvaged::Unknown { .. } => {}
        }
    }
}

/// The layers of volumes, and those below them. Layers of deleted volumes have entries until merges
/// have dropped them; nobody can read those.
fn readers(core: &Core) -> BTreeMap<LayerId, Reader> {
    let catalog = core.catalog.lock();
    let layers = catalog.layers.keys().map(|&layer| {
        let chain = catalog.chain(layer).into();
        (layer, Reader { volume: None, name: layer.to_string(), chain })
    });
    let mut readers: BTreeMap<LayerId, Reader> = layers.collect();
    drop(catalog);
    for volume in core.volumes.read().values() {
        let (name, chain) = (volume.name.clone(), Arc::clone(&volume.chain));
        let reader = Reader { volume: Some(Arc::clone(volume)), name, chain };
        readers.insert(volume.layer, reader);
    }
    readers
}

async fn judged(
    core: &Core,
    walk: &Walk,
    reader: &Reader,
    extent: &Extent,
    judgement: Judgement,
    findings: &mut Findings,
    pace: &mut Pace<'_>,
) {
    let Target::Stored(place) = extent.target else { return };
    let (first, count) = (u64::from(place.index()), u64::from(extent.len_blocks));
    let all = u64::MAX;
    let (generation, blocks, cause) = match judgement {
        Judgement::Fine => return,
        Judgement::Impossible => (None, all, LostCause::Frame),
        Judgement::Wrong { generation, blocks } => (Some(generation), blocks, LostCause::Contents),
        Judgement::Doubtful { generation } => {
            let blocks = verify::frame_at(core, place, generation, pace).await;
            if blocks.is_ok_and(|blocks| blocks as u64 >= first + count) {
                return;
            }
            (Some(generation), all, LostCause::Frame)
        }
    };
    for (from, to) in still_mapped(core, reader, extent).await {
        let in_use = |generation| verify::is_same_use(core, place.segment(), generation);
        if walk.online && !generation.is_some_and(in_use) {
            return;
        }
        // Runs of blocks whose bits are set.
        let is_lost = |at: &u64| blocks >> ((first + at - extent.address.0) % 64) & 1 == 1;
        for at in (from..to).filter(is_lost) {
            report(reader, at, at + 1, cause, findings);
        }
    }
}

/// The parts of an extent that readers still see, in order.
async fn still_mapped(core: &Core, reader: &Reader, extent: &Extent) -> Vec<(u64, u64)> {
    let (from, to) = (extent.address.0, extent.address.0 + u64::from(extent.len_blocks));
    // In the order of every reader: what leaves the overlay is in the map by then.
    let visible = without_staged(reader, from, to);
    let mut runs: Vec<Run> = Vec::new();
    let (address, len_blocks) = (extent.address, extent.len_blocks);
    if core.map.lookup(&reader.chain, address, len_blocks, &mut runs).await.is_err() {
        // The map is damaged there: what the walk found is all there is.
        return visible;
    }
    let same = |run: &Run| run.target == extent.target.advanced(run.address.0 - from);
    let mut out = Vec::new();
    for run in runs.iter().filter(|run| same(run)) {
        let (start, end) = (run.address.0, run.address.0 + u64::from(run.len_blocks));
        let clipped = visible.iter().map(|&(from, to)| (from.max(start), to.min(end)));
        out.extend(clipped.filter(|(from, to)| from < to));
    }
    out
}

/// The parts of a range for which nothing newer than the map is staged.
fn without_staged(reader: &Reader, from: u64, to: u64) -> Vec<(u64, u64)> {
    let Some(volume) = &reader.volume else { return vec![(from, to)] };
    if volume.check_exists().is_err() {
        return Vec::new();
    }
    let mut staged = Vec::new();
    volume.overlay.read(BlockAddress(from), to - from, &mut staged);
    let runs = staged.iter().map(|run| (run.address.0, run.address.0 + u64::from(run.len_blocks)));
    gaps(from, to, runs)
}

/// The parts of a range for which nothing newer than patches is known.
fn without_newer(
    core: &Core,
    reader: &Reader,
    layer: LayerId,
    from: u64,
    to: u64,
) -> Vec<(u64, u64)> {
    const PIECE_BLOCKS: u64 = u32::MAX as u64;
    let mut out = Vec::new();
    for (mut from, to) in without_staged(reader, from, to) {
        while from < to {
            let end = to.min(from + PIECE_BLOCKS);
            let known = core.map.newest_sequence(layer, BlockAddress(from), (end - from) as u32);
            let known = known.iter().filter(|run| run.sequence.is_some());
            let runs = known.map(|run| (run.address.0, run.address.0 + u64::from(run.len_blocks)));
            out.extend(gaps(from, end, runs));
            from = end;
        }
    }
    out
}

/// What `runs`, in order and inside the range, leave of it.
fn gaps(from: u64, to: u64, runs: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut at = from;
    let mut out = Vec::new();
    for (start, end) in runs.chain([(to, to)]) {
        if at < start {
            out.push((at, start));
        }
        at = at.max(end);
    }
    out
}

/// Reports blocks `[from, to)` as lost, as far as the volume reaches.
fn report(reader: &Reader, from: u64, to: u64, cause: LostCause, findings: &mut Findings) {
    let block = BLOCK_BYTES as u64;
    let size_bytes = reader.volume.as_ref().map_or(u64::MAX, |volume| volume.size_bytes());
    let offset_bytes = from.saturating_mul(block);
    let end_bytes = to.saturating_mul(block).min(size_bytes);
    if offset_bytes < end_bytes {
        let (volume, len_bytes) = (reader.name.clone(), end_bytes - offset_bytes);
        findings.report_lost(LostRange { volume, offset_bytes, len_bytes, cause });
    }
}

/// What damage of the map hides of one volume, in order.
pub(crate) async fn hidden(core: &Core, volume: &Arc<VolumeCore>) -> Vec<LostRange> {
    let reader = Reader {
        volume: Some(Arc::clone(volume)),
        name: volume.name.clone(),
        chain: Arc::clone(&volume.chain),
    };
    let mut findings = Findings::new(usize::MAX);
    let layers = [(volume.layer, volume.len_blocks())].into();
    let mut cursor = core.map.salvage_cursor(layers, WALK_BUDGET_BYTES, false);
    while let Some(item) = cursor.next().await {
        if let Salvaged::Unknown { layer, address, len_blocks, as_of: Epoch::MAX, .. } = item {
            let to = address.0 + len_blocks;
            for (from, to) in without_newer(core, &reader, layer, address.0, to) {
                report(&reader, from, to, LostCause::Map, &mut findings);
            }
        }
    }
    findings.lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_runs_leave() {
        let of = |runs: &[(u64, u64)]| gaps(10, 20, runs.iter().copied());
        assert_eq!(of(&[]), [(10, 20)]);
        assert_eq!(of(&[(10, 12), (12, 13), (15, 20)]), [(13, 15)]);
        assert_eq!(of(&[(11, 12), (18, 19)]), [(10, 11), (12, 18), (19, 20)]);
        assert_eq!(of(&[(10, 20)]), []);
    }
}
