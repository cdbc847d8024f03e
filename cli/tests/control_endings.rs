//! Whatever happens to a command that a server carries out, to its terminal, to the server, and
//! whoever else comes to the control socket: the pool and its clients are not harmed.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs::{self, File},
    io::{IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, connect, recv, sendmsg, socket_with,
    },
    process::{Pid, Signal, kill_process},
};
use serde_json::{Value, json};
use siltstone_torture::kill::nbd_client::{Durability, NbdClient};
use support::{Folder, Outcome, Server, command, siltstone};

/// A connection to a control socket, in the hands of somebody who does not keep to the protocol.
struct Hostile(OwnedFd);

impl Hostile {
    fn connect(folder: &Folder) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        // By way of the working directory: the path may be too long.
        let directory = File::open(folder.path("")).unwrap();
        let number = directory.as_raw_fd();
        let path = format!("/proc/self/fd/{number}/pool.silt.control");
        connect(&socket, &SocketAddrUnix::new(Path::new(&path)).unwrap()).unwrap();
        Self(socket)
    }

    fn send(&self, bytes: &[u8]) {
        let mut none = SendAncillaryBuffer::default();
        // A server that has closed the connection does not take it.
        let _ = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut none, SendFlags::NOSIGNAL);
    }

    /// The next message; nothing at the end.
    fn answer(&self) -> Option<Value> {
        let mut bytes = vec![0; 64 << 10];
        match recv(&self.0, &mut bytes[..], RecvFlags::empty()) {
            Ok((0, _)) | Err(_) => None,
            Ok((len, _)) => Some(serde_json::from_slice(&bytes[..len]).unwrap()),
        }
    }

    fn answers_within(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).unwrap();
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&time)).unwrap() > 0
    }

    #[track_caller]
    fn is_refused(&self, reason: &str) {
        let answer = self.answer().unwrap();
        let sentence = answer["ended"]["failure"]["sentence"].as_str().unwrap();
        assert!(sentence.contains(reason), "{sentence}");
        assert_eq!(self.answer(), None);
    }
}

#[test]
fn nonsense_on_the_control_socket_harms_nobody() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &["--create", "disk=1M"]);
    let metadata = fs::metadata(&pool).unwrap();
    let identity = json!({ "device": metadata.dev(), "inode": metadata.ino() });
    let request = |command: Value| {
        json!({ "version": 7, "pool": identity, "command": command }).to_string().into_bytes()
    };
    let pool_argument = json!({ "path": "anything" });
    let import =
        request(json!({ "import": { "pool": pool_argument, "volume": "v", "file": "/etc/passwd",
        "each": [], "size": null, "resume": false, "force": false,
        "compression": { "level": null, "frame": null } } }));
    for (bytes, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "makes no sense"),
        (&[0xff; 5000], "makes no sense"),
        (b"{}", "makes no sense"),
        (b"{\"version\":99}", "version 7, not 99"),
        (&[b'['; 60_000], "makes no sense"),
        (&vec![b'{'; 100_000], "too large"),
        (&import[..import.len() - 1], "makes no sense"),
        (&request(json!({ "torture": {} })), "makes no sense"),
    ] {
        let hostile = Hostile::connect(&folder);
        hostile.send(bytes);
        hostile.is_refused(reason);
    }
    // One who is asked for a file, and sends something else.
    for reply in [&b"nonsense"[..], b"{\"image\":{\"size_bytes\":5}}", b"{\"target\":\"sparse\"}"] {
        let hostile = Hostile::connect(&folder);
        hostile.send(&import);
        assert_eq!(hostile.answer().unwrap(), json!({ "open_image": { "index": 0 } }));
        hostile.send(reply);
        hostile.is_refused("control socket");
    }
    // Those who say nothing, and those who leave.
    drop(Hostile::connect(&folder));
    let mut idle = Vec::new();
    loop {
        let one = Hostile::connect(&folder);
        if one.answers_within(Duration::from_millis(200)) {
            one.is_refused("16 commands already");
            break;
        }
        idle.push(one);
        assert!(idle.len() <= 16, "there is a limit");
    }
    let sentence = siltstone(["stat", &pool]).fails(1);
    assert!(sentence.contains("try again later"), "{sentence}");
    let mut client = NbdClient::connect(server.socket(), "disk").unwrap();
    client.write(0, &[1; 4096], Durability::Later).unwrap();
    client.flush().unwrap();
    drop(idle);
    server.wait_until(|| siltstone(["stat", &pool]).status.success(), "there is room again");
    assert_eq!(siltstone(["volume", "list", &pool]).succeeds().lines().count(), 2);
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}

