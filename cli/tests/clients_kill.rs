//! `kill -9` of the server at random moments under a writer that flushes: after each, every
//! flushed write is there, every block holds some version that was written to it, and `check`
//! finds nothing.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use siltstone_device::SeededRandom;
use support::{Folder, Server, nbd_client::NbdClient, siltstone};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 3000;
const CLIENTS: u64 = 3;
const KILLS: usize = 50;

/// What may be in a block: any version from the last flushed to the last one begun.
#[derive(Clone, Copy, Default)]
struct Versions {
    flushed: u64,
    begun: u64,
}

/// A block that names itself and its version everywhere, half of it compressible, and every
/// eighth version the same for all blocks, so that there are duplicates.
fn block(address: u64, version: u64) -> Vec<u8> {
    let name = if version.is_multiple_of(8) { 0 } else { address + 1 };
    let mut random = SeededRandom::new(name << 32 | version);
    let mut block = vec![0; BLOCK];
    random.fill(&mut block[..BLOCK / 2]);
    block[..8].copy_from_slice(&version.to_le_bytes());
    block
}

/// Writes to its own blocks until the connection breaks.
fn write_until_killed(
    mut nbd: NbdClient,
    client: u64,
    seed: u64,
    versions: &Mutex<Vec<Versions>>,
    stop: &AtomicBool,
) {
    let mut random = SeededRandom::new(seed);
    let mut unflushed: Vec<(u64, u64)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if random.chance(1, 12) {
            if nbd.flush().is_err() {
                return;
            }
            let mut versions = versions.lock().unwrap();
            for (address, version) in unflushed.drain(..) {
                let known = &mut versions[address as usize];
                known.flushed = known.flushed.max(version);
            }
            continue;
        }
        let most = if random.chance(1, 4) { 64 } else { 4 };
        let len = 1 + random.below(most);
        let slots = BLOCKS / CLIENTS;
        let first = client * slots + random.below(slots - len);
        let mut data = Vec::new();
        for address in first..first + len {
            let version = {
                let mut versions = versions.lock().unwrap();
                let known = &mut versions[address as usize];
                known.begun += 1;
                known.begun
            };
            data.extend(block(address, version));
            unflushed.push((address, version));
        }
        if nbd.write(first * BLOCK as u64, &data).is_err() {
            return;
        }
    }
}

fn verify(server: &Server, versions: &mut [Versions]) {
    let mut nbd = NbdClient::connect(server.socket(), "disk").unwrap();
    let mut data = vec![0; BLOCK * 100];
    for first in (0..BLOCKS).step_by(100) {
        nbd.read(first * BLOCK as u64, &mut data).unwrap();
        for (address, found) in (first..).zip(data.chunks(BLOCK)) {
            let known = &mut versions[address as usize];
            let version = u64::from_le_bytes(found[..8].try_into().unwrap());
            assert!(
                (known.flushed..=known.begun).contains(&version),
                "block {address}: version {version}, flushed {}, begun {}",
                known.flushed,
                known.begun
            );
            let expected = if version == 0 { vec![0; BLOCK] } else { block(address, version) };
            assert!(found == expected, "block {address}: version {version} is damaged");
            // What was found must stay: the numbers go on, and a lost version never comes back.
            known.flushed = version;
        }
    }
}

#[test]
fn no_flushed_write_is_lost_when_the_server_is_killed() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    siltstone(["volume", "create", &pool, "disk", "--size", "12M"]).succeeds();
    let versions = Mutex::new(vec![Versions::default(); BLOCKS as usize]);
    let mut slowest = Duration::ZERO;
    for round in 0..KILLS as u64 {
        let start = Instant::now();
        let server = Server::start(&pool, &[]);
        slowest = slowest.max(start.elapsed());
        verify(&server, &mut versions.lock().unwrap());
        let stop = AtomicBool::new(false);
        let killed = thread::scope(|scope| {
            for client in 0..CLIENTS {
                let nbd = NbdClient::connect(server.socket(), "disk").unwrap();
                let (versions, stop) = (&versions, &stop);
                scope.spawn(move || {
                    write_until_killed(nbd, client, round * 8 + client, versions, stop);
                });
            }
            let mut random = SeededRandom::new(round + 1000);
            thread::sleep(Duration::from_millis(10 + random.below(150)));
            let killed = server.kill();
            stop.store(true, Ordering::Relaxed);
            killed
        });
        assert!(!killed.success());
        siltstone(["check", &pool]).succeeds();
    }
    let server = Server::start(&pool, &[]);
    verify(&server, &mut versions.lock().unwrap());
    assert!(server.stop().success());
    println!("{KILLS} kills; the slowest start took {slowest:?}, process start included");
}
