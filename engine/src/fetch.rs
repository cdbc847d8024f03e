//! Fetching frames: from the cache, or from the device, neighbours together, verified and decoded.
//!
//! # What is kept of them
//! Most of what is read is not read again. A frame from the device is decoded to where its blocks are wanted,
//! and what is kept is the frame as it is stored, which takes less room. Once it is asked for again it is
//! decoded into the cache. So readers that pass by drive little out, what is read again and again is there
//! decoded, and what is read now and then costs a decoding, but no device read.
//!
//! Two kinds of frames are decoded into the cache the first time: one that was read ahead and of which only a
//! part is wanted, for who reads in order and in small steps comes for the rest; and one that is stored in as
//! much memory as it takes decoded.

use std::sync::Arc;

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BlockAddress, BufferPool, ByteOffset, DeviceError, Place, Salvaged,
    request, salvage, units::MAX_FRAME_STORED_BYTES,
};

use crate::{
    compress::Decompressor,
    core::Core,
    error::FrameError,
    frame::{self, FrameIdentity, VerifiedFrame},
    frame_cache::{CachedFrame, Found, FrameKey, StoredFrame},
    health::Milestone,
    stats::add,
};

/// Frames closer together than this are read in one go.
const MAX_GAP_BYTES: u64 = 16 << 10;
/// Longest device read.
const MAX_READ_BYTES: u64 = 1 << 20;

/// Whether what is read goes to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Frames,
    Nothing,
}

/// A run of a frame's blocks that a read wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) address: BlockAddress,
    pub(crate) place: Place,
    pub(crate) len_blocks: u32,
    pub(crate) generation: u64,
    /// Where the blocks go, in bytes from the start of the caller's buffer.
    pub(crate) out_bytes: usize,
}

impl Wanted {
    pub(crate) fn key(&self) -> FrameKey {
        FrameKey { frame: self.place.frame(), generation: self.generation }
    }

    /// Where the blocks go in the caller's buffer.
    fn slot<'a>(&self, out: &'a mut [u8]) -> &'a mut [u8] {
        &mut out[self.out_bytes..][..self.len_blocks as usize * BLOCK_BYTES]
    }
}

/// What the cache has of a run.
enum Cached {
    Taken,
    /// Being read ahead.
    Coming(Arc<Milestone>),
    Missing,
}

/// A device read that covers one frame or several neighbouring ones.
pub(crate) struct DeviceRead {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Indices of wanted runs, by frame.
    pub(crate) wanted: Vec<usize>,
}

impl Core {
    /// Reads what is wanted into `out`; returns what could not be read, with the reason.
    pub(crate) async fn read_wanted(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        keep: Keep,
    ) -> Vec<(Wanted, FrameError)> {
        let (mut missing, mut awaited) = (Vec::new(), Vec::new());
        for (at, run) in wanted.iter().enumerate() {
            match self.take_cached(run, out, keep) {
                Cached::Taken => {}
                Cached::Coming(arrived) => awaited.push((at, arrived)),
                Cached::Missing => missing.push(at),
            }
        }
        let mut failed = Vec::new();
        if !missing.is_empty() {
            self.read_missing(wanted, missing, out, keep, &mut failed).await;
        }
        let mut missing = Vec::new();
        for (at, arrived) in awaited {
            arrived.reached().await;
            if !matches!(self.take_cached(&wanted[at], out, keep), Cached::Taken) {
                missing.push(at);
            }
        }
        if !missing.is_empty() {
            self.read_missing(wanted, missing, out, keep, &mut failed).await;
        }
        failed
    }

    /// Takes a run out of the cache, if its frame is there.
    fn take_cached(&self, run: &Wanted, out: &mut [u8], keep: Keep) -> Cached {
        let Some(Found { frame, is_first_use }) = self.frame_cache.get(&run.key()) else {
            return Cached::Missing;
        };
        let taken = match frame {
            CachedFrame::Coming(arrived) => return Cached::Coming(arrived),
            CachedFrame::Decoded(plain) => copy_blocks(run, &plain, out),
            CachedFrame::Stored(stored) => self.take_stored(run, &stored, is_first_use, out, keep),
        };
        add(&self.stats.counters.frame_cache_hits, 1);
        // Of what is kept as it is stored nothing is believed: the device decides.
        if taken.is_ok() { Cached::Taken } else { Cached::Missing }
    }

    /// Takes a run out of a frame that the cache has as it is stored.
    fn take_stored(
        &self,
        run: &Wanted,
        stored: &StoredFrame,
        is_first_use: bool,
        out: &mut [u8],
        keep: Keep,
    ) -> Result<(), FrameError> {
        let mut frame = OpenFrame::new(stored.verify(&self.identity_of(run))?);
        let is_passing_by = is_first_use && frame.is_whole(run);
        if is_passing_by || keep == Keep::Nothing {
            return frame.take(run, out, &self.buffers).map(|_| ());
        }
        let plain = Arc::new(frame.decode(&self.buffers)?);
        self.frame_cache.insert_in_use(run.key(), CachedFrame::Decoded(Arc::clone(&plain)));
        copy_blocks(run, &plain, out)
    }

