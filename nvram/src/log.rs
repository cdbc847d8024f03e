//! The log: small records of changes, each made durable by one device write.

use std::{collections::VecDeque, sync::Arc};

use event_listener::Event;
use futures_channel::oneshot;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BufferPool, Device, DeviceError, Durability, Operation, Request,
    Sequence, Unreadable, request, sync::Mutex,
};

use crate::{
    LogDamage, LogError, LogIdentity, OpenError, Region, Replay,
    record::{self, Change, MAX_RECORD_BYTES, RecordLabel, record_bytes_for},
    recovery,
    ring::{Placement, Plan, Ring},
    scan::{RegionReader, scan},
};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// The smallest ring: a one-block change beside the record before and a marker.
const MIN_BLOCKS: u64 = 4;
/// Memory kept for encoding: one record of the largest size.
const IDLE_BUFFER_BYTES: usize = MAX_RECORD_BYTES as usize;
/// Size and number of the writes by which a log is formatted.
const FORMAT_WRITE_BYTES: u64 = 1 << 20;
const FORMAT_WRITES_IN_FLIGHT: usize = 8;

/// What a log has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Durable records that hold changes.
    pub records: u64,
    /// Durable records that hold none and say what is trimmed.
    pub markers: u64,
    /// Bytes of all durable records.
    pub bytes: u64,
    /// Appends refused for lack of room.
    pub full_events: u64,
}

/// A ring of records on a region of a device.
///
/// Thread safety: shared freely. Appends are written one after the other; one that waits for its
/// turn, or for its own write, may be dropped: a write under way is finished and counted all the
/// same.
///
/// Invariants: at most one write is in flight; no live record is overwritten; after a failed
/// write nothing is written or reported durable any more. While the end of a write is being told,
/// nothing is written but what that begins.
pub struct Log {
    device: Arc<dyn Device>,
    region: Region,
    identity: LogIdentity,
    buffers: BufferPool,
    progress: Arc<Progress>,
    unreadable: Vec<Unreadable>,
}

/// What a write's completion reports to. It does not hold the device: a completion may be the
/// last to let go, and must not be the one that closes the device it runs on.
struct Progress {
    state: Mutex<State>,
    /// Notified whenever the turn becomes free.
    free: Event,
}

struct State {
    ring: Ring,
    turn: Turn,
    failed: Option<LogError>,
    stats: LogStats,
}

/// Whose turn it is to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Anybody's.
    Free,
    /// A write is in flight, or about to be.
    Writing,
    /// The write of this record has ended, and whoever began it is being told.
    Ending(u64),
}

/// Whom a write's end is told.
type Then = Box<dyn FnOnce(Result<(), LogError>) + Send>;

impl Log {
    /// Makes an empty log of the region: overwrites all of it, so that later writes find allocated
    /// blocks and nothing stale, then writes the first record.
    ///
    /// # Errors
    /// If the region does not fit the device or a write fails.
    pub async fn format(
        device: Arc<dyn Device>,
        region: Region,
        identity: LogIdentity,
    ) -> Result<(), OpenError> {
        check_region(&*device, region)?;
        write_zeros(&*device, region).await?;
        let label = RecordLabel {
            number: 1,
            address: region.offset,
            trimmed: Sequence(0),
            oldest_live: 1,
            oldest_live_address: region.offset,
        };
        let first = record::encode(&BufferPool::new(0), &identity, &label, &[]);
        request::write(&*device, region.offset, first, Durability::Immediate).await?;
        Ok(())
    }

