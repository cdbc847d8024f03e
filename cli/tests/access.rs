//! Who can connect to a server, and what strangers cannot do to it.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

#[path = "../../nbd/tests/common/pki.rs"]
mod pki;
mod support;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use pki::Pki;
use rustix::process::{Resource, Rlimit, getegid, getrlimit, setrlimit};
use siltstone_device::SeededRandom;
use siltstone_torture::kill::nbd_client::{Durability, NbdClient};
use support::{Folder, Server, siltstone};

const BLOCK_BYTES: usize = 64 << 10;
const BLOCKS: u64 = 100;
const CLIENTS: u64 = 4;
/// What a half-open connection may take in the server: many times what it does take.
const HALF_OPEN_BYTES: u64 = 64 << 10;
const MAX_HALF_OPEN: usize = 64;

/// `SILTSTONE_SECONDS` asks for the longer ones.
fn strangers() -> usize {
    if std::env::var_os("SILTSTONE_SECONDS").is_some() { 1000 } else { 200 }
}

/// Writes and reads back until `end`, at least once through all blocks.
fn verify(server: &Server, client: u64, end: &AtomicBool) -> u64 {
    let mut nbd = NbdClient::connect(server.socket(), "disk").unwrap();
    let (mut data, mut back) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let mut done = 0;
    while done < BLOCKS || !end.load(Ordering::Relaxed) {
        let at = (client * BLOCKS + done % BLOCKS) * BLOCK_BYTES as u64;
        SeededRandom::new(client << 32 | done).fill(&mut data);
        nbd.write(at, &data, Durability::Later).unwrap();
        nbd.read(at, &mut back).unwrap();
        assert!(data == back, "client {client} at {at}");
        done += 1;
    }
    nbd.flush().unwrap();
    done
}

/// Lets clients end, also where the test fails: they are waited for.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn strangers_that_never_choose_an_export_do_not_harm_clients() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let bound = MAX_HALF_OPEN.to_string();
    // Fewer places for clients than there are strangers: these take none of them.
    let arguments = ["--create", "disk=64M", "--max-connections", "20", "--max-half-open", &bound];
    // Little memory that fills by and by, so that what strangers take can be told from it.
    let budgets = ["--staging", "4M", "--frame-cache", "4M", "--page-cache", "4M"];
    let timeout = ["--handshake-timeout", "1h"];
    let server = Server::start(&pool, &[&arguments[..], &budgets, &timeout].concat());
    thread::scope(|scope| {
        let server = &server;
        (0..CLIENTS).for_each(|client| {
            scope.spawn(move || verify(server, client, &AtomicBool::new(true)));
        });
    });
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let ending = End(&end);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (server, end) = (&server, &end);
                scope.spawn(move || verify(server, client, end))
            })
            .collect();
        server.wait_until(|| server.log().matches(" connected ").count() == 8, "all are connected");
        let before = server.peak_memory_bytes();
        let strangers: Vec<_> =
            (0..strangers()).map(|_| UnixStream::connect(server.socket()).unwrap()).collect();
        // A client that comes later than all of them gets in, and again, and again.
        for _ in 0..10 {
            NbdClient::connect(server.socket(), "disk").unwrap().read(0, &mut [0; 512]).unwrap();
        }
        let is_open = |stream: &&UnixStream| {
            stream.set_nonblocking(true).unwrap();
            let mut bytes = [0; 64];
            loop {
                match std::io::Read::read(&mut &**stream, &mut bytes) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        };
        let open = || strangers.iter().filter(is_open).count();
        server.wait_until(|| open() <= MAX_HALF_OPEN, "the oldest strangers are ended");
        let last = strangers.last().unwrap();
        assert!(is_open(&last), "the latest are still there");
        let taken = server.peak_memory_bytes() - before;
        println!(
            "{} half-open connections, {} of them kept: {} KiB",
            strangers.len(),
            open(),
            taken >> 10
        );
        assert!(taken <= (16 << 20) + strangers.len() as u64 * HALF_OPEN_BYTES, "{taken} bytes");
        drop(ending);
        for client in clients {
            assert!(client.join().unwrap() >= BLOCKS);
        }
    });
    assert!(server.log().contains("had not chosen an export: too many"), "{}", server.log());
    assert!(server.stop().success());
}

#[test]
fn a_client_has_as_long_to_choose_an_export_as_the_server_was_told() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let server = Server::start(&pool, &["--create", "disk=8M", "--handshake-timeout", "1s"]);
    let mut stranger = UnixStream::connect(server.socket()).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut stranger, &mut bytes).unwrap();
    assert_eq!(bytes.len(), 18, "the greeting, and no more");
    server.wait_for_log("did not end within 1000 ms");
    assert!(server.stop().success());
}

