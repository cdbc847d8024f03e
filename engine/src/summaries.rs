//! Summaries of stored write units, loaded when the index hints at them.
//!
//! What reducers need of a unit is kept in two caches of the same units: the fingerprints in
//! dedup's neighbourhood, and here the frames, which turn a block's ordinal into its place.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use siltstone_dedup::{Candidate, Neighbourhood, ShortFingerprint, Summaries, UnitAddress};
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BufferPool, ByteOffset, Device, Place, SegmentId,
    request::{self, Pending},
};

use crate::{
    frame,
    layout::Layout,
    segment_table::SegmentTable,
    write_unit::{Summary, UnitFrame},
};

/// Units whose summaries are kept: with 256 blocks each, about 5 MiB.
const MAX_UNITS: usize = 768;

/// Most summaries that are being read ahead.
const MAX_AHEAD: usize = 64;

/// What is read at first: the summary of a full batch fits.
const FIRST_READ_BYTES: usize = 8 << 10;

/// A unit's frames: where its blocks are.
#[derive(Debug)]
pub(crate) struct UnitFrames {
    segment: SegmentId,
    generation: u64,
    /// Those that the places belong to: what the neighbourhood says may be of an older use.
    fingerprints: Arc<[ShortFingerprint]>,
    /// For each frame its first block's ordinal and its first block's place.
    frames: Box<[(u32, Place)]>,
    block_count: u32,
    /// Where the next unit of the segment would start.
    end: ByteOffset,
}

impl UnitFrames {
    /// From a unit that starts `unit_offset` bytes into its segment.
    fn new(
        summary: &Summary,
        fingerprints: Arc<[ShortFingerprint]>,
        unit_offset: u64,
        address: ByteOffset,
    ) -> Self {
        let mut ordinal = 0;
        let place = |frame: &UnitFrame| {
            let offset = unit_offset as usize + frame.offset_bytes as usize;
            frame::place_of(summary.segment, offset, frame.stored_bytes as usize)
        };
        let mut frames = Vec::with_capacity(summary.frames.len());
        for frame in &summary.frames {
            frames.push((ordinal, place(frame)));
            ordinal += u32::from(frame.block_count);
        }
        Self {
            segment: summary.segment,
            generation: summary.generation,
            fingerprints,
            frames: frames.into(),
            block_count: ordinal,
            end: address.plus(summary.unit_bytes.into()),
        }
    }

    /// Whether the block at `ordinal` has this fingerprint.
    pub(crate) fn holds(&self, ordinal: u32, fingerprint: &ShortFingerprint) -> bool {
        self.fingerprints.get(ordinal as usize) == Some(fingerprint)
    }

    /// The place of a block by its ordinal in the unit.
    pub(crate) fn place(&self, ordinal: u32) -> Option<Place> {
        if ordinal >= self.block_count {
            return None;
        }
        let at = self.frames.partition_point(|&(first, _)| first <= ordinal).checked_sub(1)?;
        let (first, place) = self.frames[at];
        place.advanced(u64::from(ordinal - first))
    }
}

/// See the module's page. Thread-safe; the lock is a leaf.
pub(crate) struct SummaryCache {
    device: Arc<dyn Device>,
    buffers: BufferPool,
    pool: u64,
    layout: Layout,
    neighbourhood: Neighbourhood,
    frames: Mutex<FrameLists>,
    /// Reads started ahead of the stream.
    ahead: Mutex<Vec<(ByteOffset, Pending<AlignedBuffer>)>>,
    loads: AtomicU64,
}

/// Frame lists by unit; the oldest leaves first.
#[derive(Default)]
struct FrameLists {
    by_unit: HashMap<UnitAddress, Arc<UnitFrames>>,
    order: VecDeque<UnitAddress>,
}

impl FrameLists {
    fn insert(&mut self, unit: UnitAddress, frames: Arc<UnitFrames>) {
        if self.by_unit.insert(unit, frames).is_none() {
            self.order.push_back(unit);
        }
        // Twice as many as the neighbourhood has: it decides what stays by use, this by age.
        while self.order.len() > 2 * MAX_UNITS {
            let oldest = self.order.pop_front().expect("the queue is not empty");
            self.by_unit.remove(&oldest);
        }
    }
}

