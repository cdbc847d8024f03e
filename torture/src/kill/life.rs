//! One pool's life: made, served, killed, started again, compared, many times; closed and checked
//! in the end.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use siltstone_device::SeededRandom;
use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, VolumeOptions};
use siltstone_nbd::protocol::transmission_flag as flag;

use super::{
    Campaign,
    child::{Place, Server},
    journal::{Journal, blocks_of},
    keeper::{Keeper, Round},
    load::Client,
    nbd_client::{ClientError, NbdClient},
};
use crate::{
    clients::Violation,
    content::{BLOCK, Block},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Sizes of pools and of their segments.
const SIZES: [(u64, u64); 5] = [
    (96 * MIB, MIB),
    (256 * MIB, MIB),
    (128 * MIB, 2 * MIB),
    (256 * MIB, 8 * MIB),
    (512 * MIB, 8 * MIB),
];
/// Sizes of logs.
const LOG_BYTES: [u64; 3] = [512 * KIB, MIB, 8 * MIB];

/// The one volume.
pub(super) const DISK: &str = "disk";
const DISK_BYTES: u64 = 16 * MIB;
pub(super) const DISK_BLOCKS: u64 = DISK_BYTES / BLOCK as u64;
/// Clients at a time. Each has blocks of its own, and some are everybody's.
const CLIENTS: u64 = 4;
/// Blocks of a client's own; the rest is shared.
const SHARE_BLOCKS: u64 = DISK_BLOCKS / (CLIENTS + 1);
/// How long clients work before the kill, in milliseconds.
const WORK_MS: std::ops::Range<u64> = 20..300;
/// Most kills of servers that start, in a row.
const MOST_START_KILLS: u64 = 3;
/// One round in so many ends with a check of the whole pool.
const CHECK_ONE_IN: u64 = 8;
/// After so many rounds another pool, of another kind.
const ROUNDS: u32 = 100;
/// Read at a time.
const PIECE_BYTES: usize = MIB as usize;
/// What this load relies on.
const NEEDED_FLAGS: u16 = flag::SEND_FLUSH
    | flag::SEND_FUA
    | flag::SEND_TRIM
    | flag::SEND_WRITE_ZEROES
    | flag::CAN_MULTI_CONN;

/// A pool of one of many kinds, so that segments and log fill at different times.
fn draw_options(random: &mut SeededRandom) -> CreateOptions {
    let mut below = |limit: usize| random.below(limit as u64) as usize;
    let (size_bytes, segment_bytes) = SIZES[below(SIZES.len())];
    CreateOptions {
        size_bytes: Some(size_bytes),
        segment_bytes: Some(segment_bytes),
        nvram_bytes: Some(LOG_BYTES[below(LOG_BYTES.len())]),
        index_memory_bytes: [MIB / 2, 64 * MIB][below(2)],
        threshold: [1, 1, 4][below(3)],
        sync_always: below(8) == 0,
        ..CreateOptions::default()
    }
}

/// Makes a pool and the disk in it.
fn make(pool: &Path, options: &CreateOptions) -> Result<(), EngineError> {
    Pool::create(pool, options)?;
    let pool = Pool::open(pool, &OpenOptions::default())?;
    pool.create_volume(DISK, &VolumeOptions::new(DISK_BYTES))?;
    pool.close()
}

/// A pool's whole life, or less when the campaign is over.
pub(super) fn live(
    campaign: &Campaign<'_>,
    place: &Place,
    random: &mut SeededRandom,
) -> Result<(), Violation> {
    let options = draw_options(random);
    let failed = |error| Violation(format!("a pool cannot be made: {error}"));
    make(&place.pool, &options).map_err(failed)?;
    campaign.tally.note(|counts| counts.pools += 1);
    let journal = Mutex::new(Journal::new(DISK_BLOCKS));
    let mut keeper = Keeper::new(SeededRandom::new(random.next_u64()));
    let mut usual_start = Duration::from_millis(50);
    for _ in 0..ROUNDS {
        if !campaign.claim_kill() {
            break;
        }
        if random.chance(1, 4) {
            for _ in 0..=random.below(MOST_START_KILLS) {
                kill_while_it_starts(campaign, place, usual_start, random)?;
            }
        }
        let (server, start) = start_and_compare(campaign, place, &mut journal.lock(), &mut keeper)?;
        usual_start = start;
        let is_killed = AtomicBool::new(false);
        let clients = (0..CLIENTS).map(|number| {
            let nbd = server.connect(DISK).map_err(|error| place.quote(error))?;
            Ok(Client {
                nbd,
                place,
                roll_backs: 0,
                random: SeededRandom::new(random.next_u64()),
                own: number * SHARE_BLOCKS..(number + 1) * SHARE_BLOCKS,
                shared: CLIENTS * SHARE_BLOCKS..DISK_BLOCKS,
                sync_always: options.sync_always,
                journal: &journal,
                is_killed: &is_killed,
                tally: &campaign.tally,
            })
        });
        let clients = clients.collect::<Result<Vec<_>, Violation>>()?;
        let work_ms = WORK_MS.start + random.below(WORK_MS.end - WORK_MS.start);
        let round = Round {
            program: campaign.program,
            place,
            journal: &journal,
            is_killed: &is_killed,
            tally: &campaign.tally,
        };
        let work = Duration::from_millis(work_ms);
        work_and_kill(server, clients, &mut keeper, &round, work)?;
        campaign.tally.note(|counts| counts.kills += 1);
        if random.chance(1, CHECK_ONE_IN) {
            check(campaign, place)?;
        }
    }
    let (server, _) = start_and_compare(campaign, place, &mut journal.lock(), &mut keeper)?;
    server.stop()?;
    check(campaign, place)
}

fn check(campaign: &Campaign<'_>, place: &Place) -> Result<(), Violation> {
    place.check(campaign.program)?;
    campaign.tally.note(|counts| counts.checks += 1);
    Ok(())
}

/// Starts a server and kills it before long, mostly before it is ready.
fn kill_while_it_starts(
    campaign: &Campaign<'_>,
    place: &Place,
    usual_start: Duration,
    random: &mut SeededRandom,
) -> Result<(), Violation> {
    let server = Server::spawn(campaign.program, place)?;
    let most_us = usual_start.as_micros() as u64 + 1;
    thread::sleep(Duration::from_micros(random.below(most_us)));
    server.kill()?;
    campaign.tally.note(|counts| counts.start_kills += 1);
    Ok(())
}

/// Starts a server and reads the whole disk, its snapshots and clones; what was found must stay from
/// then on.
fn start_and_compare<'a>(
    campaign: &Campaign<'_>,
    place: &'a Place,
    journal: &mut Journal,
    keeper: &mut Keeper,
) -> Result<(Server<'a>, Duration), Violation> {
    let mut server = Server::spawn(campaign.program, place)?;
    let (mut client, start) = server.first_client(DISK)?;
    campaign.tally.note(|counts| counts.starts += 1);
    let start_ms = start.as_millis() as u64;
    campaign.tally.note(|counts| counts.slowest_start_ms = counts.slowest_start_ms.max(start_ms));
    let contents = compare(&mut client, journal).map_err(|reason| place.quote(reason))?;
    let of_keeper = keeper.compare(&server, journal).map_err(|reason| place.quote(reason))?;
    campaign.tally.note(|counts| counts.blocks += contents.len() as u64 + of_keeper);
    journal.settle(contents);
    Ok((server, start))
}

