//! Where a history is cut.

use siltstone_device::{Durability, Operation, SeededRandom, sim::Event};

/// Histories with so few events are cut at each of them.
const EVERY_EVENT: usize = 120;
/// Others are cut at so many random events, and at as many that follow a turning point by less than
/// so many events.
const SAMPLED: usize = 24;
const AFTER_TURNING_POINT: u64 = 4;
/// And at so many that follow a growth, if there is one.
const NEAR_GROWTHS: usize = 8;
const AFTER_GROWTH: u64 = 12;
/// Where superblocks are: a growth begins with them.
const SUPERBLOCKS: [u64; 2] = [0, 512 << 10];

/// Events of a history around which much is decided.
#[derive(Default)]
pub(super) struct Landmarks {
    /// Discards, and writes that are durable at once.
    turning_points: Vec<usize>,
    /// Writes of the pool's new size.
    growths: Vec<usize>,
}

impl Landmarks {
    /// Remembers an event if it is one of them.
    pub(super) fn note(&mut self, event: &Event) {
        let is_write = event.operation == Operation::Write;
        if event.operation == Operation::Discard || event.durability == Durability::Immediate {
            self.turning_points.push(event.index);
        }
        if is_write && SUPERBLOCKS.contains(&event.offset_bytes) {
            self.growths.push(event.index);
        }
    }

    /// Every event of a short history; of a longer one some, most of them near landmarks.
    pub(super) fn choose_cuts(&self, events: usize, random: &mut SeededRandom) -> Vec<usize> {
        if events <= EVERY_EVENT {
            return (0..=events).collect();
        }
        let mut cuts = Vec::new();
        let mut after = |points: &[usize], within: u64, random: &mut SeededRandom| {
            if !points.is_empty() {
                let chosen = points[random.below(points.len() as u64) as usize];
                cuts.push((chosen + random.below(within) as usize).min(events));
            }
        };
        for _ in 0..SAMPLED {
            after(&[0], events as u64 + 1, random);
            after(&self.turning_points, AFTER_TURNING_POINT, random);
        }
        for _ in 0..NEAR_GROWTHS {
            after(&self.growths, AFTER_GROWTH, random);
        }
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }
}
