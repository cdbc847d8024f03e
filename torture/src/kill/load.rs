//! What clients do to a served disk until its server is killed, noted in the journal.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use siltstone_device::SeededRandom;

use super::{
    child::Place,
    journal::Journal,
    life::DISK,
    nbd_client::{ClientError, Durability, NbdClient},
    tally::Tally,
};
use crate::{
    clients::Violation,
    content::{self, BLOCK, Block, SECTOR, SECTORS, ZERO, bytes_of},
    report,
};

/// The error number of a full pool.
pub(super) const NO_SPACE: u32 = 28;
/// That of a disk that has gone back to a snapshot since it was opened.
const SHUT_DOWN: u32 = 108;
/// How often a client tries to open a disk that goes back to a snapshot.
const RETRY: Duration = Duration::from_millis(1);
/// Blocks of most changes, at most.
const SHORT_BLOCKS: u64 = 16;
/// Of a few: more than a flush puts into the log.
const LONG_BLOCKS: u64 = 256;

/// One client of a served disk: changes blocks of its own, which it may read and change in part
/// as it knows them, and blocks that others change at the same time.
pub(super) struct Client<'a> {
    pub(super) nbd: NbdClient,
    /// How to connect once more.
    pub(super) place: &'a Place,
    /// How often the disk had gone back to a snapshot when the client connected.
    pub(super) roll_backs: u64,
    pub(super) random: SeededRandom,
    pub(super) own: Range<u64>,
    pub(super) shared: Range<u64>,
    /// Whether the pool makes every change durable before it acknowledges it.
    pub(super) sync_always: bool,
    pub(super) journal: &'a Mutex<Journal>,
    /// Whether the server is being killed, so that the connection may break.
    pub(super) is_killed: &'a AtomicBool,
    pub(super) tally: &'a Tally,
}

/// Why a client stops.
enum Stop {
    Connection(ClientError),
    /// The disk has gone back to a snapshot.
    RolledBack,
    Violation(Violation),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Connection(_) => Self::Connection(error),
            ClientError::Refused { errno: SHUT_DOWN } => Self::RolledBack,
            other => Self::Violation(Violation(other.to_string())),
        }
    }
}

