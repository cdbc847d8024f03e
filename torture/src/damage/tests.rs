use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use siltstone_device::{BLOCK_BYTES, sim::SimDevice};

use super::{
    life::{End, Life},
    structures::{Cost, Kind},
    trial::{Form, Unit},
    verdict::{Expected, Verdict, judge},
    *,
};

/// The pools are the same every time, and take a moment to live in.
fn life(end: End) -> &'static Life {
    static LIVES: [LazyLock<Life>; 2] =
        [LazyLock::new(|| Life::new(End::Closed)), LazyLock::new(|| Life::new(End::Crashed))];
    match end {
        End::Closed => &LIVES[0],
        End::Crashed => &LIVES[1],
    }
}

fn expected<'a>(life: &'a Life, frames: Option<&'a [(u32, u32)]>) -> Expected<'a> {
    Expected { contents: &life.contents, frames, in_segments: true }
}

fn judged(life: &Life, device: &Arc<SimDevice>) -> Verdict {
    judge(device, &expected(life, None), false)
}

#[test]
fn every_kind_of_structure_is_in_one_of_the_pools_and_no_byte_is_forgotten() {
    let mut kinds = BTreeSet::new();
    for end in End::ALL {
        let life = life(end);
        let mut at = 0;
        for stretch in life.structures.iter() {
            assert_eq!(stretch.start, at);
            at = stretch.end;
            kinds.insert(stretch.kind);
            let bytes = life.device.peek(stretch.start, (stretch.end - stretch.start) as usize);
            if stretch.kind >= Kind::Padding {
                assert!(!bytes.windows(4).any(|four| four == b"SLTS"), "{stretch:?}");
            }
        }
    }
    let all = [
        Kind::Superblock,
        Kind::MarkNewest,
        Kind::MarkOlder,
        Kind::CheckpointNewest,
        Kind::CheckpointOlder,
        Kind::LogRecordLive,
        Kind::LogRecordStale,
        Kind::LogDataLive,
        Kind::LogDataStale,
        Kind::TableNewest,
        Kind::TableOlder,
        Kind::SummaryCovered,
        Kind::SummaryUncovered,
        Kind::FrameHeaderCovered,
        Kind::FrameHeaderUncovered,
        Kind::FrameContentsCovered,
        Kind::FrameContentsUncovered,
        Kind::PatchLeaf,
        Kind::PatchFence,
        Kind::PatchStale,
        Kind::IndexImage,
        Kind::Padding,
        Kind::Unused,
    ];
    assert_eq!(kinds, all.into());
}

#[test]
fn a_pool_is_the_same_every_time() {
    for end in End::ALL {
        let (one, other) = (life(end), Life::new(end));
        for at in (0..one.device.peek(0, 16 << 20).len() as u64).step_by(BLOCK_BYTES) {
            assert_eq!(one.device.peek(at, BLOCK_BYTES), other.device.peek(at, BLOCK_BYTES));
        }
    }
}

/// What is older in a place is mostly of another use of its segment, and in the same form: nothing
/// but the generation, or the patch's number, tells that a write was lost there.
#[test]
fn aged_places_hold_whole_structures_of_an_older_use() {
    for end in End::ALL {
        let life = life(end);
        let mut aged = BTreeMap::<_, (u32, u32)>::new();
        for stretch in life.structures.iter() {
            // Of pages what says which they are, of frames what says where they are.
            let (len, identity, use_of) = match stretch.kind {
                Kind::PatchLeaf | Kind::PatchFence => (BLOCK_BYTES, 0..6, 32..40),
                Kind::FrameHeaderCovered | Kind::FrameHeaderUncovered => (48, 24..40, 40..48),
                _ => continue,
            };
            let (form, offset_bytes) = (Form::Stale(Unit::Block), stretch.start);
            let trial = Trial { end, form, offset_bytes, value: 0 };
            let count = aged.entry(stretch.kind).or_default();
            count.1 += 1;
            let Some(damage) = trial.damage(life) else { continue };
            let at = (stretch.start % BLOCK_BYTES as u64) as usize;
            let Some(before) = damage[0].1.get(at..at + len) else { continue };
            let now = life.device.peek(stretch.start, len);
            let is_like = before[identity.clone()] == now[identity];
            count.0 += u32::from(is_like && before[use_of.clone()] != now[use_of]);
        }
        println!("{end}: {aged:?}");
        assert!(aged[&Kind::FrameHeaderCovered].0 > 4, "{end}: {aged:?}");
        assert!(aged[&Kind::PatchLeaf].0 > 0, "{end}: {aged:?}");
    }
}

