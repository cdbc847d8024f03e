//! Slowing writes down while garbage collection makes the room for them, so that none has to wait for a whole
//! round of it.
//!
//! Most of what a round empties comes free at its end, all at once. Writers who go on at full speed until
//! nothing is left then wait for that end, all of them. So from the end of one round to that of the next
//! the room that there is is made to last: each block of a write costs the time until the round should end, divided by the blocks that there is
//! room for. How long that takes is known from the rounds before. Where there is plenty of room a block so costs next to nothing.
//! All writers share one sequence of pauses, so more of them do not write more.
//!
//! A pool that fills up and has nothing to collect is not slowed down: there is nothing to wait for. Nor
//! is anyone during the first round after an opening.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use siltstone_device::BLOCK_BYTES;

use crate::{core::Core, stats::Stage};

/// The most that a block costs.
const MAX_PAUSE: Duration = Duration::from_millis(5);
/// The longest that a write waits for its turn, however many come before it.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Pauses are put together until they are worth a wait: timers are no finer.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// A round that ends later than those before is expected to do so after this part of their period.
const OVERTIME_PART: u32 = 8;
/// Rounds that begin at once after each other take no longer from end to end than so many times
/// what they take themselves.
const MAX_IDLE_PARTS: u32 = 2;

/// See the module's page.
#[derive(Default)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Default)]
struct State {
    /// When the last pause ends.
    pauses_end: Option<Instant>,
    /// When the round under way began.
    round_began: Option<Instant>,
    /// When the last round ended.
    round_ended: Option<Instant>,
    /// From the end of a round to that of the next, the later ones counting more; `None` before the first
    /// has ended.
    period: Option<Duration>,
}

impl State {
    /// Since when the room is to last that there is; `None` if nobody collects.
    fn since(&self, now: Instant, period: Duration) -> Option<Instant> {
        let ended = self.round_ended.filter(|&ended| now < ended + period);
        let follows =
            |began: &Instant| self.round_ended.is_none_or(|ended| *began > ended + period);
        match self.round_began {
            // A round that follows another at once began, for writers, when that one ended.
            Some(began) if follows(&began) => Some(began),
            Some(_) => self.round_ended,
            None => ended,
        }
    }
}

impl Throttle {
    /// A round begins, or what may lead to one.
    pub(crate) fn note_begin(&self, now: Instant) {
        self.0.lock().round_began.get_or_insert(now);
    }

    /// It has led to none: there is nothing to collect, and so nothing to wait for.
    pub(crate) fn note_none(&self) {
        let mut state = self.0.lock();
        (state.round_began, state.round_ended) = (None, None);
    }

    /// It has ended. One that was asked for, however much room there is, says nothing of others.
    pub(crate) fn note_end(&self, now: Instant, is_forced: bool) {
        let mut state = self.0.lock();
        if let Some(began) = state.round_began.take().filter(|_| !is_forced) {
            let took = now.saturating_duration_since(began);
            let since_end =
                state.round_ended.map_or(took, |ended| now.saturating_duration_since(ended));
            let period = since_end.clamp(took, took * MAX_IDLE_PARTS);
            state.period = Some(state.period.map_or(period, |before| (before + period) / 2));
            state.round_ended = Some(now);
        }
    }

    /// Whether the room that is left must last: else a write need not ask how much that is.
    fn is_at_work(&self, now: Instant) -> bool {
        let state = self.0.lock();
        state.period.is_some_and(|period| state.since(now, period).is_some())
    }

    /// When a write of so many blocks may go on, with `free_bytes` left.
    fn turn(&self, now: Instant, blocks: u32, free_bytes: u64) -> Option<Instant> {
        let mut state = self.0.lock();
        let period = state.period?;
        let since = state.since(now, period)?;
        let left =
            period.saturating_sub(now.saturating_duration_since(since)).max(period / OVERTIME_PART);
        let room_blocks = (free_bytes / BLOCK_BYTES as u64).max(1);
        let pause = left.div_f64(room_blocks as f64).min(MAX_PAUSE) * blocks;
        let begins = state.pauses_end.map_or(now, |end| end.max(now));
        let end = (begins + pause).min(now + MAX_WAIT);
        state.pauses_end = Some(end);
        Some(end)
    }
}

