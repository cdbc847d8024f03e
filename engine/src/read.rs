//! The read path: overlay, map, frame.
//!
//! A read asks the overlay, then the map for what the overlay lacks, then [`fetch`](crate::fetch) for the
//! frames. Only one thing can go wrong with a healthy device: between the lookup and the read, the
//! segment may have been freed and written anew. The frame's identity shows that, and the read
//! looks the block up again; if the map still says the same, the frame is damaged.

use std::ops::Range;

use siltstone_cursor::{Run, Target};
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BlockAddress, ByteOffset, DeviceError, Place, Request, SegmentId,
    units::MAX_FRAME_STORED_BYTES,
};

use crate::{
    core::Core,
    error::{EngineError, FrameError, Result},
    fetch::{Keep, Wanted},
    overlay::OverlayRun,
    read_ahead::Ahead,
    stats::add,
    volume_core::VolumeCore,
};

/// How often a read looks blocks up again before it believes that a frame is damaged.
const MAX_RETRIES: usize = 8;

type IoOutcome = std::result::Result<(), DeviceError>;

impl Core {
    /// Reads whole blocks into `out` and reports holes: `note_hole(first block, count)`, counted
    /// from the start of the read, in no particular order.
    pub(crate) async fn read_blocks(
        &self,
        volume: &VolumeCore,
        address: BlockAddress,
        out: &mut [u8],
        note_hole: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()> {
        self.await_inherited(volume).await?;
        let len_blocks = (out.len() / BLOCK_BYTES) as u64;
        let mut staged: Vec<OverlayRun> = Vec::new();
        volume.overlay.read(address, len_blocks, &mut staged);
        let mut next = address.0;
        let mut gaps: Vec<(u64, u64)> = Vec::new();
        for run in &staged {
            if run.address.0 > next {
                gaps.push((next, run.address.0 - next));
            }
            let at = (run.address.0 - address.0) as usize * BLOCK_BYTES;
            let slot = &mut out[at..][..run.len_blocks as usize * BLOCK_BYTES];
            run.copy_to(slot).map_err(|address| self.staging_fault(volume, address))?;
            if run.is_hole() {
                note_hole(run.address.0 - address.0, run.len_blocks.into());
            }
            next = run.address.0 + u64::from(run.len_blocks);
        }
        drop(staged);
        let end = address.0 + len_blocks;
        if next < end {
            gaps.push((next, end - next));
        }
        for (first, count) in gaps {
            let at = (first - address.0) as usize * BLOCK_BYTES;
            let slot = &mut out[at..][..count as usize * BLOCK_BYTES];
            let skip = first - address.0;
            let mut note = |at: u64, count: u64| note_hole(skip + at, count);
            self.read_mapped(volume, BlockAddress(first), slot, &mut note).await?;
        }
        Ok(())
    }

    async fn read_mapped(
        &self,
        volume: &VolumeCore,
        address: BlockAddress,
        out: &mut [u8],
        note_hole: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()> {
        let len_blocks = (out.len() / BLOCK_BYTES) as u32;
        let mut runs: Vec<Run> = Vec::new();
        self.find(volume, address, len_blocks, &mut runs).await?;
        let mut wanted = Vec::new();
        for run in &runs {
            let at = (run.address.0 - address.0) as usize * BLOCK_BYTES;
            match run.target {
                Target::Hole => {
                    out[at..][..run.len_blocks as usize * BLOCK_BYTES].fill(0);
                    note_hole(run.address.0 - address.0, run.len_blocks.into());
                }
                Target::Stored(place) => {
                    wanted.push(self.want(volume, run.address, place, run.len_blocks, at)?);
                }
            }
        }
        let mut retries = 0;
        loop {
            let failed = self.read_wanted(&wanted, out, Keep::Frames).await;
            if failed.is_empty() {
                return Ok(());
            }
            retries += 1;
            let mut again = Vec::new();
            for (run, error) in failed {
                add(&self.stats.counters.read_retries, 1);
                let damaged = |source| {
                    let volume = volume.name.clone();
                    EngineError::BlockDamaged { volume, address: run.address, source }
                };
                runs.clear();
                self.find(volume, run.address, run.len_blocks, &mut runs).await?;
                let same = runs.len() == 1
                    && runs[0].target == Target::Stored(run.place)
                    && self.generation_of(run.place) == Some(run.generation);
                if same || retries > MAX_RETRIES {
                    self.note_damaged_segment(run.place.segment(), run.generation);
                    return Err(damaged(error));
                }
                for moved in &runs {
                    let skip = (moved.address.0 - run.address.0) as usize * BLOCK_BYTES;
                    let at = run.out_bytes + skip;
                    match moved.target {
                        Target::Hole => {
                            out[at..][..moved.len_blocks as usize * BLOCK_BYTES].fill(0);
                        }
                        Target::Stored(place) => {
                            let (address, len) = (moved.address, moved.len_blocks);
                            again.push(self.want(volume, address, place, len, at)?);
                        }
                    }
                }
            }
            wanted = again;
        }
    }

    /// Looks a range up, so that each place found is in the use of its segment that the table
    /// names now: generations only grow, and one that was given out before the lookup began cannot
    /// be of a later use. A place in a younger segment is looked up again.
    async fn find(
        &self,
        volume: &VolumeCore,
        address: BlockAddress,
        len_blocks: u32,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        loop {
            let before = self.table.next_generation();
            let chain = volume.chain();
            self.map.lookup(&chain, address, len_blocks, runs).await?;
            let is_young = |run: &Run| match run.target {
                Target::Stored(place) => {
                    self.generation_of(place).is_some_and(|generation| generation >= before)
                }
                Target::Hole => false,
            };
            if !runs.iter().any(is_young) {
                return Ok(());
            }
        }
    }

    /// From now on nothing new refers to what is in the segment.
    pub(crate) fn note_damaged_segment(&self, id: SegmentId, generation: u64) {
        // What only reads remembers nothing and links to nothing.
        if !self.read_only && self.table.note_damage(id, generation) {
            tracing::warn!(
                segment = id.0,
                "damage was found: no new data are linked to this segment"
            );
        }
    }

    fn generation_of(&self, place: Place) -> Option<u64> {
        self.table.generation(place.segment()).map(|(generation, _)| generation)
    }

    fn want(
        &self,
        volume: &VolumeCore,
        address: BlockAddress,
        place: Place,
        len_blocks: u32,
        out_bytes: usize,
    ) -> Result<Wanted> {
        let segment_bytes = self.superblock.layout.segment_bytes;
        let inside = u64::from(place.frame_offset_bytes()) < segment_bytes;
        match self.generation_of(place).filter(|_| inside) {
            Some(generation) => Ok(Wanted { address, place, len_blocks, generation, out_bytes }),
            None => Err(EngineError::BlockDamaged {
                volume: volume.name.clone(),
                address,
                source: FrameError::OutOfPool { place },
            }),
        }
    }

    /// Reads blocks by their places, runs of blocks of one frame each, one after the other into
    /// `out`. Returns which could not be read. Does not keep what it reads: who moves blocks reads
    /// each once.
    pub(crate) async fn read_places(
        &self,
        runs: &[(Place, u32)],
        out: &mut [u8],
    ) -> Vec<(usize, FrameError)> {
        let mut failed = Vec::new();
        let mut wanted = Vec::with_capacity(runs.len());
        let mut out_bytes = 0;
        for (run, &(place, len_blocks)) in runs.iter().enumerate() {
            let inside =
                u64::from(place.frame_offset_bytes()) < self.superblock.layout.segment_bytes;
            match self.generation_of(place).filter(|_| inside) {
                Some(generation) => {
                    // The address tells the runs apart.
                    let address = BlockAddress(run as u64);
                    wanted.push(Wanted { address, place, len_blocks, generation, out_bytes });
                }
                None => failed.push((run, FrameError::OutOfPool { place })),
            }
            out_bytes += len_blocks as usize * BLOCK_BYTES;
        }
        let unread = self.read_wanted(&wanted, out, Keep::Nothing).await;
        failed.extend(unread.into_iter().map(|(run, error)| (run.address.0 as usize, error)));
        failed
    }

    /// Starts to read a range's frames into the cache, for a sequential reader. Waits for map
    /// pages, which a sequential reader needs next anyway, but not for frames.
    pub(crate) async fn read_ahead(&self, volume: &VolumeCore, ahead: Ahead) {
        let mut runs: Vec<Run> = Vec::new();
        let (first, len) = (BlockAddress(ahead.first), ahead.len_blocks as u32);
        if self.find(volume, first, len, &mut runs).await.is_err() {
            return;
        }
        let mut wanted = Vec::new();
        for run in &runs {
            if let Target::Stored(place) = run.target
                && let Ok(run) = self.want(volume, run.address, place, run.len_blocks, 0)
                && !self.frame_cache.contains(&run.key())
            {
                wanted.push(run);
            }
        }
        let missing = (0..wanted.len()).collect();
        let mut requests = Vec::new();
        for read in self.plan_reads(&wanted, missing) {
            let frames: Vec<_> = read
                .wanted
                .iter()
                .map(|&at| {
                    let run = &wanted[at];
                    let skip = (self.frame_start(run.place) - read.start) as usize;
                    let len = run.place.stored_bytes().unwrap_or(MAX_FRAME_STORED_BYTES);
                    (run.key(), skip..skip + len)
                })
                .collect();
            add(&self.stats.counters.read_ahead_frames, frames.len() as u64);
            let buffer = self.buffers.take((read.end - read.start) as usize);
            // Not the core: a completion must not be the last to let go of the device.
            let buffers = self.buffers.clone();
            let coming = self.frame_cache.announce(frames.iter().map(|(key, _)| *key).collect());
            let completion = Box::new(move |bytes: AlignedBuffer, outcome: IoOutcome| {
                // A failure is met again, and reported, by the read that needs the frame.
                if outcome.is_ok() {
                    let part =
                        |range: &Range<usize>| &bytes[range.start..range.end.min(bytes.len())];
                    coming.arrive(frames.iter().map(|(_, range)| part(range)), &buffers);
                }
            });
            requests.push(Request::Read { offset: ByteOffset(read.start), buffer, completion });
        }
        if !requests.is_empty() {
            self.device.submit(requests);
        }
    }
}
