//! The checkpoint record: two slots, written in turn, of which the newer whole one counts.
//!
//! Checkpoint number n goes to slot n mod 2, so the slot written is never the one that holds the
//! newest durable checkpoint. A slot is a `device::header` (kind checkpoint, sequence = number)
//! and an opaque body, zero-padded to whole blocks, written by one device write.
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
//!
//! What it cannot see: a newest checkpoint that the medium damaged after it was acknowledged looks
//! like a torn one. [`CheckpointStore::damaged_slot`] tells, and whoever also keeps a log can
//! compare what the older checkpoint covers with [`Replay::trimmed_up_to`](crate::Replay).

use std::sync::Arc;

use event_listener::Event;
use parking_lot::Mutex;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, Device, DeviceError, Durability, Request,
    header::{self, HEADER_BYTES, HeaderError, Identity, Kind},
    request,
};

use crate::{CheckpointError, Region, SlotError, log::write_zeros};

/// The version of the layout.
pub const CHECKPOINT_VERSION: u16 = 1;

/// Two slots on the pool's device.
///
/// Thread safety: shared freely. Stores are written one after the other; one whose future is
/// dropped is finished and counted all the same.
///
/// Invariants: at most one write is in flight, and never to the slot of the newest durable
/// checkpoint; after a failed write nothing is stored any more.
pub struct CheckpointStore {
    device: Arc<dyn Device>,
    slots: [Region; 2],
    pool: u64,
    damaged_slot: Option<SlotError>,
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
    in_flight: bool,
    failed: Option<CheckpointError>,
}

/// What a slot holds.
enum Slot {
    Empty,
    Whole { number: u64, body: Vec<u8> },
    Damaged(SlotError),
}

impl CheckpointStore {
    /// Overwrites both slots with zeros, so that they are empty and their blocks allocated.
    ///
    /// # Errors
    /// If the slots do not fit the device or a write fails.
    pub async fn format(
        device: Arc<dyn Device>,
        slots: [Region; 2],
    ) -> Result<(), CheckpointError> {
        check_slots(&*device, &slots)?;
        for slot in slots {
            write_zeros(&*device, slot).await?;
        }
        Ok(())
    }

    /// Opens the two slots of a pool; returns the newest whole checkpoint's number and body.
    /// Flushes the device: a checkpoint that a former process wrote but did not see acknowledged
    /// may stand in a volatile cache, and from now on the other one will be overwritten.
    ///
    /// # Errors
    /// If the slots do not fit the device, both are damaged, or the device fails. An unreadable
    /// slot is not taken for a torn one: it may hold the newest checkpoint.
    pub async fn open(
        device: Arc<dyn Device>,
        slots: [Region; 2],
        pool: u64,
    ) -> Result<(Self, Option<(u64, Vec<u8>)>), CheckpointError> {
        check_slots(&*device, &slots)?;
        let first = load(&*device, slots[0], pool, 0).await?;
        let second = load(&*device, slots[1], pool, 1).await?;
        request::flush(&*device).await?;
        let (found, damaged_slot) = match (first, second) {
            (Slot::Whole { number, body }, Slot::Whole { number: other, body: other_body }) => {
                let newer = if number > other { (number, body) } else { (other, other_body) };
                (Some(newer), None)
            }
            (Slot::Whole { number, body }, other) | (other, Slot::Whole { number, body }) => {
                (Some((number, body)), other.damage())
            }
            (Slot::Damaged(first), Slot::Damaged(second)) => {
                return Err(CheckpointError::Damaged { first, second });
            }
            (Slot::Empty, other) | (other, Slot::Empty) => (None, other.damage()),
        };
        if let Some(damage) = &damaged_slot {
            tracing::warn!(%damage, "checkpoint slot passed over");
        }
        let newest = found.as_ref().map_or(0, |(number, _)| *number);
        let state = State { newest, in_flight: false, failed: None };
        let progress = Arc::new(Progress { state: Mutex::new(state), written: Event::new() });
        Ok((Self { device, slots, pool, damaged_slot, progress }, found))
    }