#[test]
fn older_data_is_called_silent() {
    let life = life(End::Closed);
    // The last is at the end of all rounds.
    let earlier = life.earlier.iter().rev().nth(1).expect("it has lived").snapshot();
    let verdict = judged(life, &earlier);
    assert!(matches!(verdict, Verdict::Silent(_)), "{verdict:?}");
}

#[test]
fn a_missing_volume_is_called_silent() {
    let life = life(End::Closed);
    let mut contents = life.contents.clone();
    contents.insert("another".into(), vec![0; 512]);
    let expected = Expected { contents: &contents, ..expected(life, None) };
    let reason = judge(&life.device.snapshot(), &expected, false);
    assert!(matches!(&reason, Verdict::Silent(text) if text.contains("volumes")), "{reason:?}");
}

#[test]
fn a_lost_block_of_a_frame_that_is_not_damaged_is_called_silent() {
    let life = life(End::Closed);
    let headers = life.structures.iter().filter(|it| it.kind == Kind::FrameHeaderCovered);
    let mut lost = 0;
    for header in headers {
        let device = life.device.snapshot();
        device.flip_bit(header.start, 0);
        let frame = [header.frame.expect("it is of a frame")];
        let judged = |frames: &[(u32, u32)]| judge(&device, &expected(life, Some(frames)), false);
        if judged(&frame) == Verdict::BlocksReported {
            lost += 1;
            assert!(matches!(judged(&[(0, 0)]), Verdict::Silent(_)));
        }
    }
    assert!(lost > 0);
}

/// A change under checksums that are right again: what a medium that lies perfectly would do.
#[test]
fn a_frame_that_was_forged_is_called_silent() {
    let life = life(End::Closed);
    let is_plain = |at: u64| life.device.peek(at + 11, 1) == [0];
    let headers = life.structures.iter().filter(|it| it.kind == Kind::FrameHeaderCovered);
    let mut silent = 0;
    for header in headers.filter(|header| is_plain(header.start)) {
        let [contents] = life.structures.touching(header.end, header.end + 1) else { panic!() };
        let device = life.device.snapshot();
        let mut bytes = device.peek(header.start, (contents.end - header.start) as usize);
        bytes[100] ^= 1;
        let payload = crc32fast::hash(&bytes[48..]);
        bytes[4..8].copy_from_slice(&payload.to_le_bytes());
        let head = crc32fast::hash(&bytes[4..48]);
        bytes[..4].copy_from_slice(&head.to_le_bytes());
        device.corrupt(header.start, &bytes);
        match judged(life, &device) {
            Verdict::Silent(_) => silent += 1,
            // Nothing refers to the frame's first block any more, or to none of its segment.
            verdict => assert!(matches!(verdict, Verdict::Corrected | Verdict::Harmless)),
        }
    }
    assert!(silent > 0);
}

/// What cannot be read costs no more than what holds something else, also in use.
#[test]
fn no_block_that_cannot_be_read_is_silent() {
    let mut costs = BTreeSet::new();
    for end in End::ALL {
        let life = life(end);
        let trials = trial::all(life).into_iter();
        for (number, trial) in trials.filter(|trial| trial.form == Form::Unreadable).enumerate() {
            let verdict = trial.run(life, number % 3 == 0).expect("every block can be unreadable");
            let kind = trial.kind(life);
            assert!(!matches!(verdict, Verdict::Silent(_)), "{kind}: {trial:?}: {verdict:?}");
            if kind.most_cost() == Cost::Nothing && kind < Kind::LogRecordLive {
                // What stands twice is also named.
                assert_eq!(verdict, Verdict::Corrected, "{kind}: {trial:?}");
            }
            costs.insert(verdict.cost());
        }
    }
    assert_eq!(costs, [Cost::Nothing, Cost::Blocks, Cost::Pool].into());
}

#[test]
fn damage_is_never_silent() {
    let plan = Plan { every: 401, jobs: 2, only: None, peak_bytes: None };
    let outcome = run(&plan, |_, _| ControlFlow::Continue(())).unwrap();
    assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
    let total: u64 = outcome.tally.bytes.values().map(|counts| counts.total()).sum();
    assert!(total > 200, "{:#?}", outcome.tally);
}