impl Client<'_> {
    /// Works until the server is killed.
    pub(super) fn work(mut self) -> Result<(), Violation> {
        loop {
            match self.operation() {
                Ok(()) => self.tally.note(|counts| counts.operations += 1),
                Err(Stop::Connection(_)) if self.is_killed.load(Ordering::SeqCst) => return Ok(()),
                Err(Stop::Connection(_) | Stop::RolledBack) if self.is_rolled_back() => {
                    match self.reconnect() {
                        Err(_) if self.is_killed.load(Ordering::SeqCst) => return Ok(()),
                        reconnected => reconnected?,
                    }
                }
                Err(Stop::RolledBack) => {
                    return Err(Violation("the disk has shut down for no reason".into()));
                }
                Err(Stop::Connection(error)) => return Err(Violation(error.to_string())),
                Err(Stop::Violation(violation)) => return Err(violation),
            }
        }
    }

    /// Whether the disk may have gone back to a snapshot since the client connected.
    fn is_rolled_back(&self) -> bool {
        self.journal.lock().roll_backs() > self.roll_backs
    }

    fn reconnect(&mut self) -> Result<(), Violation> {
        loop {
            // While it goes back, it may be opened just before it has, or not be there.
            let (begun, over) = {
                let journal = self.journal.lock();
                (journal.roll_backs(), journal.roll_backs_over())
            };
            match NbdClient::connect(&self.place.socket, DISK) {
                Ok(nbd) => {
                    (self.nbd, self.roll_backs) = (nbd, over);
                    return Ok(());
                }
                Err(_) if over < begun && !self.is_killed.load(Ordering::SeqCst) => {
                    thread::sleep(RETRY);
                }
                Err(error) => return Err(Violation(format!("a new connection: {error}"))),
            }
        }
    }

    fn operation(&mut self) -> Result<(), Stop> {
        match self.random.below(24) {
            0..=8 => self.write_blocks(self.own.clone()),
            9..=11 => self.write_part(),
            12 => self.trim(self.own.clone()),
            13 => self.write_zeroes(),
            14..=16 => self.flush(),
            17..=19 => self.write_blocks(self.shared.clone()),
            20 => self.trim(self.shared.clone()),
            _ => self.read(),
        }
    }

    /// Some of these blocks: first and count.
    fn choose(&mut self, among: Range<u64>) -> (u64, u64) {
        let first = among.start + self.random.below(among.end - among.start);
        let most = if self.random.chance(1, 16) { LONG_BLOCKS } else { SHORT_BLOCKS };
        (first, 1 + self.random.below(most.min(among.end - first)))
    }

    /// Makes a change that will make blocks look so, and notes what becomes of it.
    fn change(
        &mut self,
        first: u64,
        contents: &[Block],
        send: impl FnOnce(&mut NbdClient, Durability) -> Result<(), ClientError>,
    ) -> Result<(), Stop> {
        let forces = self.random.chance(1, 10);
        let durability = if forces { Durability::Now } else { Durability::Later };
        let is_durable = forces || self.sync_always;
        let change = self.journal.lock().begin(first, contents);
        match send(&mut self.nbd, durability) {
            Ok(()) => {
                self.journal.lock().acknowledge(&change, is_durable);
                self.tally.note(|counts| counts.durable_changes += u64::from(is_durable));
                Ok(())
            }
            Err(ClientError::Refused { errno: NO_SPACE }) => {
                self.journal.lock().refuse(&change);
                self.tally.note(|counts| counts.refused += 1);
                self.make_room()
            }
            Err(error @ ClientError::Refused { errno: SHUT_DOWN }) => {
                self.journal.lock().refuse(&change);
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives back what the client has.
    fn make_room(&mut self) -> Result<(), Stop> {
        let own = self.own.clone();
        self.trim_blocks(own.start, own.end - own.start)
    }

    fn write_blocks(&mut self, among: Range<u64>) -> Result<(), Stop> {
        let (first, len) = self.choose(among);
        let contents = content::draw(&mut self.random, len);
        let bytes = bytes_of(contents.as_flattened());
        self.change(first, &contents, |nbd, durability| {
            nbd.write(first * BLOCK as u64, &bytes, durability)
        })
    }

    /// Some sectors of a block, if it is known what the others hold.
    fn write_part(&mut self) -> Result<(), Stop> {
        let (block, _) = self.choose(self.own.clone());
        let visible = self.journal.lock().visible(block);
        let Some(mut contents) = visible else { return Ok(()) };
        let first = self.random.below(SECTORS as u64) as usize;
        let len = 1 + self.random.below((SECTORS - first) as u64) as usize;
        let tags = &mut contents[first..first + len];
        tags.fill_with(|| 1 + self.random.next_u64() as u32 % 1000);
        let bytes = bytes_of(tags);
        let offset_bytes = block * BLOCK as u64 + (first * SECTOR) as u64;
        self.change(block, &[contents], |nbd, durability| {
            nbd.write(offset_bytes, &bytes, durability)
        })
    }

    fn trim(&mut self, among: Range<u64>) -> Result<(), Stop> {
        let (first, len) = self.choose(among);
        self.trim_blocks(first, len)
    }

    fn trim_blocks(&mut self, first: u64, len: u64) -> Result<(), Stop> {
        self.change(first, &vec![ZERO; len as usize], |nbd, durability| {
            nbd.trim(first * BLOCK as u64, len as usize * BLOCK, durability)
        })
    }

    /// Zeros from the middle of a block to that of another, if it is known what they hold.
    fn write_zeroes(&mut self) -> Result<(), Stop> {
        let (first, len) = self.choose(self.own.clone());
        let head = self.random.below(SECTORS as u64) as usize;
        let tail = self.random.below((SECTORS - head) as u64) as usize;
        let visible: Option<Vec<Block>> = {
            let journal = self.journal.lock();
            (first..first + len).map(|block| journal.visible(block)).collect()
        };
        let Some(mut contents) = visible else { return Ok(()) };
        let tags = contents.as_flattened_mut();
        let end = tags.len() - tail;
        tags[head..end].fill(0);
        let offset_bytes = first * BLOCK as u64 + (head * SECTOR) as u64;
        self.change(first, &contents, |nbd, durability| {
            nbd.write_zeroes(offset_bytes, (end - head) * SECTOR, durability)
        })
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let begun = self.journal.lock().begin_flush();
        self.nbd.flush()?;
        self.journal.lock().acknowledge_flush(begun);
        self.tally.note(|counts| counts.flushes += 1);
        Ok(())
    }

    /// Own blocks read as the client left them.
    fn read(&mut self) -> Result<(), Stop> {
        let (first, len) = self.choose(self.own.clone());
        let mut bytes = vec![0; len as usize * BLOCK];
        let visible: Vec<_> = {
            let journal = self.journal.lock();
            (first..first + len).map(|block| journal.visible(block)).collect()
        };
        self.nbd.read(first * BLOCK as u64, &mut bytes)?;
        let journal = self.journal.lock();
        for ((block, found), before) in (first..).zip(bytes.chunks(BLOCK)).zip(visible) {
            // Unless the disk goes back to a snapshot meanwhile.
            if let Some(visible) = journal.visible(block)
                && before == Some(visible)
                && bytes_of(&visible) != found
            {
                let (found, visible) = (report::data(found), report::contents(&visible));
                let wrong = report::wrong_block(block, &found, &[visible]);
                return Err(Stop::Violation(Violation(format!("a read: {wrong}"))));
            }
        }
        Ok(())
    }
}
