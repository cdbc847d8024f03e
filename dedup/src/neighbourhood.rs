//! The neighbourhood: summaries that were loaded lately, every fingerprint of them findable.
//!
//! Duplicates come in the order in which their first copies were stored. One hit in the index
//! therefore pays for a whole summary: it is loaded into the neighbourhood, and the blocks around
//! the hit are found here, sampled or not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::bucket::UnitAddress;
use crate::fingerprint::ShortFingerprint;
use crate::run::Summaries;

/// Blocks that a summary is expected to describe: sizes the hash table, and limits nothing.
const TYPICAL_UNIT_BLOCKS: usize = 256;
/// Most blocks that one summary may describe.
pub const MAX_UNIT_BLOCKS: usize = 1 << ORDINAL_BITS;
const ORDINAL_BITS: u32 = 12;
/// Most units that a neighbourhood may hold: 2^20, 256 GiB of the typical ones.
pub const MAX_UNITS: usize = 1 << (u32::BITS - ORDINAL_BITS);

/// A block of a loaded summary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The write unit whose summary it is.
    pub unit: UnitAddress,
    /// The block's position in that summary.
    pub ordinal: u32,
}

impl Candidate {
    /// Whether this is the block after `before` in the same unit.
    #[must_use]
    pub fn follows(&self, before: &Self) -> bool {
        self.unit == before.unit && before.ordinal.checked_add(1) == Some(self.ordinal)
    }
}

/// A cache of the most recently used summaries, by unit and by fingerprint.
///
/// Memory: 16 bytes a fingerprint (shared with whoever loaded the summary), 4 bytes to link it,
/// and 8 to 16 bytes of hash table for each typical unit's block: below 10 KiB a unit of 256.
///
/// Thread safety: all operations take `&self`; a batch of lookups takes one read lock, and hits
/// move the unit forward in the order of use without more. The lock is a leaf.
pub struct Neighbourhood {
    inner: RwLock<Inner>,
    /// Ticks when another unit is used.
    clock: AtomicU64,
}

/// A hash table with chains, over slots of units. A chain link names a block of a loaded unit, so
/// that a fingerprint that several units hold is in the table once for each.
struct Inner {
    slots: Vec<Option<Loaded>>,
    free_slots: Vec<u32>,
    by_unit: HashMap<UnitAddress, u32>,
    /// First link of each chain, chosen by the fingerprint; a power of two.
    heads: Vec<u32>,
}

struct Loaded {
    unit: UnitAddress,
    fingerprints: Arc<[ShortFingerprint]>,
    /// The next link in the chain of each block.
    next: Box<[u32]>,
    last_used: AtomicU64,
}

/// The end of a chain. Links are one more than what they name: zeroed memory is an empty table.
const END: u32 = 0;

/// Loaded units' block positions, packed: slot and ordinal.
fn link(slot: u32, ordinal: usize) -> u32 {
    let packed = u64::from(slot) << ORDINAL_BITS | ordinal as u64;
    u32::try_from(packed + 1).expect("slots and ordinals are limited")
}

impl Neighbourhood {
    /// An empty neighbourhood of at most `max_units` summaries.
    ///
    /// # Panics
    /// If `max_units` is 0 or not below [`MAX_UNITS`]: it follows from the engine's configuration.
    #[must_use]
    pub fn new(max_units: usize) -> Self {
        assert!((1..MAX_UNITS).contains(&max_units), "a limit on units within reason");
        let heads = (max_units * TYPICAL_UNIT_BLOCKS * 2).next_power_of_two();
        Self {
            inner: RwLock::new(Inner {
                slots: (0..max_units).map(|_| None).collect(),
                free_slots: (0..max_units as u32).rev().collect(),
                by_unit: HashMap::with_capacity(max_units),
                heads: vec![END; heads],
            }),
            clock: AtomicU64::new(1),
        }
    }

    /// Takes up a unit's summary, in place of what it held for this unit, if it did, or else of
    /// the unit not used for longest, if the neighbourhood is full.
    ///
    /// # Panics
    /// If the summary describes more than [`MAX_UNIT_BLOCKS`] blocks: parsing has refused those.
    pub fn insert(&self, unit: UnitAddress, fingerprints: Arc<[ShortFingerprint]>) {
        assert!(fingerprints.len() <= MAX_UNIT_BLOCKS, "more blocks than a write unit holds");
        let last_used = AtomicU64::new(self.tick());
        let mut inner = self.inner.write();
        inner.remove(unit);
        if inner.free_slots.is_empty() {
            inner.remove_least_recent();
        }
        inner.insert(unit, fingerprints, last_used);
    }