    /// Opens the log of the region and finds what it still holds. Reads all of the region, then
    /// flushes the device: a record that a former process wrote but did not see acknowledged may
    /// stand in a volatile cache, and from now on counts as durable.
    ///
    /// # Errors
    /// If there is no such log, the device cannot be flushed, or an acknowledged record is damaged or
    /// cannot be read.
    pub async fn open(
        device: Arc<dyn Device>,
        region: Region,
        identity: LogIdentity,
    ) -> Result<(Self, Replay), OpenError> {
        check_region(&*device, region)?;
        let mut reader = RegionReader::new(device.clone(), region);
        let sightings = scan(&mut reader, &identity).await?;
        let unreadable: Vec<_> = reader.unreadable().cloned().collect();
        drop(reader);
        let recovered = recovery::decide(region, &sightings, &unreadable)?;
        request::flush(&*device).await?;

        let replay = Replay::new(device.clone(), region, identity, &recovered);
        let newest = recovered.oldest_live + recovered.records.len() as u64 - 1;
        let newest_start = recovered.records.back().map_or(0, |extent| extent.start * BLOCK);
        let ring = Ring::new(
            region.len_bytes / BLOCK,
            recovered.oldest_live,
            recovered.records,
            recovered.trimmed,
        )
        .ok_or(OpenError::Damaged {
            record: newest,
            offset: region.offset.plus(newest_start),
            damage: LogDamage::NoRoom,
        })?;
        if let Some(torn) = recovered.torn_tail {
            tracing::warn!(record = torn.record, offset = torn.offset.0, "NVRAM log: torn tail");
        }
        tracing::debug!(newest, live = replay.records_left(), "NVRAM log opened");
        let state = State { ring, turn: Turn::Free, failed: None, stats: LogStats::default() };
        let log = Self {
            device,
            region,
            identity,
            buffers: BufferPool::new(IDLE_BUFFER_BYTES),
            progress: Arc::new(Progress { state: Mutex::new(state), free: Event::new() }),
            unreadable,
        };
        Ok((log, replay))
    }

    /// Blocks that could not be read when the log was opened, in order. They are in no live record.
    #[must_use]
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Overwrites the blocks that could not be read: a record there was ignored, and its number is
    /// given again, so that it must not be found if they can be read one day. It may also cure
    /// them. Called before anything is appended.
    ///
    /// # Errors
    /// If a write fails.
    ///
    /// # Panics
    /// If something was appended.
    pub async fn clear_unreadable(&mut self) -> Result<(), LogError> {
        assert_eq!(self.stats(), LogStats::default(), "nothing has been appended yet");
        for Unreadable { offset, len_bytes, .. } in std::mem::take(&mut self.unreadable) {
            let written = write_zeros(&*self.device, Region { offset, len_bytes }).await;
            let record = self.newest_record() + 1;
            written.map_err(|cause| LogError::Failed { record, cause })?;
        }
        Ok(())
    }