fn compare(client: &mut NbdClient, journal: &Journal) -> Result<Vec<Block>, String> {
    if client.size_bytes() != DISK_BYTES || client.flags() & NEEDED_FLAGS != NEEDED_FLAGS {
        let (size_bytes, flags) = (client.size_bytes(), client.flags());
        return Err(format!("the disk has {size_bytes} bytes and flags {flags:#x}"));
    }
    let bytes = read_all(client).map_err(|error| error.to_string())?;
    let judge = |contents: Vec<Block>| journal.judge(0, &contents).map(|()| contents);
    blocks_of(0, &bytes).and_then(judge).map_err(|wrong| wrong.to_string())
}

/// All of the disk, or of a snapshot or a clone of it.
pub(super) fn read_all(client: &mut NbdClient) -> Result<Vec<u8>, ClientError> {
    let mut bytes = vec![0; DISK_BYTES as usize];
    for (offset_bytes, piece) in (0..).step_by(PIECE_BYTES).zip(bytes.chunks_mut(PIECE_BYTES)) {
        client.read(offset_bytes, piece)?;
    }
    Ok(bytes)
}

/// Lets clients work and kills their server under them.
fn work_and_kill(
    server: Server<'_>,
    clients: Vec<Client<'_>>,
    keeper: &mut Keeper,
    round: &Round<'_>,
    work: Duration,
) -> Result<(), Violation> {
    let (killed, worked) = thread::scope(|scope| {
        let clients = clients.into_iter().map(|client| scope.spawn(move || client.work()));
        let mut workers: Vec<_> = clients.collect();
        workers.push(scope.spawn(|| keeper.work(round)));
        thread::sleep(work);
        round.is_killed.store(true, Ordering::SeqCst);
        let killed = server.kill();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| worker.join();
        let worked: Result<Vec<_>, _> = workers.into_iter().map(join).collect();
        (killed, worked.expect("clients do not panic"))
    });
    // A server that ended by itself is the reason why its clients lost it.
    killed?;
    let worked = worked.into_iter().collect::<Result<(), _>>();
    worked.map_err(|violation| round.place.quote(violation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_pool_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        for (number, (size_bytes, segment_bytes)) in SIZES.into_iter().enumerate() {
            for nvram_bytes in LOG_BYTES {
                let options = CreateOptions {
                    size_bytes: Some(size_bytes),
                    segment_bytes: Some(segment_bytes),
                    nvram_bytes: Some(nvram_bytes),
                    ..CreateOptions::default()
                };
                make(&folder.path().join(format!("{number}-{nvram_bytes}")), &options).unwrap();
            }
        }
    }
}
