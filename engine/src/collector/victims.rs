//! Which segments to empty: pure arithmetic on what the segment table knows.
//!
//! Moving what lives in a segment costs as much as it is; freeing the segment yields as much as is
//! dead in it. What is young and dying will soon be emptier by itself; what has lived long will go
//! on to, and room in its segments stays lost until it is moved. So the yield is weighed by age
//! (cost-benefit selection; Rosenblum and Ousterhout, "The design and implementation of a
//! log-structured file system", 1992, section 3.5). How much may live in a victim follows the room
//! that is left: with plenty of room nothing is moved that would die by itself; when there is
//! little, whatever yields anything is.
//!
//! How much is little depends on how much there could be: what is dead can become free, the rest
//! cannot. A pool of which nine tenths live is not emptier for moving all that lives again and
//! again; it does best if most of the rest is dead, and little of it free.

use std::cmp::Reverse;

use siltstone_device::SegmentId;

use crate::segment_table::{Segment, SegmentState};

/// Above this share of the pool that is free nothing is collected, in 1/1024.
const PLENTY: u64 = 1024 * 30 / 100;
/// Nor above this share of what does not live.
const PLENTY_OF_SLACK: u64 = 1024 * 35 / 100;
/// Of what is plenty, below this share all that yields anything is collected.
const SHORT: u64 = 1024 * 25 / 100;
/// Most that may live in a victim when there is just less than plenty.
const LIVE_AT_PLENTY: u64 = 1024 * 25 / 100;
/// Most that may live in a victim at all: emptying one that is fuller yields next to nothing.
pub(super) const LIVE_AT_MOST: u64 = 1024 * 95 / 100;
/// The longest pause between two steps of a round.
const MAX_PAUSE_TIMES: u32 = 2;

/// How a pool's bytes are used at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Can still be written.
    pub(super) free: u64,
    /// Are in use, and nothing refers to them.
    pub(super) dead: u64,
    pub(super) total: u64,
}

impl Room {
    /// How short of plenty free room is, in 1/1024 of the way to being short; `None` if it is not.
    fn shortage(self) -> Option<u64> {
        let of_slack = (self.free + self.dead) / 1024 * PLENTY_OF_SLACK;
        let plenty = (self.total / 1024 * PLENTY).min(of_slack).max(1);
        let short = plenty / 1024 * SHORT;
        let short_by = plenty.checked_sub(self.free).filter(|&by| by > 0)?;
        Some((u128::from(short_by) * 1024 / u128::from(plenty - short)).min(1024) as u64)
    }

    /// How full a segment may be to be worth emptying, in 1/1024 of its bytes; `None` to collect
    /// nothing.
    pub(super) fn live_limit(self, is_forced: bool) -> Option<u64> {
        if is_forced {
            return Some(LIVE_AT_MOST);
        }
        Some(LIVE_AT_PLENTY + (LIVE_AT_MOST - LIVE_AT_PLENTY) * self.shortage()? / 1024)
    }

    /// How long to pause between two steps, in times of what a step takes.
    pub(super) fn pause_times(self) -> u32 {
        let room = 1024 - self.shortage().unwrap_or(0);
        (u64::from(MAX_PAUSE_TIMES) * room / 1024) as u32
    }
}

/// Bytes of a data segment that are estimated to live: the share of its blocks that map entries
/// refer to. Several entries may refer to one block, so more may be dead than this says.
pub(super) fn live_bytes(segment: &Segment) -> u64 {
    let stored = u64::from(segment.stored_blocks);
    let live = segment.references.min(stored);
    u64::from(segment.used_bytes) * live / stored.max(1)
}

/// What choosing goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) segment_bytes: u64,
    /// Most that may live in a victim, in 1/1024.
    pub(super) live_limit: u64,
    /// Most that may live in all of them.
    pub(super) move_bytes: u64,
    /// The generation that the next segment gets: ages are counted from it.
    pub(super) next_generation: u64,
}

