//! A server under a service manager: what it is passed, what it tells, what signals do, what it
//! logs.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use siltstone_torture::kill::nbd_client::{Durability, NbdClient};
use support::{Folder, Server, command, has, run, siltstone};

/// Stands for systemd at the other end of the notification socket.
struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        Self { folder, socket }
    }

    fn program(&self) -> Command {
        let mut program = command();
        program.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        program
    }

    /// The next message that has such a line.
    #[track_caller]
    fn wait_for(&self, line: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let len = self.socket.recv(&mut buffer).unwrap();
            let message = String::from_utf8(buffer[..len].to_vec()).unwrap();
            if message.lines().any(|found| found == line) {
                return message;
            }
        }
    }
}

#[test]
fn the_service_manager_is_told_of_start_reload_life_and_end() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let manager = Manager::new();
    let mut program = manager.program();
    program.env("WATCHDOG_USEC", "200000");
    let server = Server::start_as(program, &pool, &["--create", "disk=1G"]);
    let first = manager.wait_for("READY=1");
    assert!(first.contains(&format!("STATUS=Serving 1 volume of {pool}\n")), "{first}");
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    server.signal(Signal::HUP);
    let reloading = manager.wait_for("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.wait_for("READY=1");
    assert!(server.stop_for_log().contains("closed the pool"));
    manager.wait_for("STOPPING=1");
}

#[test]
fn the_watchdog_of_another_process_is_left_alone() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let manager = Manager::new();
    let mut program = manager.program();
    program.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let server = Server::start_as(program, &pool, &[]);
    manager.wait_for("READY=1");
    assert!(server.stop().success());
    let mut buffer = [0; 4096];
    let len = manager.socket.recv(&mut buffer).unwrap();
    assert!(buffer[..len].starts_with(b"STOPPING=1"), "the next message");
}

