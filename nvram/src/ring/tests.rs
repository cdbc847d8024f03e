//! The ring against a model that colours every block with the record that owns it.

use proptest::prelude::*;

use super::*;

/// Which record's bytes each block holds, and what each durable record claims is live.
struct Model {
    blocks: Vec<u64>,
    /// By number - 1: start, length, last sequence, oldest live.
    records: Vec<(u64, u64, u64, u64)>,
    trimmed: u64,
}

impl Model {
    fn newest(&self) -> u64 {
        self.records.len() as u64
    }

    /// The oldest record that recovery would look for now.
    fn held(&self) -> u64 {
        self.records.last().unwrap().3
    }

    fn is_intact(&self, number: u64) -> bool {
        let (start, len, ..) = self.records[number as usize - 1];
        self.blocks[start as usize..(start + len) as usize].iter().all(|&owner| owner == number)
    }

    /// As if the write were torn in the worst way, checks what recovery would then find; then
    /// lets it complete.
    fn write(&mut self, placement: &Placement, last_sequence: u64) {
        let Placement { number, start, len_blocks, oldest_live, .. } = *placement;
        assert_eq!(number, self.newest() + 1);
        assert!(oldest_live >= self.held() && oldest_live <= number);
        self.blocks[start as usize..(start + len_blocks) as usize].fill(number);
        for record in self.held()..=self.newest() {
            assert!(self.is_intact(record), "record {number} overwrites held record {record}");
        }
        self.records.push((start, len_blocks, last_sequence, oldest_live));
        let oldest = self.records[oldest_live as usize - 1];
        assert_eq!(placement.oldest_live_start, oldest.0);
        for record in &self.records[..oldest_live as usize - 1] {
            assert!(record.2 <= self.trimmed, "a record that is not trimmed is given up");
        }
        for record in oldest_live..number {
            assert!(self.is_intact(record), "live record {record} is overwritten");
        }
    }

    fn place_exists(&self, len: u64, held: u64, newest: u64, capacity: u64) -> bool {
        let (newest_start, newest_len, ..) = self.records[newest as usize - 1];
        let head = newest_start + newest_len;
        [head, 0].into_iter().any(|start| {
            start + len <= capacity
                && (held..=newest).all(|record| {
                    let (other, other_len, ..) = self.records[record as usize - 1];
                    start + len <= other || other + other_len <= start
                })
        })
    }
}

fn fresh(capacity: u64) -> (Ring, Model) {
    let first = RecordExtent { start: 0, len_blocks: 1, last_sequence: Sequence(0) };
    let ring = Ring::new(capacity, 1, VecDeque::from([first]), Sequence(0)).unwrap();
    let mut blocks = vec![0; capacity as usize];
    blocks[0] = 1;
    (ring, Model { blocks, records: vec![(0, 1, 0, 1)], trimmed: 0 })
}

