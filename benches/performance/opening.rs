//! How long opening takes: of a pool whose process was killed under load, and of a large one.

use std::{
    thread,
    time::{Duration, Instant},
};

use siltstone_device::{DeviceError, SeededRandom};
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, VolumeOptions};

use super::{
    Outcome,
    bed::Bed,
    child::{self, Child, Large, VOLUME, Work},
    limit::PIECE_BYTES,
};
use crate::{
    data::BLOCK_BYTES,
    error::BenchError,
    report::{Report, Target, Turns, Unit},
};

/// Kills for each round that is asked for.
const KILLS_A_ROUND: u32 = 3;
/// A child is killed after so long at least, and twice that at most.
const LIFE: Duration = Duration::from_millis(700);
/// A dead process' files are locked no longer than this.
const LOCKED: Duration = Duration::from_secs(10);
/// The pool in sizes of the data.
const POOL_TIMES: u64 = 3;

/// Opens after SIGKILL at random moments, and a simulated pool of 100 TiB.
pub(crate) fn times(bed: &Bed, report: &mut Report) -> Outcome {
    killed(bed, report)?;
    let mut seconds = Turns::new(
        "open, simulated pool of 100 TiB",
        Unit::Milliseconds,
        Target::value(5000.0).at_most(),
    );
    let mut memory = Turns::new("memory that it takes then", Unit::Bytes, Target::NONE);
    let found: Large = Child::start(bed, Work::Large)?.finish()?;
    seconds.add_alone(found.open_seconds * 1e3);
    memory.add_alone(found.memory_bytes as f64);
    report.add(seconds);
    report.add(memory);
    Ok(())
}

fn killed(bed: &Bed, report: &mut Report) -> Outcome {
    let pool = bed.child_pool(POOL_TIMES * bed.raw_bytes)?;
    Pool::create_on(pool.device()?, None, &CreateOptions::default())?;
    pool.create_volume(VOLUME, &VolumeOptions::new(bed.raw_bytes))?;
    let mut source = NewPieces { data: &bed.distinct.bytes, at: 0, number: 0 };
    let mut random = SeededRandom::new(1);
    let mut times_ms = Vec::new();
    for _ in 0..bed.rounds * KILLS_A_ROUND {
        let mut child = Child::start(bed, Work::Load)?;
        child.line()?;
        let life = LIFE + Duration::from_millis(random.below(LIFE.as_millis() as u64));
        let end = Instant::now() + life;
        let mut lives = true;
        while lives && Instant::now() < end {
            lives = child.feed(&source.next());
        }
        if !lives {
            return Err(child.ended());
        }
        drop(child);
        times_ms.push(open_ms(bed)?);
    }
    let target = Target::value(500.0).at_most();
    let slowest = times_ms.iter().copied().fold(0.0, f64::max);
    let mut turns = Turns::new("open after kill -9, median", Unit::Milliseconds, Target::NONE);
    times_ms.iter().for_each(|ms| turns.add_alone(*ms));
    report.add(turns);
    let name = format!("slowest of {}", times_ms.len());
    let mut turns = Turns::new(&name, Unit::Milliseconds, target);
    turns.add_alone(slowest);
    report.add(turns);
    Ok(())
}

/// Milliseconds from the call until the first read and the first write are answered.
fn open_ms(bed: &Bed) -> Result<f64, BenchError> {
    let path = bed.directory.join(child::POOL);
    let killed = Instant::now();
    let (start, pool) = loop {
        let start = Instant::now();
        match Pool::open(&path, &OpenOptions::default()) {
            // The kernel gives a dead process' files back when the requests on its ring have ended.
            Err(EngineError::Device(DeviceError::Locked { .. })) if killed.elapsed() < LOCKED => {
                thread::sleep(Duration::from_millis(1));
            }
            opened => break (start, opened?),
        }
    };
    let volume = pool.volume(VOLUME)?;
    child::answer(&volume)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    drop(volume);
    pool.close()?;
    Ok(ms)
}

/// The data again and again, each block with a number that makes it a new one.
struct NewPieces<'a> {
    data: &'a [u8],
    at: usize,
    number: u64,
}

impl NewPieces<'_> {
    fn next(&mut self) -> Vec<u8> {
        if self.at + PIECE_BYTES > self.data.len() {
            self.at = 0;
        }
        let mut piece = self.data[self.at..self.at + PIECE_BYTES].to_vec();
        self.at += PIECE_BYTES;
        for block in piece.chunks_exact_mut(BLOCK_BYTES) {
            self.number += 1;
            block[2048..2056].copy_from_slice(&self.number.to_le_bytes());
        }
        piece
    }
}
