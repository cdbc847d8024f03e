//! How full the pool is, and telling about it before writes are refused.
//!
//! Space that garbage collection can get back does not count as used: a pool that is mostly garbage
//! is not full. The level rises as soon as a threshold is reached; it falls when the use is clearly
//! below, so that a pool at a threshold does not tell the same again and again. `Full` is not a
//! threshold: a write was refused, and none has been taken since.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use crate::{config::Tuning, core::Core, error::EngineError};

/// The use falls so far below a threshold, in thousandths, before the level does.
const HYSTERESIS_PERMILLE: u64 = 20;

/// How full a pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fullness {
    /// There is room.
    #[default]
    Normal,
    /// [`warn_percent`](crate::Tuning::warn_percent) is used.
    Warning,
    /// [`critical_percent`](crate::Tuning::critical_percent) is used.
    Critical,
    /// Writes are refused. Reads, flushes, trims, deletes and growth work.
    Full,
}

/// What was last told.
#[derive(Default)]
pub(crate) struct FullnessWatch {
    /// By use, without `Full`.
    level: Mutex<Fullness>,
    /// The last write was refused for lack of space.
    is_full: AtomicBool,
}

/// The level by use, given the one before.
fn level(before: Fullness, used_permille: u64, tuning: &Tuning) -> Fullness {
    let reaches = |level: Fullness, percent: u8| {
        let threshold = u64::from(percent) * 10;
        let slack = if before >= level { HYSTERESIS_PERMILLE } else { 0 };
        used_permille >= threshold.saturating_sub(slack)
    };
    if reaches(Fullness::Critical, tuning.critical_percent) {
        Fullness::Critical
    } else if reaches(Fullness::Warning, tuning.warn_percent) {
        Fullness::Warning
    } else {
        Fullness::Normal
    }
}

impl Core {
    /// Thousandths of the room for data that are used and cannot be collected.
    pub(crate) fn used_permille(&self) -> u64 {
        let room_bytes = u64::from(self.table.len()) * self.superblock.layout.segment_bytes;
        let usable_bytes = room_bytes.saturating_sub(self.space.reserve_bytes()).max(1);
        let of_usable = |free_bytes: u64| {
            let used_bytes = usable_bytes.saturating_sub(free_bytes);
            u64::try_from(u128::from(used_bytes) * 1000 / u128::from(usable_bytes)).unwrap_or(1000)
        };
        let used_permille = of_usable(self.space.free_bytes(self.room()));
        // How much is garbage takes a look at every segment.
        let least = u64::from(self.tuning.warn_percent.min(self.tuning.critical_percent)) * 10;
        if used_permille < least.saturating_sub(HYSTERESIS_PERMILLE) {
            return used_permille;
        }
        let (parts, _) = self.space_parts(None);
        of_usable(parts.free_bytes + parts.garbage_bytes)
    }

    /// How full the pool is at this moment.
    pub(crate) fn fullness(&self) -> Fullness {
        if self.fullness.is_full.load(Ordering::Relaxed) {
            return Fullness::Full;
        }
        level(*self.fullness.level.lock(), self.used_permille(), &self.tuning)
    }

    /// Looks how full the pool is, and logs it if it has reached another level.
    pub(crate) fn watch_fullness(&self) {
        let used_permille = self.used_permille();
        let mut told = self.fullness.level.lock();
        let now = level(*told, used_permille, &self.tuning);
        let before = std::mem::replace(&mut *told, now);
        drop(told);
        let used_percent = used_permille / 10;
        match now {
            _ if now == before => {}
            Fullness::Critical if now > before => {
                tracing::error!(
                    used_percent,
                    "the pool is almost full: grow it, or delete something"
                );
            }
            Fullness::Warning if now > before => {
                tracing::warn!(used_percent, "the pool is filling up");
            }
            _ => tracing::info!(used_percent, "the pool has more room again"),
        }
    }

    /// A write was given its space, or refused. Logs when the pool becomes full, once until it
    /// takes writes again.
    pub(crate) fn note_refusal(&self, refusal: Option<&EngineError>) {
        let is_full = &self.fullness.is_full;
        // Mostly nothing changes, and nobody else need hear of it.
        if is_full.load(Ordering::Relaxed) == refusal.is_some() {
            return;
        }
        let was_full = is_full.swap(refusal.is_some(), Ordering::Relaxed);
        match refusal {
            Some(error) if !was_full => tracing::error!(%error, "writes are refused"),
            None if was_full => tracing::info!("the pool takes writes again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_rises_at_its_threshold_and_falls_clearly_below() {
        let tuning = Tuning { warn_percent: 80, critical_percent: 95, ..Tuning::default() };
        let mut now = Fullness::Normal;
        let mut told = Vec::new();
        for used_permille in
            [0, 799, 800, 790, 781, 799, 949, 950, 931, 940, 930, 929, 949, 779, 800, 1000, 0]
        {
            let next = level(now, used_permille, &tuning);
            if next != now {
                told.push((used_permille, next));
            }
            now = next;
        }
        let expected = [
            (800, Fullness::Warning),
            (950, Fullness::Critical),
            (929, Fullness::Warning),
            (779, Fullness::Normal),
            (800, Fullness::Warning),
            (1000, Fullness::Critical),
            (0, Fullness::Normal),
        ];
        assert_eq!(told, expected);
    }
}
