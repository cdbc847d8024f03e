#![no_main]
//! A pool and a model of it: writes, discards, flushes, checkpoints, and power cuts at any event.
//!
//! A block's versions are whole blocks. After a cut it may hold any version that had begun, from
//! the last one on that a flush had made certain.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use siltstone_device::{
    BLOCK_BYTES, SeededRandom,
    sim::{CrashPolicy, SimDevice},
};
use siltstone_engine::{OpenOptions, Pool, Volume};
use siltstone_fuzz::pool::{self, VOLUME, VOLUME_BLOCKS};

const SECTOR: u64 = 512;
const SECTORS: usize = BLOCK_BYTES / SECTOR as usize;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A block as the tags of its sectors; 0 is zeros.
type Block = [u16; SECTORS];

static EMPTY: LazyLock<Arc<SimDevice>> = LazyLock::new(pool::empty);

/// What sectors with these tags contain: half of the tags do not compress.
fn bytes_of(tags: &[u16]) -> Vec<u8> {
    let mut bytes = vec![0; tags.len() * SECTOR as usize];
    for (tag, sector) in tags.iter().zip(bytes.chunks_exact_mut(SECTOR as usize)) {
        match tag {
            0 => {}
            tag if tag % 2 == 0 => SeededRandom::new((*tag).into()).fill(sector),
            tag => {
                sector.chunks_exact_mut(2).for_each(|two| two.copy_from_slice(&tag.to_le_bytes()))
            }
        }
    }
    bytes
}

struct Version {
    content: Block,
    begun: usize,
    /// The event from which on it is certain.
    certain: usize,
}

#[derive(Default)]
struct Model {
    blocks: BTreeMap<u64, Vec<Version>>,
}

impl Model {
    fn versions(&mut self, block: u64) -> &mut Vec<Version> {
        let zero = || vec![Version { content: [0; SECTORS], begun: 0, certain: 0 }];
        self.blocks.entry(block).or_insert_with(zero)
    }

    fn visible(&mut self, block: u64) -> Block {
        self.versions(block).last().expect("there is a first version").content
    }

    /// Sectors from `first` on get these tags.
    fn write(&mut self, event: usize, first: u64, tags: &[u16]) {
        let mut at = first as usize;
        let mut tags = tags;
        while !tags.is_empty() {
            let block = (at / SECTORS) as u64;
            let (here, rest) = tags.split_at(tags.len().min(SECTORS - at % SECTORS));
            let mut content = self.visible(block);
            content[at % SECTORS..][..here.len()].copy_from_slice(here);
            self.versions(block).push(Version { content, begun: event, certain: usize::MAX });
            at += here.len();
            tags = rest;
        }
    }

    fn flushed(&mut self, event: usize) {
        for version in self.blocks.values_mut().flatten() {
            version.certain = version.certain.min(event);
        }
    }

    /// Compares a pool that was recovered from a cut at `event`; goes on from what is there.
    fn recovered(&mut self, volume: &Volume, event: usize) {
        let mut bytes = vec![0; BLOCK_BYTES];
        for block in 0..VOLUME_BLOCKS {
            volume.read_at(block * BLOCK, &mut bytes).expect("nothing is damaged");
            let versions = self.versions(block);
            let certain = versions.iter().rposition(|version| version.certain <= event);
            let possible = &versions[certain.expect("the first version is")..];
            let found = possible
                .iter()
                .filter(|version| version.begun <= event)
                .find(|version| bytes_of(&version.content) == bytes);
            let content = found
                .unwrap_or_else(|| panic!("block {block} is none of {} versions", possible.len()))
                .content;
            *versions = vec![Version { content, begun: 0, certain: 0 }];
        }
    }
}

struct Life {
    device: Arc<SimDevice>,
    pool: Pool,
    volume: Volume,
    options: OpenOptions,
}

fn options(input: &mut Unstructured<'_>) -> Result<OpenOptions> {
    let mut options = pool::options();
    let tuning = &mut options.tuning;
    tuning.staging_bytes = *input.choose(&[64 << 10, 256 << 10])?;
    tuning.linger = Duration::from_micros(*input.choose(&[0, 100, 1000])?);
    tuning.memtable_entries = *input.choose(&[4, 50])?;
    tuning.checkpoint_interval = Duration::from_millis(*input.choose(&[1, 1000])?);
    tuning.log_commit_bytes = *input.choose(&[0, 16 << 10, 64 << 10])?;
    tuning.warm_index = input.arbitrary()?;
    Ok(options)
}

