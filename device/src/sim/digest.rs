//! One number for a whole history, so that two runs can be compared.

use super::history::{Change, History};
use crate::Durability;

impl History {
    /// Depends on every event: order, kind, place, contents, outcome.
    pub(super) fn digest(&self) -> u64 {
        let mut digest = Digest { state: 0 };
        for entry in &self.entries {
            digest.number(entry.submitted_at as u64);
            digest.number(entry.completed_at.map_or(u64::MAX, |event| event as u64));
            digest.number(u64::from(entry.failed));
            let (offset_bytes, len_bytes) = entry.change.range();
            digest.number(offset_bytes);
            digest.number(len_bytes);
            match &entry.change {
                Change::Write { pages, durability, .. } => {
                    digest.number(match durability {
                        Durability::Flush => 0,
                        Durability::Immediate => 1,
                    });
                    for page in pages {
                        digest.bytes(&**page);
                    }
                }
                Change::Discard { .. } => digest.number(2),
                Change::Flush => digest.number(3),
                Change::Damage { bytes, .. } => {
                    digest.number(4);
                    digest.bytes(bytes);
                }
            }
        }
        digest.state
    }
}

/// Finds differences that come by accident; no help against whoever makes them on purpose.
struct Digest {
    state: u64,
}

impl Digest {
    fn number(&mut self, number: u64) {
        // A rotation and an odd factor are undone by nothing that follows.
        let mixed = (self.state.rotate_left(29) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.state = mixed ^ (mixed >> 32);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(u64::from(crc32fast::hash(bytes)));
    }
}
