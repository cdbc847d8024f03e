//! The checkpoint record: two slots, written in turn, of which the newer whole one counts; each
//! slot has two copies, of which one whole one is enough.
//!
//! Checkpoint number n goes to slot n mod 2, so the slot written is never the one that holds the
//! newest durable checkpoint. A copy is a `device::header` (kind checkpoint, sequence = number) and
//! an opaque body, zero-padded to whole blocks. Both copies are submitted together; the checkpoint
//! is durable when both are.
//!
//! What recovery makes of the two slots:
//!
//! | slots            | verdict                                                               |
//! |------------------|-----------------------------------------------------------------------|
//! | whole, whole     | the larger number                                                     |
//! | whole, anything  | the whole one: the other was never written, or torn before it counted |
//! | empty, empty     | none                                                                  |
//! | empty, damaged   | none: the first checkpoint of all was torn                            |
//! | damaged, damaged | error naming both: at most one can have been torn                     |
//! | a copy of a newer version | error: what it says is newer too, perhaps                    |
//! | a number below the one that is known to have been durable | error naming where that was  |
//!
//! And of the two copies of a slot, of which one that cannot be read is damaged:
//!
//! | copies           | the slot is                                                           |
//! |------------------|-----------------------------------------------------------------------|
//! | any whole        | whole, with the larger number; the other copy is reported             |
//! | empty, empty     | empty                                                                 |
//! | else             | damaged                                                               |
//!
//! A newest slot of which both copies are damaged looks like a torn one. Only who knows that it was
//! durable (a [mark](crate::mark), or a log that was trimmed beyond) can tell.

use std::sync::Arc;

use event_listener::Event;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, Device, DeviceError, Durability, Request,
    header::{self, HEADER_BYTES, Header, HeaderError, Identity, Kind},
    request, salvage,
    sync::Mutex,
};
use zerocopy::FromBytes;

use crate::{CheckpointError, CopyError, Region, log::write_zeros};

/// The version of the layout.
pub const CHECKPOINT_VERSION: u16 = 1;

/// Where the two copies of a slot are.
pub type SlotRegions = [Region; 2];

/// Two slots on the pool's device.
///
/// Thread safety: shared freely. Stores are written one after the other; one whose future is
/// dropped is finished and counted all the same.
///
/// Invariants: at most one store is in flight, and never to the slot of the newest durable
/// checkpoint; after a failed write nothing is stored any more.
pub struct CheckpointStore {
    device: Arc<dyn Device>,
    slots: [SlotRegions; 2],
    pool: u64,
    damaged_copies: Vec<CopyError>,
    /// Whether any of these is of the slot.
    has_damage: [bool; 2],
    progress: Arc<Progress>,
}

/// What a write's completion reports to; it does not hold the device (see `log.rs`).
struct Progress {
    state: Mutex<State>,
    /// Notified whenever a write ends.
    written: Event,
}

struct State {
    /// The newest durable checkpoint; 0 is none.
    newest: u64,
    /// Copies of the next one that are being written.
    in_flight: usize,
    failed: Option<CheckpointError>,
}

/// What a copy, or a slot, holds.
enum Found {
    Empty,
    Whole { number: u64, body: Vec<u8> },
    Damaged(CopyError),
}

impl CheckpointStore {
    /// Overwrites both slots with zeros, so that they are empty and their blocks allocated.
    ///
    /// # Errors
    /// If the slots do not fit the device or a write fails.
    pub async fn format(
        device: Arc<dyn Device>,
        slots: [SlotRegions; 2],
    ) -> Result<(), CheckpointError> {
        check_slots(&*device, &slots)?;
        for copy in slots.as_flattened() {
            write_zeros(&*device, *copy).await?;
        }
        Ok(())
    }

    /// Opens the two slots of a pool; returns the newest whole checkpoint's number and body.
    /// Number `durable` (0 is none) is known to have been durable: nothing older is taken for the
    /// newest.
    ///
    /// Flushes the device: a checkpoint that a former process wrote but did not see acknowledged
    /// may stand in a volatile cache, and from now on the other one will be overwritten.
    ///
    /// # Errors
    /// If the slots do not fit the device, both are damaged, one is of a newer version or the
    /// durable one is missing, or the device cannot be flushed. A copy that cannot be read is a
    /// damaged one.
    pub async fn open(
        device: Arc<dyn Device>,
        slots: [SlotRegions; 2],
        pool: u64,
        durable: u64,
    ) -> Result<(Self, Option<(u64, Vec<u8>)>), CheckpointError> {
        check_slots(&*device, &slots)?;
        let mut damaged_copies = Vec::new();
        let first = load_slot(&*device, slots[0], pool, 0, &mut damaged_copies).await?;
        let of_first = damaged_copies.len();
        let second = load_slot(&*device, slots[1], pool, 1, &mut damaged_copies).await?;
        let has_damage = [of_first > 0, damaged_copies.len() > of_first];
        request::flush(&*device).await?;
        let found = match (first, second) {
            (Found::Whole { number, body }, Found::Whole { number: other, body: other_body }) => {
                Some(if number > other { (number, body) } else { (other, other_body) })
            }
            (Found::Whole { number, body }, _) | (_, Found::Whole { number, body }) => {
                Some((number, body))
            }
            (Found::Damaged(first), Found::Damaged(second)) => {
                return Err(CheckpointError::Damaged { first, second });
            }
            (Found::Empty, _) | (_, Found::Empty) => None,
        };
        let newest = found.as_ref().map_or(0, |(number, _)| *number);
        if newest < durable {
            for damage in &damaged_copies {
                tracing::warn!(%damage, "a copy of a checkpoint record does not count");
            }
            let [first, second] = slots[slot_of(durable)];
            return Err(CheckpointError::Lost { durable, newest, first, second });
        }
        let state = State { newest, in_flight: 0, failed: None };
        let progress = Arc::new(Progress { state: Mutex::new(state), written: Event::new() });
        Ok((Self { device, slots, pool, damaged_copies, has_damage, progress }, found))
    }