    /// Why the other slot was passed over when this store was opened, if it was neither whole nor
    /// empty: torn when power was lost, or damaged since.
    #[must_use]
    pub fn damaged_slot(&self) -> Option<&SlotError> {
        self.damaged_slot.as_ref()
    }

    /// The newest durable checkpoint's number; 0 is none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.progress.state.lock().newest
    }

    /// The largest body that a slot takes.
    #[must_use]
    pub fn max_body_bytes(&self) -> u64 {
        let slot_bytes = self.slots[0].len_bytes.min(self.slots[1].len_bytes);
        slot_bytes.min(MAX_SLOT_BYTES) - HEADER_BYTES as u64
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

    fn submit(&self, number: u64, body: &[u8]) {
        let offset = self.slots[slot_of(number)].offset;
        let len = HEADER_BYTES + body.len();
        let mut buffer = AlignedBuffer::zeroed(len.next_multiple_of(BLOCK_BYTES));
        buffer[HEADER_BYTES..len].copy_from_slice(body);
        header::seal(&mut buffer[..len], &identity(self.pool, offset.0), number);
        let progress = self.progress.clone();
        let completion =
            Box::new(move |_: AlignedBuffer, outcome| progress.complete(number, outcome));
        let durability = Durability::Immediate;
        self.device.submit(vec![Request::Write { offset, buffer, durability, completion }]);
    }
}

impl Progress {
    /// Waits until nothing is in flight and takes the turn: the number to write. The caller
    /// submits that write before it awaits anything.
    async fn reserve(&self) -> Result<u64, CheckpointError> {
        loop {
            let written = {
                let mut state = self.state.lock();
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                if !state.in_flight {
                    state.in_flight = true;
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
        assert!(std::mem::take(&mut state.in_flight), "a write completes once");
        assert_eq!(number, state.newest + 1, "checkpoints become durable one after the other");
        match outcome {
            Ok(()) => state.newest = number,
            Err(cause) => {
                tracing::error!(number, %cause, "checkpoint failed");
                state.failed = Some(CheckpointError::Failed { number, cause });
            }
        }
        drop(state);
        self.written.notify(usize::MAX);
    }
}

impl Slot {
    fn damage(self) -> Option<SlotError> {
        match self {
            Self::Damaged(error) => Some(error),
            Self::Empty | Self::Whole { .. } => None,
        }
    }
}

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

fn check_slots(device: &dyn Device, slots: &[Region; 2]) -> Result<(), CheckpointError> {
    let device_bytes = device.size_bytes();
    let [first, second] = *slots;
    let usable = slots.iter().all(|slot| slot.is_usable(1, device_bytes));
    if usable && !first.overlaps(&second) {
        return Ok(());
    }
    Err(CheckpointError::Slots { first, second, device_bytes })
}

async fn load(
    device: &dyn Device,
    slot: Region,
    pool: u64,
    index: usize,
) -> Result<Slot, DeviceError> {
    let address_bytes = slot.offset.0;
    let len = slot.len_bytes.min(MAX_SLOT_BYTES) as usize;
    let bytes = request::read(device, slot.offset, AlignedBuffer::zeroed(len)).await?;
    Ok(match header::verify(&bytes, &identity(pool, address_bytes)) {
        Ok(header) => {
            let number = header.sequence.get();
            if number == 0 || number > MAX_NUMBER || slot_of(number) != index {
                return Ok(Slot::Damaged(SlotError::WrongSlot { address_bytes, number }));
            }
            let body = bytes[HEADER_BYTES..header.length_bytes.get() as usize].to_vec();
            Slot::Whole { number, body }
        }
        Err(HeaderError::Magic { .. }) if bytes.iter().all(|&byte| byte == 0) => Slot::Empty,
        Err(error) => Slot::Damaged(error.into()),
    })
}

#[cfg(test)]
mod tests;