/// By systemd's own tool, which listens, and starts the server for the first client.
#[test]
fn sockets_that_systemd_opened_are_served_and_left_to_it() {
    if !has("systemd-socket-activate") {
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("128M");
    siltstone(["volume", "create", &pool, "disk", "--size", "64M"]).succeeds();
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("nbd");
    let (log, said) = (folder.path("log"), folder.path("said"));
    let mut manager = Command::new("systemd-socket-activate")
        .arg("--listen")
        .arg(&socket)
        .args([command().get_program().to_str().unwrap(), "serve", &pool])
        .stdin(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .stdout(fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let mut client = connect(&socket);
    client.write(0, &[7; 4096], Durability::Now).unwrap();
    let mut out = [0; 4096];
    client.read(0, &mut out).unwrap();
    assert_eq!(out, [7; 4096]);
    drop(client);
    // It has become the server. Its default address is not used beside the socket.
    kill_process(Pid::from_child(&manager), Signal::TERM).unwrap();
    let log = || fs::read_to_string(&log).unwrap();
    assert!(manager.wait().unwrap().success(), "{}", log());
    let said = fs::read_to_string(said).unwrap();
    assert!(said.starts_with(&format!("listening on unix:{}\n", socket.display())), "{said}");
    assert!(!said.contains("10809"), "{said}");
    assert!(socket.exists(), "the socket's file is the service manager's");
}

#[test]
fn sockets_that_are_no_place_for_clients_are_refused() {
    if !has("systemd-socket-activate") {
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("nbd");
    let log = folder.path("log");
    let mut manager = Command::new("systemd-socket-activate")
        .args(["--seqpacket", "--listen"])
        .arg(&socket)
        .args([command().get_program().to_str().unwrap(), "serve", &pool])
        .stdin(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let kind = rustix::net::SocketType::SEQPACKET;
    let address = rustix::net::SocketAddrUnix::new(&socket).unwrap();
    for _ in 0..3000 {
        let client = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
        if rustix::net::connect(&client, &address).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(manager.wait().unwrap().code(), Some(1));
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("siltstone: the service manager passed something other than"), "{log}");
}

/// Connects once somebody listens.
fn connect(socket: &Path) -> NbdClient {
    for _ in 0..3000 {
        if let Ok(client) = NbdClient::connect(socket, "disk") {
            return client;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("nobody listens on {socket:?} for half a minute");
}

/// SIGHUP: what can be applied is, the rest is said, and nobody who is connected notices.
#[test]
fn a_reload_changes_exports_and_log_and_keeps_connections() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let file = folder.text("pool.toml");
    fs::write(&file, "create = [\"disk=64M\"]\n").unwrap();
    let server = Server::start(&pool, &["--config", &file]);
    let connect = |name| NbdClient::connect(server.socket(), name);
    let mut client = connect("disk").unwrap();
    client.write(0, &[7; 4096], Durability::Later).unwrap();
    assert!(connect("new").is_err());
    let reloaded = |times| {
        server.signal(Signal::HUP);
        let count = |log: String| {
            log.matches("reloaded the config").count()
                + log.matches("cannot reload the config").count()
        };
        server.wait_until(|| count(server.log()) == times, "it has reloaded");
    };

    fs::write(
        &file,
        "create = [\"disk=64M\", \"new=32M\"]\nexport = [\"new\"]\nmax-connections = 5\nlog-level = \"debug\"",
    )
    .unwrap();
    reloaded(1);
    assert_eq!(connect("new").unwrap().size_bytes(), 32 << 20);
    assert!(connect("disk").is_err(), "it is not served any more");
    let log = server.log();
    assert!(log.contains("counts from the next start setting=\"max-connections\""), "{log}");
    assert!(!log.contains("setting=\"export\"") && log.contains("DEBUG"), "{log}");

    // What makes no sense changes nothing.
    fs::write(&file, "exports = [\"disk\"]").unwrap();
    reloaded(2);
    assert!(server.log().contains("did you mean 'export'?"), "{}", server.log());
    fs::write(&file, "create = [\"disk=1G\"]").unwrap();
    reloaded(3);
    assert!(server.log().contains("exists already with 64 MiB"), "{}", server.log());
    assert!(connect("disk").is_err() && connect("new").is_ok());

    fs::write(&file, "").unwrap();
    reloaded(4);
    assert!(connect("disk").is_ok() && connect("new").is_ok());
    // The first client was there all the time.
    let mut out = [0; 4096];
    client.read(0, &mut out).unwrap();
    assert_eq!(out, [7; 4096]);
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn a_reload_without_a_config_file_harms_nobody() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &["--create", "disk=64M"]);
    server.signal(Signal::HUP);
    server.wait_for_log("reloaded the config");
    NbdClient::connect(server.socket(), "disk").unwrap();
    assert!(server.stop().success());
}

/// The first signal lets clients finish; one that takes no replies would be waited for.
#[test]
fn the_second_signal_ends_a_server_at_once() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &["--create", "disk=64M"]);
    let mut client = UnixStream::connect(server.socket()).unwrap();
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting).unwrap();
    // Fixed newstyle, no padding; EXPORT_NAME.
    client.write_all(&3_u32.to_be_bytes()).unwrap();
    client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
    // Reads of more than the socket holds.
    for cookie in 0_u64..4 {
        client.write_all(&0x2560_9513_u32.to_be_bytes()).unwrap();
        client.write_all(&[0; 4]).unwrap();
        client.write_all(&cookie.to_be_bytes()).unwrap();
        client.write_all(&0_u64.to_be_bytes()).unwrap();
        client.write_all(&(16_u32 << 20).to_be_bytes()).unwrap();
    }
    client.read_exact(&mut [0; 16]).unwrap();
    server.signal(Signal::TERM);
    server.wait_for_log("stopping");
    let log = server.log();
    assert!(!log.contains("stopped serving"), "{log}");
    assert_eq!(server.end(Signal::INT).code(), Some(130));
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn a_socket_that_somebody_listens_on_is_left_to_him_and_he_is_named() {
    let folder = Folder::new();
    let (pool, other) = (folder.pool("128M"), folder.text("other.silt"));
    let server = Server::start(&pool, &[]);
    let listen = format!("unix:{}", server.socket().display());
    let serve = ["serve", &other, "--size", "128M", "--listen", &listen, "--log-level", "off"];
    let sentence = siltstone(serve).fails(1);
    let expected = format!("process {} (siltstone) is listening on unix socket", server.pid());
    assert!(sentence.starts_with(&expected), "{sentence}");
    assert!(server.stop().success());
    assert!(!fs::exists(&other).unwrap());
}

/// One line for each event that matters, and none for requests.
#[test]
fn the_log_as_json_has_a_line_for_each_event_that_matters() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &["--create", "disk=64M", "--log-format", "json"]);
    let mut client = NbdClient::connect(server.socket(), "disk").unwrap();
    client.write(0, &[1; 4096], Durability::Now).unwrap();
    let before = server.log();
    for block in 0..100 {
        client.write(block * 4096, &[2; 4096], Durability::Now).unwrap();
        client.read(block * 4096, &mut [0; 4096]).unwrap();
    }
    assert_eq!(server.log(), before);
    drop(client);
    server.wait_for_log("disconnected");
    let log = server.stop_for_log();
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let event = |message: &str| {
        let mut found = events.iter().filter(|event| event["message"] == message);
        let event = found.next().unwrap_or_else(|| panic!("{message}: {log}"));
        assert!(found.next().is_none(), "{message} twice: {log}");
        assert_eq!(event["level"], "INFO", "{event}");
        event
    };
    let opened = event("opened the pool");
    assert_eq!(opened["pool"], pool);
    assert_eq!(opened["version"], env!("CARGO_PKG_VERSION"));
    assert!(opened["milliseconds"].is_u64() && opened["timestamp"].is_string(), "{opened}");
    event("created a volume");
    event("listening");
    for connection in [event("connected"), event("disconnected")] {
        let peer = connection["peer"].as_str().unwrap();
        assert!(peer.contains(&format!("pid {}", std::process::id())), "{connection}");
        assert_eq!(connection["export"], "disk");
    }
    assert_eq!(event("disconnected")["reason"], "the client left");
    for message in ["taking commands", "stopping", "stopped serving", "closed the pool"] {
        event(message);
    }
}

#[test]
fn the_log_says_what_it_was_asked_to() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let mut program = command();
    program.env("RUST_LOG", "warn,siltstone_nbd=info");
    let log = Server::start_as(program, &pool, &[]).stop_for_log();
    assert!(log.contains("listening") && !log.contains("opened the pool"), "{log}");
    let mut program = command();
    program.env("RUST_LOG", "trace");
    let log = Server::start_as(program, &pool, &["--log-level", "warn"]).stop_for_log();
    assert_eq!(log, "", "the option counts more");
}

