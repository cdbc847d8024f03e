//! A server that is restarted under clients that come back by themselves: all that they notice is a
//! pause. Each write is read back, at once and at the end.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use siltstone_torture::kill::nbd_client::{Durability, NbdClient};
use support::{Folder, Server, has};
use tempfile::TempDir;

/// What one write covers.
const PIECE_BYTES: u64 = 64 << 10;
/// Pieces of the volume; each is written many times.
const PIECES: usize = 64;
/// Writes between two restarts, at the least.
const WRITES_BETWEEN: usize = 30;
const VOLUME: [&str; 2] = ["--create", "disk=4M"];

/// A client that writes and reads pieces, each filled with one byte, and fails if anything fails.
trait Client: Send {
    fn write(&mut self, piece: usize, byte: u8);
    fn verify(&mut self, piece: usize, byte: u8);
}

/// Writes and verifies without a break while the server is ended three times, and started again on
/// the same socket.
fn restart_under(
    pool: &str,
    socket: &str,
    client: impl FnOnce() -> Box<dyn Client>,
    end: impl Fn(Server),
) {
    let listen = format!("unix:{socket}");
    let start = || Server::start(pool, &[&VOLUME[..], &["--listen", &listen]].concat());
    let mut server = start();
    let mut client = client();
    let (written, is_enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let contents = Mutex::new([0; PIECES]);
    let server = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            while !is_enough.load(Ordering::Relaxed) {
                let number = written.load(Ordering::Relaxed);
                let (piece, byte) = (number * 7 % PIECES, (number % 251) as u8 + 1);
                client.write(piece, byte);
                client.verify(piece, byte);
                contents.lock().unwrap()[piece] = byte;
                written.fetch_add(1, Ordering::Relaxed);
            }
            for (piece, byte) in contents.lock().unwrap().iter().enumerate() {
                client.verify(piece, *byte);
            }
        });
        let mut goal = 0;
        for _ in 0..3 {
            goal = wait_for(&written, goal + WRITES_BETWEEN, &work);
            end(server);
            server = start();
        }
        wait_for(&written, goal + WRITES_BETWEEN, &work);
        is_enough.store(true, Ordering::Relaxed);
        work.join().unwrap();
        server
    });
    assert!(server.stop().success());
}

/// Waits until so much was written; fails if the client has.
fn wait_for<T>(
    written: &AtomicUsize,
    goal: usize,
    work: &std::thread::ScopedJoinHandle<'_, T>,
) -> usize {
    loop {
        let now = written.load(Ordering::Relaxed);
        if now >= goal {
            return now;
        }
        assert!(!work.is_finished(), "the client has failed");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `qemu-io`, which reconnects by itself.
struct QemuIo {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Each write is durable when it is acknowledged.
    is_durable: bool,
}

impl QemuIo {
    fn start(socket: &str, is_durable: bool) -> Self {
        let image = format!(
            "driver=nbd,server.type=unix,server.path={socket},export=disk,reconnect-delay=60"
        );
        let mut child = Command::new("qemu-io")
            .args(["--image-opts", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (commands, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, commands, answers: BufReader::new(answers), is_durable }
    }

    /// Gives a command, and waits for its answer.
    fn ask(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
        let mut said = String::new();
        while !said.contains(" ops; ") {
            let read = self.answers.read_line(&mut said).unwrap();
            let has_failed = ["failed", "rror"].iter().any(|word| said.contains(word));
            assert!(read > 0 && !has_failed, "{command}: {said}");
        }
    }
}

impl Client for QemuIo {
    fn write(&mut self, piece: usize, byte: u8) {
        let option = if self.is_durable { " -f" } else { "" };
        let offset = piece as u64 * PIECE_BYTES;
        self.ask(&format!("write{option} -P {byte} {offset} {PIECE_BYTES}"));
    }

    fn verify(&mut self, piece: usize, byte: u8) {
        let offset = piece as u64 * PIECE_BYTES;
        self.ask(&format!("read -P {byte} {offset} {PIECE_BYTES}"));
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pool, and where its server is to listen.
struct Bed {
    _folder: Folder,
    pool: String,
    sockets: TempDir,
    socket: String,
}

impl Bed {
    fn new() -> Self {
        let folder = Folder::new();
        let sockets = tempfile::tempdir().unwrap();
        let socket = sockets.path().join("nbd").to_str().unwrap().to_owned();
        Self { pool: folder.pool("128M"), _folder: folder, sockets, socket }
    }
}

#[test]
fn qemu_notices_nothing_of_a_restart_but_a_pause() {
    if !has("qemu-io") {
        return;
    }
    let Bed { pool, socket, .. } = &Bed::new();
    let client = || Box::new(QemuIo::start(socket, false)) as Box<dyn Client>;
    restart_under(pool, socket, client, |server| assert!(server.stop().success()));
}

/// A server that was killed leaves its socket behind, which the next one replaces.
#[test]
fn qemu_notices_nothing_of_a_crash_if_its_writes_are_durable() {
    if !has("qemu-io") {
        return;
    }
    let Bed { pool, socket, .. } = &Bed::new();
    let client = || Box::new(QemuIo::start(socket, true)) as Box<dyn Client>;
    restart_under(pool, socket, client, |server| {
        server.kill();
        assert!(Path::new(socket).exists(), "a stale socket");
    });
}

/// Any client, behind nbdkit with its filter `retry`.
struct BehindNbdkit {
    nbdkit: Child,
    client: NbdClient,
}

impl BehindNbdkit {
    fn start(socket: &str, own_socket: &Path) -> Self {
        let mut nbdkit = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--filter=retry", "--unix"])
            .arg(own_socket)
            .args(["nbd", &format!("socket={socket}"), "export=disk"])
            .args(["retries=60", "retry-delay=1", "retry-exponential=no"])
            .spawn()
            .unwrap();
        for _ in 0..3000 {
            if let Ok(client) = NbdClient::connect(own_socket, "") {
                return Self { nbdkit, client };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = nbdkit.kill();
        panic!("nbdkit does not serve: {:?}", nbdkit.wait());
    }
}

impl Client for BehindNbdkit {
    fn write(&mut self, piece: usize, byte: u8) {
        let data = [byte; PIECE_BYTES as usize];
        self.client.write(piece as u64 * PIECE_BYTES, &data, Durability::Later).unwrap();
    }

    fn verify(&mut self, piece: usize, byte: u8) {
        let mut data = [0; PIECE_BYTES as usize];
        self.client.read(piece as u64 * PIECE_BYTES, &mut data).unwrap();
        assert!(data == [byte; PIECE_BYTES as usize], "piece {piece}");
    }
}

impl Drop for BehindNbdkit {
    fn drop(&mut self) {
        let _ = self.nbdkit.kill();
        let _ = self.nbdkit.wait();
    }
}

#[test]
fn clients_behind_nbdkits_retry_filter_notice_nothing_of_a_restart() {
    if !has("nbdkit") {
        return;
    }
    let Bed { pool, sockets, socket, .. } = &Bed::new();
    let own_socket = sockets.path().join("nbdkit");
    let client = || Box::new(BehindNbdkit::start(socket, &own_socket)) as Box<dyn Client>;
    restart_under(pool, socket, client, |server| assert!(server.stop().success()));
}