/// An import from a pipe that stays open, after some of it has been read.
fn endless_import(pool: &str) -> Child {
    let mut import = command();
    import.args(["import", pool, "half", "-", "--size", "64M"]);
    import.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut import = import.spawn().unwrap();
    import.stdin.as_mut().unwrap().write_all(&vec![5; 3 << 20]).unwrap();
    import
}

fn wait_for_half(server: &Server, pool: &str) {
    let is_there = || siltstone(["volume", "list", pool]).succeeds().contains("half");
    server.wait_until(is_there, "the volume is there");
}

/// What is left of a child that is to end by itself, while its standard input stays open.
fn end_of(mut child: Child) -> Outcome {
    let input = child.stdin.take();
    let mut stderr = String::new();
    child.stderr.as_mut().unwrap().read_to_string(&mut stderr).unwrap();
    let outcome = Outcome { status: child.wait().unwrap(), stdout: String::new(), stderr };
    drop(input);
    outcome
}

#[test]
fn an_import_whose_command_is_killed_or_interrupted_leaves_no_volume() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let server = Server::start(&pool, &[]);
    let mut killed = endless_import(&pool);
    let input = killed.stdin.take();
    wait_for_half(&server, &pool);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let is_gone = || !siltstone(["volume", "list", &pool]).succeeds().contains("half");
    server.wait_until(is_gone, "the volume is gone, though the pipe is open still");
    drop(input);

    let interrupted = endless_import(&pool);
    wait_for_half(&server, &pool);
    kill_process(Pid::from_child(&interrupted), Signal::INT).unwrap();
    assert_eq!(end_of(interrupted).fails(130), "interrupted");
    assert!(is_gone(), "when the command has ended, so it has at the server");
    assert!(server.stop().success());
    // And without a server.
    let interrupted = endless_import(&pool);
    std::thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&interrupted), Signal::TERM).unwrap();
    assert_eq!(end_of(interrupted).fails(130), "interrupted");
    assert!(is_gone());
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn an_export_that_nobody_reads_ends_with_its_command() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &["--create", "disk=64M", "--log-level", "debug"]);
    let mut export = command();
    export.args(["export", &pool, "disk", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut export = export.spawn().unwrap();
    let unread = export.stdout.take().unwrap();
    server.wait_for_log("'export disk' begins");
    export.kill().unwrap();
    export.wait().unwrap();
    server.wait_for_log("'export disk' has failed: ");
    drop(unread);
    assert!(server.stop().success());
}

#[test]
fn a_server_stops_in_the_middle_of_commands_and_closes_its_pool() {
    let folder = Folder::new();
    let pool = folder.pool("256M");
    fs::write(folder.path("image"), vec![3; 8 << 20]).unwrap();
    siltstone(["import", &pool, "disk", &folder.text("image")]).succeeds();
    let server = Server::start(&pool, &["--log-level", "debug"]);
    let import = endless_import(&pool);
    wait_for_half(&server, &pool);
    // At this rate, one step takes ten minutes.
    let mut scrub = command();
    scrub.args(["scrub", &pool, "--rate", "1K"]).stdin(Stdio::null());
    let scrub = scrub.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_for_log("'scrub' begins");
    let log = server.stop_for_log();
    assert!(log.contains("closed the pool"), "{log}");
    assert_eq!(end_of(import).fails(1), "the pool's server is stopping");
    assert_eq!(end_of(scrub).fails(1), "the pool's server is stopping");
    let list = siltstone(["volume", "list", &pool]).succeeds();
    assert!(list.contains("disk") && !list.contains("half"), "{list}");
    siltstone(["check", &pool]).succeeds();

    let server = Server::start(&pool, &[]);
    let import = endless_import(&pool);
    wait_for_half(&server, &pool);
    server.kill();
    let sentence = end_of(import).fails(1);
    assert!(sentence.contains("has ended before the command did"), "{sentence}");
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn a_slow_scrub_is_interrupted_at_once() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    fs::write(folder.path("image"), vec![3; 1 << 20]).unwrap();
    siltstone(["import", &pool, "disk", &folder.text("image")]).succeeds();
    let server = Server::start(&pool, &["--log-level", "debug"]);
    let mut scrub = command();
    scrub.args(["scrub", &pool, "--rate", "1K"]).stdin(Stdio::null());
    let scrub = scrub.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_for_log("'scrub' begins");
    // It catches signals once it has been told that it is under way.
    std::thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&scrub), Signal::INT).unwrap();
    assert_eq!(end_of(scrub).fails(130), "interrupted");
    assert!(server.stop().success());
}
