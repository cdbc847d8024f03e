//! The read path: overlay, map, frame.
//!
//! A read asks the overlay, then the map for what the overlay lacks, then the frame cache; the
//! frames that it lacks are read from the device, neighbours together, verified, decoded and
//! cached. Only one thing can go wrong with a healthy device: between the lookup and the read, the
//! segment may have been freed and written anew. The frame's identity shows that, and the read
//! looks the block up again; if the map still says the same, the frame is damaged.

use std::sync::Arc;

use siltstone_cursor::{Run, Target};
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BlockAddress, ByteOffset, DeviceError, Place, Request, Salvaged,
    SegmentId, request, salvage, units::MAX_FRAME_STORED_BYTES,
};

use crate::{
    compress::Decompressor,
    core::Core,
    error::{EngineError, FrameError, Result},
    frame::{self, FrameIdentity},
    frame_cache::{CachedFrame, FrameKey},
    overlay::OverlayRun,
    read_ahead::Ahead,
    stats::add,
    volume_core::VolumeCore,
};

/// Frames closer together than this are read in one go.
const MAX_GAP_BYTES: u64 = 16 << 10;
/// Longest device read.
const MAX_READ_BYTES: u64 = 1 << 20;
/// How often a read looks blocks up again before it believes that a frame is damaged.
const MAX_RETRIES: usize = 8;

type IoOutcome = std::result::Result<(), DeviceError>;

/// Whether decoded frames go to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Frames,
    Nothing,
}

/// A run of a frame's blocks that a read wants.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    address: BlockAddress,
    place: Place,
    len_blocks: u32,
    generation: u64,
    /// Where the blocks go, in bytes from the start of the caller's buffer.
    out_bytes: usize,
}

impl Wanted {
    fn key(&self) -> FrameKey {
        FrameKey { frame: self.place.frame(), generation: self.generation }
    }
}

