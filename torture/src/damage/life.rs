//! Pools to damage: small ones that have lived until every structure exists, the same every time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use siltstone_device::{
    Runtime, SeededEntropy, SeededRandom,
    header::{HEADER_BYTES, Header, Kind as HeaderKind, MAGIC},
    sim::{CrashPolicy, Machine, SimDevice},
};
use siltstone_engine::{
    CreateOptions, EngineError, OpenOptions, Pool, SnapshotName, Tuning, VolumeOptions,
};
use zerocopy::FromBytes;

use super::structures::Structures;
use crate::content::{self, BLOCK, SECTOR, SECTORS};

const KIB: u64 = 1 << 10;
const POOL_BYTES: u64 = 16 << 20;
/// Contents of all sorts, written over and over.
const DISK: &str = "disk";
const DISK_BLOCKS: u64 = 96;
/// Links, one a map entry, so that a patch has more of them than fit a page.
const LINKS: &str = "links";
const LINKS_COUNT: u64 = 880;
/// Its end is not the end of a block.
const ODD: &str = "odd";
const ODD_BYTES: u64 = 5 * SECTOR as u64;
/// Written over and over in the same way, so that segments are used again and what was there in
/// their older uses is like what is there now. A part is a compressible head, each frame of which
/// is in a block, and a tail of noise that fills segments.
const AGAIN: &str = "again";
const AGAIN_PARTS: u64 = 4;
const AGAIN_HEAD_BLOCKS: u64 = 8;
const AGAIN_PART_BLOCKS: u64 = 24;
/// So often: each segment is used more than once; then until the map's pages stand where others
/// stood before, but not for ever.
const AGAIN_ROUNDS: std::ops::Range<u64> = 160..1000;
/// Before that as many links, one a map entry each, so that many segments are used for pages of the
/// map; gone again in the end.
const MAPPED: &str = "mapped";
const MAPPED_BLOCKS: u64 = 4096;
const MAPPED_ROUNDS: u64 = 24;
/// Gone again in the end.
const TEMPORARY: &str = "temporary";
/// A clone of the disk, which goes its own way.
const COPY: &str = "copy";
const ROUNDS: u64 = 44;
/// How long nothing happens before the power goes: the mark has long been written.
const REST: Duration = Duration::from_secs(1);

/// How a pool's life has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It was closed.
    Closed,
    /// The power went when everything had been flushed, part of it to the log only, part of it to
    /// units that no checkpoint covers.
    Crashed,
}

impl End {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Closed, Self::Crashed];
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Crashed => "crashed",
        })
    }
}

impl std::str::FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|end| end.to_string() == text);
        found.ok_or_else(|| "it is closed or crashed".into())
    }
}

/// What each volume and each snapshot holds, to the byte.
pub(super) type Contents = BTreeMap<String, Vec<u8>>;

/// A pool whose life has ended.
pub(super) struct Life {
    pub(super) end: End,
    /// It, as it was left.
    pub(super) device: Arc<SimDevice>,
    /// It, at earlier checkpoints, oldest first.
    pub(super) earlier: Vec<Arc<SimDevice>>,
    pub(super) contents: Contents,
    pub(super) structures: Structures,
}

impl Life {
    /// Lives it: the same every time.
    ///
    /// # Panics
    /// If the engine cannot do what is asked of it on a device without faults.
    pub(super) fn new(end: End) -> Self {
        let device = SimDevice::new(POOL_BYTES);
        let machine = Machine::new(1);
        let lived = machine.run(live(&machine, &device, end));
        device.cut_power();
        machine.kill();
        let (contents, earlier) = lived.expect("a device without faults serves a pool");
        // What was written is there, durable or not; all of it was flushed.
        let mut random = SeededRandom::new(1);
        let device = device.crash_with(device.history_len(), CrashPolicy::KeepAll, &mut random);
        let structures = Structures::find(&device);
        Self { end, device, earlier, contents, structures }
    }
}

/// Options by which nothing happens by itself but marks.
pub(super) fn options(read_only: bool) -> OpenOptions {
    let tuning = Tuning {
        staging_bytes: 1 << 20,
        batch_bytes: 32 << 10,
        frame_cache_bytes: 512 << 10,
        page_cache_bytes: 256 << 10,
        reducers: 1,
        linger: Duration::from_secs(3600),
        memtable_entries: 1000,
        checkpoint_interval: Duration::from_secs(3600),
        log_commit_bytes: 24 << 10,
        mark_delay: Duration::from_millis(50),
        warm_index: false,
        ..Tuning::default()
    };
    OpenOptions { read_only, tuning }
}

struct Work {
    pool: Pool,
    contents: Contents,
    random: SeededRandom,
}

impl Work {
    async fn create(&mut self, name: &str, size_bytes: u64) -> Result<(), EngineError> {
        self.pool.create_volume_async(name, &VolumeOptions::new(size_bytes)).await?;
        self.contents.insert(name.into(), vec![0; size_bytes as usize]);
        Ok(())
    }

