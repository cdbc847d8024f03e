//! One test for each row of the decision table.

use siltstone_device::ByteOffset;

use super::*;
use crate::record::{RecordHead, RecordLabel};

const REGION: Region = Region { offset: ByteOffset(1 << 20), len_bytes: 64 * 4096 };

/// Record `number` of 2 blocks at `block`; `oldest_live` stands at `oldest_block`.
fn sighting(number: u64, block: u64, (oldest_live, oldest_block): (u64, u64)) -> Sighting {
    let label = RecordLabel {
        number,
        address: REGION.offset.plus(block * 4096),
        trimmed: Sequence(oldest_live * 10 - 10),
        oldest_live,
        oldest_live_address: REGION.offset.plus(oldest_block * 4096),
    };
    let last_sequence = Sequence(number * 10);
    Sighting { head: RecordHead { label, last_sequence, len_bytes: 8192 }, whole: true }
}

/// Records 11 to 14 at blocks 60, 62, 0, 2, of which 12 to 14 are live.
fn clean() -> Vec<Sighting> {
    vec![
        sighting(13, 0, (11, 60)),
        sighting(14, 2, (12, 62)),
        sighting(11, 60, (11, 60)),
        sighting(12, 62, (11, 60)),
    ]
}

fn broken(sighting: Sighting) -> Sighting {
    Sighting { whole: false, ..sighting }
}

fn damage(sightings: &[Sighting]) -> (u64, u64, LogDamage) {
    match decide(REGION, sightings, &[]) {
        Err(OpenError::Damaged { record, offset, damage }) => {
            (record, (offset.0 - REGION.offset.0) / 4096, damage)
        }
        other => panic!("not damage: {other:?}"),
    }
}

#[test]
fn case_clean() {
    let recovered = decide(REGION, &clean(), &[]).unwrap();
    assert_eq!(recovered.oldest_live, 12);
    let starts: Vec<u64> = recovered.records.iter().map(|record| record.start).collect();
    assert_eq!(starts, [62, 0, 2]);
    assert_eq!(recovered.trimmed, Sequence(110));
    assert_eq!(recovered.torn_tail, None);
}

#[test]
fn case_no_record() {
    assert!(matches!(decide(REGION, &[], &[]), Err(OpenError::NoRecord { .. })));
    let torn = [broken(sighting(1, 0, (1, 0)))];
    assert!(matches!(decide(REGION, &torn, &[]), Err(OpenError::NoRecord { .. })));
}

#[test]
fn case_torn_tail() {
    let mut sightings = clean();
    sightings.push(broken(sighting(15, 4, (12, 62))));
    let recovered = decide(REGION, &sightings, &[]).unwrap();
    assert_eq!(recovered.records.len(), 3);
    let offset = REGION.offset.plus(4 * 4096);
    assert_eq!(recovered.torn_tail, Some(TornTail { record: 15, offset }));
}

#[test]
fn case_lost_tail() {
    let mut sightings = clean();
    sightings.push(broken(sighting(16, 6, (12, 62))));
    assert_eq!(damage(&sightings), (15, 4, LogDamage::Missing));
    sightings.push(broken(sighting(15, 4, (12, 62))));
    assert_eq!(damage(&sightings), (15, 4, LogDamage::NotWhole));
}

#[test]
fn case_conflict() {
    let mut sightings = clean();
    sightings.push(sighting(13, 20, (12, 62)));
    let other = REGION.offset.plus(20 * 4096);
    assert_eq!(damage(&sightings), (13, 0, LogDamage::Twice { other }));
}

#[test]
fn case_hole() {
    for missing in [12, 13] {
        let mut sightings = clean();
        sightings.retain(|s| s.head.label.number != missing);
        let expected = if missing == 12 { 62 } else { 64 };
        assert_eq!(damage(&sightings), (missing, expected, LogDamage::Missing));
        let mut sightings = clean();
        for s in sightings.iter_mut().filter(|s| s.head.label.number == missing) {
            s.whole = false;
        }
        let found = if missing == 12 { 62 } else { 0 };
        assert_eq!(damage(&sightings), (missing, found, LogDamage::NotWhole));
    }
}

#[test]
fn case_misplaced() {
    let mut sightings = clean();
    sightings[0] = sighting(13, 1, (11, 60));
    let found = REGION.offset.plus(4096);
    assert_eq!(damage(&sightings), (13, 64, LogDamage::Misplaced { found }));
    // The oldest live record has no neighbour: the newest says where it is.
    let mut sightings = clean();
    sightings[1] = sighting(14, 2, (12, 58));
    let found = REGION.offset.plus(62 * 4096);
    assert_eq!(damage(&sightings), (12, 58, LogDamage::Misplaced { found }));
}

/// Stale records, whole or broken, and a torn record whose number was used again, change nothing.
#[test]
fn stale_records_count_for_nothing() {
    let mut sightings = clean();
    sightings.extend([
        sighting(3, 6, (1, 2)),
        sighting(3, 8, (1, 2)),
        broken(sighting(4, 10, (1, 2))),
        broken(sighting(11, 30, (1, 2))),
        broken(sighting(14, 20, (12, 62))),
    ]);
    assert_eq!(decide(REGION, &sightings, &[]).unwrap(), decide(REGION, &clean(), &[]).unwrap());
}

#[test]
fn a_single_record_is_a_whole_log() {
    let recovered = decide(REGION, &[sighting(9, 30, (9, 30))], &[]).unwrap();
    assert_eq!((recovered.oldest_live, recovered.records.len()), (9, 1));
}