    /// The copies that were neither whole nor empty when this store was opened, or older than the
    /// other copy of their slot: torn when power was lost, or damaged since. Later checkpoints
    /// overwrite them.
    #[must_use]
    pub fn damaged_copies(&self) -> &[CopyError] {
        &self.damaged_copies
    }

    /// The newest durable checkpoint's number; 0 is none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.progress.state.lock().newest
    }

    /// The largest body that a slot takes.
    #[must_use]
    pub fn max_body_bytes(&self) -> u64 {
        let lens = self.slots.as_flattened().iter().map(|copy| copy.len_bytes);
        lens.fold(MAX_SLOT_BYTES, u64::min) - HEADER_BYTES as u64
    }

    /// Makes `body` the newest checkpoint and returns its number once it is durable. The caller
    /// flushes the device first: everything that the body refers to must be durable before.
    ///
    /// # Errors
    /// [`CheckpointError::TooLarge`], with nothing written; [`CheckpointError::Failed`] from the
    /// first failed write on.
    pub async fn store(&self, body: &[u8]) -> Result<u64, CheckpointError> {
        let body_bytes = body.len() as u64;
        let max_body_bytes = self.max_body_bytes();
        if body_bytes > max_body_bytes {
            return Err(CheckpointError::TooLarge { body_bytes, max_body_bytes });
        }
        let number = self.progress.reserve().await?;
        // Submitted before anything is awaited, as `reserve` asks.
        self.submit(number, body);
        self.progress.durable(number).await?;
        Ok(number)
    }

    /// Makes sure that a torn record never becomes whole: the one that comes next goes to the same place
    /// under the same number, and what a power cut leaves of that could complete what was there. To
    /// be called before anything else is written.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn clear_torn(&self) -> Result<(), DeviceError> {
        let next = slot_of(self.newest() + 1);
        if self.has_damage[next] {
            for region in &self.slots[next] {
                let (zeros, durability) =
                    (AlignedBuffer::zeroed(BLOCK_BYTES), Durability::Immediate);
                request::write(&*self.device, region.offset, zeros, durability).await?;
            }
        }
        Ok(())
    }

    /// What storing a body of so many bytes writes to the device.
    #[must_use]
    pub fn bytes_written(body_bytes: usize) -> u64 {
        2 * (HEADER_BYTES + body_bytes).next_multiple_of(BLOCK_BYTES) as u64
    }

    /// Starts to write both copies.
    fn submit(&self, number: u64, body: &[u8]) {
        let len = HEADER_BYTES + body.len();
        let requests = self.slots[slot_of(number)].map(|Region { offset, .. }| {
            let mut buffer = AlignedBuffer::zeroed(len.next_multiple_of(BLOCK_BYTES));
            buffer[HEADER_BYTES..len].copy_from_slice(body);
            header::seal(&mut buffer[..len], &identity(self.pool, offset.0), number);
            let progress = self.progress.clone();
            let completion =
                Box::new(move |_: AlignedBuffer, outcome| progress.complete(number, outcome));
            Request::Write { offset, buffer, durability: Durability::Immediate, completion }
        });
        self.device.submit(requests.into());
    }
}

impl Progress {
    /// Waits until nothing is in flight and takes the turn: the number to write. The caller
    /// submits both copies before it awaits anything.
    async fn reserve(&self) -> Result<u64, CheckpointError> {
        loop {
            let written = {
                let mut state = self.state.lock();
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                if state.in_flight == 0 {
                    state.in_flight = COPIES;
                    return Ok(state.newest + 1);
                }
                self.written.listen()
            };
            written.await;
        }
    }

    /// Waits until the checkpoint is durable, or never will be.
    async fn durable(&self, number: u64) -> Result<(), CheckpointError> {
        loop {
            let written = {
                let state = self.state.lock();
                if state.newest >= number {
                    return Ok(());
                }
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                self.written.listen()
            };
            written.await;
        }
    }