impl SummaryCache {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        buffers: BufferPool,
        pool: u64,
        layout: Layout,
    ) -> Self {
        Self {
            device,
            buffers,
            pool,
            layout,
            neighbourhood: Neighbourhood::new(MAX_UNITS),
            frames: Mutex::default(),
            ahead: Mutex::default(),
            loads: AtomicU64::new(0),
        }
    }

    /// The name by which the index knows the unit at `address`.
    pub(crate) fn unit_at(address: ByteOffset) -> UnitAddress {
        UnitAddress::new(address.0 / BLOCK_BYTES as u64)
    }

    fn address_of(unit: UnitAddress) -> ByteOffset {
        ByteOffset(unit.page() * BLOCK_BYTES as u64)
    }

    /// Takes up a unit that is known from elsewhere: just published, or read by a scan.
    pub(crate) fn insert(&self, address: ByteOffset, summary: &Summary) {
        let offset = (address.0 - self.layout.data_start.0) % self.layout.segment_bytes;
        let fingerprints: Arc<[ShortFingerprint]> = summary.fingerprints.clone().into();
        let frames = UnitFrames::new(summary, Arc::clone(&fingerprints), offset, address);
        let unit = Self::unit_at(address);
        self.frames.lock().insert(unit, Arc::new(frames));
        self.neighbourhood.insert(unit, fingerprints);
    }

    /// Looks blocks up in the loaded summaries.
    pub(crate) fn lookup(
        &self,
        fingerprints: &[ShortFingerprint],
        out: &mut Vec<Option<Candidate>>,
    ) {
        self.neighbourhood.lookup_batch(fingerprints, out);
    }

    /// Loads the summaries of `units` that are not here, and starts to load those of the units that
    /// follow them: a stream of duplicates will want those next. Hints that lead nowhere are ignored.
    pub(crate) async fn load(&self, units: &[UnitAddress]) {
        let mut wanted: Vec<UnitAddress> = units.to_vec();
        wanted.retain(|&unit| !self.neighbourhood.contains(unit));
        self.load_now(&wanted).await;
        let mut next: Vec<UnitAddress> = Vec::new();
        {
            let frames = self.frames.lock();
            for unit in units {
                let Some(end) = frames.by_unit.get(unit).map(|frames| frames.end) else { continue };
                if self.is_in_same_segment(Self::address_of(*unit), end) {
                    next.push(Self::unit_at(end));
                }
            }
        }
        next.retain(|&unit| !self.neighbourhood.contains(unit));
        let mut ahead = self.ahead.lock();
        for unit in next {
            let address = Self::address_of(unit);
            let known = ahead.iter().any(|(started, _)| *started == address);
            if !known
                && ahead.len() < MAX_AHEAD
                && let Some(read) = self.start_read(address)
            {
                ahead.push((address, read));
            }
        }
    }

    /// Takes up what earlier batches started to load: usually it is here by now.
    pub(crate) async fn collect_ahead(&self) {
        let ahead = std::mem::take(&mut *self.ahead.lock());
        for (address, read) in ahead {
            if let Some(summary) = self.finish_read(address, read).await {
                self.insert(address, &summary);
            }
        }
    }

    fn is_in_same_segment(&self, one: ByteOffset, other: ByteOffset) -> bool {
        let segment = |address: ByteOffset| {
            (address.0 - self.layout.data_start.0) / self.layout.segment_bytes
        };
        segment(one) == segment(other)
    }

    async fn load_now(&self, units: &[UnitAddress]) {
        // Started together, then awaited.
        let addresses = units.iter().map(|&unit| Self::address_of(unit));
        let reads: Vec<_> =
            addresses.filter_map(|address| Some((address, self.start_read(address)?))).collect();
        for (address, read) in reads {
            if let Some(summary) = self.finish_read(address, read).await {
                self.insert(address, &summary);
            }
        }
    }

    /// Starts to read what is usually all of the summary of the unit at `address`.
    pub(crate) fn start_read(&self, address: ByteOffset) -> Option<Pending<AlignedBuffer>> {
        let start = address.0.checked_sub(self.layout.data_start.0)?;
        let left = self.layout.segment_bytes - start % self.layout.segment_bytes;
        let bytes = (FIRST_READ_BYTES as u64).min(left) as usize;
        self.loads.fetch_add(1, Ordering::Relaxed);
        Some(request::read(&*self.device, address, self.buffers.take(bytes)))
    }

    /// The summary, if there is one.
    pub(crate) async fn finish_read(
        &self,
        address: ByteOffset,
        read: Pending<AlignedBuffer>,
    ) -> Option<Summary> {
        let mut bytes = read.await.ok()?;
        let length = Summary::peek_bytes(&bytes)?;
        if length > bytes.len() {
            let whole = self.buffers.take(length.next_multiple_of(BLOCK_BYTES));
            bytes = request::read(&*self.device, address, whole).await.ok()?;
        }
        Summary::decode(&bytes, self.pool, address).ok()
    }

    /// The frames of a candidate's unit, if new links into it are allowed.
    pub(crate) fn linkable(
        &self,
        unit: UnitAddress,
        table: &SegmentTable,
    ) -> Option<Arc<UnitFrames>> {
        let frames = self.frames.lock().by_unit.get(&unit).cloned();
        let usable = frames.filter(|frames| {
            let segment_start = self.layout.geometry().segment_start(frames.segment);
            // A summary that names another segment than it stands in is hostile.
            let end_bytes = frames.end.0.checked_sub(segment_start.0);
            end_bytes.is_some_and(|end_bytes| {
                table.is_linkable(frames.segment, frames.generation, end_bytes)
            })
        });
        if usable.is_none() {
            self.neighbourhood.remove(unit);
        }
        usable
    }

    /// Summaries read from the device so far.
    pub(crate) fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }
}

impl Summaries for SummaryCache {
    fn fingerprints(&self, unit: UnitAddress) -> Option<Arc<[ShortFingerprint]>> {
        self.neighbourhood.get(unit)
    }
}
