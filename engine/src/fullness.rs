//! How full the pool is, and telling about it before writes are refused.
//!
//! Space that garbage collection can get back does not count as used: a pool that is mostly garbage
//! is not full. The level rises as soon as a threshold is reached; it falls when the use is clearly
//! below. `Full` is not a threshold: a write was refused, none has been taken since, and there still
//! is no room for a batch of them. Once something was trimmed or deleted since, nobody knows whether that
//! is still so: what became garbage shows when the next write has it collected. Where no write comes, the
//! pool is then as full as its use says, and the log waits for that write.
//!
//! What the log says is never better than what is: worse is told at once. That it is over is told
//! once a minute for each level, so that a pool at a threshold does not tell the same again and again.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    accounting::SpaceParts, config::Tuning, core::Core, error::EngineError, space::worst_case_bytes,
};

/// The use falls so far below a threshold, in thousandths, before the level does.
const HYSTERESIS_PERMILLE: u64 = 50;

/// How often the log says at most that a level is over.
const RELIEF_INTERVAL: Duration = Duration::from_secs(60);

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

/// How full the pool was when that was last looked at, and what the log says of it.
#[derive(Default)]
pub(crate) struct FullnessWatch {
    /// The last write was refused for lack of space, and there has been no room since.
    is_full: AtomicBool,
    /// Something was trimmed or deleted since, and may have been the last to hold what it did.
    is_freed: AtomicBool,
    levels: Mutex<Levels>,
}

#[derive(Default)]
struct Levels {
    /// By use, without `Full`.
    by_use: Fullness,
    /// What the log says.
    told: Fullness,
    /// When the log last said that a level is over, by level.
    relieved: [Option<Instant>; 4],
}

impl Levels {
    /// What the log says now, and is to be told from which level, if it is to be told anything.
    fn tell(&mut self, level: Fullness, now: Instant) -> Option<(Fullness, Fullness)> {
        let before = self.told;
        if level < before {
            let last = &mut self.relieved[before as usize];
            if last.is_some_and(|last| now < last + RELIEF_INTERVAL) {
                return None;
            }
            *last = Some(now);
        }
        self.told = level;
        (level != before).then_some((before, level))
    }
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
    /// Thousandths of the room for data that are used if so much is not.
    fn used_permille_but(&self, unused_bytes: u64) -> u64 {
        let room_bytes = u64::from(self.table.len()) * self.superblock.layout.segment_bytes;
        let usable_bytes = room_bytes.saturating_sub(self.space.reserve_bytes()).max(1);
        let used_bytes = usable_bytes.saturating_sub(unused_bytes);
        u64::try_from(u128::from(used_bytes) * 1000 / u128::from(usable_bytes)).unwrap_or(1000)
    }

    /// Thousandths of the room for data that are used and cannot be collected.
    pub(crate) fn used_permille(&self, parts: &SpaceParts) -> u64 {
        self.used_permille_but(parts.free_bytes + parts.garbage_bytes)
    }

    /// The same, or more where it is far below every threshold: how much is garbage takes a look at
    /// every segment.
    fn used_permille_for_watch(&self) -> u64 {
        let used_permille = self.used_permille_but(self.space.free_bytes(self.room()));
        let least = u64::from(self.tuning.warn_percent.min(self.tuning.critical_percent)) * 10;
        if used_permille < least.saturating_sub(HYSTERESIS_PERMILLE) {
            return used_permille;
        }
        self.used_permille(&self.space_parts(None).0)
    }

    /// Writes are refused, and what would fill a batch of them still would be.
    fn is_full(&self) -> bool {
        let batch_bytes = worst_case_bytes(self.tuning.batch_bytes);
        self.fullness.is_full.load(Ordering::Relaxed)
            && self.space.free_bytes(self.room()) < batch_bytes
    }

    /// How full the pool is at this moment, with so much of it used.
    pub(crate) fn fullness(&self, used_permille: u64) -> Fullness {
        if self.is_full() && !self.fullness.is_freed.load(Ordering::Relaxed) {
            return Fullness::Full;
        }
        level(self.fullness.levels.lock().by_use, used_permille, &self.tuning)
    }

