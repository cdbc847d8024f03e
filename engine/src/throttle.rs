//! Slowing writes down while garbage collection makes the room for them, so that none has to wait for a
//! whole round of it.
//!
//! Most of what a round empties comes free at its end, all at once. Writers who go on at full speed until
//! nothing is left then wait for that end, all of them. So while rounds follow each other, the room that
//! there is beyond what the round itself fills is made to last until the end of the next round: a block
//! of a write costs the time until then, divided by the blocks that the room holds as they are stored
//! lately. Over a round of period *P* half of that room is used at an even rate, and a round's yield *Y*
//! comes on top at its end; the room so tends to 2 *Y* at the beginning of a round and *Y* at its end,
//! whatever it was at first, and the rate to *Y* / *P*, which is what collection can sustain. Where there
//! is more room than that, a block costs less than it takes anyway.
//!
//! Rounds differ, and a round during which writers were fast has had less of the processors: it took
//! long and leaves little room, so that the next would slow them down by more than need be, and end
//! early. So that this does not swing, a block costs the mean (the geometric one) of what the room
//! demands at this moment and of what it has demanded over the last rounds: half of each step, the rest by
//! and by. What the room demands is never missed by much ([`MAX_LAG`]).
//!
//! How long a round will take is known from those before, and, better the further it is, from its
//! own progress. Pauses of the collector do not count: it makes none while writers wait.
//! All writers share one sequence of pauses, so more of them do not write more.
//!
//! A pool that fills up and has nothing to collect is not slowed down: there is nothing to wait for.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use siltstone_device::BLOCK_BYTES;

use crate::{core::Core, stats::Stage};

/// The most that a block costs.
const MAX_PAUSE: Duration = Duration::from_millis(5);
/// The longest that a write waits for its turn, however many come before it.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Pauses are put together until they are worth a wait: timers are no finer.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// Progress from which a round says by itself how long it takes.
const MIN_DONE: f64 = 0.1;
/// Progress of a round that has moved all that it expected to: the rest of the map is still to be looked at.
const MAX_DONE: f64 = 0.9;
/// What the room has demanded so many rounds ago counts 1 / e of what it demands now.
const MEMORY_ROUNDS: u32 = 4;
/// The most times by which what a block costs differs from what the room demands.
const MAX_LAG: f64 = 1.5;
/// Bytes written from which it is said what they take.
const MIN_WRITTEN_BYTES: u64 = 8 << 20;
/// The most bytes that a written one takes, with all that goes with it.
const MAX_SHARE: f64 = 1.25;
/// The fewest: of what is all known, or compresses to next to nothing.
const MIN_SHARE: f64 = 1.0 / 64.0;

/// See the module's page.
#[derive(Default)]
pub(crate) struct Throttle(Mutex<State>);

/// Totals of the pipeline.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// What clients wrote.
    pub(crate) written_bytes: u64,
    /// What write units took.
    pub(crate) unit_bytes: u64,
}

#[derive(Default)]
struct State {
    /// When the last pause ends.
    pauses_end: Option<Instant>,
    /// What the room has demanded for a block lately, and when that was last looked at.
    usual: Option<(Duration, Instant)>,
    round: Option<Round>,
    /// How long rounds take, the later ones counting more; `None` before the first has ended.
    period: Option<Duration>,
    /// What there was when the share below was last looked at.
    usage: Usage,
    /// Bytes stored for a byte written; `None` if that is not known.
    stored_share: Option<f64>,
}

/// A round under way, or what may lead to one.
#[derive(Clone, Copy)]
struct Round {
    /// Later by all pauses of the collector.
    began: Instant,
    moved_blocks: u64,
    /// At least one.
    expected_blocks: u64,
    /// What the expected blocks will take.
    expected_bytes: u64,
}

impl Round {
    fn at(began: Instant) -> Self {
        Self { began, moved_blocks: 0, expected_blocks: 1, expected_bytes: 0 }
    }

    fn done(&self) -> f64 {
        (self.moved_blocks as f64 / self.expected_blocks as f64).min(MAX_DONE)
    }

