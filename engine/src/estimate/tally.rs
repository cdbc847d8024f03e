//! What the write path would make of batches: runs of duplicates, links, frames, and their sizes.

use crate::{
    config::FRAME_BLOCKS,
    frame::FRAME_HEADER_BYTES,
    write_unit::{frames_start, summary_bytes},
};
use siltstone_device::{BLOCK_BYTES, units::PLACE_GRAIN_BYTES};

/// A frame's plain bytes.
pub(super) const FRAME_BYTES: usize = FRAME_BLOCKS * BLOCK_BYTES;
/// The thresholds that are compared.
pub(super) const THRESHOLDS: [u32; 5] = [1, 2, 4, 8, 16];
/// Classes of run lengths: 1, 2 to 3, 4 to 7, ... 256. Batches cut longer runs.
pub(super) const RUN_CLASSES: usize = 9;

/// What became of a batch.
pub(super) struct BatchOutcome {
    /// Blocks to store, in order, by their number in the batch.
    stored: Vec<u32>,
    duplicates: u64,
    /// Runs of duplicates and their blocks, by class.
    runs: [(u64, u64); RUN_CLASSES],
    /// Blocks in runs as long as each threshold.
    kept: [u64; THRESHOLDS.len()],
    /// Blocks in runs as long as the pool's threshold.
    linked: u64,
    /// Summary and padding.
    overhead_bytes: u64,
    /// Plain and stored bytes of the frames that were compressed.
    pub(super) compressed: Vec<(usize, usize)>,
}

/// Finds runs as [`siltstone_dedup::run::plan`] does.
pub(super) fn plan(
    duplicates: &[bool],
    contiguous: &[bool],
    threshold: usize,
    zero_runs: u64,
) -> BatchOutcome {
    let mut out = BatchOutcome {
        stored: Vec::new(),
        duplicates: 0,
        runs: Default::default(),
        kept: Default::default(),
        linked: 0,
        overhead_bytes: 0,
        compressed: Vec::new(),
    };
    let mut links = 0;
    let mut at = 0;
    while at < duplicates.len() {
        let first = at;
        at += 1;
        if !duplicates[first] {
            out.stored.push(first as u32);
            continue;
        }
        while at < duplicates.len() && duplicates[at] && contiguous[at] {
            at += 1;
        }
        let len = at - first;
        out.duplicates += len as u64;
        let class = &mut out.runs[(len.ilog2() as usize).min(RUN_CLASSES - 1)];
        *class = (class.0 + 1, class.1 + len as u64);
        for (kept, least) in out.kept.iter_mut().zip(THRESHOLDS) {
            *kept += if len >= least as usize { len as u64 } else { 0 };
        }
        if len >= threshold {
            out.linked += len as u64;
            // A link does not reach over a frame.
            links += 1 + len / FRAME_BLOCKS;
        } else {
            out.stored.extend(first as u32..at as u32);
        }
    }
    let frames = out.stored.len().div_ceil(FRAME_BLOCKS);
    let entries = zero_runs as usize + links + frames;
    if entries > 0 {
        let summary = summary_bytes(entries, frames, out.stored.len());
        // A unit ends anywhere in its last block.
        out.overhead_bytes = (frames_start(summary) + BLOCK_BYTES / 2) as u64;
    }
    out
}

impl BatchOutcome {
    /// The blocks of each frame.
    pub(super) fn frames(&self) -> std::slice::Chunks<'_, u32> {
        self.stored.chunks(FRAME_BLOCKS)
    }
}

/// Whether a frame is one of those to be compressed.
pub(super) fn is_chosen(batch: u64, frame: usize, one_in: u32) -> bool {
    // A mix of both numbers, so that no period of the data meets one of the choice.
    let mixed = (batch << 8 | frame as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32 < (1 << 32) / u64::from(one_in)
}

/// A sum over a sample, and the error that a ratio of two such sums has.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct RatioSample {
    count: u64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    yy: f64,
}

impl RatioSample {
    pub(super) fn add(&mut self, x: u64, y: u64) {
        let (x, y) = (x as f64, y as f64);
        self.count += 1;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.xy += x * y;
        self.yy += y * y;
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn x(&self) -> f64 {
        self.x
    }

    /// Sum of y by sum of x, if there is any.
    pub(super) fn ratio(&self) -> Option<f64> {
        (self.x > 0.0).then(|| self.y / self.x)
    }

    /// Half of the ratio's 95 % confidence interval, as if sampled from very many.
    pub(super) fn error(&self) -> f64 {
        let Some(ratio) = self.ratio() else { return 0.0 };
        if self.count < 2 {
            return ratio;
        }
        let n = self.count as f64;
        let residuals = self.yy - 2.0 * ratio * self.xy + ratio * ratio * self.xx;
        // Near enough to Student's quantile.
        let quantile = 1.96 + 3.0 / (n - 1.0);
        quantile * (residuals.max(0.0) * n / (n - 1.0)).sqrt() / self.x
    }
}

/// Outcomes of many batches, added up.
pub(super) struct Tally {
    pub(super) duplicates: u64,
    pub(super) stored: u64,
    pub(super) runs: [(u64, u64); RUN_CLASSES],
    /// For each threshold, over batches: duplicates, and those in runs that long.
    pub(super) kept: [RatioSample; THRESHOLDS.len()],
    /// The same for the pool's threshold.
    pub(super) linked: RatioSample,
    pub(super) overhead_bytes: u64,
    pub(super) blocks: u64,
    /// Over batches: plain bytes of frames, and what they take. Frames of a batch resemble each
    /// other, so it is the batches that the error comes from.
    pub(super) frames: RatioSample,
    /// For each file the same, over frames.
    pub(super) files: Vec<RatioSample>,
}

impl Tally {
    pub(super) fn new(files: usize) -> Self {
        Self {
            duplicates: 0,
            stored: 0,
            runs: Default::default(),
            kept: Default::default(),
            linked: RatioSample::default(),
            overhead_bytes: 0,
            blocks: 0,
            frames: RatioSample::default(),
            files: vec![RatioSample::default(); files],
        }
    }

