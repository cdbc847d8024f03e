//! Random histories of a small ring, cut at every event: what was acknowledged and not trimmed is
//! replayed exactly, nothing else is, and the log goes on from there.

use super::*;

/// An append and its place in the device's history.
struct Appended {
    changes: Vec<OwnedChange>,
    /// The event before which nothing of it was written; `None` if that is in an older history.
    begun_at: Option<usize>,
    acknowledged_at: usize,
}

impl Appended {
    fn last_sequence(&self) -> u64 {
        self.changes.last().unwrap().sequence
    }
}

/// What a client of the log did and knows.
#[derive(Default)]
struct Client {
    appended: Vec<Appended>,
    /// When, and up to where, the log was trimmed.
    trims: Vec<(usize, u64)>,
    sequence: u64,
}

impl Client {
    fn run(
        &mut self,
        device: &SimDevice,
        region: Region,
        log: &Log,
        random: &mut SeededRandom,
        steps: u64,
    ) {
        for _ in 0..steps {
            match random.below(8) {
                0..=4 => self.append(device, region, log, random),
                5 => block_on(log.persist_trim()).unwrap(),
                _ => {
                    let floor = self.trims.last().map_or(0, |trim| trim.1);
                    let up_to = floor + random.below(self.sequence - floor + 1);
                    self.trims.push((device.history_len(), up_to));
                    log.trim(Sequence(up_to));
                }
            }
        }
    }

    fn append(&mut self, device: &SimDevice, region: Region, log: &Log, random: &mut SeededRandom) {
        let mut changes = Vec::new();
        for _ in 0..random.below(3) + 1 {
            self.sequence += 1;
            changes.push(OwnedChange::random(random, self.sequence, 3));
        }
        for change in &mut changes {
            if let Some(data) = &mut change.data {
                forge(device, region, data, random);
            }
        }
        let begun_at = Some(device.history_len());
        match append(log, &changes) {
            Ok(()) => {
                let acknowledged_at = device.history_len();
                self.appended.push(Appended { changes, begun_at, acknowledged_at });
            }
            Err(LogError::Full { .. }) => {}
            // Too large for the smallest rings.
            Err(LogError::TooLarge { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Checks what is replayed after a cut at `event`, and forgets what is not.
    fn check(&mut self, event: usize, replayed: &[Vec<OwnedChange>]) {
        let trimmed = self.trims.iter().filter(|trim| trim.0 <= event).map(|trim| trim.1).max();
        let trimmed = trimmed.unwrap_or(0);
        let mut next = 0;
        self.appended.retain(|appended| {
            if replayed.get(next) == Some(&appended.changes) {
                assert!(appended.begun_at < Some(event), "a record from the future");
                next += 1;
                return true;
            }
            let is_owed = appended.acknowledged_at <= event && appended.last_sequence() > trimmed;
            assert!(!is_owed, "sequence {} is lost", appended.last_sequence());
            false
        });
        assert_eq!(next, replayed.len(), "something was replayed that was never appended");
    }

    fn fork(&self) -> Self {
        let clone =
            |appended: &Appended| Appended { changes: appended.changes.clone(), ..*appended };
        Self {
            appended: self.appended.iter().map(clone).collect(),
            trims: self.trims.clone(),
            sequence: self.sequence,
        }
    }

    /// All that is known was durable at the start of a new history.
    fn rebase(&mut self, trimmed: u64) {
        for appended in &mut self.appended {
            (appended.begun_at, appended.acknowledged_at) = (None, 0);
        }
        self.appended.retain(|appended| appended.last_sequence() > trimmed);
        self.trims = vec![(0, trimmed)];
    }
}

/// Puts into guest data what might pass for a record: copies of what the ring holds, and records
/// made with all knowledge but one nonce.
fn forge(device: &SimDevice, region: Region, data: &mut [u8], random: &mut SeededRandom) {
    let len_blocks = region.len_bytes / BLOCK;
    for block in data.chunks_exact_mut(BLOCK_BYTES) {
        let address = region.offset.plus(random.below(len_blocks) * BLOCK);
        match random.below(3) {
            0 => block.copy_from_slice(&device.peek(address.0, BLOCK_BYTES)),
            1 => {
                let identity = match random.chance(1, 2) {
                    true => LogIdentity { first: random.next_u64(), ..IDENTITY },
                    false => LogIdentity { second: random.next_u64(), ..IDENTITY },
                };
                let number = random.below(1000) + 1;
                let label = RecordLabel {
                    number,
                    address,
                    trimmed: Sequence(0),
                    oldest_live: number,
                    oldest_live_address: address,
                };
                let change = OwnedChange { data: None, ..change(random.below(1000), 1) };
                let buffers = BufferPool::new(0);
                let forged = record::encode(&buffers, &identity, &label, &[change.borrow()]);
                block.copy_from_slice(&forged);
            }
            _ => {}
        }
    }
}

/// Cuts the device's history at `event`, recovers twice, and lets the client check and go on.
fn recover(
    device: &SimDevice,
    region: Region,
    event: usize,
    client: &Client,
    random: &mut SeededRandom,
) -> (Arc<SimDevice>, Log, Client) {
    let crashed = device.crash_at(event, random);
    let (_, replay) =
        open(&crashed, region).unwrap_or_else(|error| panic!("cut at {event}: {error}"));
    let first = replay_all(replay);
    let (log, replay) = open(&crashed, region).unwrap();
    let trimmed = replay.trimmed_up_to().0;
    assert_eq!(replay_all(replay), first, "the second recovery differs");
    let mut client = client.fork();
    client.check(event, &first);
    client.rebase(trimmed);
    (crashed, log, client)
}

fn torture(seed: u64, blocks: u64, steps: u64) {
    let mut random = SeededRandom::new(seed);
    let (device, region) = formatted(blocks);
    device.forget_history();
    let (log, _) = open(&device, region).unwrap();
    let mut client = Client::default();
    client.run(&device, region, &log, &mut random, steps);
    for event in 0..=device.history_len() {
        let (crashed, log, mut again) = recover(&device, region, event, &client, &mut random);
        // Life goes on, and ends again.
        again.run(&crashed, region, &log, &mut random, 8);
        let event = random.below(crashed.history_len() as u64 + 1) as usize;
        let (crashed, log, mut again) = recover(&crashed, region, event, &again, &mut random);
        again.run(&crashed, region, &log, &mut random, 3);
        recover(&crashed, region, crashed.history_len(), &again, &mut random);
    }
}

#[test]
fn a_tiny_ring_cut_at_every_event_keeps_what_it_owes() {
    for seed in 0..40 {
        torture(seed, 4 + seed % 12, 60);
    }
}

#[test]
fn a_small_ring_cut_at_every_event_keeps_what_it_owes() {
    for seed in 100..120 {
        torture(seed, 24 + seed % 7 * 5, 120);
    }
}