    /// The time until it ends, and that which one takes; `None` if it is the first and has just begun.
    fn forecast(&self, now: Instant, period: Option<Duration>) -> Option<(Duration, Duration)> {
        let elapsed = now.saturating_duration_since(self.began);
        let done = self.done();
        let whole = match period {
            // By what it has taken itself, as far as it is.
            Some(period) => period.mul_f64(1.0 - done) + elapsed,
            None if done >= MIN_DONE => elapsed.div_f64(done),
            None => return None,
        };
        Some((whole.mul_f64(1.0 - done), period.unwrap_or(whole)))
    }

    /// Of the room that is free, what it will not fill itself.
    fn room_beyond(&self, free_bytes: u64) -> u64 {
        let to_fill = self.expected_bytes as f64 * (1.0 - self.done());
        free_bytes.saturating_sub(to_fill as u64)
    }
}

impl State {
    /// What a block costs when `demanded` is what the room demands at this moment.
    fn damped(&mut self, now: Instant, demanded: Duration, period: Duration) -> Duration {
        let usual = match self.usual {
            Some((usual, at)) => {
                let elapsed = now.saturating_duration_since(at).as_secs_f64();
                let memory = (period * MEMORY_ROUNDS).as_secs_f64().max(f64::MIN_POSITIVE);
                let kept = (-elapsed / memory).exp();
                usual.mul_f64(kept) + demanded.mul_f64(1.0 - kept)
            }
            None => demanded,
        };
        self.usual = Some((usual, now));
        let mean = (usual.as_secs_f64() * demanded.as_secs_f64()).sqrt();
        Duration::from_secs_f64(mean).clamp(demanded.div_f64(MAX_LAG), demanded.mul_f64(MAX_LAG))
    }

    fn note_usage(&mut self, usage: Usage) {
        let written = usage.written_bytes.saturating_sub(self.usage.written_bytes);
        let stored = usage.unit_bytes.saturating_sub(self.usage.unit_bytes);
        if written >= MIN_WRITTEN_BYTES {
            let share = (stored as f64 / written as f64).clamp(MIN_SHARE, MAX_SHARE);
            self.stored_share = Some(share);
            self.usage = usage;
        }
    }
}

impl Throttle {
    /// A round begins, or what may lead to one.
    pub(crate) fn note_begin(&self, now: Instant, usage: Usage) {
        let mut state = self.0.lock();
        state.note_usage(usage);
        state.round.get_or_insert(Round::at(now));
    }

    /// It is known what there is to move.
    pub(crate) fn note_aim(&self, expected_blocks: u64, expected_bytes: u64) {
        if let Some(round) = &mut self.0.lock().round {
            (round.expected_blocks, round.expected_bytes) =
                (expected_blocks.max(1), expected_bytes);
        }
    }

    /// So many blocks have been moved.
    pub(crate) fn note_moved(&self, blocks: u64) {
        if let Some(round) = &mut self.0.lock().round {
            round.moved_blocks += blocks;
        }
    }

    /// The collector pauses.
    pub(crate) fn note_pause(&self, pause: Duration) {
        if let Some(round) = &mut self.0.lock().round {
            round.began += pause;
        }
    }

    /// It has led to none: there is nothing to collect, and so nothing to wait for.
    pub(crate) fn note_none(&self) {
        self.0.lock().round = None;
    }

    /// It has ended, and the next may begin at once. One that was asked for, however much room there is,
    /// says nothing of others.
    pub(crate) fn note_end(&self, now: Instant, usage: Usage, is_forced: bool) {
        let mut state = self.0.lock();
        state.note_usage(usage);
        if let Some(round) = state.round.take().filter(|_| !is_forced) {
            let took = now.saturating_duration_since(round.began);
            state.period = Some(state.period.map_or(took, |before| (before + took) / 2));
            state.round = Some(Round::at(now));
        }
    }

    /// Whether writers are held up.
    pub(crate) fn is_holding(&self, now: Instant) -> bool {
        self.0.lock().pauses_end.is_some_and(|end| end > now)
    }

    /// Whether the room that is left must last: else a write need not ask how much that is.
    fn is_at_work(&self) -> bool {
        self.0.lock().round.is_some()
    }