    /// Looks how full the pool is, and logs it if it has reached another level.
    pub(crate) fn watch_fullness(&self) {
        let used_permille = self.used_permille_for_watch();
        let is_full = self.is_full();
        if !is_full {
            self.fullness.is_full.store(false, Ordering::Relaxed);
        }
        let mut levels = self.fullness.levels.lock();
        levels.by_use = level(levels.by_use, used_permille, &self.tuning);
        let now = if is_full { Fullness::Full } else { levels.by_use };
        let told = levels.tell(now, self.runtime.now());
        drop(levels);
        let used_percent = used_permille / 10;
        match told {
            None => {}
            Some((Fullness::Full, _)) => tracing::info!("the pool takes writes again"),
            Some((before, now)) if now < before => {
                tracing::info!(used_percent, "the pool has more room again");
            }
            Some((_, Fullness::Warning)) => {
                tracing::warn!(used_percent, "the pool is filling up");
            }
            Some((_, Fullness::Critical)) => {
                tracing::error!(
                    used_percent,
                    "the pool is almost full: grow it, or delete something"
                );
            }
            // That is told with the write that was refused.
            Some((_, Fullness::Normal | Fullness::Full)) => {}
        }
    }

    /// Something was trimmed or deleted.
    pub(crate) fn note_freeing(&self) {
        // Mostly nobody was refused anything, or it is known.
        if self.fullness.is_full.load(Ordering::Relaxed) {
            self.fullness.is_freed.store(true, Ordering::Relaxed);
        }
    }

    /// A write was given its space, or refused. Logs when the pool becomes full, and that it takes
    /// writes again.
    pub(crate) fn note_refusal(&self, refusal: Option<&EngineError>) {
        let is_full = &self.fullness.is_full;
        if refusal.is_some() {
            self.fullness.is_freed.store(false, Ordering::Relaxed);
        }
        // Mostly nothing changes, and nobody else need hear of it.
        if is_full.load(Ordering::Relaxed) == refusal.is_some() {
            return;
        }
        is_full.store(refusal.is_some(), Ordering::Relaxed);
        let mut levels = self.fullness.levels.lock();
        let now = if refusal.is_some() { Fullness::Full } else { levels.by_use };
        let told = levels.tell(now, self.runtime.now());
        drop(levels);
        match (told, refusal) {
            (Some(_), Some(error)) => tracing::error!(%error, "writes are refused"),
            (Some((Fullness::Full, _)), None) => tracing::info!("the pool takes writes again"),
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
            [0, 799, 800, 790, 751, 799, 949, 950, 901, 940, 900, 899, 949, 749, 800, 1000, 0]
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
            (899, Fullness::Warning),
            (749, Fullness::Normal),
            (800, Fullness::Warning),
            (1000, Fullness::Critical),
            (0, Fullness::Normal),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_pool_that_toggles_is_told_of_a_few_times_a_minute_and_never_too_well() {
        let start = Instant::now();
        let mut levels = Levels::default();
        let mut lines = 0;
        for tenth in 0..1200 {
            let level = if tenth % 2 == 0 { Fullness::Full } else { Fullness::Warning };
            lines +=
                u32::from(levels.tell(level, start + Duration::from_millis(100) * tenth).is_some());
            assert!(levels.told >= level, "at {tenth}");
        }
        assert_eq!(lines, 5);
        // What is worse is told at once, and in the end also that it is over.
        let soon = start + Duration::from_secs(120);
        assert_eq!(levels.tell(Fullness::Normal, soon), None);
        let later = start + Duration::from_secs(200);
        assert_eq!(levels.tell(Fullness::Normal, later), Some((Fullness::Full, Fullness::Normal)));
        for level in [Fullness::Warning, Fullness::Critical, Fullness::Full] {
            assert_eq!(levels.tell(level, later).map(|(_, now)| now), Some(level));
            assert_eq!(levels.tell(level, later), None);
        }
    }
}