    pub(super) fn add(&mut self, file: u32, outcome: &BatchOutcome) {
        self.duplicates += outcome.duplicates;
        self.stored += outcome.stored.len() as u64;
        self.blocks += outcome.stored.len() as u64 + outcome.linked;
        self.overhead_bytes += outcome.overhead_bytes;
        for (sum, (runs, blocks)) in self.runs.iter_mut().zip(outcome.runs) {
            *sum = (sum.0 + runs, sum.1 + blocks);
        }
        for (sum, &kept) in self.kept.iter_mut().zip(&outcome.kept) {
            sum.add(outcome.duplicates, kept);
        }
        self.linked.add(outcome.duplicates, outcome.linked);
        let mut sum = (0, 0);
        for &(plain, stored) in &outcome.compressed {
            let grain = PLACE_GRAIN_BYTES as usize;
            let stored = (FRAME_HEADER_BYTES + stored).next_multiple_of(grain);
            self.files[file as usize].add(plain as u64, stored as u64);
            sum = (sum.0 + plain as u64, sum.1 + stored as u64);
        }
        if sum.0 > 0 {
            self.frames.add(sum.0, sum.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siltstone_dedup::{
        Candidate, Kind, Target, UnitAddress,
        run::{Run, plan as plan_links},
    };

    use super::*;

    proptest! {
        #[test]
        fn a_batch_is_planned_as_the_write_path_plans_it(
            blocks in prop::collection::vec((any::<bool>(), prop::bool::weighted(0.9)), 0..256),
            threshold in 1..20_usize,
        ) {
            let (duplicates, contiguous): (Vec<_>, Vec<_>) = blocks.into_iter().unzip();
            let unit = UnitAddress::new(1);
            let targets: Vec<_> = duplicates.iter().map(|duplicate| {
                duplicate.then_some(Target::Stored(Candidate { unit, ordinal: 7 }))
            }).collect();
            let mut runs: Vec<Run> = Vec::new();
            plan_links(&targets, &contiguous, threshold, &mut runs);
            let stored: Vec<u32> = runs.iter().filter(|run| run.kind == Kind::Store)
                .flat_map(|run| run.first as u32..(run.first + run.len) as u32).collect();
            let outcome = plan(&duplicates, &contiguous, threshold, 0);
            prop_assert_eq!(&outcome.stored, &stored);
            prop_assert_eq!(outcome.linked, (duplicates.len() - stored.len()) as u64);
            let all = duplicates.iter().filter(|duplicate| **duplicate).count() as u64;
            prop_assert_eq!(outcome.duplicates, all);
            prop_assert_eq!(outcome.runs.iter().map(|run| run.1).sum::<u64>(), all);
            prop_assert_eq!(outcome.kept[0], all);
            prop_assert!(outcome.kept.is_sorted_by(|more, less| more >= less));
        }
    }

    #[test]
    fn one_frame_in_n_is_chosen_evenly() {
        for one_in in [1, 2, 16, 100] {
            let chosen = (0..1000).flat_map(|batch| (0..32).map(move |frame| (batch, frame)));
            let count = chosen.filter(|&(batch, frame)| is_chosen(batch, frame, one_in)).count();
            let expected = 32_000 / one_in as usize;
            assert!(count.abs_diff(expected) <= expected / 5, "{count}, not {expected}");
        }
        assert!((0..32).all(|frame| is_chosen(u64::MAX, frame, 1)));
    }

    #[test]
    fn a_ratio_has_the_error_of_its_sample() {
        let mut same = RatioSample::default();
        let mut alternating = RatioSample::default();
        for n in 0..100 {
            same.add(10, 5);
            alternating.add(10, if n % 2 == 0 { 0 } else { 10 });
        }
        assert_eq!((same.ratio(), same.error()), (Some(0.5), 0.0));
        assert_eq!(alternating.ratio(), Some(0.5));
        // A standard deviation of 0.5 over 100 of them.
        assert!((0.095..0.106).contains(&alternating.error()), "{}", alternating.error());
        assert_eq!(RatioSample::default().ratio(), None);
    }
}
