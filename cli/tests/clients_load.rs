//! Load from many connections: fio verifies what it wrote, and the server's memory stays within
//! its budgets however much data passes through.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{sync::Mutex, thread};

use siltstone_device::SeededRandom;
use siltstone_torture::kill::nbd_client::{Durability, NbdClient};
use support::{Folder, MIB, Server, has, run, siltstone};

/// Seconds that each longer test may take, if the environment asks for it.
fn seconds() -> Option<u64> {
    std::env::var("SILTSTONE_SECONDS").ok()?.parse().ok()
}

#[test]
fn fio_reads_back_what_four_connections_wrote_at_random_sizes() {
    if !has("fio") {
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("2G");
    let server = Server::start(&pool, &["--create", "disk=1G"]);
    let loops = seconds().map_or(1, |seconds| 1 + seconds / 20);
    let job = format!(
        "[verify]\nioengine=nbd\nuri={}\nrw=randrw\nrwmixread=30\nbsrange=512-1m\n\
         bs_unaligned=0\nblockalign=512\niodepth=32\nnumjobs=4\nsize=64m\noffset_increment=256m\n\
         verify=crc32c\nverify_fatal=1\nverify_state_save=0\nloops={loops}\n\
         buffer_compress_percentage=50\ndedupe_percentage=20\n",
        server.uri("disk")
    );
    let file = folder.text("job.fio");
    std::fs::write(&file, job).unwrap();
    let text = run("fio", ["--minimal", &file]);
    assert!(!text.contains("verify: bad"), "{text}");
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn memory_stays_within_the_budgets_while_data_passes_through() {
    const CONNECTIONS: u64 = 4;
    const INDEX_MIB: u64 = 64;
    // The full 8 GiB takes about a minute; a quarter shows the same plateau.
    let total_mib = if seconds().is_some() { 8 << 10 } else { 2 << 10 };
    let folder = Folder::new();
    let pool = folder.pool("12G");
    let server = Server::start(&pool, &["--create", "disk=64G"]);
    let early = Mutex::new(0);
    thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let (server, early) = (&server, &early);
            scope.spawn(move || {
                let mut nbd = NbdClient::connect(server.socket(), "disk").unwrap();
                let mut random = SeededRandom::new(connection);
                let mut noise = vec![0; 1 << 20];
                random.fill(&mut noise);
                let mut data = vec![0; 1 << 20];
                let share = total_mib / CONNECTIONS;
                for piece in 0..share {
                    match piece % 4 {
                        // Duplicates of other connections' pieces, half-compressible data,
                        // noise, and mostly zeros.
                        0 => SeededRandom::new(piece).fill(&mut data),
                        1 => {
                            for block in data.chunks_mut(4096) {
                                random.fill(&mut block[..1500]);
                                block[1500..].fill(piece as u8);
                            }
                        }
                        2 => {
                            data.copy_from_slice(&noise);
                            for block in data.chunks_mut(4096) {
                                random.fill(&mut block[..16]);
                            }
                        }
                        _ => {
                            data.fill(0);
                            random.fill(&mut data[..8192]);
                        }
                    }
                    let at = (connection * share + piece) * MIB;
                    nbd.write(at, &data, Durability::Later).unwrap();
                    if piece % 5 == 0 {
                        let back = random.below(piece + 1);
                        nbd.read((connection * share + back) * MIB, &mut data).unwrap();
                    }
                    if piece % 50 == 0 {
                        nbd.flush().unwrap();
                    }
                    if connection == 0 && piece == share / 4 {
                        *early.lock().unwrap() = server.peak_memory_bytes();
                    }
                }
            });
        }
    });
    let (early, peak) = (early.into_inner().unwrap(), server.peak_memory_bytes());
    println!("after a quarter {} MiB, at the end {} MiB", early >> 20, peak >> 20);
    assert!(peak < (256 + INDEX_MIB) * MIB, "the server took {} MiB", peak >> 20);
    assert!(server.stop().success());
}