/// Appends as the log does, marker first if need be; false if the ring is full.
fn append(ring: &mut Ring, model: &mut Model, len_blocks: u64, sequence: u64) -> bool {
    let placement = match ring.plan(len_blocks) {
        None => return false,
        Some(Plan::Record(placement)) => placement,
        Some(Plan::Marker(marker)) => {
            assert!(!model.place_exists(
                len_blocks + 1,
                model.held(),
                model.newest(),
                ring.capacity_blocks
            ));
            model.write(&marker, marker.trimmed.0);
            ring.commit(&marker, marker.trimmed);
            let Some(Plan::Record(placement)) = ring.plan(len_blocks) else {
                panic!("a marker makes room");
            };
            placement
        }
    };
    assert_eq!(placement.len_blocks, len_blocks);
    model.write(&placement, sequence);
    ring.commit(&placement, Sequence(sequence));
    true
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    /// Trims this share (of 8) of what is live.
    Trim(u64),
    PersistTrim,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u64..8).prop_map(Step::Append),
        3 => (0_u64..=8).prop_map(Step::Trim),
        1 => Just(Step::PersistTrim),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    /// Over any history: no held record is overwritten, everything trimmed makes room for the
    /// largest record, a full ring is really full, and what is called free fits.
    #[test]
    fn the_ring_agrees_with_the_model(
        capacity in 4_u64..24,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let (mut ring, mut model) = fresh(capacity);
        let mut sequence = 0;
        for step in steps {
            match step {
                Step::Append(len) => {
                    let fits = len <= ring.free_blocks();
                    let live = (1..=model.newest())
                        .find(|&n| model.records[n as usize - 1].2 > model.trimmed);
                    let appended = append(&mut ring, &mut model, len, sequence + 1);
                    prop_assert_eq!(appended, fits);
                    if appended {
                        sequence += 1;
                    } else if let Some(live) = live {
                        // Two blocks more than asked: the marker before and the one kept free.
                        let newest = model.newest();
                        prop_assert!(!model.place_exists(len + 2, live, newest, capacity));
                    } else {
                        prop_assert!(len > capacity / 2);
                    }
                }
                Step::Trim(share) => {
                    let up_to = model.trimmed + (sequence - model.trimmed) * share / 8;
                    model.trimmed = up_to;
                    ring.trim(Sequence(up_to));
                    if share == 8 {
                        prop_assert!(ring.free_blocks() >= capacity / 2);
                    }
                }
                Step::PersistTrim => {
                    if let Some(marker) = ring.marker_for_trim() {
                        model.write(&marker, marker.trimmed.0);
                        ring.commit(&marker, marker.trimmed);
                        prop_assert!(ring.marker_for_trim().is_none());
                    }
                }
                Step::Reopen => {
                    let held = model.held();
                    let records = model.records[held as usize - 1..].iter();
                    let records = records.map(|&(start, len_blocks, last, _)| RecordExtent {
                        start,
                        len_blocks,
                        last_sequence: Sequence(last),
                    });
                    let trimmed = ring.recorded_trimmed;
                    ring = Ring::new(capacity, held, records.collect(), trimmed).unwrap();
                    model.trimmed = trimmed.0;
                }
            }
            prop_assert_eq!(ring.newest(), model.newest());
            prop_assert!(ring.used_blocks() <= capacity);
            prop_assert!(ring.free_blocks() < capacity);
        }
    }
}

/// What fits must also fit when it is shorter: `free_blocks` bisects on that.
#[test]
fn a_shorter_record_always_fits_where_a_longer_one_does() {
    let (mut ring, mut model) = fresh(17);
    for sequence in 1..400 {
        let len = sequence * 7 % 6 + 1;
        append(&mut ring, &mut model, len, sequence);
        if sequence % 3 == 0 {
            model.trimmed = sequence.saturating_sub(sequence % 5);
            ring.trim(Sequence(model.trimmed));
        }
        let fits: Vec<bool> = (1..=17).map(|len| ring.plan(len).is_some()).collect();
        assert!(fits.is_sorted_by(|a, b| a >= b), "{fits:?}");
        assert_eq!(fits.iter().filter(|&&fits| fits).count() as u64, ring.free_blocks());
    }
}

/// The ring survives laps without number, at any alignment of record sizes and the ring's.
#[test]
fn a_ring_that_is_trimmed_in_time_is_never_full() {
    for capacity in 8..40 {
        let (mut ring, mut model) = fresh(capacity);
        for sequence in 1..500 {
            assert!(append(&mut ring, &mut model, sequence % (capacity / 2) + 1, sequence));
            model.trimmed = sequence;
            ring.trim(Sequence(sequence));
        }
    }
}

/// Records that leave no room for a marker are refused, not trusted: only damage makes them.
#[test]
fn an_overfull_ring_is_refused() {
    let extent = |start, len_blocks| RecordExtent { start, len_blocks, last_sequence: Sequence(9) };
    let full = VecDeque::from([extent(2, 6), extent(0, 2)]);
    assert!(Ring::new(8, 5, full, Sequence(0)).is_none());
    let roomy = VecDeque::from([extent(2, 6), extent(0, 1)]);
    assert!(Ring::new(8, 5, roomy, Sequence(0)).is_some());
}
