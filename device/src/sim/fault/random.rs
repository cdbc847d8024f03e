//! Faults from a seed.

use std::{io, ops::Range};

use super::{Cause, Fault, FaultKind, Times};
use crate::{BLOCK_BYTES, ByteOffset, SeededRandom};

const BLOCK: u64 = BLOCK_BYTES as u64;

impl Fault {
    /// A fault of one of `kinds`, somewhere on a device of `size_bytes`: half of them strike
    /// anywhere, the others only a part of it. Most strike once; some a few times, or for a while;
    /// none for ever. Change the fields for anything else.
    ///
    /// # Panics
    /// If there is no kind to choose from, or the device has no block.
    #[must_use]
    pub fn random(random: &mut SeededRandom, size_bytes: u64, kinds: &[FaultKind]) -> Self {
        assert!(!kinds.is_empty(), "there is nothing to choose from");
        let blocks = size_bytes / BLOCK;
        assert!(blocks > 0, "there is no block on the device");
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        let range_bytes = if random.chance(1, 2) { 0..size_bytes } else { part(random, blocks) };
        let times = match random.below(8) {
            0 => Times::Count(2 + random.below(6) as u32),
            1 => Times::During(1 + random.below(256)),
            _ => Times::Count(1),
        };
        let cause = cause(random, kind, blocks);
        Self { operation: kind.operation(), range_bytes, times, cause }
    }
}

fn part(random: &mut SeededRandom, blocks: u64) -> Range<u64> {
    let start = random.below(blocks);
    let len = 1 + random.below(blocks - start);
    start * BLOCK..(start + len) * BLOCK
}

fn cause(random: &mut SeededRandom, kind: FaultKind, blocks: u64) -> Cause {
    // Mostly a few: a tear late in a long write is as likely as its length.
    let mut sectors = || {
        let bits = random.below(8);
        random.below(1 << bits)
    };
    match kind {
        FaultKind::FailedRead => failure(random, &[libc::EIO, libc::EILSEQ, libc::ENODATA]),
        FaultKind::FailedWrite => failure(random, &[libc::EIO, libc::ENOSPC, libc::EROFS]),
        FaultKind::FailedFlush => failure(random, &[libc::EIO, libc::ENOSPC, libc::EDQUOT]),
        FaultKind::FailedDiscard => failure(random, &[libc::EIO, libc::EBUSY]),
        FaultKind::ShortRead | FaultKind::ShortWrite => Cause::Short { sectors: sectors() },
        FaultKind::TornWrite => Cause::Torn { sectors: sectors() },
        FaultKind::LostWrite | FaultKind::LostFlush => Cause::Lost,
        FaultKind::MisdirectedWrite | FaultKind::MisdirectedRead => {
            Cause::Misdirected { to: ByteOffset(random.below(blocks) * BLOCK) }
        }
        FaultKind::StaleRead => Cause::Stale { changes: 1 + random.below(3) as u32 },
        FaultKind::FlippedRead | FaultKind::FlippedWrite => {
            Cause::FlippedBits { bits: 1 + random.below(8) as u32, seed: random.next_u64() }
        }
        FaultKind::BitRot => {
            Cause::BitRot { bits: 1 + random.below(8) as u32, seed: random.next_u64() }
        }
    }
}

fn failure(random: &mut SeededRandom, errnos: &[i32]) -> Cause {
    match random.below(errnos.len() as u64 + 1) as usize {
        0 => Cause::Kind(io::ErrorKind::TimedOut),
        index => Cause::Errno(errnos[index - 1]),
    }
}