    fn complete(&self, number: u64, outcome: Result<(), DeviceError>) {
        let mut state = self.state.lock();
        assert!(state.in_flight > 0, "a write completes once");
        assert_eq!(number, state.newest + 1, "checkpoints become durable one after the other");
        state.in_flight -= 1;
        if let Err(cause) = outcome {
            tracing::error!(number, %cause, "checkpoint failed");
            state.failed.get_or_insert(CheckpointError::Failed { number, cause });
        } else if state.in_flight == 0 && state.failed.is_none() {
            state.newest = number;
        }
        drop(state);
        self.written.notify(usize::MAX);
    }
}

/// Copies of each slot.
const COPIES: usize = 2;
/// More than one structure may be long.
const MAX_SLOT_BYTES: u64 = 1 << 30;
/// Far more than can be written; leaves room to count on.
const MAX_NUMBER: u64 = u64::MAX >> 1;

fn slot_of(number: u64) -> usize {
    (number % 2) as usize
}

fn identity(pool: u64, address_bytes: u64) -> Identity {
    Identity { kind: Kind::Checkpoint, version: CHECKPOINT_VERSION, pool, address_bytes }
}

fn check_slots(device: &dyn Device, slots: &[SlotRegions; 2]) -> Result<(), CheckpointError> {
    let device_bytes = device.size_bytes();
    let copies = slots.as_flattened();
    for (at, copy) in copies.iter().enumerate() {
        let apart = copies[..at].iter().all(|other| !copy.overlaps(other));
        if !copy.is_usable(1, device_bytes) || !apart {
            return Err(CheckpointError::Slots { copy: *copy, device_bytes });
        }
    }
    Ok(())
}

/// What a slot holds by its two copies; what is wrong with one that does not count is added to
/// `damaged_copies`.
async fn load_slot(
    device: &dyn Device,
    copies: SlotRegions,
    pool: u64,
    index: usize,
    damaged_copies: &mut Vec<CopyError>,
) -> Result<Found, CheckpointError> {
    let mut found = Vec::with_capacity(COPIES);
    for region in copies {
        let copy = load(device, region, pool, index).await?;
        if let Found::Damaged(CopyError::Header(error @ HeaderError::Version { .. })) = copy {
            return Err(CheckpointError::Newer(error));
        }
        found.push((region.offset.0, copy));
    }
    let newest = found.iter().map(|(_, copy)| copy.number()).max().unwrap_or(0);
    let mut slot = Found::Empty;
    for (address_bytes, copy) in found {
        match copy {
            Found::Damaged(error) => {
                damaged_copies.push(error.clone());
                if newest == 0 {
                    slot = Found::Damaged(error);
                }
            }
            copy if copy.number() == newest => slot = copy,
            copy => {
                let found = copy.number();
                damaged_copies.push(CopyError::Stale { address_bytes, found, newest });
            }
        }
    }
    Ok(slot)
}

async fn load(
    device: &dyn Device,
    copy: Region,
    pool: u64,
    index: usize,
) -> Result<Found, DeviceError> {
    let address_bytes = copy.offset.0;
    let identity = identity(pool, address_bytes);
    let unreadable = |cause| Ok(Found::Damaged(identity.unreadable(cause).into()));
    let first = salvage::read(device, copy.offset, AlignedBuffer::zeroed(BLOCK_BYTES)).await?;
    let first = match first.whole() {
        Ok(first) => first,
        Err(cause) => return unreadable(cause),
    };
    if first.iter().all(|&byte| byte == 0) {
        return Ok(Found::Empty);
    }
    // As much as the record says; one that lies does not match its checksum.
    let claimed = Header::read_from_prefix(first).map_or(0, |(header, _)| {
        u64::from(header.length_bytes.get()).next_multiple_of(BLOCK_BYTES as u64)
    });
    let len = claimed.clamp(BLOCK_BYTES as u64, copy.len_bytes.min(MAX_SLOT_BYTES)) as usize;
    let read = salvage::read(device, copy.offset, AlignedBuffer::zeroed(len)).await?;
    let bytes = match read.whole() {
        Ok(bytes) => bytes,
        Err(cause) => return unreadable(cause),
    };
    Ok(match header::verify(bytes, &identity) {
        Ok(header) => {
            let number = header.sequence.get();
            if number == 0 || number > MAX_NUMBER || slot_of(number) != index {
                return Ok(Found::Damaged(CopyError::WrongSlot { address_bytes, number }));
            }
            let body = bytes[HEADER_BYTES..header.length_bytes.get() as usize].to_vec();
            Found::Whole { number, body }
        }
        Err(error) => Found::Damaged(error.into()),
    })
}

impl Found {
    /// A whole one's number, else 0.
    fn number(&self) -> u64 {
        match self {
            Self::Whole { number, .. } => *number,
            Self::Empty | Self::Damaged(_) => 0,
        }
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests;
