//! Random overwrites of single blocks.

use std::time::Instant;

use siltstone_device::SeededRandom;
use siltstone_engine::EngineError;

use super::{
    Outcome,
    bed::{Bed, LOADED},
    limit,
};
use crate::{
    drive,
    raw::{self, Amount, Load},
    report::{Report, Target, Turns, Unit},
    sample::Stopwatch,
};

const DEPTH: usize = 32;

/// Makes blocks that were never written before and compress like real ones: they are real ones,
/// numbered.
pub(crate) struct NewBlocks<'a> {
    blocks: &'a [[u8; 4096]],
    random: SeededRandom,
    number: u64,
    step: u64,
    block: [u8; 4096],
}

impl<'a> NewBlocks<'a> {
    /// The blocks of one of `makers`, all of which make different ones.
    pub(crate) fn new(data: &'a [u8], maker: usize, makers: usize) -> Self {
        Self {
            blocks: data.as_chunks().0,
            random: SeededRandom::new(maker as u64),
            number: maker as u64,
            step: makers as u64,
            block: [0; 4096],
        }
    }

    /// Some byte offset below `span_bytes`, and a new block for it.
    pub(crate) fn next(&mut self, span_bytes: u64) -> (u64, &[u8]) {
        self.block = self.blocks[self.random.below(self.blocks.len() as u64) as usize];
        self.block[2048..2056].copy_from_slice(&self.number.to_le_bytes());
        self.number += self.step;
        (self.random.below(span_bytes / 4096) * 4096, &self.block)
    }
}

/// Random 4 KiB overwrites, 32 at a time and flushed at the end, against the device's own; and against twice
/// these, or the unavoidable work on as many blocks alone on all cores, whichever is less.
pub(crate) fn random(bed: &Bed, report: &mut Report) -> Outcome {
    let data = &bed.distinct.bytes;
    let name = "random 4 KiB overwrite, qd 32";
    let mut turns = Turns::new(name, Unit::OperationsPerSecond, Target::ratio(2.0));
    let bound = "the same, of twice that or the work";
    let mut bounded = Turns::new(bound, Unit::OperationsPerSecond, Target::ratio(0.9));
    for round in 1..=bed.rounds {
        let limit =
            raw::run(&bed.raw, bed.raw_bytes, Load::RANDOM_WRITE, Amount::Time(bed.seconds))?;
        let work = limit::run_blocks(data, bed.cores).rate();
        // Each round anew: what was overwritten takes its space until it is collected.
        bed.load_pool()?;
        let pool = bed.open_pool(siltstone_engine::Tuning::default())?;
        let volume = pool.volume(LOADED)?;
        let span_bytes = volume.size_bytes();
        let before = pool.activity();
        let end = Instant::now() + bed.seconds;
        let stopwatch = Stopwatch::start();
        let counts = drive::run(bed.cores, DEPTH, |lane| {
            let mut blocks = NewBlocks::new(data, lane, DEPTH);
            let volume = &volume;
            async move {
                let mut count = 0_u64;
                while Instant::now() < end {
                    let (offset, block) = blocks.next(span_bytes);
                    volume.write(offset, block).await?;
                    count += 1;
                }
                Ok::<u64, EngineError>(count)
            }
        })?;
        pool.flush()?;
        let written = stopwatch.stop(counts.into_iter().sum());
        turns.add(written.rate(), limit.rate());
        bounded.add(written.rate(), work.min(2.0 * limit.rate()));
        if round == bed.rounds {
            report.explain(name, &before, &pool.activity());
        }
        drop(volume);
        pool.close()?;
    }
    report.add(turns);
    report.add(bounded);
    Ok(())
}
