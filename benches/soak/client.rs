//! A client with a habit, which knows what its volume holds.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use siltstone_device::SeededRandom;
use siltstone_torture::{
    content::{BLOCK, SECTORS, bytes_of},
    kill::nbd_client::{ClientError, Durability, NbdClient},
};

use crate::{
    server::{self, Place, VOLUME_BYTES},
    world::{Kind, World},
};

/// Blocks of a volume.
const BLOCKS: u64 = VOLUME_BYTES / BLOCK as u64;
/// What a stream writes at a time, in blocks.
const STREAM_BLOCKS: u64 = 64;
/// What a file system or a guest writes at a time, at most.
const MIXED_BLOCKS: u64 = 16;
/// What is discarded at a time, at most.
const DISCARD_BLOCKS: u64 = 256;
/// Contents that all clients write now and then: duplicates.
const COMMON_CONTENTS: u64 = 20_000;
/// How long a client looks for its server.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often.
const RETRY: Duration = Duration::from_millis(5);

/// How a client uses its volume.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Habit {
    /// Small blocks at random, each made durable; reads as often.
    Database,
    /// Reads and writes of some blocks, a flush now and then.
    Guest,
    /// Writes from front to back, and reads what it has written.
    Stream,
    /// Discards, zeros, and writes anew.
    Churn,
}

impl Habit {
    pub(crate) const ALL: [Self; 4] = [Self::Database, Self::Guest, Self::Stream, Self::Churn];
}

/// See the module's page.
pub(crate) struct Client<'a> {
    world: &'a World,
    place: &'a Place,
    volume: String,
    habit: Habit,
    random: SeededRandom,
    nbd: Option<NbdClient>,
    /// A block's content; 0 is zeros.
    contents: Vec<u32>,
    /// Where the stream goes on.
    next: u64,
}

/// One request.
#[derive(Clone, Copy)]
enum Request<'d> {
    Write(&'d [u8]),
    Discard,
    Zero,
    Flush,
}

fn block_bytes(content: u32) -> Vec<u8> {
    match content {
        0 => vec![0; BLOCK],
        // Sectors that compress and sectors that do not, in turns.
        content => {
            let first = content.wrapping_mul(SECTORS as u32) | 1 << 31;
            bytes_of(&std::array::from_fn::<_, SECTORS, _>(|sector| {
                first.wrapping_add(sector as u32)
            }))
        }
    }
}

impl<'a> Client<'a> {
    pub(crate) fn new(
        world: &'a World,
        place: &'a Place,
        number: usize,
        habit: Habit,
        seed: u64,
    ) -> Self {
        let random = SeededRandom::new(seed.wrapping_mul(1000).wrapping_add(number as u64));
        let (volume, contents) = (server::volume(number), vec![0; BLOCKS as usize]);
        Self { world, place, volume, habit, random, nbd: None, contents, next: 0 }
    }

    /// Works until it is told to stop or something is wrong, and then reads all of its volume.
    pub(crate) fn run(mut self) {
        let outcome = loop {
            if self.world.has_failed() {
                return;
            }
            if self.world.clients_are_done.load(Ordering::Relaxed) {
                break self.verify_all();
            }
            if let Err(error) = self.step() {
                break Err(error);
            }
        };
        if let Err(error) = outcome {
            self.world.fail(format!("{} ({:?}): {error}", self.volume, self.habit));
        }
    }

    fn step(&mut self) -> Result<(), String> {
        match self.habit {
            Habit::Database if self.random.chance(1, 2) => self.read(1),
            Habit::Database => {
                self.write(1)?;
                self.request(Kind::Flush, 0, 0, Request::Flush)
            }
            Habit::Guest => match self.random.below(16) {
                0 => self.request(Kind::Flush, 0, 0, Request::Flush),
                1..=8 => self.read(MIXED_BLOCKS),
                _ => self.write(MIXED_BLOCKS),
            },
            Habit::Stream => {
                let first = self.next;
                self.next = (first + STREAM_BLOCKS) % BLOCKS;
                self.write_at(first, STREAM_BLOCKS)?;
                let behind = (first + BLOCKS - 8 * STREAM_BLOCKS) % BLOCKS;
                self.read_at(behind, STREAM_BLOCKS)
            }
            Habit::Churn => match self.random.below(8) {
                0 => self.clear(Request::Discard),
                1 => self.clear(Request::Zero),
                2 => self.read(MIXED_BLOCKS),
                _ => self.write(STREAM_BLOCKS),
            },
        }
    }

