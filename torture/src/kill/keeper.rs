//! Who takes, reads, deletes and clones snapshots of the disk and lets it go back to them, by
//! commands to the server that is to be killed; and what must be there of them afterwards.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use siltstone_device::SeededRandom;

use super::{
    Program, SnapshotChange,
    child::{Place, Server},
    journal::{Journal, Taking, WrongBlock, blocks_of},
    life::{DISK, DISK_BLOCKS, read_all},
    nbd_client::{ClientError, Durability, NbdClient},
    tally::Tally,
};
use crate::{
    clients::Violation,
    content::{self, BLOCK, Block, bytes_of},
};

/// More are not taken.
const MOST_SNAPSHOTS: usize = 3;
/// More are not made.
const MOST_CLONES: usize = 2;
/// Between two commands.
const MOST_PAUSE_MS: u64 = 20;

/// Snapshots and clones from one server's life to the next.
pub(super) struct Keeper {
    random: SeededRandom,
    snapshots: Vec<Snapshot>,
    clones: Vec<CloneOfDisk>,
    names: u64,
}

/// What a keeper has to do with while a server lives.
pub(super) struct Round<'a> {
    pub(super) program: &'a dyn Program,
    pub(super) place: &'a Place,
    pub(super) journal: &'a Mutex<Journal>,
    /// Whether the server is being killed, so that commands may fail.
    pub(super) is_killed: &'a AtomicBool,
    pub(super) tally: &'a Tally,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Certain,
    /// It was being made, or deleted, when the server was killed.
    Unknown,
}

struct Snapshot {
    name: String,
    presence: Presence,
    /// When, of one whose server still lives.
    taking: Option<Taking>,
    /// What it holds, once it was read.
    contents: Option<Vec<Block>>,
}

impl Snapshot {
    /// Whether it may hold this, which it must from now on.
    fn judge(&mut self, found: Vec<Block>, journal: &Journal) -> Result<(), WrongBlock> {
        match (&self.contents, &self.taking) {
            (Some(contents), _) => Journal::of(contents.clone()).judge(0, &found)?,
            (None, Some(taking)) => journal.judge_snapshot(taking, &found)?,
            (None, None) => {}
        }
        self.contents = Some(found);
        Ok(())
    }
}

struct CloneOfDisk {
    name: String,
    presence: Presence,
    journal: Journal,
}

/// Why a round has no next step.
enum Stop {
    /// The server was killed, and the last command with it.
    Killed,
    Violation(Violation),
}

impl Keeper {
    pub(super) fn new(random: SeededRandom) -> Self {
        Self { random, snapshots: Vec::new(), clones: Vec::new(), names: 0 }
    }

    /// Works until the server is killed.
    pub(super) fn work(&mut self, round: &Round<'_>) -> Result<(), Violation> {
        while !round.is_killed.load(Ordering::SeqCst) {
            match self.step(round) {
                Ok(()) => {}
                Err(Stop::Killed) => break,
                Err(Stop::Violation(violation)) => return Err(violation),
            }
            thread::sleep(Duration::from_millis(self.random.below(MOST_PAUSE_MS)));
        }
        Ok(())
    }

