//! From damage to what volumes lose by it: a walk over the whole map, past its own damage, that
//! looks at every reference to what is in doubt.
//!
//! A reference counts as lost only if its frame, read once more, cannot give its blocks, and if
//! afterwards nothing newer is staged for the block, the map still says the same, and the segment is
//! still in the use that was in doubt: only then was the frame read while it was what the map means.

use std::{collections::BTreeMap, sync::Arc};

use siltstone_cursor::{Epoch, Extent, Run, Salvaged, Target};
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
/// Blocks that are looked up at once.
const PIECE_BLOCKS: u64 = 1 << 16;
/// Lookups by which it is found out what a damaged page hides of a clone; what is left is hidden.
const MAX_LOOKUPS: u32 = 4096;
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

/// A volume or snapshot that reads a layer: its own, or one that it reads through to.
struct Reader {
    volume: Arc<VolumeCore>,
    /// What it sees of the layer: versions of this epoch and earlier ones.
    as_of: Epoch,
    /// Which of its views that is.
    depth: usize,
}

/// By layer.
type Readers = BTreeMap<LayerId, Vec<Reader>>;

/// Walks over the map and reports every reference to a frame that `judge` is not content with and
/// that cannot be read.
pub(crate) async fn walk(
    core: &Core,
    walk: Walk,
    judge: &mut (dyn FnMut(Place, u32) -> Judgement + Send),
    findings: &mut Findings,
    pace: &mut Pace<'_>,
) {
    let readers = readers(core.volumes.read().values());
    for reader in readers.values().flatten() {
        // A pool that has failed is looked at as it is.
        let _ = core.await_inherited(&reader.volume).await;
    }
    let layers = lengths(&readers);
    let mut cursor = core.map.salvage_cursor(layers, WALK_BUDGET_BYTES, walk.thorough);
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
                let readers = &readers[&extent.layer];
                judged(core, &walk, readers, &extent, judgement, findings, pace).await;
            }
            Salvaged::Unknown { layer, address, len_blocks, as_of, .. } if walk.hidden => {
                for reader in readers[&layer].iter().filter(|reader| reader.as_of <= as_of) {
                    let (from, to) = (address.0, address.0 + len_blocks);
                    for (from, to) in still_hidden(core, reader, layer, from, to).await {
                        report(reader, from, to, LostCause::Map, findings);
                    }
                }
            }
            Salvaged::Unknown { .. } => {}
        }
    }
}

/// Who reads each layer. Layers of deleted volumes have entries until merges have dropped them;
/// nobody can read those.
fn readers<'a>(volumes: impl Iterator<Item = &'a Arc<VolumeCore>>) -> Readers {
    let mut readers = Readers::new();
    for volume in volumes {
        for (depth, view) in volume.chain().iter().enumerate() {
            let reader = Reader { volume: Arc::clone(volume), as_of: view.as_of, depth };
            readers.entry(view.layer).or_default().push(reader);
        }
    }
    readers
}

/// How many blocks of each layer somebody can read.
fn lengths(readers: &Readers) -> BTreeMap<LayerId, u64> {
    let blocks = |readers: &Vec<Reader>| {
        readers.iter().map(|reader| reader.volume.len_blocks()).max().unwrap_or(0)
    };
    readers.iter().map(|(&layer, readers)| (layer, blocks(readers))).collect()
}

async fn judged(
    core: &Core,
    walk: &Walk,
    readers: &[Reader],
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
    for reader in readers.iter().filter(|reader| reader.as_of >= extent.epoch) {
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
}

/// The parts of an extent that a reader still sees, in order.
async fn still_mapped(core: &Core, reader: &Reader, extent: &Extent) -> Vec<(u64, u64)> {
    let (from, to) = (extent.address.0, extent.address.0 + u64::from(extent.len_blocks));
    // In the order of every reader: what leaves the overlay is in the map by then.
    let visible = without_staged(reader, from, to);
    let mut runs: Vec<Run> = Vec::new();
    let (address, len_blocks) = (extent.address, extent.len_blocks);
    let chain = reader.volume.chain();
    if core.map.lookup(&chain, address, len_blocks, &mut runs).await.is_err() {
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
    if reader.volume.check_exists().is_err() || from >= to {
        return Vec::new();
    }
    let mut staged = Vec::new();
    reader.volume.overlay.read(BlockAddress(from), to - from, &mut staged);
    let runs = staged.iter().map(|run| (run.address.0, run.address.0 + u64::from(run.len_blocks)));
    gaps(from, to, runs)
}

/// The parts of a range, of which a layer's patches cannot say what they hold, in which a reader
/// needs to know that.
async fn still_hidden(
    core: &Core,
    reader: &Reader,
    layer: LayerId,
    from: u64,
    to: u64,
) -> Vec<(u64, u64)> {
    let visible = || without_staged(reader, from, to.min(reader.volume.len_blocks()));
    match (reader.depth, reader.as_of) {
        (0, Epoch::MAX) => return without_newer(core, reader, layer, from, to),
        // Nothing newer than the walk has seen can be of an epoch that is over.
        (0, _) => return visible(),
        _ => {}
    }
    // Read through a nearer layer, of which it is not known where that has something.
    let mut lookups = MAX_LOOKUPS;
    let mut out: Vec<(u64, u64)> = Vec::new();
    let mut rest = visible();
    rest.reverse();
    let mut runs = Vec::new();
    while let Some((from, to)) = rest.pop() {
        let end = to.min(from + PIECE_BLOCKS);
        if end < to {
            rest.push((end, to));
        }
        let len_blocks = (end - from) as u32;
        let chain = reader.volume.chain();
        lookups = lookups.saturating_sub(1);
        let is_known = lookups > 0
            && core.map.lookup(&chain, BlockAddress(from), len_blocks, &mut runs).await.is_ok();
        if is_known {
            // A nearer layer has all of it.
        } else if len_blocks > 1 && lookups > 0 {
            let middle = from + u64::from(len_blocks / 2);
            rest.extend([(middle, end), (from, middle)]);
        } else {
            match out.last_mut() {
                Some(last) if last.1 == from => last.1 = end,
                _ => out.push((from, end)),
            }
        }
        runs.clear();
    }
    out
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
    let size_bytes = reader.volume.size_bytes();
    let offset_bytes = from.saturating_mul(block);
    let end_bytes = to.saturating_mul(block).min(size_bytes);
    if offset_bytes < end_bytes {
        let (volume, len_bytes) = (reader.volume.name.clone(), end_bytes - offset_bytes);
        findings.report_lost(LostRange { volume, offset_bytes, len_bytes, cause });
    }
}

/// What damage of the map hides of one volume, in order.
pub(crate) async fn hidden(core: &Core, volume: &Arc<VolumeCore>) -> Vec<LostRange> {
    let readers = readers([volume].into_iter());
    // A pool that has failed is looked at as it is.
    let _ = core.await_inherited(volume).await;
    let mut findings = Findings::new(usize::MAX);
    let mut cursor = core.map.salvage_cursor(lengths(&readers), WALK_BUDGET_BYTES, false);
    while let Some(item) = cursor.next().await {
        let Salvaged::Unknown { layer, address, len_blocks, as_of, .. } = item else { continue };
        for reader in readers[&layer].iter().filter(|reader| reader.as_of <= as_of) {
            let to = address.0 + len_blocks;
            for (from, to) in still_hidden(core, reader, layer, address.0, to).await {
                report(reader, from, to, LostCause::Map, &mut findings);
            }
        }
    }
    findings.sort();
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