    /// Forgets a unit: its segment has been freed, or its summary was found damaged.
    pub fn remove(&self, unit: UnitAddress) {
        self.inner.write().remove(unit);
    }

    /// Whether the unit's summary is here.
    #[must_use]
    pub fn contains(&self, unit: UnitAddress) -> bool {
        self.inner.read().by_unit.contains_key(&unit)
    }

    /// The unit's fingerprints in the order of its summary, if they are here.
    #[must_use]
    pub fn get(&self, unit: UnitAddress) -> Option<Arc<[ShortFingerprint]>> {
        self.inner.read().loaded(unit).map(|loaded| Arc::clone(&loaded.fingerprints))
    }

    /// Whether the block at `ordinal` of `unit` is known to have this fingerprint. For more than a
    /// few of one unit, [`get`](Self::get) it.
    #[must_use]
    pub fn holds(&self, candidate: Candidate, fingerprint: &ShortFingerprint) -> bool {
        self.inner
            .read()
            .loaded(candidate.unit)
            .and_then(|loaded| loaded.fingerprints.get(candidate.ordinal as usize))
            == Some(fingerprint)
    }

    /// For each fingerprint a block that has it, as far as loaded summaries tell: appends to `out`
    /// as many answers as there are fingerprints. Of several, one that continues the answer before
    /// it is preferred, then one in the unit used last. Units that give answers count as used.
    pub fn lookup_batch(
        &self,
        fingerprints: &[ShortFingerprint],
        out: &mut Vec<Option<Candidate>>,
    ) {
        out.reserve(fingerprints.len());
        let inner = self.inner.read();
        // The answer before: where a stream of duplicates goes on is one comparison away.
        let mut before: Option<(&Loaded, u32)> = None;
        for fingerprint in fingerprints {
            let found = before.and_then(|(loaded, ordinal)| {
                let next = loaded.fingerprints.get(ordinal as usize + 1);
                (next == Some(fingerprint)).then_some((loaded, ordinal + 1))
            });
            let found = found.or_else(|| {
                inner.blocks_with(fingerprint).max_by_key(|(loaded, ordinal)| {
                    // The last key makes the answer depend on the contents only.
                    (loaded.last_used.load(Ordering::Relaxed), u32::MAX - ordinal)
                })
            });
            if let Some((loaded, _)) = found
                && before.is_none_or(|(before, _)| before.unit != loaded.unit)
            {
                loaded.last_used.store(self.tick(), Ordering::Relaxed);
            }
            before = found;
            out.push(found.map(|(loaded, ordinal)| Candidate { unit: loaded.unit, ordinal }));
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
}

impl Summaries for Neighbourhood {
    fn fingerprints(&self, unit: UnitAddress) -> Option<Arc<[ShortFingerprint]>> {
        self.get(unit)
    }
}

impl Inner {
    fn loaded(&self, unit: UnitAddress) -> Option<&Loaded> {
        self.by_unit.get(&unit).map(|&slot| self.in_slot(slot))
    }

    fn in_slot(&self, slot: u32) -> &Loaded {
        self.slots[slot as usize].as_ref().expect("only slots in use are named")
    }

    /// The loaded unit and the ordinal that a link names.
    fn follow(&self, link: u32) -> (&Loaded, u32) {
        let packed = link - 1;
        (self.in_slot(packed >> ORDINAL_BITS), packed & ((1 << ORDINAL_BITS) - 1))
    }

    fn chain(&self, fingerprint: &ShortFingerprint) -> usize {
        fingerprint.high() as usize & (self.heads.len() - 1)
    }

    fn blocks_with(&self, fingerprint: &ShortFingerprint) -> impl Iterator<Item = (&Loaded, u32)> {
        let mut at = self.heads[self.chain(fingerprint)];
        std::iter::from_fn(move || {
            (at != END).then(|| {
                let (loaded, ordinal) = self.follow(at);
                at = loaded.next[ordinal as usize];
                (loaded, ordinal)
            })
        })
        .filter(move |(loaded, ordinal)| loaded.fingerprints[*ordinal as usize] == *fingerprint)
    }

    fn insert(
        &mut self,
        unit: UnitAddress,
        fingerprints: Arc<[ShortFingerprint]>,
        last_used: AtomicU64,
    ) {
        let slot = self.free_slots.pop().expect("room was made");
        let next = fingerprints
            .iter()
            .enumerate()
            .map(|(ordinal, fingerprint)| {
                let chain = self.chain(fingerprint);
                std::mem::replace(&mut self.heads[chain], link(slot, ordinal))
            })
            .collect();
        self.slots[slot as usize] = Some(Loaded { unit, fingerprints, next, last_used });
        self.by_unit.insert(unit, slot);
    }

    fn remove(&mut self, unit: UnitAddress) {
        let Some(slot) = self.by_unit.remove(&unit) else { return };
        let fingerprints = Arc::clone(&self.in_slot(slot).fingerprints);
        for (ordinal, fingerprint) in fingerprints.iter().enumerate() {
            self.unlink(self.chain(fingerprint), link(slot, ordinal));
        }
        self.slots[slot as usize] = None;
        self.free_slots.push(slot);
    }

    fn unlink(&mut self, chain: usize, target: u32) {
        let (target_unit, target_ordinal) = self.follow(target);
        let after = target_unit.next[target_ordinal as usize];
        if self.heads[chain] == target {
            self.heads[chain] = after;
            return;
        }
        let mut at = self.heads[chain];
        loop {
            assert!(at != END, "every loaded block is in its chain");
            let packed = at - 1;
            let ordinal = packed & ((1 << ORDINAL_BITS) - 1);
            let loaded = self.slots[(packed >> ORDINAL_BITS) as usize]
                .as_mut()
                .expect("only slots in use are named");
            let next = &mut loaded.next[ordinal as usize];
            if *next == target {
                *next = after;
                return;
            }
            at = *next;
        }
    }

    /// A scan of all slots: it happens once a summary is loaded, which costs a device read.
    fn remove_least_recent(&mut self) {
        let least_recent = self
            .slots
            .iter()
            .flatten()
            .min_by_key(|loaded| loaded.last_used.load(Ordering::Relaxed))
            .expect("a full neighbourhood holds a unit")
            .unit;
        self.remove(least_recent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn unit(page: u64) -> UnitAddress {
        UnitAddress::new(page)
    }

    fn lookup(
        neighbourhood: &Neighbourhood,
        fingerprints: &[ShortFingerprint],
    ) -> Vec<Option<Candidate>> {
        let mut found = Vec::new();
        neighbourhood.lookup_batch(fingerprints, &mut found);
        found
    }

    #[test]
    fn the_unit_that_was_not_used_for_longest_makes_room() {
        let neighbourhood = Neighbourhood::new(3);
        let sets: Vec<_> = (0..4).map(|seed| Random(seed).fingerprints(256)).collect();
        for (n, set) in sets[..3].iter().enumerate() {
            neighbourhood.insert(unit(n as u64), set.as_slice().into());
        }
        // Unit 0 is the oldest, but used again.
        assert!(lookup(&neighbourhood, &sets[0][..1])[0].is_some());
        neighbourhood.insert(unit(3), sets[3].as_slice().into());
        let here: Vec<_> = (0..4).map(|n| neighbourhood.contains(unit(n))).collect();
        assert_eq!(here, [true, false, true, true]);
        assert_eq!(lookup(&neighbourhood, &sets[1]), vec![None; 256]);
    }

    #[test]
    fn of_several_copies_the_one_that_continues_wins_then_the_one_used_last() {
        let neighbourhood = Neighbourhood::new(4);
        let f = Random(1).fingerprints(10);
        neighbourhood.insert(unit(1), [f[0], f[1], f[2]].into());
        neighbourhood.insert(unit(2), [f[3], f[1], f[4]].into());
        let at = |page, ordinal| Some(Candidate { unit: unit(page), ordinal });
        assert_eq!(lookup(&neighbourhood, &[f[1]]), [at(2, 1)], "inserted last");
        let run = lookup(&neighbourhood, &[f[0], f[1], f[2]]);
        assert_eq!(run, [at(1, 0), at(1, 1), at(1, 2)], "continues");
        assert_eq!(lookup(&neighbourhood, &[f[1]]), [at(1, 1)], "used last");
        neighbourhood.remove(unit(1));
        assert_eq!(lookup(&neighbourhood, &[f[1], f[0]]), [at(2, 1), None], "the other copy");
    }

    #[test]
    fn of_two_copies_in_one_unit_the_one_that_continues_wins() {
        let neighbourhood = Neighbourhood::new(1);
        let f = Random(4).fingerprints(3);
        neighbourhood.insert(unit(1), [f[0], f[2], f[1], f[2]].into());
        let ordinals = |fingerprints: &[ShortFingerprint]| -> Vec<_> {
            lookup(&neighbourhood, fingerprints)
                .iter()
                .map(|found| found.unwrap().ordinal)
                .collect()
        };
        assert_eq!(ordinals(&[f[0], f[2]]), [0, 1]);
        assert_eq!(ordinals(&[f[1], f[2]]), [2, 3]);
    }

    #[test]
    fn a_unit_inserted_again_holds_its_new_summary_only() {
        let neighbourhood = Neighbourhood::new(2);
        let f = Random(2).fingerprints(4);
        neighbourhood.insert(unit(7), [f[0], f[1]].into());
        neighbourhood.insert(unit(7), [f[2]].into());
        assert_eq!(lookup(&neighbourhood, &f[..2]), [None, None]);
        let candidate = Candidate { unit: unit(7), ordinal: 0 };
        assert!(neighbourhood.holds(candidate, &f[2]));
        assert!(!neighbourhood.holds(candidate, &f[0]));
        assert!(!neighbourhood.holds(Candidate { ordinal: 1, ..candidate }, &f[2]));
        assert!(!neighbourhood.holds(Candidate { unit: unit(8), ordinal: 0 }, &f[2]));
    }

    #[test]
    fn threads_that_load_and_look_up_together_see_whole_units() {
        let neighbourhood = Neighbourhood::new(8);
        let sets: Vec<_> = (0..16).map(|seed| Random(seed).fingerprints(64)).collect();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (neighbourhood, sets) = (&neighbourhood, &sets);
                scope.spawn(move || {
                    for round in 0..400 {
                        let n = (round * 7 + thread * 5) % sets.len();
                        neighbourhood.insert(unit(n as u64), sets[n].as_slice().into());
                        let other = (n + 3) % sets.len();
                        let found = lookup(neighbourhood, &sets[other]);
                        let all = found.iter().enumerate().all(|(i, found)| {
                            *found
                                == Some(Candidate { unit: unit(other as u64), ordinal: i as u32 })
                        });
                        assert!(all || found.iter().all(Option::is_none));
                    }
                });
            }
        });
        assert_eq!((0..16).filter(|&n| neighbourhood.contains(unit(n))).count(), 8);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, Vec<usize>),
        Remove(u64),
        Lookup(Vec<usize>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let members = || prop::collection::vec(0..30_usize, 0..20);
        let step = prop_oneof![
            3 => (0..8_u64, members()).prop_map(|(page, members)| Step::Insert(page, members)),
            1 => (0..8_u64).prop_map(Step::Remove),
            3 => members().prop_map(Step::Lookup),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        #[test]
        fn lookups_find_a_block_exactly_if_some_loaded_unit_has_it(steps in steps()) {
            const MAX: usize = 4;
            // 30 fingerprints that fall into few chains.
            let mut random = Random(3);
            let universe: Vec<_> = (0..30_u32).map(|i| {
                let wide = u128::from(i % 3) << 64 | u128::from(random.next());
                ShortFingerprint::from_bytes(wide.to_le_bytes())
            }).collect();
            let pick = |members: &[usize]| -> Vec<_> {
                members.iter().map(|&i| universe[i]).collect()
            };
            let neighbourhood = Neighbourhood::new(MAX);
            // unit -> (fingerprints, last used)
            let mut model: BTreeMap<u64, (Vec<ShortFingerprint>, usize)> = BTreeMap::new();
            let mut clock = 0;
            for step in steps {
                match step {
                    Step::Insert(page, members) => {
                        neighbourhood.insert(unit(page), pick(&members).into());
                        model.remove(&page);
                        if model.len() == MAX {
                            let (&oldest, _) =
                                model.iter().min_by_key(|(_, (_, used))| *used).unwrap();
                            model.remove(&oldest);
                        }
                        clock += 1;
                        model.insert(page, (pick(&members), clock));
                    }
                    Step::Remove(page) => {
                        neighbourhood.remove(unit(page));
                        model.remove(&page);
                    }
                    Step::Lookup(members) => {
                        let wanted = pick(&members);
                        let found = lookup(&neighbourhood, &wanted);
                        prop_assert_eq!(found.len(), wanted.len());
                        let mut used = None;
                        for (wanted, found) in wanted.iter().zip(found) {
                            let Some(found) = found else {
                                prop_assert!(model.values().all(|(held, _)| !held.contains(wanted)));
                                continue;
                            };
                            let page = found.unit.page();
                            prop_assert_eq!(&model[&page].0[found.ordinal as usize], wanted);
                            prop_assert!(neighbourhood.holds(found, wanted));
                            if used != Some(page) {
                                clock += 1;
                                model.get_mut(&page).unwrap().1 = clock;
                                used = Some(page);
                            }
                        }
                    }
                }
                for page in 0..8 {
                    let held = neighbourhood.get(unit(page));
                    prop_assert_eq!(held.as_deref(), model.get(&page).map(|(f, _)| f.as_slice()));
                }
            }
        }
    }
}