impl Core {
    /// Lets a write of so many bytes of data wait as long as the room that is left demands.
    pub(crate) async fn pace_write(&self, data_bytes: usize) {
        let now = self.runtime.now();
        if !self.throttle.is_at_work(now) {
            return;
        }
        let blocks = data_bytes.div_ceil(BLOCK_BYTES) as u32;
        let free_bytes = self.space.free_bytes(self.room());
        if let Some(turn) = self.throttle.turn(now, blocks, free_bytes)
            && turn >= now + MIN_WAIT
        {
            let _timer = self.stats.time(Stage::SpaceWait);
            self.runtime.sleep_until(turn).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Duration = Duration::from_millis(800);

    /// In a round, after one that took `ROUND`.
    fn in_a_round() -> (Throttle, Instant) {
        let (throttle, began) = (Throttle::default(), Instant::now());
        throttle.note_begin(began);
        throttle.note_end(began + ROUND, false);
        throttle.note_begin(began + ROUND);
        (throttle, began + ROUND)
    }

    #[test]
    fn what_is_left_lasts_until_the_round_should_end() {
        let (throttle, began) = in_a_round();
        let (mut now, mut free_blocks) = (began, 2000);
        while free_blocks > 0 {
            now = throttle.turn(now, 1, free_blocks * BLOCK_BYTES as u64).unwrap();
            free_blocks -= 1;
        }
        let took = now - began;
        assert!(took >= ROUND / 10 * 9 && took < 2 * ROUND, "{took:?}");
    }

    #[test]
    fn pauses_grow_as_room_shrinks_and_up_to_a_bound() {
        let (throttle, now) = in_a_round();
        let pause = |blocks: u64| {
            throttle.0.lock().pauses_end = None;
            throttle.turn(now, 1, blocks * BLOCK_BYTES as u64).unwrap() - now
        };
        assert_eq!(pause(8000), ROUND / 8000);
        assert_eq!(pause(800), ROUND / 800);
        assert_eq!((pause(10), pause(0)), (MAX_PAUSE, MAX_PAUSE));
        let overtime = throttle.turn(now + 3 * ROUND, 1, 800 * BLOCK_BYTES as u64).unwrap();
        assert_eq!(overtime - now, 3 * ROUND + ROUND / 8 / 800);
    }

    #[test]
    fn writers_share_one_sequence_and_none_waits_for_long() {
        let (throttle, now) = in_a_round();
        let turn = |at| throttle.turn(at, 6, 0).unwrap() - now;
        let ends: Vec<_> = (0..50).map(|_| turn(now)).collect();
        assert_eq!(ends[..3], [6 * MAX_PAUSE, 12 * MAX_PAUSE, 18 * MAX_PAUSE]);
        assert_eq!(ends[40..], [MAX_WAIT; 10]);
        let later = Duration::from_secs(2);
        assert_eq!(turn(now + later), later + 6 * MAX_PAUSE, "time that has passed is no debt");
    }

    #[test]
    fn the_room_is_made_to_last_between_rounds_too_and_no_longer_than_one_takes() {
        let (throttle, began) = (Throttle::default(), Instant::now());
        throttle.note_begin(began);
        throttle.note_end(began + ROUND, false);
        let ended = began + ROUND;
        let pause = |now: Instant| {
            throttle.0.lock().pauses_end = None;
            throttle.turn(now, 1, 800 * BLOCK_BYTES as u64).map(|turn| turn - now)
        };
        assert_eq!(pause(ended), Some(ROUND / 800));
        assert_eq!(pause(ended + ROUND / 2), Some(ROUND / 2 / 800));
        // The next round began late, for writers when the last one ended.
        throttle.note_begin(ended + ROUND / 2);
        assert_eq!(pause(ended + ROUND / 2), Some(ROUND / 2 / 800));
        throttle.note_none();
        assert_eq!(pause(ended + ROUND / 2), None, "there is nothing to collect");
        throttle.note_begin(ended + ROUND / 2);
        throttle.note_end(ended + ROUND, true);
        assert_eq!(pause(ended + ROUND), None, "it was asked for");
        throttle.note_begin(ended + 5 * ROUND);
        assert_eq!(pause(ended + 5 * ROUND), Some(ROUND / 800), "a round of its own");
    }

    #[test]
    fn nobody_waits_without_a_round_or_before_its_length_is_known() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.turn(now, 1, 0), None);
        throttle.note_begin(now);
        assert_eq!(throttle.turn(now, 1, 0), None);
        throttle.note_end(now + ROUND, false);
        let later = now + 3 * ROUND;
        assert_eq!(throttle.turn(later, 1, 0), None);
        throttle.note_begin(later);
        throttle.note_none();
        assert_eq!(throttle.turn(later, 1, 0), None);
    }
}