    fn step(&mut self, round: &Round<'_>) -> Result<(), Stop> {
        if self.snapshots.is_empty() {
            return self.take(round);
        }
        let snapshot = self.random.below(self.snapshots.len() as u64) as usize;
        match self.random.below(12) {
            0..=4 if self.snapshots.len() < MOST_SNAPSHOTS => self.take(round),
            0..=5 => self.delete(snapshot, round),
            6 | 7 => self.roll_back(snapshot, round),
            8 if self.clones.len() < MOST_CLONES => self.clone_snapshot(snapshot, round),
            8 => self.delete_clone(round),
            9 | 10 if !self.clones.is_empty() => self.write_to_clone(round),
            _ => self.contents(snapshot, round).map(drop),
        }
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn take(&mut self, round: &Round<'_>) -> Result<(), Stop> {
        let name = format!("{DISK}@{}", self.new_name());
        let taking = round.journal.lock().begin_snapshot();
        let at = self.snapshots.len();
        self.snapshots.push(Snapshot {
            name: name.clone(),
            presence: Presence::Unknown,
            taking: Some(taking),
            contents: None,
        });
        round.change(&SnapshotChange::Take { snapshot: &name })?;
        let snapshot = &mut self.snapshots[at];
        snapshot.presence = Presence::Certain;
        if let Some(taking) = &mut snapshot.taking {
            // The command may have found the pool without a server, and taken it itself.
            let is_whole = !round.is_killed.load(Ordering::SeqCst);
            round.journal.lock().acknowledge_snapshot(taking, is_whole);
        }
        round.tally.note(|counts| counts.snapshots += 1);
        Ok(())
    }

    fn delete(&mut self, at: usize, round: &Round<'_>) -> Result<(), Stop> {
        self.snapshots[at].presence = Presence::Unknown;
        round.change(&SnapshotChange::Delete { snapshot: &self.snapshots[at].name })?;
        let gone = self.snapshots.remove(at);
        round.tally.note(|counts| counts.deleted_snapshots += 1);
        match round.connect(&gone.name) {
            Ok(_) => {
                let reason = format!("{} is there after it was deleted", gone.name);
                Err(Stop::Violation(Violation(reason)))
            }
            Err(_) => Ok(()),
        }
    }

    fn roll_back(&mut self, at: usize, round: &Round<'_>) -> Result<(), Stop> {
        let contents = self.contents(at, round)?;
        round.journal.lock().begin_roll_back(&contents);
        round.change(&SnapshotChange::RollBack { snapshot: &self.snapshots[at].name })?;
        round.journal.lock().acknowledge_roll_back();
        round.tally.note(|counts| counts.roll_backs += 1);
        Ok(())
    }

    fn clone_snapshot(&mut self, at: usize, round: &Round<'_>) -> Result<(), Stop> {
        let journal = Journal::of(self.contents(at, round)?);
        let name = self.new_name();
        let presence = Presence::Unknown;
        self.clones.push(CloneOfDisk { name: name.clone(), presence, journal });
        let snapshot = &self.snapshots[at].name;
        round.change(&SnapshotChange::Clone { snapshot, name: &name })?;
        self.clones.last_mut().expect("there is one").presence = Presence::Certain;
        round.tally.note(|counts| counts.clones += 1);
        Ok(())
    }

    fn delete_clone(&mut self, round: &Round<'_>) -> Result<(), Stop> {
        let at = self.random.below(self.clones.len() as u64) as usize;
        self.clones[at].presence = Presence::Unknown;
        round.change(&SnapshotChange::DeleteClone { name: &self.clones[at].name })?;
        self.clones.remove(at);
        Ok(())
    }

    fn write_to_clone(&mut self, round: &Round<'_>) -> Result<(), Stop> {
        let at = self.random.below(self.clones.len() as u64) as usize;
        let CloneOfDisk { name, journal, .. } = &mut self.clones[at];
        let mut nbd = round.connect(name)?;
        for _ in 0..4 {
            let len = 1 + self.random.below(16);
            let first = self.random.below(DISK_BLOCKS - len);
            let contents = content::draw(&mut self.random, len);
            let forces = self.random.chance(1, 2);
            let durability = if forces { Durability::Now } else { Durability::Later };
            let change = journal.begin(first, &contents);
            let bytes = bytes_of(contents.as_flattened());
            match nbd.write(first * BLOCK as u64, &bytes, durability) {
                Ok(()) => journal.acknowledge(&change, forces),
                Err(ClientError::Refused { errno: super::load::NO_SPACE }) => {
                    journal.refuse(&change);
                }
                Err(error) => return Err(round.stop(error)),
            }
        }
        Ok(())
    }

    /// What a snapshot holds: read now, unless that is known.
    fn contents(&mut self, at: usize, round: &Round<'_>) -> Result<Vec<Block>, Stop> {
        let snapshot = &mut self.snapshots[at];
        let is_known = snapshot.contents.is_some();
        if !is_known || self.random.chance(1, 4) {
            let mut nbd = round.connect(&snapshot.name)?;
            let found = read_all(&mut nbd).map_err(|error| round.stop(error))?;
            let judged =
                blocks_of(0, &found).and_then(|found| snapshot.judge(found, &round.journal.lock()));
            judged.map_err(|wrong| {
                Stop::Violation(Violation(format!("snapshot {}: {wrong}", snapshot.name)))
            })?;
        }
        Ok(snapshot.contents.clone().expect("it has just been read"))
    }

    /// Compares what a new server has of snapshots and clones, and forgets what is not there. The
    /// journal is still that of the server that was killed. Returns how many blocks were compared.
    pub(super) fn compare(
        &mut self,
        server: &Server<'_>,
        journal: &Journal,
    ) -> Result<u64, String> {
        let mut compared = 0;
        let mut read = |name: &str, presence: Presence| match server.connect(name) {
            Ok(mut nbd) => {
                compared += DISK_BLOCKS;
                let bytes = read_all(&mut nbd).map_err(|error| format!("{name}: {error}"))?;
                blocks_of(0, &bytes).map(Some).map_err(|wrong| format!("{name}: {wrong}"))
            }
            // A server has no other way to say that there is no such volume.
            Err(ClientError::Connection(_)) if presence == Presence::Unknown => Ok(None),
            Err(error) => Err(format!("{name} is not there: {error}")),
        };
        let mut snapshots = Vec::new();
        for mut snapshot in std::mem::take(&mut self.snapshots) {
            if let Some(found) = read(&snapshot.name, snapshot.presence)? {
                let judged = snapshot.judge(found, journal);
                judged.map_err(|wrong| format!("snapshot {}: {wrong}", snapshot.name))?;
                snapshot.taking = None;
                snapshot.presence = Presence::Certain;
                snapshots.push(snapshot);
            }
        }
        let mut clones = Vec::new();
        for mut clone in std::mem::take(&mut self.clones) {
            if let Some(found) = read(&clone.name, clone.presence)? {
                let judged = clone.journal.judge(0, &found);
                judged.map_err(|wrong| format!("clone {}: {wrong}", clone.name))?;
                clone.journal.settle(found);
                clone.presence = Presence::Certain;
                clones.push(clone);
            }
        }
        (self.snapshots, self.clones) = (snapshots, clones);
        Ok(compared)
    }
}

impl Round<'_> {
    /// Has a change made. It must be, unless the server is being killed.
    fn change(&self, change: &SnapshotChange<'_>) -> Result<(), Stop> {
        match self.place.change(self.program, change) {
            Ok(()) => Ok(()),
            Err(_) if self.is_killed.load(Ordering::SeqCst) => Err(Stop::Killed),
            Err(violation) => Err(Stop::Violation(violation)),
        }
    }

    fn connect(&self, volume: &str) -> Result<NbdClient, Stop> {
        NbdClient::connect(&self.place.socket, volume).map_err(|error| self.stop(error))
    }

    fn stop(&self, error: ClientError) -> Stop {
        match error {
            ClientError::Connection(_) if self.is_killed.load(Ordering::SeqCst) => Stop::Killed,
            error => Stop::Violation(Violation(format!("who keeps snapshots: {error}"))),
        }
    }
}