    fn choose(&mut self, most: u64) -> (u64, u64) {
        let first = self.random.below(BLOCKS);
        (first, 1 + self.random.below(most.min(BLOCKS - first)))
    }

    fn write(&mut self, most: u64) -> Result<(), String> {
        let (first, len) = self.choose(most);
        self.write_at(first, len)
    }

    fn write_at(&mut self, first: u64, len: u64) -> Result<(), String> {
        let is_common = self.random.chance(1, 3);
        let drawn = match is_common {
            true => self.random.below(COMMON_CONTENTS),
            false => COMMON_CONTENTS + (self.random.next_u64() >> 36),
        };
        // Common ones follow each other, as those of a file do.
        let contents: Vec<u32> = (0..len).map(|at| 1 + (drawn + at) as u32).collect();
        let data: Vec<u8> = contents.iter().flat_map(|&content| block_bytes(content)).collect();
        self.request(Kind::Write, first, len, Request::Write(&data))?;
        self.contents[first as usize..][..len as usize].copy_from_slice(&contents);
        Ok(())
    }

    fn clear(&mut self, request: Request<'_>) -> Result<(), String> {
        let (first, len) = self.choose(DISCARD_BLOCKS);
        self.request(Kind::Write, first, len, request)?;
        self.contents[first as usize..][..len as usize].fill(0);
        Ok(())
    }

    fn read(&mut self, most: u64) -> Result<(), String> {
        let (first, len) = self.choose(most);
        self.read_at(first, len)
    }

    fn read_at(&mut self, first: u64, len: u64) -> Result<(), String> {
        let mut found = vec![0; len as usize * BLOCK];
        self.attempt(Kind::Read, |nbd| nbd.read(first * BLOCK as u64, &mut found))?;
        for (block, found) in (first..).zip(found.chunks(BLOCK)) {
            if found != block_bytes(self.contents[block as usize]) {
                return Err(format!("block {block} does not hold what was written"));
            }
        }
        self.world.verified_blocks.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    fn verify_all(&mut self) -> Result<(), String> {
        (0..BLOCKS / STREAM_BLOCKS)
            .try_for_each(|at| self.read_at(at * STREAM_BLOCKS, STREAM_BLOCKS))
    }

    fn request(
        &mut self,
        kind: Kind,
        first: u64,
        len: u64,
        request: Request<'_>,
    ) -> Result<(), String> {
        let (offset_bytes, len_bytes) = (first * BLOCK as u64, len as usize * BLOCK);
        self.attempt(kind, |nbd| match request {
            Request::Write(data) => nbd.write(offset_bytes, data, Durability::Later),
            Request::Discard => nbd.trim(offset_bytes, len_bytes, Durability::Later),
            Request::Zero => nbd.write_zeroes(offset_bytes, len_bytes, Durability::Later),
            Request::Flush => nbd.flush(),
        })
    }

    /// Makes a request; again if the server was restarted meanwhile. Only then may the connection break.
    fn attempt(
        &mut self,
        kind: Kind,
        mut request: impl FnMut(&mut NbdClient) -> Result<(), ClientError>,
    ) -> Result<(), String> {
        let start = Instant::now();
        let mut is_first = self.nbd.is_some();
        loop {
            let restarts = self.world.restarts.load(Ordering::SeqCst);
            let outcome = match &mut self.nbd {
                Some(nbd) => request(nbd),
                None => self.connect().and_then(|nbd| request(self.nbd.insert(nbd))),
            };
            let error = match outcome {
                Ok(()) if is_first => {
                    self.world.note_request(kind, start);
                    return Ok(());
                }
                Ok(()) => {
                    let pause_ms = start.elapsed().as_millis() as u64;
                    self.world.longest_pause_ms.fetch_max(pause_ms, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => error,
            };
            let is_restart = !restarts.is_multiple_of(2)
                || self.world.restarts.load(Ordering::SeqCst) != restarts;
            let may_break = matches!(error, ClientError::Connection(_)) && is_restart;
            if !may_break || start.elapsed() > PATIENCE {
                return Err(error.to_string());
            }
            (self.nbd, is_first) = (None, false);
            thread::sleep(RETRY);
        }
    }

    fn connect(&self) -> Result<NbdClient, ClientError> {
        NbdClient::connect(&self.place.socket(), &self.volume)
    }
}