/// A device read that covers one frame or several neighbouring ones.
struct DeviceRead {
    start: u64,
    end: u64,
    /// Indices of wanted runs, by frame.
    wanted: Vec<usize>,
}

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

    /// Reads what is wanted into `out`; returns what could not be read, with the reason.
    async fn read_wanted(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        keep: Keep,
    ) -> Vec<(Wanted, FrameError)> {
        let mut failed = Vec::new();
        let mut missing: Vec<usize> = Vec::new();
        for (at, run) in wanted.iter().enumerate() {
            match self.frame_cache.get(&run.key()) {
                Some(cached) => {
                    add(&self.stats.counters.frame_cache_hits, 1);
                    // Of what was read ahead nothing is believed: the device decides.
                    if self.take_cached(run, cached, out).is_err() {
                        missing.push(at);
                    }
                }
                None => missing.push(at),
            }
        }
        if missing.is_empty() {
            return failed;
        }
        let reads = self.plan_reads(wanted, missing);
        let pending: Vec<_> = reads
            .into_iter()
            .map(|read| {
                let buffer = self.buffers.take((read.end - read.start) as usize);
                let pending = request::prepare_read(ByteOffset(read.start), buffer);
                (read, pending)
            })
            .collect();
        let mut requests = Vec::with_capacity(pending.len());
        let mut answers = Vec::with_capacity(pending.len());
        for (read, (request, answer)) in pending {
            add(&self.stats.counters.frame_read_bytes, read.end - read.start);
            requests.push(request);
            answers.push((read, answer));
        }
        self.device.submit(requests);
        for (read, answer) in answers {
            // A bad block fails all of a read; it is to cost its own frame.
            let (start, len) = (ByteOffset(read.start), (read.end - read.start) as usize);
            match salvage::after(&*self.device, start, len, answer.await).await {
                Ok(salvaged) => self.take_read(wanted, &read, &salvaged, out, keep, &mut failed),
                Err(source) => {
                    for &at in &read.wanted {
                        let place = wanted[at].place;
                        failed.push((wanted[at], device_error(place, &source)));
                    }
                }
            }
        }
        failed
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

    /// Where a frame's bytes are on the device, widened to whole blocks.
    pub(crate) fn device_range(&self, place: Place) -> (u64, u64) {
        let geometry = self.superblock.layout.geometry();
        let segment = geometry.segment_start(place.segment()).0;
        let start = segment + u64::from(place.frame_offset_bytes());
        let len = place.stored_bytes().unwrap_or(MAX_FRAME_STORED_BYTES) as u64;
        let block = BLOCK_BYTES as u64;
        // A frame never passes the end of its segment; a hostile length may.
        let end = (start + len).next_multiple_of(block).min(segment + geometry.segment_bytes);
        (start - start % block, end.max(start - start % block + block))
    }

    /// Groups the frames that are missing into device reads, neighbours together.
    fn plan_reads(&self, wanted: &[Wanted], mut missing: Vec<usize>) -> Vec<DeviceRead> {
        missing.sort_by_key(|&at| wanted[at].place);
        let mut reads: Vec<DeviceRead> = Vec::new();
        for at in missing {
            let (start, end) = self.device_range(wanted[at].place);
            match reads.last_mut() {
                Some(read)
                    if start <= read.end + MAX_GAP_BYTES
                        && end.max(read.end) - read.start <= MAX_READ_BYTES =>
                {
                    read.end = read.end.max(end);
                    read.wanted.push(at);
                }
                _ => reads.push(DeviceRead { start, end, wanted: vec![at] }),
            }
        }
        reads
    }

    /// Takes the wanted frames out of a finished device read.
    fn take_read(
        &self,
        wanted: &[Wanted],
        read: &DeviceRead,
        salvaged: &Salvaged,
        out: &mut [u8],
        keep: Keep,
        failed: &mut Vec<(Wanted, FrameError)>,
    ) {
        let mut decoded: Option<(FrameKey, Arc<AlignedBuffer>)> = None;
        for &at in &read.wanted {
            let run = &wanted[at];
            let plain = match &decoded {
                Some((key, plain)) if *key == run.key() => Ok(Arc::clone(plain)),
                _ => {
                    add(&self.stats.counters.frame_reads, 1);
                    let skip = (self.frame_start(run.place) - read.start) as usize;
                    let (start, end) = self.device_range(run.place);
                    match salvaged.part((start - read.start) as usize..(end - read.start) as usize)
                    {
                        Ok(_) => self.decode(run, &salvaged.bytes()[skip..], keep),
                        Err(source) => Err(device_error(run.place, source)),
                    }
                }
            };
            match plain {
                Ok(plain) => {
                    if let Err(error) = copy_blocks(run, &plain, out) {
                        failed.push((*run, error));
                    }
                    decoded = Some((run.key(), plain));
                }
                Err(error) => failed.push((*run, error)),
            }
        }
    }

    pub(crate) fn frame_start(&self, place: Place) -> u64 {
        let geometry = self.superblock.layout.geometry();
        geometry.segment_start(place.segment()).0 + u64::from(place.frame_offset_bytes())
    }

    fn take_cached(
        &self,
        run: &Wanted,
        cached: CachedFrame,
        out: &mut [u8],
    ) -> std::result::Result<(), FrameError> {
        let plain = match cached {
            CachedFrame::Decoded(plain) => plain,
            CachedFrame::Raw(bytes) => self.decode(run, &bytes, Keep::Frames)?,
        };
        copy_blocks(run, &plain, out)
    }

    /// Verifies and decodes the frame at the start of `bytes`.
    fn decode(
        &self,
        run: &Wanted,
        bytes: &[u8],
        keep: Keep,
    ) -> std::result::Result<Arc<AlignedBuffer>, FrameError> {
        let (place, generation) = (run.place.frame(), run.generation);
        let expected = FrameIdentity { pool: self.superblock.pool, place, generation };
        let frame = frame::verify(bytes, &expected)?;
        let mut plain = self.buffers.take(frame.block_count * BLOCK_BYTES);
        Decompressor::with(|decompressor| frame.decode_all(decompressor, &mut plain))?;
        let plain = Arc::new(plain);
        if keep == Keep::Frames {
            self.frame_cache.insert(run.key(), CachedFrame::Decoded(Arc::clone(&plain)));
        }
        Ok(plain)
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
                    (run.key(), skip, len)
                })
                .collect();
            add(&self.stats.counters.read_ahead_frames, frames.len() as u64);
            let buffer = self.buffers.take((read.end - read.start) as usize);
            // Not the core: a completion must not be the last to let go of the device.
            let (cache, buffers) = (Arc::clone(&self.frame_cache), self.buffers.clone());
            let completion = Box::new(move |bytes: AlignedBuffer, outcome: IoOutcome| {
                // A failure is met again, and reported, by the read that needs the frame.
                if outcome.is_err() {
                    return;
                }
                for (key, skip, len) in frames {
                    if !cache.contains(&key) {
                        let frame = &bytes[skip..(skip + len).min(bytes.len())];
                        let mut own = buffers.take(frame.len());
                        own.copy_from_slice(frame);
                        cache.insert(key, CachedFrame::Raw(Arc::new(own)));
                    }
                }
            });
            requests.push(Request::Read { offset: ByteOffset(read.start), buffer, completion });
        }
        if !requests.is_empty() {
            self.device.submit(requests);
        }
    }
}

fn device_error(place: Place, source: &DeviceError) -> FrameError {
    FrameError::Device { place, source: source.clone() }
}

/// Copies a run's blocks out of its decoded frame.
fn copy_blocks(run: &Wanted, plain: &[u8], out: &mut [u8]) -> std::result::Result<(), FrameError> {
    let start = usize::from(run.place.index()) * BLOCK_BYTES;
    let len = run.len_blocks as usize * BLOCK_BYTES;
    let Some(blocks) = plain.get(start..start + len) else {
        let value = run.place.index().into();
        return Err(FrameError::Header { place: run.place, field: "block count", value });
    };
    out[run.out_bytes..][..len].copy_from_slice(blocks);
    Ok(())
}
