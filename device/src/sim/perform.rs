//! Carrying operations out: as they were asked, or as the fault that they meet has it.

use std::{collections::BTreeSet, io, ops::Range, sync::Arc};

use super::{
    SECTOR_BYTES, State,
    fault::{Cause, Strike},
    history::{Change, Entry},
};
use crate::{BLOCK_BYTES, DeviceError, Durability, Request, SeededRandom};

impl State {
    /// Does what a request asks, or what the fault that it meets makes of it.
    pub(super) fn perform(
        &mut self,
        request: &mut Request,
        entry: Option<usize>,
        refused: Option<io::ErrorKind>,
        size_bytes: u64,
    ) -> Result<(), DeviceError> {
        let operation = request.operation();
        if !self.has_power {
            return Err(DeviceError::Closed { operation });
        }
        let strike = match refused {
            Some(kind) => Some(Strike { cause: Cause::Kind(kind), range_bytes: 0..0 }),
            None => self.strike(request, size_bytes),
        };
        let happens = !strike.as_ref().is_some_and(|strike| strike.cause.prevents());
        if happens && let Request::Read { offset, buffer, .. } = request {
            match &strike {
                Some(strike) => self.misread(offset.0, buffer, strike),
                None => self.image.read(offset.0, buffer),
            }
        }
        if let Some(number) = entry {
            if happens {
                let entry = &mut self.history.entries[number];
                if let Some(strike) = &strike {
                    entry.misbehave(strike);
                }
                entry.change.apply(&mut self.image);
            }
            self.history.finish(number, happens, &self.image);
        }
        match strike.and_then(|strike| strike.cause.error(operation)) {
            Some(error) => Err(request.io_error(error)),
            None => Ok(()),
        }
    }

    /// The fault that a request meets, if any.
    fn strike(&mut self, request: &Request, size_bytes: u64) -> Option<Strike> {
        let (offset, len_bytes) = request.range();
        let range_bytes = offset.0..offset.0 + len_bytes;
        let history = &self.history;
        let matters = |cause| match cause {
            Cause::Short { sectors } | Cause::Torn { sectors } => {
                sectors < len_bytes / SECTOR_BYTES as u64
            }
            Cause::Misdirected { to } => {
                let fits = to.0.checked_add(len_bytes).is_some_and(|end| end <= size_bytes);
                fits && to != offset
            }
            Cause::Stale { changes } => history.change_before_last(&range_bytes, changes).is_some(),
            _ => true,
        };
        let submitted = self.counters.operations();
        self.faults.strike(request.operation(), range_bytes.clone(), submitted, matters)
    }

    /// Fills the buffer of a read as the fault that it met has it.
    fn misread(&mut self, offset_bytes: u64, buffer: &mut [u8], strike: &Strike) {
        match strike.cause {
            Cause::Short { sectors } => {
                let moved_bytes = (sectors as usize * SECTOR_BYTES).min(buffer.len());
                self.image.read(offset_bytes, &mut buffer[..moved_bytes]);
            }
            Cause::Misdirected { to } => self.image.read(to.0, buffer),
            Cause::Stale { changes } => {
                let range_bytes = offset_bytes..offset_bytes + buffer.len() as u64;
                self.history.read_stale(&range_bytes, changes, buffer);
            }
            Cause::FlippedBits { bits, seed } => {
                self.image.read(offset_bytes, buffer);
                for (byte, mask) in flips(bits, seed, &strike.range_bytes) {
                    buffer[(byte - offset_bytes) as usize] ^= mask;
                }
            }
            Cause::BitRot { bits, seed } => {
                for (byte, mask) in flips(bits, seed, &strike.range_bytes) {
                    let mut held = [0];
                    self.image.read(byte, &mut held);
                    self.damage(byte, vec![held[0] ^ mask]);
                }
                self.image.read(offset_bytes, buffer);
            }
            Cause::Kind(_) | Cause::Errno(_) | Cause::Lost | Cause::Torn { .. } => {
                unreachable!("{:?} is nothing that a read does", strike.cause)
            }
        }
    }

    /// Replaces bytes of the medium, durably.
    pub(super) fn damage(&mut self, offset_bytes: u64, bytes: Vec<u8>) {
        let damage = Change::Damage { offset_bytes, bytes };
        damage.apply(&mut self.image);
        let (entry, _) = self.history.begin(damage);
        self.history.finish(entry, true, &self.image);
    }
}

impl Entry {
    /// Makes the change what really happens to the medium.
    fn misbehave(&mut self, strike: &Strike) {
        let landed_bytes = |sectors| sectors * SECTOR_BYTES as u64;
        match (&mut self.change, strike.cause) {
            (Change::Write { len_bytes, .. }, Cause::Lost) => *len_bytes = 0,
            (Change::Write { len_bytes, .. }, Cause::Torn { sectors }) => {
                *len_bytes = landed_bytes(sectors);
            }
            (Change::Write { len_bytes, durability, .. }, Cause::Short { sectors }) => {
                *len_bytes = landed_bytes(sectors);
                // It failed: nothing is guaranteed of what landed.
                *durability = Durability::Flush;
            }
            (Change::Write { offset_bytes, .. }, Cause::Misdirected { to }) => {
                *offset_bytes = to.0;
            }
            (Change::Write { offset_bytes, pages, .. }, Cause::FlippedBits { bits, seed }) => {
                for (byte, mask) in flips(bits, seed, &strike.range_bytes) {
                    let within = (byte - *offset_bytes) as usize;
                    let page = Arc::make_mut(&mut pages[within / BLOCK_BYTES]);
                    page[within % BLOCK_BYTES] ^= mask;
                }
            }
            (Change::Flush, Cause::Lost) => self.covers_nothing(),
            (_, cause) => unreachable!("{cause:?} is nothing that a change does"),
        }
    }
}

/// Distinct bits in a range of bytes: each as its byte and a mask.
fn flips(bits: u32, seed: u64, range_bytes: &Range<u64>) -> impl Iterator<Item = (u64, u8)> {
    let mut random = SeededRandom::new(seed);
    let available = (range_bytes.end - range_bytes.start) * 8;
    let mut chosen = BTreeSet::new();
    while (chosen.len() as u64) < u64::from(bits).min(available) {
        chosen.insert(random.below(available));
    }
    let start = range_bytes.start;
    chosen.into_iter().map(move |bit| (start + bit / 8, 1 << (bit % 8)))
}
