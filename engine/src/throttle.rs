//! Slowing writes down while room is short, so that none has to wait for a whole round of garbage
//! collection.
//!
//! Most of what a round empties comes free at its end, all at once. Writers who go on at full speed until
//! nothing is left then wait for that end, all of them. So while a round is under way and less than what is
//! kept back from writes is left to them, that is made to last: each block of a write costs the time until the round should end, divided by the blocks that there is
//! room for. How long a round takes is known from those before. All writers share one sequence of pauses, so
//! more of them do not write more.
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
/// A round that takes longer than those before is expected to end after this part of their time.
const OVERTIME_PART: u32 = 8;

/// See the module's page.
#[derive(Default)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Default)]
struct State {
    /// When the last pause ends.
    pauses_end: Option<Instant>,
    /// When the round under way began.
    round_began: Option<Instant>,
    /// How long rounds take, the later ones counting more; `None` before the first has ended.
    round_time: Option<Duration>,
}

impl Throttle {
    /// A round begins, or what may lead to one.
    pub(crate) fn note_begin(&self, now: Instant) {
        self.0.lock().round_began.get_or_insert(now);
    }

    /// It has led to none.
    pub(crate) fn note_none(&self) {
        self.0.lock().round_began = None;
    }

    /// It has ended.
    pub(crate) fn note_end(&self, now: Instant) {
        let mut state = self.0.lock();
        if let Some(began) = state.round_began.take() {
            let took = now.saturating_duration_since(began);
            state.round_time = Some(state.round_time.map_or(took, |before| (before + took) / 2));
        }
    }

    /// When a write of so many blocks may go on, with `free_bytes` left.
    fn turn(&self, now: Instant, blocks: u32, free_bytes: u64) -> Option<Instant> {
        let mut state = self.0.lock();
        let (began, round_time) = (state.round_began?, state.round_time?);
        let left = round_time
            .saturating_sub(now.saturating_duration_since(began))
            .max(round_time / OVERTIME_PART);
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
        if !self.collection.is_busy() {
            return;
        }
        let free_bytes = self.space.free_bytes(self.room());
        if free_bytes >= self.space.reserve_bytes() {
            return;
        }
        let blocks = data_bytes.div_ceil(BLOCK_BYTES) as u32;
        if let Some(turn) = self.throttle.turn(self.runtime.now(), blocks, free_bytes) {
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
        throttle.note_end(began + ROUND);
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
    fn nobody_waits_without_a_round_or_before_its_length_is_known() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.turn(now, 1, 0), None);
        throttle.note_begin(now);
        assert_eq!(throttle.turn(now, 1, 0), None);
        throttle.note_end(now + ROUND);
        assert_eq!(throttle.turn(now + ROUND, 1, 0), None);
        throttle.note_begin(now + ROUND);
        throttle.note_none();
        assert_eq!(throttle.turn(now + ROUND, 1, 0), None);
    }
}