    /// Makes the changes durable, together or, if power is lost before this returns, perhaps not
    /// at all. An append whose future is dropped may still become durable.
    ///
    /// # Errors
    /// [`LogError::Full`] until enough is trimmed, [`LogError::TooLarge`] always, without a trace;
    /// [`LogError::Failed`] from the first failed write on.
    ///
    /// # Panics
    /// If there are no changes, one is empty or passes the last address, carries other data than
    /// its length says, or precedes the one before it.
    pub async fn append(&self, changes: &[Change<'_>]) -> Result<(), LogError> {
        self.append_checked(changes, |_, _| true).await
    }

    /// Appends like [`append`](Self::append), but first asks `is_good` of each change with data, by
    /// its position in `changes`: it is given the data as it stands in the record once the record
    /// has its checksum, so that nothing that happened to it earlier goes unnoticed.
    ///
    /// # Errors
    /// As `append`, and [`LogError::Refused`], without a trace, for the first change that is not.
    ///
    /// # Panics
    /// As `append`.
    pub async fn append_checked(
        &self,
        changes: &[Change<'_>],
        is_good: impl Fn(usize, &[u8]) -> bool,
    ) -> Result<(), LogError> {
        assert!(!changes.is_empty(), "there is something to append");
        record::assert_well_formed(changes);
        let needed_bytes = record_bytes_for(changes.len(), record::data_bytes(changes));
        let max_bytes = self.max_record_bytes();
        if needed_bytes > max_bytes {
            return Err(LogError::TooLarge { needed_bytes, max_bytes });
        }
        loop {
            match self.progress.reserve(|ring| ring.plan(needed_bytes / BLOCK)).await? {
                Some(Plan::Record(placement)) => {
                    return self.write(placement, changes, is_good).await;
                }
                Some(Plan::Marker(placement)) => self.write(placement, &[], |_, _| true).await?,
                None => {
                    self.progress.state.lock().stats.full_events += 1;
                    return Err(LogError::Full { needed_bytes, free_bytes: self.free_bytes() });
                }
            }
        }
    }

    /// Begins to append, like [`append_checked`](Self::append_checked), if that can be done at once by a
    /// single write, and says whether it was begun. Then `then` is told the outcome, perhaps before this
    /// returns; on a thread of the device, so that it must not wait. It may begin the next append: until
    /// it returns, nobody else can.
    ///
    /// # Errors
    /// As `append_checked`, except for want of room; then nothing is told.
    ///
    /// # Panics
    /// As `append`.
    pub fn begin(
        &self,
        changes: &[Change<'_>],
        is_good: impl Fn(usize, &[u8]) -> bool,
        then: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<bool, LogError> {
        assert!(!changes.is_empty(), "there is something to append");
        record::assert_well_formed(changes);
        let needed_bytes = record_bytes_for(changes.len(), record::data_bytes(changes));
        let max_bytes = self.max_record_bytes();
        if needed_bytes > max_bytes {
            return Err(LogError::TooLarge { needed_bytes, max_bytes });
        }
        let placement = {
            let mut state = self.progress.state.lock();
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            match state.ring.plan(needed_bytes / BLOCK) {
                Some(Plan::Record(placement)) if state.turn != Turn::Writing => {
                    state.turn = Turn::Writing;
                    placement
                }
                _ => return Ok(false),
            }
        };
        self.submit(placement, changes, is_good, Box::new(then))?;
        Ok(true)
    }

    /// Forgets the records that hold nothing newer than `up_to`: those changes are durable
    /// elsewhere. The next record makes this durable; until then, recovery may replay them.
    pub fn trim(&self, up_to: Sequence) {
        self.progress.state.lock().ring.trim(up_to);
    }

    /// Makes it durable that records were trimmed, if there are any of which no record says so yet.
    /// Called before a clean end, so that the next start has nothing to replay.
    ///
    /// # Errors
    /// [`LogError::Failed`] from the first failed write on.
    pub async fn persist_trim(&self) -> Result<(), LogError> {
        let marker = |ring: &Ring| ring.marker_for_trim().map(Plan::Marker);
        match self.progress.reserve(marker).await? {
            Some(Plan::Marker(placement) | Plan::Record(placement)) => {
                self.write(placement, &[], |_, _| true).await
            }
            None => Ok(()),
        }
    }

    /// The newest durable record's number.
    #[must_use]
    pub fn newest_record(&self) -> u64 {
        self.progress.state.lock().ring.newest()
    }

    /// The region's size.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.region.len_bytes
    }

    /// Bytes between the oldest record that is not trimmed and the newest one's end.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.progress.state.lock().ring.used_blocks() * BLOCK
    }

    /// The largest record that can be appended now; less than what is unused, since records do
    /// not wrap.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let free = self.progress.state.lock().ring.free_blocks() * BLOCK;
        free.min(self.max_record_bytes())
    }

    /// The largest record that this log takes; once everything is trimmed, it always fits.
    #[must_use]
    pub fn max_record_bytes(&self) -> u64 {
        max_record_bytes(self.region.len_bytes)
    }

    /// What the log has done so far.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.progress.state.lock().stats
    }