    /// Reads runs of frames that the cache does not have.
    async fn read_missing(
        &self,
        wanted: &[Wanted],
        missing: Vec<usize>,
        out: &mut [u8],
        keep: Keep,
        failed: &mut Vec<(Wanted, FrameError)>,
    ) {
        let mut requests = Vec::new();
        let mut answers = Vec::new();
        for read in self.plan_reads(wanted, missing) {
            let buffer = self.buffers.take((read.end - read.start) as usize);
            let (request, answer) = request::prepare_read(ByteOffset(read.start), buffer);
            add(&self.stats.counters.frame_read_bytes, read.end - read.start);
            requests.push(request);
            answers.push((read, answer));
        }
        self.device.submit(requests);
        for (read, answer) in answers {
            // A bad block fails all of a read; it is to cost its own frame.
            let (start, len) = (ByteOffset(read.start), (read.end - read.start) as usize);
            match salvage::after(&*self.device, start, len, answer.await).await {
                Ok(salvaged) => self.take_read(wanted, &read, &salvaged, out, keep, failed),
                Err(source) => {
                    for &at in &read.wanted {
                        let place = wanted[at].place;
                        failed.push((wanted[at], device_error(place, &source)));
                    }
                }
            }
        }
    }

    /// Groups the frames that are missing into device reads, neighbours together.
    pub(crate) fn plan_reads(&self, wanted: &[Wanted], mut missing: Vec<usize>) -> Vec<DeviceRead> {
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

    pub(crate) fn frame_start(&self, place: Place) -> u64 {
        let geometry = self.superblock.layout.geometry();
        geometry.segment_start(place.segment()).0 + u64::from(place.frame_offset_bytes())
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
        let mut last: Option<(FrameKey, OpenFrame<'_>)> = None;
        for &at in &read.wanted {
            let run = &wanted[at];
            let is_known = last.as_ref().is_some_and(|(key, _)| *key == run.key());
            if !is_known {
                add(&self.stats.counters.frame_reads, 1);
                match self.open_read_frame(run, read, salvaged) {
                    Ok(frame) => last = Some((run.key(), frame)),
                    Err(error) => {
                        failed.push((*run, error));
                        continue;
                    }
                }
            }
            let (_, frame) = last.as_mut().expect("it is known or was just opened");
            let verified = frame.verified;
            match frame.take(run, out, &self.buffers) {
                Ok(plain) if !is_known && keep == Keep::Frames => {
                    self.keep(run.key(), &verified, plain);
                }
                Ok(_) => {}
                Err(error) => failed.push((*run, error)),
            }
        }
    }

    /// Finds a frame in a finished device read, and verifies it.
    fn open_read_frame<'a>(
        &self,
        run: &Wanted,
        read: &DeviceRead,
        salvaged: &'a Salvaged,
    ) -> Result<OpenFrame<'a>, FrameError> {
        let (start, end) = self.device_range(run.place);
        let range = (start - read.start) as usize..(end - read.start) as usize;
        salvaged.part(range).map_err(|source| device_error(run.place, source))?;
        let bytes = &salvaged.bytes()[(self.frame_start(run.place) - read.start) as usize..];
        Ok(OpenFrame::new(frame::verify(bytes, &self.identity_of(run))?))
    }

    fn identity_of(&self, run: &Wanted) -> FrameIdentity {
        let (place, generation) = (run.place.frame(), run.generation);
        FrameIdentity { pool: self.superblock.pool, place, generation }
    }

    /// Keeps a frame that was just read: as it is stored, if that saves memory.
    fn keep(&self, key: FrameKey, verified: &VerifiedFrame<'_>, plain: &[u8]) {
        let capacity = BufferPool::capacity_of;
        let frame = if capacity(verified.payload.len()) < capacity(plain.len()) {
            CachedFrame::Stored(Arc::new(StoredFrame::of(verified, &self.buffers)))
        } else {
            let mut own = self.buffers.take(plain.len());
            own.copy_from_slice(plain);
            CachedFrame::Decoded(Arc::new(own))
        };
        self.frame_cache.insert(key, frame);
    }
}

/// A verified frame, decoded when it must be.
struct OpenFrame<'a> {
    verified: VerifiedFrame<'a>,
    decoded: Option<AlignedBuffer>,
}

impl<'a> OpenFrame<'a> {
    fn new(verified: VerifiedFrame<'a>) -> Self {
        Self { verified, decoded: None }
    }

    fn is_whole(&self, run: &Wanted) -> bool {
        run.place.index() == 0 && run.len_blocks as usize == self.verified.block_count
    }

    fn decode(&self, buffers: &BufferPool) -> Result<AlignedBuffer, FrameError> {
        let mut plain = buffers.take(self.verified.block_count * BLOCK_BYTES);
        Decompressor::with(|decompressor| self.verified.decode_all(decompressor, &mut plain))?;
        Ok(plain)
    }

    /// Puts a run's blocks into `out`; returns all blocks of the frame.
    fn take<'b>(
        &'b mut self,
        run: &Wanted,
        out: &'b mut [u8],
        buffers: &BufferPool,
    ) -> Result<&'b [u8], FrameError> {
        if self.is_whole(run) {
            let slot = run.slot(out);
            Decompressor::with(|decompressor| self.verified.decode_all(decompressor, slot))?;
            return Ok(slot);
        }
        let plain = match self.verified.as_plain() {
            Some(plain) => plain,
            None => {
                if self.decoded.is_none() {
                    self.decoded = Some(self.decode(buffers)?);
                }
                self.decoded.as_deref().expect("it was just decoded")
            }
        };
        copy_blocks(run, plain, out)?;
        Ok(plain)
    }
}

fn device_error(place: Place, source: &DeviceError) -> FrameError {
    FrameError::Device { place, source: source.clone() }
}

/// Copies a run's blocks out of its decoded frame.
fn copy_blocks(run: &Wanted, plain: &[u8], out: &mut [u8]) -> Result<(), FrameError> {
    let start = usize::from(run.place.index()) * BLOCK_BYTES;
    let Some(blocks) = plain.get(start..start + run.len_blocks as usize * BLOCK_BYTES) else {
        let value = run.place.index().into();
        return Err(FrameError::Header { place: run.place, field: "block count", value });
    };
    run.slot(out).copy_from_slice(blocks);
    Ok(())
}
