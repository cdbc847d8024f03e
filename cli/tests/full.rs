//! A full pool, as its clients and its operator see it: writes fail with the error for no space, and
//! everything else works; deleting, shrinking, trimming or growing makes it take writes again, while
//! it is being served.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use serde_json::Value;
use siltstone_torture::kill::nbd_client::{ClientError, Durability, NbdClient};
use support::{Folder, MIB, Outcome, Server, has, run, siltstone};

const PIECE: u64 = 256 << 10;
/// NBD_ENOSPC.
const NO_SPACE: u32 = 28;

fn noise(piece: u64) -> Vec<u8> {
    let mut bytes = vec![0; PIECE as usize];
    let mut key = [7; 32];
    key[..8].copy_from_slice(&piece.to_le_bytes());
    blake3::Hasher::new_keyed(&key).finalize_xof().fill(&mut bytes);
    bytes
}

/// Writes pieces until one is refused for lack of space; returns its number.
fn fill(client: &mut NbdClient, mut piece: u64) -> u64 {
    loop {
        match client.write(piece * PIECE, &noise(piece), Durability::Later) {
            Ok(()) => piece += 1,
            Err(ClientError::Refused { errno: NO_SPACE }) => return piece,
            Err(error) => panic!("piece {piece}: {error}"),
        }
    }
}

fn compare(client: &mut NbdClient, pieces: std::ops::Range<u64>) {
    let mut found = vec![0; PIECE as usize];
    for piece in pieces {
        client.read(piece * PIECE, &mut found).unwrap();
        assert!(found == noise(piece), "piece {piece}");
    }
}

fn stat(pool: &str) -> Value {
    let stat: Value =
        serde_json::from_str(&siltstone(["stat", pool, "--json", "--quick"]).succeeds()).unwrap();
    let parts =
        ["stored", "garbage", "overhead", "metadata", "reserved", "pending", "free", "unusable"];
    let sum: u64 = parts.iter().map(|part| stat[format!("{part}_bytes")].as_u64().unwrap()).sum();
    assert_eq!(stat["size_bytes"].as_u64().unwrap(), sum, "{stat:#}");
    stat
}

/// A served pool of 64 MiB, full of volume 'big', with an empty volume 'other' and one 'going'.
fn full_pool(folder: &Folder) -> (String, Server, NbdClient, u64) {
    let pool = folder.pool("64M");
    let server = Server::start(
        &pool,
        &["--create", "big=1G", "--create", "other=64M", "--create", "going=64M"],
    );
    let mut going = NbdClient::connect(server.socket(), "going").unwrap();
    for piece in 0..48 {
        going.write(piece * PIECE, &noise(1000 + piece), Durability::Later).unwrap();
    }
    let mut client = NbdClient::connect(server.socket(), "big").unwrap();
    let pieces = fill(&mut client, 0);
    server.wait_for_log("writes are refused");
    (pool, server, client, pieces)
}