impl Life {
    fn begin(device: Arc<SimDevice>, options: OpenOptions) -> Self {
        let pool = Pool::open_on(device.clone(), None, &options).expect("the pool opens");
        let volume = pool.volume(VOLUME).expect("the volume is there");
        Self { device, pool, volume, options }
    }

    /// Cuts the power at an event of this life and begins another.
    fn cut(self, input: &mut Unstructured<'_>, model: &mut Model) -> Result<Self> {
        let Self { device, pool, volume, options } = self;
        let events = device.history_len();
        let event = events - usize::from(input.arbitrary::<u8>()?).min(events);
        let policy =
            *input.choose(&[CrashPolicy::Random, CrashPolicy::LoseAll, CrashPolicy::KeepAll])?;
        let mut random = SeededRandom::new(input.arbitrary()?);
        device.cut_power();
        drop((volume, pool));
        let next = Self::begin(device.crash_with(event, policy, &mut random), options);
        model.recovered(&next.volume, event);
        Ok(next)
    }

    /// Closes the pool properly and opens it again.
    fn reopen(self, model: &mut Model) -> Self {
        let Self { device, pool, volume, options } = self;
        drop(volume);
        pool.close().expect("nothing fails");
        model.flushed(device.history_len());
        let after = device.snapshot();
        let next = Self::begin(after, options);
        model.recovered(&next.volume, usize::MAX - 1);
        next
    }
}

/// Tags of a run: often one that was written before.
fn tags(input: &mut Unstructured<'_>, sectors: usize) -> Result<Vec<u16>> {
    let first = input.arbitrary::<u16>()?;
    let tag = |at: usize| if first & 0x8000 == 0 { first % 8 + (at / 8) as u16 } else { first };
    Ok((0..sectors).map(tag).collect())
}

fn step(life: Life, model: &mut Model, input: &mut Unstructured<'_>) -> Result<Life> {
    let volume = &life.volume;
    let choice = input.int_in_range(0..=15u8)?;
    let block = input.int_in_range(0..=VOLUME_BLOCKS - 1)?;
    let blocks = input.int_in_range(1..=8)?.min(VOLUME_BLOCKS - block);
    let sectors = blocks as usize * SECTORS;
    let event = life.device.history_len();
    match choice {
        0..=5 => {
            let tags = tags(input, sectors)?;
            model.write(event, block * SECTORS as u64, &tags);
            volume.write_at(block * BLOCK, &bytes_of(&tags)).expect("there is room");
        }
        6..=7 => {
            let first = block * SECTORS as u64 + input.int_in_range(0..=SECTORS as u64 - 1)?;
            let left = (VOLUME_BLOCKS * SECTORS as u64 - first) as usize;
            let tags = tags(input, left.min(1 + sectors / 4))?;
            model.write(event, first, &tags);
            volume.write_at(first * SECTOR, &bytes_of(&tags)).expect("there is room");
        }
        8 => {
            model.write(event, block * SECTORS as u64, &vec![0; sectors]);
            volume.discard(block * BLOCK, blocks * BLOCK).expect("nothing fails");
        }
        9 => {
            let len = input.int_in_range(1..=sectors)?;
            model.write(event, block * SECTORS as u64, &vec![0; len]);
            volume.write_zeroes(block * BLOCK, len as u64 * SECTOR).expect("nothing fails");
        }
        10..=11 => {
            volume.flush().expect("nothing fails");
            model.flushed(life.device.history_len());
        }
        12 => {
            let mut bytes = vec![1; sectors * SECTOR as usize];
            volume.read_at(block * BLOCK, &mut bytes).expect("nothing is damaged");
            for (block, bytes) in (block..).zip(bytes.chunks(BLOCK_BYTES)) {
                assert!(bytes == bytes_of(&model.visible(block)), "block {block} reads wrong");
            }
        }
        13 => life.pool.checkpoint().expect("nothing fails"),
        14 => return Ok(life.reopen(model)),
        _ => return life.cut(input, model),
    }
    Ok(life)
}

fn live(input: &mut Unstructured<'_>) -> Result<()> {
    let mut life = Life::begin(EMPTY.snapshot(), options(input)?);
    let mut model = Model::default();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        life = step(life, &mut model, input)?;
    }
    let life = life.cut(input, &mut model)?;
    let device = life.reopen(&mut model).device;
    let read_only = OpenOptions { read_only: true, ..pool::options() };
    let pool = Pool::open_on(device.snapshot(), None, &read_only).expect("the pool opens");
    let report = pool.check(&mut |_| {}).expect("nothing fails");
    assert!(report.is_sound(), "{:?}", report.findings.problems);
    Ok(())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = live(&mut Unstructured::new(input));
});