    async fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> Result<(), EngineError> {
        self.pool.volume(name)?.write(at, bytes).await?;
        let content = self.contents.get_mut(name).expect("it was created");
        content[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    async fn trim(&mut self, name: &str, at: u64, len: u64) -> Result<(), EngineError> {
        self.pool.volume(name)?.trim(at, len).await?;
        let content = self.contents.get_mut(name).expect("it was created");
        content[at as usize..][..len as usize].fill(0);
        Ok(())
    }

    async fn take_snapshots(&mut self, of: &[&str], own: &str) -> Result<(), EngineError> {
        let names = of.iter().map(|volume| SnapshotName::new(volume, own));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        self.pool.create_snapshots_async(&names).await?;
        for name in names {
            self.contents.insert(name.to_string(), self.contents[&name.volume].clone());
        }
        Ok(())
    }

    /// What becomes of snapshots from round to round: of some the versions stay, in patches of all
    /// ages.
    async fn keep_snapshots(&mut self, round: u64) -> Result<(), EngineError> {
        match round {
            13 => self.take_snapshots(&[DISK, LINKS, ODD], "early").await,
            21 => self.take_snapshots(&[DISK], "gone").await,
            23 => {
                let early = SnapshotName::new(DISK, "early")?;
                self.pool.clone_snapshot_async(&early, COPY).await?;
                self.contents.insert(COPY.into(), self.contents[&early.to_string()].clone());
                let bytes = content::bytes_of(content::draw(&mut self.random, 8).as_flattened());
                self.write(COPY, 0, &bytes).await
            }
            26 => self.take_snapshots(&[DISK, LINKS], "late").await,
            29 => {
                let gone = SnapshotName::new(DISK, "gone")?;
                self.contents.remove(&gone.to_string());
                self.pool.delete_snapshots_async(&[gone]).await
            }
            33 => {
                let early = SnapshotName::new(ODD, "early")?;
                self.pool.roll_back_async(&early).await?;
                self.contents.insert(ODD.into(), self.contents[&early.to_string()].clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Some blocks of the disk, of all sorts of contents.
    async fn write_disk(&mut self, blocks: u64, noise: bool) -> Result<(), EngineError> {
        let first = self.random.below(DISK_BLOCKS - blocks);
        let mut bytes = content::bytes_of(content::draw(&mut self.random, blocks).as_flattened());
        if noise {
            // Which is stored plain.
            self.random.fill(&mut bytes);
        }
        self.write(DISK, first * BLOCK as u64, &bytes).await
    }

    /// Every other block from the `first` on: few different ones, and none continues the one
    /// before.
    async fn write_links(&mut self, first: u64, count: u64) -> Result<(), EngineError> {
        for link in first..first + count {
            let bytes = content::bytes_of(&[2 + 2 * (link * 7 % 8) as u32; SECTORS]);
            self.write(LINKS, link % LINKS_COUNT * 2 * BLOCK as u64, &bytes).await?;
        }
        Ok(())
    }

    /// A part of what is written again: as long as any other, and of frames as long as theirs.
    async fn write_again(&mut self, round: u64) -> Result<(), EngineError> {
        let sectors = AGAIN_HEAD_BLOCKS as u32 * SECTORS as u32;
        // Even, so that they can be compressed, and nobody else's.
        let first = 0x4000_0000 + 2 * sectors * round as u32;
        let tags: Vec<_> = (0..sectors).map(|at| first + 2 * at).collect();
        let mut bytes = content::bytes_of(&tags);
        let head_bytes = bytes.len();
        bytes.resize(AGAIN_PART_BLOCKS as usize * BLOCK, 0);
        self.random.fill(&mut bytes[head_bytes..]);
        let part = round % AGAIN_PARTS * AGAIN_PART_BLOCKS;
        self.write(AGAIN, part * BLOCK as u64, &bytes).await
    }

    /// As many map entries as there are blocks.
    async fn write_links_together(&mut self) -> Result<(), EngineError> {
        let random = &mut self.random;
        // Few of them continue the one before.
        let tags = (0..MAPPED_BLOCKS).flat_map(|_| [2 + 2 * random.below(8) as u32; SECTORS]);
        let tags: Vec<_> = tags.collect();
        self.write(MAPPED, 0, &content::bytes_of(&tags)).await
    }
}

/// Where pages of the map are.
fn map_pages(device: &SimDevice) -> BTreeSet<u64> {
    let places = (0..POOL_BYTES).step_by(BLOCK);
    places.filter(|&place| is_map_page(&device.peek(place, HEADER_BYTES))).collect()
}

fn is_map_page(header: &[u8]) -> bool {
    let kinds = [HeaderKind::PatchLeaf, HeaderKind::PatchFence].map(|kind| kind as u16);
    let header = Header::read_from_bytes(header).expect("it is as long as a header");
    header.magic == MAGIC && kinds.contains(&header.kind.get())
}

/// Uses each segment several times.
async fn use_again(
    work: &mut Work,
    device: &SimDevice,
) -> Result<Vec<Arc<SimDevice>>, EngineError> {
    let mut earlier = Vec::new();
    work.create(MAPPED, MAPPED_BLOCKS * BLOCK as u64).await?;
    for _ in 0..MAPPED_ROUNDS {
        work.write_links_together().await?;
        work.pool.checkpoint_async().await?;
        earlier.push(device.snapshot());
    }
    work.pool.delete_volume_async(MAPPED).await?;
    work.contents.remove(MAPPED);
    work.create(AGAIN, AGAIN_PARTS * AGAIN_PART_BLOCKS * BLOCK as u64).await?;
    let mut pages = BTreeSet::new();
    let mut gone = BTreeSet::new();
    for device in &earlier {
        gone.append(&mut std::mem::replace(&mut pages, map_pages(device)));
    }
    for round in 0..AGAIN_ROUNDS.end {
        work.write_again(round).await?;
        work.pool.flush_async().await?;
        if round % 2 == 1 {
            work.pool.checkpoint_async().await?;
            earlier.push(device.snapshot());
            let before = std::mem::replace(&mut pages, map_pages(device));
            gone.extend(before.difference(&pages));
            let is_used_again =
                pages.iter().any(|page| !before.contains(page) && gone.contains(page));
            if is_used_again && round >= AGAIN_ROUNDS.start {
                break;
            }
        }
    }
    Ok(earlier)
}

async fn live(
    machine: &Arc<Machine>,
    device: &Arc<SimDevice>,
    end: End,
) -> Result<(Contents, Vec<Arc<SimDevice>>), EngineError> {
    let create = CreateOptions {
        segment_bytes: Some(256 * KIB),
        nvram_bytes: Some(256 * KIB),
        index_memory_bytes: 64 * KIB,
        ..CreateOptions::default()
    };
    Pool::create_from(device.clone(), None, &create, &SeededEntropy::new(1)).await?;
    let pool = Pool::open_in(machine.clone(), device.clone(), None, &options(false)).await?;
    let mut work = Work { pool, contents: Contents::new(), random: SeededRandom::new(1) };
    let mut earlier = vec![device.snapshot()];
    earlier.extend(use_again(&mut work, device).await?);
    work.create(DISK, DISK_BLOCKS * BLOCK as u64).await?;
    work.create(LINKS, 2 * LINKS_COUNT * BLOCK as u64).await?;
    work.create(TEMPORARY, 8 * BLOCK as u64).await?;
    work.create(ODD, ODD_BYTES).await?;
    work.write_links(0, LINKS_COUNT).await?;
    for round in 0..ROUNDS {
        let blocks = 1 + work.random.below(16);
        work.write_disk(blocks, round % 4 == 1).await?;
        if round % 2 == 0 {
            work.pool.flush_async().await?;
        }
        // So few go to the log.
        work.write_links(round * 5, 5).await?;
        work.pool.flush_async().await?;
        let odd = content::bytes_of(&[1 + round as u32; 5]);
        work.write(ODD, 0, &odd).await?;
        match round {
            3 => work.write(TEMPORARY, 0, &odd).await?,
            9 => {
                work.pool.delete_volume_async(TEMPORARY).await?;
                work.contents.remove(TEMPORARY);
            }
            _ if round % 5 == 0 => {
                let first = work.random.below(DISK_BLOCKS - 4);
                work.trim(DISK, first * BLOCK as u64, 4 * BLOCK as u64).await?;
            }
            _ => {}
        }
        work.keep_snapshots(round).await?;
        if round % 4 == 3 {
            work.pool.checkpoint_async().await?;
            earlier.push(device.snapshot());
        }
    }
    if end == End::Closed {
        work.pool.close_async().await?;
        // A last opening leaves an image of the index.
        let mut options = options(false);
        options.tuning.warm_index = true;
        options.tuning.image_segments = 0;
        let pool = Pool::open_in(machine.clone(), device.clone(), None, &options).await?;
        pool.wait_index_warm_async().await?;
        pool.close_async().await?;
        return Ok((work.contents, earlier));
    }
    // Units that no checkpoint covers, then records of what is in no unit; all of two epochs.
    for blocks in [7, 8, 2, 1, 3] {
        if blocks == 2 {
            work.take_snapshots(&[DISK, COPY], "last").await?;
        }
        work.write_disk(blocks, blocks % 4 == 3).await?;
        work.write_links(blocks, 3).await?;
        work.pool.flush_async().await?;
    }
    machine.sleep_until(machine.now() + REST).await;
    work.pool.abandon();
    Ok((work.contents, earlier))
}
