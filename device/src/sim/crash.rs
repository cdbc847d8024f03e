//! What a medium may hold after the power went.

use std::sync::Arc;

use super::{
    history::{Change, History},
    image::Image,
};
use crate::{BLOCK_BYTES, SeededRandom};

/// What a power cut cannot divide, in bytes.
pub const SECTOR_BYTES: usize = 512;

const SECTORS_A_PAGE: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

/// What becomes of changes that nothing guarantees when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPolicy {
    /// All are lost: a volatile cache that was never written back.
    LoseAll,
    /// All are kept, those under way as well.
    KeepAll,
    /// Each is kept, lost, or torn between sectors, independently.
    Random,
}

/// How much of one change is kept.
enum Fate {
    Whole,
    /// Any subset of the sectors.
    Scattered,
    /// The sectors before (or from) one of them.
    Split {
        at: u64,
        keep_front: bool,
    },
}

impl History {
    /// The medium's contents after the power was cut when `event` was about to happen.
    ///
    /// A change takes effect when it completes; one under way, at a random moment since its
    /// submission. So changes that followed one another stay in order where they overlap, and
    /// those that ran together come in any order.
    pub(super) fn image_at(
        &self,
        event: usize,
        policy: CrashPolicy,
        random: &mut SeededRandom,
    ) -> Image {
        let checkpoint = self.checkpoint_before(event);
        let mut image = checkpoint.image.clone();
        let mut changes = Vec::new();
        for entry in &self.entries[checkpoint.entry..] {
            if entry.submitted_at >= event {
                break;
            }
            if entry.failed {
                continue;
            }
            let since = entry.submitted_at as u64;
            let moment = match entry.completed_at {
                Some(completed_at) if completed_at < event => completed_at as u64,
                _ => since + random.below(event as u64 - since),
            };
            let is_durable = entry.durable_at.is_some_and(|durable_at| durable_at < event);
            let fate =
                if is_durable { Some(Fate::Whole) } else { choose(policy, &entry.change, random) };
            if let Some(fate) = fate {
                changes.push((moment, random.next_u64(), &entry.change, fate));
            }
        }
        changes.sort_by_key(|&(moment, tie, ..)| (moment, tie));
        for (_, _, change, fate) in changes {
            match fate {
                Fate::Whole => change.apply(&mut image),
                Fate::Scattered => tear(&mut image, change, |_| random.chance(1, 2)),
                Fate::Split { at, keep_front } => {
                    tear(&mut image, change, |sector| (sector < at) == keep_front);
                }
            }
        }
        image
    }
}

fn choose(policy: CrashPolicy, change: &Change, random: &mut SeededRandom) -> Option<Fate> {
    match policy {
        CrashPolicy::LoseAll => None,
        CrashPolicy::KeepAll => Some(Fate::Whole),
        CrashPolicy::Random => match random.below(6) {
            0 | 1 => None,
            2 | 3 => Some(Fate::Whole),
            4 => Some(Fate::Scattered),
            _ => {
                let (_, sectors) = sector_range(change);
                let at = random.below(sectors.max(1));
                Some(Fate::Split { at, keep_front: random.chance(1, 2) })
            }
        },
    }
}

/// The first page of a write or discard, and the number of sectors.
fn sector_range(change: &Change) -> (u64, u64) {
    match change {
        Change::Write { offset_bytes, len_bytes, .. }
        | Change::Discard { offset_bytes, len_bytes } => {
            (offset_bytes / BLOCK_BYTES as u64, len_bytes / SECTOR_BYTES as u64)
        }
        Change::Flush | Change::Damage { .. } => (0, 0),
    }
}

/// Applies those sectors of a write or discard that `keep` chooses by number.
fn tear(image: &mut Image, change: &Change, mut keep: impl FnMut(u64) -> bool) {
    let (first_page, sector_count) = sector_range(change);
    for index in 0..sector_count.div_ceil(SECTORS_A_PAGE) {
        let new = match change {
            Change::Write { pages, .. } => Some(&pages[index as usize]),
            _ => None,
        };
        let number = first_page + index;
        let mut page = image.page(number).map_or([0; BLOCK_BYTES], |page| **page);
        let first_sector = index * SECTORS_A_PAGE;
        for sector in 0..SECTORS_A_PAGE.min(sector_count - first_sector) {
            if !keep(first_sector + sector) {
                continue;
            }
            let start = sector as usize * SECTOR_BYTES;
            let range = start..start + SECTOR_BYTES;
            match new {
                Some(new) => page[range.clone()].copy_from_slice(&new[range]),
                None => page[range].fill(0),
            }
        }
        image.set_page(number, Some(Arc::new(page)));
    }
}