    /// When a write of so many blocks may go on, with `free_bytes` left.
    fn turn(&self, now: Instant, blocks: u32, free_bytes: u64) -> Option<Instant> {
        let mut state = self.0.lock();
        let round = state.round?;
        let (left, period) = round.forecast(now, state.period)?;
        let block_bytes = BLOCK_BYTES as f64 * state.stored_share.unwrap_or(MAX_SHARE);
        let room_blocks = (round.room_beyond(free_bytes) as f64 / block_bytes).max(1.0);
        let demanded = (left + period).div_f64(room_blocks).min(MAX_PAUSE);
        let pause = state.damped(now, demanded, period) * blocks;
        let begins = state.pauses_end.map_or(now, |end| end.max(now));
        let end = (begins + pause).min(now + MAX_WAIT);
        state.pauses_end = Some(end);
        Some(end)
    }
}

impl Core {
    /// What the pipeline has done.
    pub(crate) fn usage(&self) -> Usage {
        let counters = &self.stats.counters;
        Usage {
            written_bytes: counters.written_bytes.load(Ordering::Relaxed),
            unit_bytes: counters.unit_bytes.load(Ordering::Relaxed),
        }
    }

    /// Lets a write of so many bytes of data wait as long as the room that is left demands.
    pub(crate) async fn pace_write(&self, data_bytes: usize) {
        if !self.throttle.is_at_work() {
            return;
        }
        let now = self.runtime.now();
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
    const BLOCK: u64 = BLOCK_BYTES as u64;

    /// A pool in which a written block takes one, at the beginning of a round, after one that took `ROUND`.
    fn in_a_round() -> (Throttle, Instant) {
        let (throttle, began) = (Throttle::default(), Instant::now());
        let usage = Usage { written_bytes: 1 << 30, unit_bytes: 1 << 30 };
        throttle.note_begin(began, usage);
        throttle.note_end(began + ROUND, usage, false);
        (throttle, began + ROUND)
    }

    /// Writes block by block until `until`, with so many blocks of room; returns how many are left.
    fn write(throttle: &Throttle, from: Instant, until: Instant, mut free_blocks: u64) -> u64 {
        let mut now = from;
        while free_blocks > 0 {
            now = throttle.turn(now, 1, free_blocks * BLOCK).unwrap();
            if now > until {
                break;
            }
            free_blocks -= 1;
        }
        free_blocks
    }

    #[test]
    fn half_of_the_room_is_used_in_a_round_at_an_even_rate() {
        let (throttle, began) = in_a_round();
        throttle.note_aim(100, 0);
        let (mut now, mut free) = (began, 4000);
        let mut used = Vec::new();
        for done in 1..=10 {
            let until = began + ROUND * done / 10;
            let left = write(&throttle, now, until, free);
            used.push(free - left);
            (now, free) = (until, left);
            throttle.note_moved(10);
        }
        assert!((1900..2300).contains(&free), "{free} are left; {used:?}");
        let (least, most) = (used.iter().min().unwrap(), used.iter().max().unwrap());
        assert!(most - least < most / 3, "{used:?}");
    }

    /// From whatever there is at first, to twice a round's yield at its beginning.
    #[test]
    fn the_room_tends_to_what_rounds_yield() {
        const YIELD: u64 = 1000;
        for first in [300, 9000] {
            let (throttle, mut now) = in_a_round();
            let mut free = first;
            for _ in 0..24 {
                throttle.note_aim(10, 0);
                for _ in 0..10 {
                    free = write(&throttle, now, now + ROUND / 10, free);
                    now += ROUND / 10;
                    throttle.note_moved(1);
                }
                throttle.note_end(now, Usage::default(), false);
                free += YIELD;
            }
            assert!((YIELD * 3 / 2..YIELD * 5 / 2).contains(&free), "from {first}: {free}");
        }
    }

    #[test]
    fn a_round_that_is_slower_than_those_before_is_waited_for_longer() {
        let (throttle, began) = in_a_round();
        throttle.note_aim(100, 0);
        let forecast = |now: Instant| {
            let state = throttle.0.lock();
            state.round.unwrap().forecast(now, state.period).unwrap().0
        };
        let is_near = |is: Duration, expected: Duration| {
            let (is, expected) = (is.as_secs_f64(), expected.as_secs_f64());
            (is - expected).abs() < expected / 50.0
        };
        assert!(is_near(forecast(began), ROUND));
        throttle.note_moved(50);
        assert!(is_near(forecast(began + ROUND / 2), ROUND / 2));
        let slow = forecast(began + 2 * ROUND);
        assert!(is_near(slow, ROUND * 5 / 4), "{slow:?}");
        throttle.note_pause(ROUND);
        assert!(is_near(forecast(began + 2 * ROUND), ROUND * 3 / 4), "pauses do not count");
    }

    #[test]
    fn the_first_round_is_foretold_by_its_own_progress() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.turn(now, 1, 0), None, "nobody collects");
        throttle.note_begin(now, Usage { written_bytes: 1 << 30, unit_bytes: 1 << 30 });
        throttle.note_aim(100, 0);
        assert_eq!(throttle.turn(now + ROUND / 100, 1, 0), None);
        throttle.note_moved(50);
        // Half a round, and another one.
        let turn = throttle.turn(now + ROUND / 2, 1, 800 * BLOCK).unwrap();
        assert_eq!(turn - (now + ROUND / 2), (ROUND + ROUND / 2) / 800);
    }

    #[test]
    fn a_block_costs_what_it_takes_and_not_what_collection_needs_itself() {
        let (throttle, now) = in_a_round();
        let pause = |free_blocks: u64| {
            let mut state = throttle.0.lock();
            (state.pauses_end, state.usual) = (None, None);
            drop(state);
            throttle.turn(now, 1, free_blocks * BLOCK).unwrap() - now
        };
        assert_eq!(pause(800), 2 * ROUND / 800);
        throttle.note_aim(100, 300 * BLOCK);
        assert_eq!(pause(1100), 2 * ROUND / 800);
        assert_eq!((pause(10), pause(0)), (MAX_PAUSE, MAX_PAUSE));
        let usage = Usage { written_bytes: 2 << 30, unit_bytes: (1 << 30) + (256 << 20) };
        throttle.note_end(now, usage, false);
        throttle.note_aim(100, 0);
        throttle.0.lock().period = Some(ROUND);
        assert_eq!(pause(200), 2 * ROUND / 800, "four times as many blocks fit");
    }

    #[test]
    fn half_of_a_step_in_what_the_room_demands_is_felt_at_once_and_the_rest_by_and_by() {
        let (throttle, now) = in_a_round();
        let period = Duration::from_secs(1);
        let cost = |after: Duration, demanded_us: u64| {
            let demanded = Duration::from_micros(demanded_us);
            throttle.0.lock().damped(now + after, demanded, period).as_micros() as u64
        };
        assert_eq!(cost(Duration::ZERO, 100), 100);
        assert_eq!(cost(Duration::ZERO, 196), 140);
        assert!((160..185).contains(&cost(4 * period, 196)));
        assert_eq!(cost(80 * period, 196), 196);
        // However far it is from what was.
        assert_eq!(cost(80 * period, 1960), 1306);
        assert_eq!(cost(80 * period, 20), 30);
    }

    #[test]
    fn writers_share_one_sequence_and_none_waits_for_long() {
        let (throttle, now) = in_a_round();
        assert!(!throttle.is_holding(now));
        let turn = |at| throttle.turn(at, 6, 0).unwrap() - now;
        let ends: Vec<_> = (0..50).map(|_| turn(now)).collect();
        assert_eq!(ends[..3], [6 * MAX_PAUSE, 12 * MAX_PAUSE, 18 * MAX_PAUSE]);
        assert_eq!(ends[40..], [MAX_WAIT; 10]);
        assert!(throttle.is_holding(now + MAX_WAIT / 2));
        let later = Duration::from_secs(2);
        assert_eq!(turn(now + later), later + 6 * MAX_PAUSE, "time that has passed is no debt");
    }

    #[test]
    fn nobody_waits_when_there_is_nothing_to_collect() {
        let (throttle, now) = in_a_round();
        assert!(throttle.turn(now, 1, 800 * BLOCK).is_some());
        throttle.note_none();
        assert_eq!(throttle.turn(now, 1, 0), None);
        throttle.note_begin(now, Usage::default());
        throttle.note_end(now + ROUND, Usage::default(), true);
        assert_eq!(throttle.turn(now + ROUND, 1, 0), None, "it was asked for");
    }
}
