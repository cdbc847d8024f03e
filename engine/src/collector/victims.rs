//! Which segments to empty: pure arithmetic on what the segment table knows.
//!
//! Moving what lives in a segment costs as much as it is; freeing the segment yields as much as is
//! dead in it. The emptiest come first (greedy selection; Rosenblum and Ousterhout, "The design and
//! implementation of a log-structured file system", 1992, section 3.5). How much may live in a
//! victim follows the room that is left: with plenty of room nothing is moved that would die by
//! itself; when there is little, whatever yields anything is.

use siltstone_device::SegmentId;

use crate::segment_table::{Segment, SegmentState};

/// Above this share of free room nothing is collected, in 1/1024.
const PLENTY: u64 = 1024 * 30 / 100;
/// Below this share all that yields anything is collected.
const SHORT: u64 = 1024 * 8 / 100;
/// Most that may live in a victim when there is just less than plenty.
const LIVE_AT_PLENTY: u64 = 1024 * 25 / 100;
/// Most that may live in a victim at all: emptying one that is fuller yields next to nothing.
const LIVE_AT_MOST: u64 = 1024 * 95 / 100;
/// The longest pause between two steps of a round.
const MAX_PAUSE_TIMES: u32 = 8;

/// How full a segment may be to be worth emptying, in 1/1024 of its bytes; `None` to collect
/// nothing. `free` of `total` bytes can still be written.
pub(super) fn live_limit(free: u64, total: u64, is_forced: bool) -> Option<u64> {
    let share = free.saturating_mul(1024) / total.max(1);
    if is_forced || share <= SHORT {
        return Some(LIVE_AT_MOST);
    }
    let short_by = PLENTY.checked_sub(share).filter(|&by| by > 0)?;
    Some(LIVE_AT_PLENTY + (LIVE_AT_MOST - LIVE_AT_PLENTY) * short_by / (PLENTY - SHORT))
}

/// How long to pause between two steps, in times of what a step takes.
pub(super) fn pause_times(free: u64, total: u64) -> u32 {
    let share = free.saturating_mul(1024) / total.max(1);
    let room = share.clamp(SHORT, PLENTY) - SHORT;
    (u64::from(MAX_PAUSE_TIMES) * room / (PLENTY - SHORT)) as u32
}

/// Bytes of a data segment that are estimated to live: the share of its blocks that map entries
/// refer to. Several entries may refer to one block, so more may be dead than this says.
pub(super) fn live_bytes(segment: &Segment) -> u64 {
    let stored = u64::from(segment.stored_blocks);
    let live = segment.references.min(stored);
    u64::from(segment.used_bytes) * live / stored.max(1)
}

/// The emptiest data segments of `segment_bytes` of which at most `live_limit` / 1024 lives, as long
/// as what lives in them fits into `move_bytes`: a victim that is not quite emptied yields nothing,
/// and what was moved takes its space twice until it is. The unused tail of a
/// segment counts as yield only if it is long: where units have just not fitted, moving them again
/// would end no better.
pub(super) fn choose(
    segments: impl Iterator<Item = (SegmentId, Segment)>,
    segment_bytes: u64,
    live_limit: u64,
    move_bytes: u64,
) -> Vec<SegmentId> {
    let candidate = |(id, segment): (SegmentId, Segment)| {
        let live = live_bytes(&segment);
        let used = u64::from(segment.used_bytes);
        let of_bytes = if used < segment_bytes / 4 * 3 { segment_bytes } else { used };
        let is_worth_it = segment.state == SegmentState::Data
            // One without references is freed without being moved.
            && segment.references > 0
            && live * 1024 <= live_limit * of_bytes;
        is_worth_it.then_some((live, id))
    };
    let mut candidates: Vec<_> = segments.filter_map(candidate).collect();
    candidates.sort_unstable();
    let mut moved = 0;
    let fits = |&(live, _): &(u64, SegmentId)| {
        // Estimated, and packed anew: it may take a little more than it did.
        moved += live + live / 16;
        moved <= move_bytes
    };
    candidates.into_iter().take_while(fits).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(stored_blocks: u32, references: u64) -> Segment {
        let used_bytes = stored_blocks * 1000;
        let state = SegmentState::Data;
        Segment { state, generation: 1, references, stored_blocks, used_bytes, pages: 0 }
    }

    fn numbered(segments: &[Segment]) -> impl Iterator<Item = (SegmentId, Segment)> {
        (0..).map(SegmentId).zip(segments.iter().copied())
    }

    #[test]
    fn nothing_is_collected_while_there_is_plenty_of_room() {
        assert_eq!(live_limit(31, 100, false), None);
        assert_eq!(live_limit(31, 100, true), Some(LIVE_AT_MOST));
        assert_eq!(live_limit(5, 100, false), Some(LIVE_AT_MOST));
        assert_eq!(live_limit(0, 0, false), Some(LIVE_AT_MOST));
    }

    #[test]
    fn the_emptiest_go_first_and_dead_ones_are_left_to_die() {
        let segments = [segment(100, 90), segment(100, 10), segment(100, 0), segment(100, 40)];
        let chosen = choose(numbered(&segments), 100_000, 600, 54_000);
        assert_eq!(chosen, [SegmentId(1), SegmentId(3)]);
        let one = choose(numbered(&segments), 100_000, 600, 20_000);
        assert_eq!(one, [SegmentId(1)], "the other does not fit");
    }

    /// Or a forced collection would never end.
    #[test]
    fn what_has_just_been_packed_is_no_victim() {
        let packed = segment(90, 90);
        assert!(choose(numbered(&[packed]), 100_000, LIVE_AT_MOST, 1 << 30).is_empty());
        let cut_short = segment(30, 30);
        assert_eq!(choose(numbered(&[cut_short]), 100_000, LIVE_AT_MOST, 1 << 30).len(), 1);
    }

    #[test]
    fn a_segment_of_which_all_is_shared_counts_as_full() {
        assert_eq!(live_bytes(&segment(100, 5000)), 100_000);
        assert_eq!(live_bytes(&segment(0, 0)), 0);
    }

    proptest! {
        #[test]
        fn the_less_room_the_fuller_the_victims(free in 0..1000u64, less in 0..1000u64) {
            prop_assume!(less <= free);
            let limit = |free| live_limit(free, 1000, false).unwrap_or(0);
            prop_assert!(limit(less) >= limit(free));
            prop_assert!(limit(less) <= LIVE_AT_MOST);
        }

        #[test]
        fn what_is_chosen_yields_room(
            shapes in prop::collection::vec((1..200u32, 0..400u64), 0..40),
            limit in 0..LIVE_AT_MOST,
            budget in 0..500_000u64,
        ) {
            let segments: Vec<_> = shapes.iter().map(|&(s, r)| segment(s, r)).collect();
            let chosen = choose(numbered(&segments), 200_000, limit, budget);
            let live = |id: &SegmentId| live_bytes(&segments[id.0 as usize]);
            prop_assert!(chosen.iter().all(|id| live(id) * 1024 <= limit * 200_000));
            prop_assert!(pause_times(budget, 500_000) <= MAX_PAUSE_TIMES);
            prop_assert!(chosen.is_sorted_by_key(live));
            let moved: u64 = chosen.iter().map(live).sum();
            prop_assert!(moved <= budget);
        }
    }
}