#[test]
fn unix_sockets_are_private_unless_they_are_opened_to_a_group() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let group = getegid().as_raw();
    let name = fs::read_to_string("/etc/group").unwrap();
    let name = name.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(group)).then(|| name.to_owned())
    });
    let number = group.to_string();
    let name = name.unwrap_or_else(|| number.clone());
    for (arguments, mode) in [
        (&[][..], 0o600),
        (&["--socket-group", &name], 0o660),
        (&["--socket-group", &number], 0o660),
        (&["--socket-group", &name, "--socket-mode", "0620"], 0o620),
        (&["--socket-mode", "666"], 0o666),
    ] {
        let server = Server::start(&pool, arguments);
        let metadata = fs::metadata(server.socket()).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{arguments:?}");
        assert_eq!(metadata.gid(), group);
        assert!(server.stop().success());
    }
}

#[test]
fn plaintext_for_other_machines_has_to_be_asked_for() {
    let folder = Folder::new();
    let pki = Pki::new();
    let (pool, new) = (folder.pool("256M"), folder.text("new"));
    let file = |name: &str| pki.file(name).display().to_string();
    let (certificate, key) = (file("server-cert.pem"), file("server-key.pem"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let optional = [&tls[..], &["--tls", "optional"]].concat();
    let off = [&tls[..], &["--tls", "off"]].concat();
    for more in [&[][..], &optional, &off] {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let command = ["serve", &new, "--size", "128M", "--listen", address];
            let sentence = siltstone([&command[..], more].concat()).fails(2);
            assert!(sentence.contains("clients there need no TLS"), "{sentence}");
            assert!(sentence.starts_with(address), "{sentence}");
            assert!(!fs::exists(&new).unwrap(), "nothing was made");
        }
        let more = [&["--listen", "0.0.0.0:0", "--insecure"], more].concat();
        assert!(Server::start(&pool, &more).stop().success());
    }
    let more = [&["--listen", "0.0.0.0:0"], &tls[..]].concat();
    assert!(Server::start(&pool, &more).stop().success());
    assert!(Server::start(&pool, &["--listen", "127.0.0.1:0"]).stop().success());
}

#[test]
fn what_a_server_cannot_go_by_is_refused_with_what_is_missing() {
    let folder = Folder::new();
    let pki = Pki::new();
    let new = folder.text("new");
    let file = |name: &str| pki.file(name).display().to_string();
    let (certificate, key, ca) =
        (file("server-cert.pem"), file("server-key.pem"), file("ca-cert.pem"));
    let missing = folder.text("missing.pem");
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let with_ca = [&tls[..], &["--tls-client-ca", &ca]].concat();
    let and = |more: &[&'static str]| [&with_ca[..], more].concat();
    for (arguments, status, part) in [
        (vec!["--tls", "required"], 2, "--tls needs --tls-cert and --tls-key"),
        (vec!["--tls-cert", &certificate], 2, "--tls-cert needs --tls-key"),
        (vec!["--tls-key", &key], 2, "--tls-key needs --tls-cert"),
        (vec!["--tls-client-ca", &ca], 2, "--tls-client-ca needs --tls-cert and --tls-key"),
        ([&tls[..], &["--tls-client-cert", "optional"]].concat(), 2, "needs --tls-client-ca"),
        ([&tls[..], &["--allow", "disk=alice"]].concat(), 2, "--allow needs --tls-client-ca"),
        (and(&["--allow", "disk=alice", "--tls", "off"]), 2, "which --tls off forbids"),
        (vec!["--socket-mode", "0660"], 2, "--socket-mode needs a unix socket"),
        (vec!["--socket-group", "0"], 2, "--socket-group needs a unix socket"),
        (
            vec!["--listen", "unix:/nowhere/s", "--socket-group", "no such group"],
            6,
            "there is no group 'no such group'",
        ),
        (vec!["--tls-cert", &missing, "--tls-key", &key], 1, "missing.pem: No such file"),
        (vec!["--tls-cert", &key, "--tls-key", &key], 1, "holds no certificate"),
        (vec!["--tls-cert", &certificate, "--tls-key", &ca], 1, "holds no private key"),
        (vec!["--tls-cert", &ca, "--tls-key", &key], 1, "does not belong to"),
    ] {
        let command = ["serve", &new, "--size", "128M", "--log-level", "off"];
        let sentence = siltstone([&command[..], &arguments].concat()).fails(status);
        assert!(sentence.contains(part), "{arguments:?}: {sentence}");
        assert!(!fs::exists(&new).unwrap(), "nothing was made");
    }
}

/// A misspelled volume would be open to everybody, or not be served.
#[test]
fn an_option_for_a_volume_that_is_not_there_is_told() {
    let folder = Folder::new();
    let pki = Pki::new();
    let pool = folder.pool("256M");
    let file = |name: &str| pki.file(name).display().to_string();
    let (certificate, key, ca) =
        (file("server-cert.pem"), file("server-key.pem"), file("ca-cert.pem"));
    let server = Server::start(
        &pool,
        &[
            ["--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &ca],
            ["--create", "disk=8M", "--allow", "disk=alice", "--allow", "dsik=alice"],
            ["--export", "disk", "--export", "diks", "--export", "disk@now"],
        ]
        .concat(),
    );
    let log = server.stop_for_log();
    for (option, times) in [("--allow", 1), ("--export", 2)] {
        let told = log.lines().filter(|line| line.contains(&format!("{option} is for a volume")));
        assert_eq!(told.count(), times, "{option}: {log}");
    }
}