#[test]
fn a_full_pool_refuses_writes_and_nothing_else_until_something_is_deleted() {
    let folder = Folder::new();
    let (pool, server, mut client, pieces) = full_pool(&folder);
    assert_eq!(stat(&pool)["fullness"], "full");
    assert!(siltstone(["stat", &pool]).succeeds().contains("full: writes are refused"));
    // What a real client makes of it.
    if has("qemu-io") {
        let uri = server.uri("other");
        let write = ["-f", "raw", "-c", "write -P 9 0 1M", &uri];
        let refused = Outcome::of(std::process::Command::new("qemu-io").args(write));
        let said = refused.stdout.clone() + &refused.stderr;
        assert!(said.contains("No space left on device"), "{refused:?}");
        run("qemu-io", ["-f", "raw", "-c", "read -P 0 0 1M", "-c", "flush", &uri]);
    }
    client.flush().unwrap();
    compare(&mut client, 0..pieces);
    let mut found = [1; 4096];
    client.read(pieces * PIECE, &mut found).unwrap();
    assert_eq!(found, [0; 4096], "nothing of a refused write is seen");
    siltstone(["volume", "create", &pool, "new", "--size", "1M"]).succeeds();
    siltstone(["export", &pool, "other", &folder.text("exported")]).succeeds();
    siltstone(["scrub", &pool]).succeeds();
    assert_eq!(fill(&mut client, pieces), pieces);
    siltstone(["volume", "delete", &pool, "going"]).succeeds();
    siltstone(["gc", &pool]).succeeds();
    assert_ne!(stat(&pool)["fullness"], "full", "before anything is written");
    let more = fill(&mut client, pieces);
    assert!(more >= pieces + 40, "{pieces}, {more}");
    compare(&mut client, 0..more);
    let log = server.stop_for_log();
    assert!(log.contains("the pool takes writes again"), "{log}");
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn a_full_pool_takes_writes_again_after_a_volume_shrinks_or_is_trimmed() {
    let folder = Folder::new();
    let (pool, server, mut client, pieces) = full_pool(&folder);
    siltstone(["volume", "resize", &pool, "going", "--size", "1M", "--shrink"]).succeeds();
    let more = fill(&mut client, pieces);
    assert!(more >= pieces + 35, "{pieces}, {more}");
    // A quarter of what there is, here and there.
    for piece in (0..more).step_by(4) {
        client.trim(piece * PIECE, PIECE as usize, Durability::Later).unwrap();
    }
    let again = fill(&mut client, more);
    assert!(again >= more + more / 8, "{more}, {again}");
    let mut found = vec![1; PIECE as usize];
    for piece in 0..more {
        client.read(piece * PIECE, &mut found).unwrap();
        let expected = if piece % 4 == 0 { vec![0; PIECE as usize] } else { noise(piece) };
        assert!(found == expected, "piece {piece}");
    }
    compare(&mut client, more..again);
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn a_full_pool_that_grows_takes_writes_while_it_is_served() {
    let folder = Folder::new();
    let (pool, server, mut client, pieces) = full_pool(&folder);
    let said = siltstone(["grow", &pool, "--size", "128M"]).succeeds();
    assert_eq!(said, "the pool has 128 MiB now, 64 MiB more\n");
    assert_ne!(stat(&pool)["fullness"], "full", "before anything is written");
    if has("qemu-io") {
        let write = ["-c", "write -P 9 0 1M", "-c", "flush", "-c", "read -P 9 0 1M"];
        run("qemu-io", [&["-f", "raw"][..], &write, &[&server.uri("other")]].concat());
    }
    let more = fill(&mut client, pieces);
    assert!((more - pieces) * PIECE >= 48 * MIB, "{pieces}, {more}");
    compare(&mut client, 0..more);
    // Somebody makes the file larger, and tells the pool later.
    let file = std::fs::File::options().write(true).open(&pool).unwrap();
    file.set_len(160 * MIB).unwrap();
    assert_eq!(stat(&pool)["unused_bytes"].as_u64(), Some(32 * MIB));
    let noted = siltstone(["stat", &pool]).succeeds();
    assert!(noted.contains("the device has 32 MiB behind the pool's end: see grow"), "{noted}");
    let said = siltstone(["grow", &pool]).succeeds();
    assert_eq!(said, "the pool has 160 MiB now, 32 MiB more\n");
    let most = fill(&mut client, more);
    assert!(most > more);
    client.flush().unwrap();
    // Also after a crash.
    server.kill();
    siltstone(["check", &pool]).succeeds();
    let server = Server::start(&pool, &[]);
    let mut client = NbdClient::connect(server.socket(), "big").unwrap();
    compare(&mut client, 0..most);
    assert_eq!(siltstone(["grow", &pool]).succeeds(), "the pool has 160 MiB already\n");
    let refused = siltstone(["grow", &pool, "--size", "64M"]).fails(6);
    assert!(refused.contains("cannot shrink"), "{refused}");
    assert!(server.stop().success());
    let said = siltstone(["grow", &pool, "--size", "200M"]).succeeds();
    assert_eq!(said, "the pool has 200 MiB now, 40 MiB more\n");
    siltstone(["check", &pool]).succeeds();
}