#[test]
fn shells_take_the_completions() {
    let bash = siltstone(["completions", "bash"]).succeeds();
    let script = format!(
        "{bash}\nCOMP_WORDS=(siltstone serve --max-c) COMP_CWORD=2\n_siltstone siltstone --max-c serve\n\
         echo \"${{COMPREPLY[@]}}\""
    );
    assert_eq!(run("bash", ["-c", &script]).trim(), "--max-connections");
    for (shell, start) in [("zsh", "#compdef siltstone"), ("fish", "# Print an optspec")] {
        let script = siltstone(["completions", shell]).succeeds();
        assert!(script.starts_with(start) && script.contains("max-connections"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page_that_can_be_set() {
    let folder = Folder::new();
    let directory = folder.text("man/pages");
    siltstone(["man", &directory]).succeeds();
    for page in
        ["siltstone", "siltstone-serve", "siltstone-volume-create", "siltstone-config-check"]
    {
        assert!(Path::new(&directory).join(format!("{page}.1")).is_file(), "{page}");
    }
    if !has("groff") {
        return;
    }
    for page in fs::read_dir(&directory).unwrap() {
        let page = page.unwrap().path();
        let text = run("groff", ["-man", "-Tutf8", "-P-cbou", "-ww", page.to_str().unwrap()]);
        assert!(text.contains("NAME") && text.contains("SYNOPSIS"), "{page:?}: {text}");
    }
}

/// systemd's own opinion of the units; of the program that they start, the one that was built.
#[test]
fn systemd_understands_the_units_and_finds_them_hardened() {
    if !has("systemd-analyze") {
        return;
    }
    let folder = Folder::new();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    for name in ["siltstone@.service", "siltstone@.socket"] {
        let unit = fs::read_to_string(units.join(name)).unwrap();
        let program = command().get_program().to_str().unwrap().to_owned();
        fs::write(folder.path(name), unit.replace("/usr/bin/siltstone", &program)).unwrap();
    }
    let service = folder.text("siltstone@.service");
    let found = support::Outcome::of(
        Command::new("systemd-analyze")
            .args(["verify", "--man=no", &service])
            .arg(folder.path("siltstone@.socket")),
    );
    assert!(found.status.success() && !found.stderr.contains("siltstone@"), "{found:#?}");
    // Of 100; what README.md says is the tenth part of it.
    run("systemd-analyze", ["security", "--offline=yes", "--threshold=15", &service]);
}
