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
    AlignedBuffer, BLOCK_BYTES, BufferPool, ByteOffset, Device, DeviceError, Place, SegmentId,
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

/// How many units ahead of a stream summaries are loaded: reducers that work side by side are some units
/// apart, and none should have to wait for the device.
const AHEAD_UNITS: usize = 4;

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

    /// The blocks in them.
    pub(crate) fn len_blocks(&self) -> usize {
        self.block_count as usize
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
    /// Held by who waits for them.
    awaiting: tokio::sync::Mutex<()>,
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
            awaiting: tokio::sync::Mutex::default(),
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

    /// Loads the summaries of `units` that are not here. Hints that lead nowhere are ignored.
    pub(crate) async fn load(&self, units: &[UnitAddress]) {
        let mut wanted = self.unknown(units);
        let mut reads = Vec::with_capacity(wanted.len());
        {
            let mut ahead = self.ahead.lock();
            wanted.retain(|address| {
                let started = ahead.iter().position(|(at, _)| at == address);
                reads.extend(started.map(|started| ahead.swap_remove(started)));
                started.is_none()
            });
        }
        reads.extend(self.start_reads(&wanted));
        for (address, read) in reads {
            self.take_up(address, read.await).await;
        }
    }

    /// Starts to load the summaries of the units that follow those of `streams` in their segments: a
    /// stream of duplicates will want them next.
    pub(crate) fn load_ahead(&self, streams: &[Arc<UnitFrames>], table: &SegmentTable) {
        let mut next = Vec::new();
        {
            let frames = self.frames.lock();
            for stream in streams {
                let mut end = stream.end;
                // Each says where the next one starts.
                for _ in 0..AHEAD_UNITS {
                    next.push((end, stream));
                    let Some(known) = frames.by_unit.get(&Self::unit_at(end)) else { break };
                    end = known.end;
                }
            }
        }
        next.retain(|(at, stream)| self.is_linkable(stream, at.plus(1), table));
        let next: Vec<_> = next.into_iter().map(|(at, _)| Self::unit_at(at)).collect();
        let mut wanted = self.unknown(&next);
        if wanted.is_empty() {
            return;
        }
        let mut ahead = self.ahead.lock();
        wanted.retain(|address| !ahead.iter().any(|(started, _)| started == address));
        wanted.truncate(MAX_AHEAD.saturating_sub(ahead.len()));
        ahead.extend(self.start_reads(&wanted));
    }

    /// Whether new links are allowed into what stands before `end` in the segment of `frames`.
    fn is_linkable(&self, frames: &UnitFrames, end: ByteOffset, table: &SegmentTable) -> bool {
        let segment_start = self.layout.geometry().segment_start(frames.segment);
        // A summary that names another segment than it stands in is hostile.
        let end_bytes = end.0.checked_sub(segment_start.0);
        end_bytes.is_some_and(|end_bytes| {
            table.is_linkable(frames.segment, frames.generation, end_bytes)
        })
    }

    /// Takes up what earlier batches started to load and is here by now.
    pub(crate) async fn collect_ahead(&self) {
        let mut done = Vec::new();
        self.ahead.lock().retain_mut(|(address, read)| {
            let outcome = read.outcome_now();
            let is_done = outcome.is_some();
            done.extend(outcome.map(|outcome| (*address, outcome)));
            !is_done
        });
        for (address, outcome) in done {
            self.take_up(address, outcome).await;
        }
    }

    /// Waits for all that earlier batches started to load, takes it up, and says whether there was
    /// anything.
    pub(crate) async fn await_ahead(&self) -> bool {
        // Whoever comes while another waits wants what that one waits for.
        let is_alone = self.awaiting.try_lock();
        let others_wait = is_alone.is_err();
        let _alone = match is_alone {
            Ok(alone) => alone,
            Err(_) => self.awaiting.lock().await,
        };
        let ahead = std::mem::take(&mut *self.ahead.lock());
        let is_any = others_wait || !ahead.is_empty();
        for (address, read) in ahead {
            self.take_up(address, read.await).await;
        }
        is_any
    }

    /// Where those of `units` are whose summaries are not loaded, each once.
    fn unknown(&self, units: &[UnitAddress]) -> Vec<ByteOffset> {
        let mut unknown: Vec<UnitAddress> = units.to_vec();
        unknown.retain(|&unit| !self.neighbourhood.contains(unit));
        unknown.sort_unstable();
        unknown.dedup();
        unknown.into_iter().map(Self::address_of).collect()
    }

    async fn take_up(&self, address: ByteOffset, read: Result<AlignedBuffer, DeviceError>) {
        if let Some(summary) = self.summary_in(address, read).await {
            self.insert(address, &summary);
        }
    }

    /// Starts to read what is usually all of the summaries of the units at `addresses`, but for those
    /// where no unit can be.
    pub(crate) fn start_reads(
        &self,
        addresses: &[ByteOffset],
    ) -> Vec<(ByteOffset, Pending<AlignedBuffer>)> {
        let mut requests = Vec::with_capacity(addresses.len());
        let mut reads = Vec::with_capacity(addresses.len());
        for &address in addresses {
            let Some(start) = address.0.checked_sub(self.layout.data_start.0) else { continue };
            let left = self.layout.segment_bytes - start % self.layout.segment_bytes;
            let bytes = (FIRST_READ_BYTES as u64).min(left) as usize;
            let (request, read) = request::prepare_read(address, self.buffers.take(bytes));
            requests.push(request);
            reads.push((address, read));
        }
        self.loads.fetch_add(reads.len() as u64, Ordering::Relaxed);
        if !requests.is_empty() {
            self.device.submit(requests);
        }
        reads
    }

    /// The summary of the unit at `address` in what was read there, if there is one.
    pub(crate) async fn summary_in(
        &self,
        address: ByteOffset,
        read: Result<AlignedBuffer, DeviceError>,
    ) -> Option<Summary> {
        let mut bytes = read.ok()?;
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
        let usable = frames.filter(|frames| self.is_linkable(frames, frames.end, table));
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

#[cfg(test)]
mod tests {
    use siltstone_dedup::{Fingerprint, fingerprint_blocks};
    use siltstone_device::{
        SeededRandom,
        sim::{CompletionMode, SimDevice},
    };

    use super::*;
    use crate::{
        config::{CreateOptions, OpenOptions, Tuning, VolumeOptions},
        pool::Pool,
    };

    const UNITS: usize = 10;
    const UNIT_BYTES: usize = 64 << 10;

    fn noise() -> Vec<u8> {
        let mut noise = vec![0; UNITS * UNIT_BYTES];
        SeededRandom::new(1).fill(&mut noise);
        noise
    }

    fn open(device: Arc<SimDevice>) -> Pool {
        let tuning =
            Tuning { batch_bytes: UNIT_BYTES, reducers: 1, warm_index: false, ..Tuning::default() };
        Pool::open_on(device, None, &OpenOptions { tuning, ..OpenOptions::default() })
            .expect("a pool")
    }

    /// A pool with so many units one after another, and where they are.
    fn pool_with_units() -> (Arc<SimDevice>, Pool, Vec<ByteOffset>) {
        let device = SimDevice::new(64 << 20);
        Pool::create_on(device.clone(), None, &CreateOptions::default()).expect("room enough");
        let pool = open(device.clone());
        let volume = pool.create_volume("disk", &VolumeOptions::new(1 << 20)).expect("a volume");
        volume.write_at(0, &noise()).expect("room enough");
        pollster::block_on(pool.core().drain()).expect("a healthy pool");
        let frames = pool.core().summaries.frames.lock();
        let units = frames.by_unit.keys().map(|&unit| SummaryCache::address_of(unit));
        let mut units: Vec<_> = units.collect();
        units.sort_unstable();
        drop(frames);
        assert_eq!(units.len(), UNITS);
        (device, pool, units)
    }

    /// A cache that knows nothing yet of the same units.
    fn empty_cache(pool: &Pool) -> SummaryCache {
        let core = pool.core();
        let (id, layout) = (core.superblock.pool, core.superblock.layout);
        SummaryCache::new(Arc::clone(&core.device), core.buffers.clone(), id, layout)
    }

    fn loaded(cache: &SummaryCache, units: &[ByteOffset]) -> usize {
        let is_loaded =
            |unit: &&ByteOffset| cache.neighbourhood.contains(SummaryCache::unit_at(**unit));
        units.iter().filter(is_loaded).count()
    }

    #[test]
    fn whoever_follows_a_stream_finds_its_next_units_loaded_and_none_is_read_twice() {
        let (_, pool, units) = pool_with_units();
        let cache = empty_cache(&pool);
        pollster::block_on(async {
            cache.load(&[SummaryCache::unit_at(units[0])]).await;
            assert_eq!(loaded(&cache, &units), 1);
            for at in 0..UNITS {
                let unit = SummaryCache::unit_at(units[at]);
                // Where a unit ends is known when it is here, so the first ones come one by one.
                for _ in 0..AHEAD_UNITS {
                    let frames = Arc::clone(&cache.frames.lock().by_unit[&unit]);
                    cache.load_ahead(&[frames], &pool.core().table);
                    cache.collect_ahead().await;
                }
                assert_eq!(loaded(&cache, &units), UNITS.min(at + 1 + AHEAD_UNITS), "after {at}");
            }
        });
        assert_eq!(cache.loads(), UNITS as u64);
    }

    #[test]
    fn a_stream_is_followed_at_the_pace_of_a_slow_device() {
        let (device, pool, units) = pool_with_units();
        let cache = empty_cache(&pool);
        let first = SummaryCache::unit_at(units[0]);
        pollster::block_on(cache.load(&[first]));
        assert!(!pollster::block_on(cache.await_ahead()), "nothing is on its way");
        device.set_completion_mode(CompletionMode::Queued);
        let frames = Arc::clone(&cache.frames.lock().by_unit[&first]);
        cache.load_ahead(&[frames], &pool.core().table);
        pollster::block_on(cache.collect_ahead());
        assert_eq!(loaded(&cache, &units), 1, "nobody waits who need not");
        let waited = std::thread::scope(|scope| {
            let (cache, units) = (&cache, &units);
            let wait = || {
                let is_any = pollster::block_on(cache.await_ahead());
                assert_eq!(loaded(cache, units), 2);
                is_any
            };
            let waiting = [scope.spawn(wait), scope.spawn(wait)];
            std::thread::sleep(std::time::Duration::from_millis(20));
            device.complete_queued(0);
            waiting.map(|one| one.join().expect("it returns"))
        });
        // The second may have come when it was here already.
        assert!(waited.contains(&true));
        device.set_completion_mode(CompletionMode::Inline);
    }

    #[test]
    fn a_stream_is_followed_of_which_the_index_knows_nothing_but_its_beginning() {
        let (device, pool, units) = pool_with_units();
        drop(pool);
        let pool = open(device.clone());
        let noise = noise();
        let blocks: Vec<_> = noise.as_chunks::<BLOCK_BYTES>().0.iter().collect();
        let mut fingerprints = vec![Fingerprint::from_bytes([0; 32]); blocks.len()];
        fingerprint_blocks(&blocks, &mut fingerprints);
        let shorts: Vec<_> = fingerprints.iter().map(Fingerprint::short).collect();
        // What it knows leads nowhere from now on.
        pool.core().index.insert_batch(&shorts, UnitAddress::new(1));
        pollster::block_on(pool.core().summaries.load(&[SummaryCache::unit_at(units[0])]));
        let volume = pool.create_volume("copy", &VolumeOptions::new(1 << 20)).expect("a volume");
        device.set_completion_mode(CompletionMode::Shuffled { seed: 1 });
        volume.write_at(0, &noise).expect("room enough");
        pollster::block_on(pool.core().drain()).expect("a healthy pool");
        device.set_completion_mode(CompletionMode::Inline);
        let counters = pool.stat().counters;
        assert_eq!((counters.stored_blocks, counters.linked_blocks), (0, blocks.len() as u64));
    }

    #[test]
    fn a_summary_that_is_on_its_way_is_waited_for_and_not_read_again() {
        let (_, pool, units) = pool_with_units();
        let cache = empty_cache(&pool);
        let [first, second] = [units[0], units[1]].map(SummaryCache::unit_at);
        pollster::block_on(async {
            cache.load(&[first]).await;
            let frames = Arc::clone(&cache.frames.lock().by_unit[&first]);
            cache.load_ahead(&[Arc::clone(&frames), frames], &pool.core().table);
            cache.load(&[second, second]).await;
        });
        assert_eq!(loaded(&cache, &units), 2);
        assert_eq!(cache.loads(), 2);
    }
}