    /// Writes the record for which `placement` was reserved, and waits for it.
    async fn write(
        &self,
        placement: Placement,
        changes: &[Change<'_>],
        is_good: impl Fn(usize, &[u8]) -> bool,
    ) -> Result<(), LogError> {
        let (told, outcome) = oneshot::channel();
        let then = Box::new(move |outcome| {
            // Whoever waited may have given up.
            let _ = told.send(outcome);
        });
        self.submit(placement, changes, is_good, then)?;
        let closed = DeviceError::Closed { operation: Operation::Write };
        let failed = LogError::Failed { record: placement.number, cause: closed };
        outcome.await.unwrap_or(Err(failed))
    }

    /// Starts to write the record for which `placement` was reserved.
    fn submit(
        &self,
        placement: Placement,
        changes: &[Change<'_>],
        is_good: impl Fn(usize, &[u8]) -> bool,
        then: Then,
    ) -> Result<(), LogError> {
        let address = |start: u64| self.region.offset.plus(start * BLOCK);
        let label = RecordLabel {
            number: placement.number,
            address: address(placement.start),
            trimmed: placement.trimmed,
            oldest_live: placement.oldest_live,
            oldest_live_address: address(placement.oldest_live_start),
        };
        let buffer = record::encode(&self.buffers, &self.identity, &label, changes);
        assert_eq!(buffer.len() as u64, placement.len_blocks * BLOCK);
        let bad = record::encoded_data(&buffer, changes).find(|&(at, data)| !is_good(at, data));
        if let Some((bad, _)) = bad {
            self.progress.give_up();
            return Err(LogError::Refused { sequence: changes[bad].sequence });
        }
        let last_sequence = changes.last().map(|change| change.sequence);
        let progress = self.progress.clone();
        let completion = Box::new(move |_: AlignedBuffer, outcome: Result<(), DeviceError>| {
            progress.complete(&placement, last_sequence, outcome, then);
        });
        let durability = Durability::Immediate;
        let write = Request::Write { offset: label.address, buffer, durability, completion };
        self.device.submit(vec![write]);
        Ok(())
    }
}

impl Progress {
    /// Waits until the turn is free, then takes it if `plan` finds something to write.
    /// Whoever gets `Some` submits that write before it awaits anything: no other is started until
    /// it completes.
    async fn reserve(
        &self,
        plan: impl Fn(&Ring) -> Option<Plan>,
    ) -> Result<Option<Plan>, LogError> {
        loop {
            let free = {
                let mut state = self.state.lock();
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                if state.turn == Turn::Free {
                    let plan = plan(&state.ring);
                    if plan.is_some() {
                        state.turn = Turn::Writing;
                    }
                    return Ok(plan);
                }
                self.free.listen()
            };
            free.await;
        }
    }

    /// Gives back a turn whose write was not begun.
    fn give_up(&self) {
        let mut state = self.state.lock();
        assert_eq!(state.turn, Turn::Writing, "a turn is given back once");
        state.turn = Turn::Free;
        drop(state);
        self.free.notify(usize::MAX);
    }

    /// The write of a record ended; `last_sequence` is `None` for a marker.
    fn complete(
        &self,
        placement: &Placement,
        last_sequence: Option<Sequence>,
        outcome: Result<(), DeviceError>,
        then: impl FnOnce(Result<(), LogError>),
    ) {
        let mut state = self.state.lock();
        assert_eq!(state.turn, Turn::Writing, "a write completes once");
        state.turn = Turn::Ending(placement.number);
        let outcome = match outcome {
            Ok(()) => {
                state.ring.commit(placement, last_sequence.unwrap_or(placement.trimmed));
                state.stats.bytes += placement.len_blocks * BLOCK;
                match last_sequence {
                    Some(_) => state.stats.records += 1,
                    None => state.stats.markers += 1,
                }
                Ok(())
            }
            Err(cause) => {
                tracing::error!(record = placement.number, %cause, "NVRAM log failed");
                let error = LogError::Failed { record: placement.number, cause };
                state.failed = Some(error.clone());
                Err(error)
            }
        };
        drop(state);
        then(outcome);
        let mut state = self.state.lock();
        if state.turn == Turn::Ending(placement.number) {
            state.turn = Turn::Free;
            drop(state);
            self.free.notify(usize::MAX);
        }
    }
}

/// The largest record of a log of `region_bytes`.
fn max_record_bytes(region_bytes: u64) -> u64 {
    // At worst the newest record is a marker in the middle of the ring.
    (region_bytes / BLOCK / 2 * BLOCK).min(MAX_RECORD_BYTES)
}

fn check_region(device: &dyn Device, region: Region) -> Result<(), OpenError> {
    let device_bytes = device.size_bytes();
    if region.is_usable(MIN_BLOCKS, device_bytes) {
        return Ok(());
    }
    Err(OpenError::Region { region, device_bytes, min_bytes: MIN_BLOCKS * BLOCK })
}

/// Overwrites the region with zeros and flushes.
pub(crate) async fn write_zeros(device: &dyn Device, region: Region) -> Result<(), DeviceError> {
    let mut in_flight = VecDeque::new();
    let mut start = 0;
    while start < region.len_bytes {
        let len = FORMAT_WRITE_BYTES.min(region.len_bytes - start);
        if in_flight.len() == FORMAT_WRITES_IN_FLIGHT
            && let Some(write) = in_flight.pop_front()
        {
            write.await?;
        }
        let zeros = AlignedBuffer::zeroed(len as usize);
        in_flight.push_back(request::write(
            device,
            region.offset.plus(start),
            zeros,
            Durability::Flush,
        ));
        start += len;
    }
    for write in in_flight {
        write.await?;
    }
    request::flush(device).await
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests;
