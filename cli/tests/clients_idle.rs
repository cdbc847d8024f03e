//! Many connections that do little: each must cost little.
//!
//! In a program of its own: it changes the limit of open files of its process.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use siltstone_torture::kill::nbd_client::NbdClient;
use support::{Folder, Server};

/// More than the limit under which the server is started.
const CONNECTIONS: usize = 500;
const FIRST_LIMIT: u64 = 300;
/// What an idle connection may take: some times what it does take.
const CONNECTION_BYTES: u64 = 32 << 10;
/// What the first reads of the pool may take, whoever makes them.
const SHARED_BYTES: u64 = 4 << 20;

#[test]
fn hundreds_of_idle_connections_are_served_in_little_memory() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let original = getrlimit(Resource::Nofile);
    let lowered = Rlimit { current: Some(FIRST_LIMIT), maximum: original.maximum };
    setrlimit(Resource::Nofile, lowered).unwrap();
    let most = (2 * CONNECTIONS).to_string();
    let arguments = ["--create", "disk=64M", "--max-connections", &most];
    // It inherits the low limit, and raises it.
    let server = Server::start(&pool, &arguments);
    let own = Rlimit { current: original.maximum, maximum: original.maximum };
    setrlimit(Resource::Nofile, own).unwrap();

    let connect = || NbdClient::connect(server.socket(), "disk").unwrap();
    let mut out = vec![0; 4096];
    connect().read(0, &mut out).unwrap();
    let before = server.peak_memory_bytes();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| connect()).collect();
    for client in &mut clients {
        client.read(0, &mut out).unwrap();
    }
    let taken = server.peak_memory_bytes() - before;
    let allowed = SHARED_BYTES + CONNECTIONS as u64 * CONNECTION_BYTES;
    assert!(taken <= allowed, "{CONNECTIONS} connections took {taken} bytes");
    // All are still there.
    for client in &mut clients {
        client.read(4096, &mut out).unwrap();
    }
    drop(clients);
    assert!(!server.log().contains("open files"), "{}", server.log());
    assert!(server.stop().success());
}

#[test]
fn a_limit_of_open_files_that_cannot_be_raised_is_told() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let log = support::Outcome::of(
        std::process::Command::new("sh")
            .arg("-c")
            .arg("ulimit -n 400; exec \"$0\" \"$@\" </dev/null")
            .arg(support::command().get_program())
            .args(["serve", &pool, "--create", "disk=64M", "--stop-at-eof", "--listen"])
            .arg(format!("unix:{}", folder.text("s")))
            .args(["--max-connections", "1000"]),
    );
    assert!(log.stderr.contains("leaves room for 144 connections only"), "{}", log.stderr);
    assert!(log.status.success(), "{}", log.stderr);
}