/// The data segments that yield the most for the work, and most lastingly, as long as what lives
/// in them fits into `move_bytes`: a victim that is not quite emptied yields nothing, and what was
/// moved takes its space twice until it is. The unused tail of a segment counts as yield only if it
/// is long: where units have just not fitted, moving them again would end no better.
pub(super) fn choose(
    segments: impl Iterator<Item = (SegmentId, Segment)>,
    bounds: Bounds,
) -> Vec<SegmentId> {
    let Bounds { segment_bytes, live_limit, move_bytes, next_generation } = bounds;
    let candidate = |(id, segment): (SegmentId, Segment)| {
        let live = live_bytes(&segment);
        let used = u64::from(segment.used_bytes);
        let of_bytes = if used < segment_bytes / 4 * 3 { segment_bytes } else { used };
        let is_worth_it = segment.state == SegmentState::Data
            // One without references is freed without being moved.
            && segment.references > 0
            && live * 1024 <= live_limit * of_bytes;
        // Its root: measured, it moves less than age itself, which keeps to the old too long.
        let age = next_generation.saturating_sub(segment.generation).isqrt().max(1);
        // Reading all of it and writing what lives, in bytes, for so many bytes.
        let cost = of_bytes + live;
        let worth = u128::from(of_bytes.saturating_sub(live)) * u128::from(age) * 1024;
        is_worth_it.then(|| (Reverse(worth / u128::from(cost.max(1))), live, id))
    };
    let mut candidates: Vec<_> = segments.filter_map(candidate).collect();
    candidates.sort_unstable();
    let mut moved = 0;
    let fits = |&(_, live, _): &(Reverse<u128>, u64, SegmentId)| {
        // Estimated, and packed anew: it may take a little more than it did.
        moved += live + live / 16;
        moved <= move_bytes
    };
    candidates.into_iter().take_while(fits).map(|(_, _, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(stored_blocks: u32, references: u64) -> Segment {
        let used_bytes = stored_blocks * 1000;
        let state = SegmentState::Data;
        let (generation, pages, is_damaged) = (1, 0, false);
        Segment { state, generation, references, stored_blocks, used_bytes, pages, is_damaged }
    }

    fn numbered(segments: &[Segment]) -> impl Iterator<Item = (SegmentId, Segment)> {
        (0..).map(SegmentId).zip(segments.iter().copied())
    }

    fn room(free: u64, dead: u64) -> Room {
        Room { free: free << 20, dead: dead << 20, total: 1000 << 20 }
    }

    #[test]
    fn nothing_is_collected_while_there_is_plenty_of_room() {
        assert_eq!(room(310, 690).live_limit(false), None);
        assert_eq!(room(310, 690).live_limit(true), Some(LIVE_AT_MOST));
        assert_eq!(room(40, 500).live_limit(false), Some(LIVE_AT_MOST));
        let nothing = Room { free: 0, dead: 0, total: 0 };
        assert_eq!(nothing.live_limit(false), Some(LIVE_AT_MOST));
    }

    /// Moving what lives does not make room.
    #[test]
    fn a_pool_that_is_full_of_what_lives_is_left_alone() {
        assert_eq!(room(50, 10).live_limit(false), None);
        assert!(room(50, 100).live_limit(false).is_some());
    }

    fn bounds(segment_bytes: u64, live_limit: u64, move_bytes: u64) -> Bounds {
        Bounds { segment_bytes, live_limit, move_bytes, next_generation: 101 }
    }

    #[test]
    fn the_emptiest_go_first_and_dead_ones_are_left_to_die() {
        let segments = [segment(100, 90), segment(100, 10), segment(100, 0), segment(100, 40)];
        let chosen = choose(numbered(&segments), bounds(100_000, 600, 54_000));
        assert_eq!(chosen, [SegmentId(1), SegmentId(3)]);
        let one = choose(numbered(&segments), bounds(100_000, 600, 20_000));
        assert_eq!(one, [SegmentId(1)], "the other does not fit");
    }

    /// What is young dies by itself; what has lived long keeps its segment's room for ever.
    #[test]
    fn the_old_go_before_younger_ones_that_are_emptier() {
        let young = Segment { generation: 99, ..segment(100, 40) };
        let segments = [young, segment(100, 80)];
        let chosen = choose(numbered(&segments), bounds(100_000, 1000, 1 << 30));
        assert_eq!(chosen, [SegmentId(1), SegmentId(0)]);
    }

    /// Or a forced collection would never end.
    #[test]
    fn what_has_just_been_packed_is_no_victim() {
        let packed = segment(90, 90);
        assert!(choose(numbered(&[packed]), bounds(100_000, LIVE_AT_MOST, 1 << 30)).is_empty());
        let cut_short = segment(30, 30);
        let chosen = choose(numbered(&[cut_short]), bounds(100_000, LIVE_AT_MOST, 1 << 30));
        assert_eq!(chosen, [SegmentId(0)]);
    }

    #[test]
    fn a_segment_of_which_all_is_shared_counts_as_full() {
        assert_eq!(live_bytes(&segment(100, 5000)), 100_000);
        assert_eq!(live_bytes(&segment(0, 0)), 0);
    }

    proptest! {
        #[test]
        fn the_less_room_the_fuller_the_victims(
            free in 0..500u64,
            less in 0..500u64,
            dead in 0..500u64,
        ) {
            let (less, free) = (less.min(free), less.max(free));
            // What is not free any more lives.
            let limit = |free| room(free, dead).live_limit(false).unwrap_or(0);
            // But for rounding.
            prop_assert!(limit(less) + 1 >= limit(free));
            prop_assert!(limit(less) <= LIVE_AT_MOST);
            prop_assert!(room(free, dead).pause_times() <= MAX_PAUSE_TIMES);
            prop_assert!(room(less, dead).pause_times() <= room(free, dead).pause_times() + 1);
        }

        #[test]
        fn what_is_chosen_yields_room(
            shapes in prop::collection::vec((1..200u32, 0..400u64), 0..40),
            limit in 0..LIVE_AT_MOST,
            budget in 0..500_000u64,
        ) {
            let segments: Vec<_> = shapes.iter().map(|&(s, r)| segment(s, r)).collect();
            let chosen = choose(numbered(&segments), bounds(200_000, limit, budget));
            let live = |id: &SegmentId| live_bytes(&segments[id.0 as usize]);
            prop_assert!(chosen.iter().all(|id| live(id) * 1024 <= limit * 200_000));
            let moved: u64 = chosen.iter().map(live).sum();
            prop_assert!(moved <= budget);
        }
    }
}
