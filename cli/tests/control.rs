//! Commands on a pool that is being served: they do, say and fail as they do on one that is not,
//! and clients see what they change at once.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::{FileExt, PermissionsExt},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::Value;
use siltstone_torture::kill::nbd_client::{ClientError, Durability, NbdClient};
use support::{Folder, MIB, Outcome, Server, command, has, run, siltstone};

/// Runs the program in a folder, with a file as standard input if there is one.
fn run_in(folder: &Folder, input: Option<&str>, arguments: &[&str]) -> Outcome {
    let stdin =
        input.map_or_else(Stdio::null, |name| File::open(folder.path(name)).unwrap().into());
    Outcome::of(command().current_dir(folder.path("")).args(arguments).stdin(stdin))
}

/// What was said, but for how long it took, and for what depends on other users of the pool.
fn comparable(outcome: &Outcome) -> (Option<i32>, String, String) {
    let plain = |text: &str| {
        let mut plain = String::new();
        for line in text.lines() {
            // "in 0.1 s (76.3 MiB/s)", of all or "/s of data"
            let end = line.find("/s)").or(line.find("/s of data)"));
            let line = match (line.find(" s ("), end) {
                (Some(from), Some(to)) => {
                    let from = line[..from].rfind(" in ").unwrap();
                    format!("{}{}", &line[..from], &line[to..])
                }
                _ => line.to_owned(),
            };
            let is_import = line.starts_with("imported ");
            plain += if is_import { line.split("; ").next().unwrap() } else { &line };
            plain.push('\n');
        }
        plain
    };
    (outcome.status.code(), plain(&outcome.stdout), plain(&outcome.stderr))
}

/// Writes to volume 'busy' over NBD until it is told to stop, and compares what it reads.
fn keep_busy(server: &Server, stop: &AtomicBool) -> u64 {
    let mut client = NbdClient::connect(server.socket(), "busy").unwrap();
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let data = [rounds as u8 | 1; 8192];
        let offset = rounds % 256 * 8192;
        client.write(offset, &data, Durability::Later).unwrap();
        client.flush().unwrap();
        let mut back = [0; 8192];
        client.read(offset, &mut back).unwrap();
        assert_eq!(back, data);
        rounds += 1;
    }
    rounds
}

/// Stops a client also if the test fails: the end of its scope waits for it.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Commands that work and commands that fail, in an order in which they make sense; with what
/// stands on their standard input.
const COMMANDS: &[(Option<&str>, &[&str])] = &[
    (None, &["volume", "create", "pool.silt", "a disk", "--size", "10G", "--level", "-3"]),
    (None, &["volume", "create", "pool.silt", "a disk", "--size", "10G"]),
    (None, &["volume", "create", "pool.silt", "odd", "--size", "1000"]),
    (None, &["volume", "create", "pool.silt", "a/b", "--size", "1G"]),
    (None, &["volume", "create", "pool.silt", "v", "--size", "1G", "--level", "20"]),
    (None, &["volume", "list", "pool.silt"]),
    (None, &["volume", "list", "pool.silt", "--json"]),
    (None, &["volume", "resize", "pool.silt", "a disk", "--size", "1T"]),
    (None, &["volume", "resize", "pool.silt", "other", "--size", "1T"]),
    (None, &["volume", "set", "pool.silt", "a disk", "--level", "-1..9"]),
    (None, &["volume", "set", "pool.silt", "a disk", "--frame", "8K"]),
    (None, &["volume", "set", "pool.silt", "a disk"]),
    (None, &["volume", "set", "pool.silt", "a disk", "--level", "20"]),
    (None, &["volume", "set", "pool.silt", "other", "--frame", "4K"]),
    (None, &["volume", "list", "pool.silt"]),
    (None, &["import", "pool.silt", "image", "image"]),
    (None, &["import", "pool.silt", "image", "image", "--size", "64M"]),
    (None, &["import", "pool.silt", "none", "missing"]),
    (None, &["import", "pool.silt", "none", "empty"]),
    (None, &["import", "pool.silt", "none", "."]),
    (None, &["import", "pool.silt", "none", "image", "--size", "1M"]),
    (None, &["import", "pool.silt", "none", "image", "--level", "99"]),
    (Some("image"), &["import", "pool.silt", "none", "-"]),
    (Some("image"), &["import", "pool.silt", "none", "-", "--size", "1M"]),
    (Some("image"), &["import", "pool.silt", "streamed", "-", "--size", "16M"]),
    (None, &["import", "pool.silt", "image", "other-image"]),
    (None, &["import", "pool.silt", "image", "image", "--resume"]),
    (None, &["import", "pool.silt", "image", "other-image", "--force"]),
    (None, &["volume", "list", "pool.silt"]),
    (None, &["export", "pool.silt", "image", "exported"]),
    (None, &["export", "pool.silt", "image", "exported"]),
    (None, &["export", "pool.silt", "streamed", "exported", "--force"]),
    (None, &["export", "pool.silt", "streamed", "salvaged", "--salvage"]),
    (None, &["export", "pool.silt", "other", "never"]),
    (None, &["export", "pool.silt", "image", "missing/never"]),
    (None, &["export", "pool.silt", "image", "pool.silt", "--force"]),
    (None, &["export", "pool.silt", "image", "/dev/null"]),
    (None, &["snapshot", "create", "pool.silt", "image@one", "streamed@one"]),
    (None, &["snapshot", "create", "pool.silt", "image@two", "streamed@one"]),
    (None, &["snapshot", "create", "pool.silt", "image@"]),
    (None, &["snapshot", "create", "pool.silt", "other@one"]),
    (None, &["import", "pool.silt", "image", "other-image", "--resume"]),
    (None, &["import", "pool.silt", "image@one", "other-image"]),
    (None, &["import", "pool.silt", "image@new", "other-image"]),
    (None, &["export", "pool.silt", "image@one", "exported", "--force"]),
    (None, &["clone", "pool.silt", "image@one", "copy"]),
    (None, &["clone", "pool.silt", "image@one", "copy"]),
    (None, &["clone", "pool.silt", "image", "another"]),
    (None, &["export", "pool.silt", "copy", "exported", "--force"]),
    (None, &["volume", "delete", "pool.silt", "image"]),
    (None, &["volume", "resize", "pool.silt", "image@one", "--size", "1M"]),
    (None, &["volume", "set", "pool.silt", "image@one", "--frame", "4K"]),
    (None, &["snapshot", "rollback", "pool.silt", "image@one"]),
    (None, &["snapshot", "rollback", "pool.silt", "image@two"]),
    (None, &["export", "pool.silt", "image", "exported", "--force"]),
    (None, &["snapshot", "delete", "pool.silt", "streamed@one", "streamed@two"]),
    (None, &["snapshot", "delete", "pool.silt", "streamed@one"]),
    (None, &["volume", "delete", "pool.silt", "image", "--snapshots"]),
    (None, &["snapshot", "list", "pool.silt"]),
    (None, &["snapshot", "list", "pool.silt", "image"]),
    (None, &["export", "pool.silt", "copy", "exported", "--force"]),
    (None, &["volume", "delete", "pool.silt", "other"]),
    (None, &["volume", "delete", "pool.silt", "a disk"]),
    (None, &["grow", "pool.silt"]),
    (None, &["grow", "pool.silt", "--size", "255M"]),
    (None, &["grow", "pool.silt", "--size", "1T"]),
    (None, &["grow", "pool.silt", "--size", "300M"]),
    (None, &["grow", "pool.silt", "--size", "300M"]),
    (None, &["volume", "list", "pool.silt"]),
];

#[test]
fn commands_do_and_say_the_same_whether_the_pool_is_served_or_not() {
    let folders = [Folder::new(), Folder::new()];
    for folder in &folders {
        folder.pool("256M");
        fs::write(folder.path("empty"), "").unwrap();
        for (name, seed, len) in [("image", 1, 9 * MIB), ("other-image", 2, 5 * MIB + 77)] {
            let mut bytes = vec![0; len as usize];
            let hasher = blake3::Hasher::new_keyed(&[seed; 32]);
            hasher.finalize_xof().fill(&mut bytes[3 << 20..]);
            fs::write(folder.path(name), bytes).unwrap();
        }
        let busy = ["volume", "create", "pool.silt", "busy", "--size", "2M"];
        run_in(folder, None, &busy).succeeds();
    }
    let [offline, live] = &folders;
    let server = Server::start(live.path("pool.silt"), &[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| keep_busy(&server, &stop));
        let _stop = StopOnDrop(&stop);
        for (input, arguments) in COMMANDS {
            let expected = run_in(offline, *input, arguments);
            let found = run_in(live, *input, arguments);
            assert_eq!(comparable(&found), comparable(&expected), "{arguments:?}");
            for file in ["exported", "salvaged", "never"] {
                let read = |folder: &Folder| fs::read(folder.path(file)).ok();
                assert!(read(live) == read(offline), "{file} after {arguments:?}");
            }
        }
        let export = ["export", "pool.silt", "copy", "-"];
        let [expected, found] = [offline, live].map(|folder| {
            let output = command().current_dir(folder.path("")).args(export).output().unwrap();
            assert!(output.status.success());
            (output.stdout, String::from_utf8(output.stderr).unwrap())
        });
        assert!(found.0 == expected.0, "what is exported to a pipe");
        assert!(found.1.starts_with("exported volume 'copy' to standard output: 9 MiB in "));
        // What only other figures can be the same of.
        for arguments in [
            &["stat", "pool.silt"][..],
            &["stat", "pool.silt", "--quick"],
            &["scrub", "pool.silt"],
            &["gc", "pool.silt"],
        ] {
            let [expected, found] = [offline, live].map(|folder| {
                let text = run_in(folder, None, arguments).succeeds();
                let word = |line: &str| line.split_whitespace().next().map(str::to_owned);
                text.lines().map(word).collect::<Vec<_>>()
            });
            assert_eq!(found, expected, "{arguments:?}");
        }
        for arguments in [
            &["stat", "pool.silt", "--json"][..],
            &["stat", "pool.silt", "--json", "--quick"],
            &["scrub", "pool.silt", "--json"],
        ] {
            let [expected, found] = [offline, live].map(|folder| {
                let text = run_in(folder, None, arguments).succeeds();
                let report: Value = serde_json::from_str(&text).unwrap();
                report.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
            });
            assert_eq!(found, expected, "{arguments:?}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(client.join().unwrap() > 0, "somebody wrote meanwhile");
    });
    assert!(server.stop().success());
    for folder in &folders {
        assert_eq!(
            run_in(folder, None, &["volume", "list", "pool.silt"]).succeeds(),
            "NAME      SIZE    LEVELS  FRAME\nbusy      2 MiB   1..3    32K\ncopy      9 MiB   1..3    32K\n\
             streamed  16 MiB  1..3    32K\n"
        );
        run_in(folder, None, &["check", "pool.silt"]).succeeds();
    }
}

#[test]
fn a_check_says_that_the_pool_is_being_served() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &[]);
    let sentence = siltstone(["check", &pool]).fails(5);
    assert!(sentence.contains("is being served") && sentence.contains("scrub"), "{sentence}");
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn damage_is_told_live_as_offline() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let mut noise = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(folder.path("image"), &noise).unwrap();
    siltstone(["import", &pool, "disk", &folder.text("image")]).succeeds();
    let bytes = fs::read(&pool).unwrap();
    let victim = &noise[400 * 4096..][..64];
    let at = bytes.windows(64).position(|window| window == victim).unwrap();
    File::options()
        .write(true)
        .open(&pool)
        .unwrap()
        .write_all_at(&[!victim[0]], at as u64)
        .unwrap();
    let copy = folder.text("copy");
    let commands: [&[&str]; 4] = [
        &["scrub", &pool],
        &["export", &pool, "disk", &copy],
        &["export", &pool, "disk", &copy, "--salvage"],
        &["export", &pool, "disk", &copy, "--salvage", "--force"],
    ];
    let run_all = || {
        let _ = fs::remove_file(&copy);
        commands.map(|arguments| {
            let outcome = comparable(&siltstone(arguments));
            assert_eq!(outcome.0, Some(9), "{arguments:?} {outcome:?}");
            (outcome, fs::read(&copy).ok())
        })
    };
    let offline = run_all();
    let server = Server::start(&pool, &[]);
    let live = run_all();
    for ((live, offline), arguments) in live.iter().zip(&offline).zip(&commands) {
        assert_eq!(live.0, offline.0, "{arguments:?}");
        assert!(live.1 == offline.1, "what is there after {arguments:?}");
    }
    assert!(live[1].1.is_none() && live[2].1.is_some(), "what is salvaged is kept");
    assert!(server.stop().success());
}

#[test]
fn an_import_does_not_change_a_volume_under_its_clients() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    for (name, byte) in [("image", 5), ("other", 6)] {
        fs::write(folder.path(name), vec![byte; 1 << 20]).unwrap();
    }
    let import =
        |volume: &str, image: &str| siltstone(["import", &pool, volume, &folder.text(image)]);
    import("disk", "image").succeeds();
    siltstone(["snapshot", "create", &pool, "disk@one"]).succeeds();
    let server = Server::start(&pool, &["--create", "busy=1M"]);
    let mut client = NbdClient::connect(server.socket(), "disk").unwrap();
    let sentence = import("disk", "other").fails(5);
    assert!(
        sentence.contains("'disk'") && sentence.contains("disconnect them first"),
        "{sentence}"
    );
    let mut found = [0; 4096];
    client.read(0, &mut found).unwrap();
    assert_eq!(found, [5; 4096]);
    // Clients of others, and of a snapshot of it, are no hindrance.
    import("new", "other").succeeds();
    drop(client);
    let _snapshot = NbdClient::connect(server.socket(), "disk@one").unwrap();
    let _busy = NbdClient::connect(server.socket(), "busy").unwrap();
    siltstone(["import", &pool, "disk", &folder.text("other"), "--force"]).succeeds();
    let mut client = NbdClient::connect(server.socket(), "disk").unwrap();
    client.read(0, &mut found).unwrap();
    assert_eq!(found, [6; 4096]);
    assert!(server.stop().success());
}

#[test]
fn clients_see_volumes_come_grow_and_go_at_once() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let server = Server::start(&pool, &["--create", "old=1M"]);
    let open = |name: &str| NbdClient::connect(server.socket(), name);
    let mut old = open("old").unwrap();
    open("new").map(|_| ()).unwrap_err();
    siltstone(["volume", "create", &pool, "new", "--size", "2M"]).succeeds();
    let mut new = open("new").unwrap();
    assert_eq!(new.size_bytes(), 2 * MIB);
    new.write(0, &[7; 4096], Durability::Later).unwrap();
    if has("nbdinfo") {
        let uri = format!("nbd+unix:///?socket={}", server.socket().display());
        let list: Value =
            serde_json::from_str(&run("nbdinfo", ["--list", "--json", &uri])).unwrap();
        let exports = list["exports"].as_array().unwrap();
        let mut names: Vec<_> =
            exports.iter().map(|e| e["export-name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["new", "old"]);
    }

    siltstone(["volume", "resize", &pool, "new", "--size", "4M"]).succeeds();
    assert_eq!(new.size_bytes(), 2 * MIB, "a connection keeps its size");
    let mut grown = open("new").unwrap();
    assert_eq!(grown.size_bytes(), 4 * MIB);
    grown.write(3 * MIB, &[8; 4096], Durability::Later).unwrap();
    siltstone(["volume", "resize", &pool, "new", "--size", "1M", "--shrink"]).succeeds();
    let refused = grown.write(3 * MIB, &[9; 4096], Durability::Later).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused:?}");
    let mut back = [0; 4096];
    new.read(0, &mut back).unwrap();
    assert_eq!(back, [7; 4096], "what is left is as it was");

    siltstone(["volume", "delete", &pool, "new"]).succeeds();
    // ESHUTDOWN, and the end.
    let ended = new.read(0, &mut back).unwrap_err();
    assert!(matches!(ended, ClientError::Refused { errno: 108 }), "{ended:?}");
    let ended = new.read(0, &mut back).unwrap_err();
    assert!(!matches!(ended, ClientError::Refused { .. }), "the connection is closed: {ended:?}");
    open("new").map(|_| ()).unwrap_err();
    siltstone(["volume", "create", &pool, "new", "--size", "2M"]).succeeds();
    open("new").unwrap().read(0, &mut back).unwrap();
    assert_eq!(back, [0; 4096], "another volume of the same name");
    grown.read(0, &mut back).unwrap_err();
    old.write(0, &[1; 4096], Durability::Later).unwrap();
    old.flush().unwrap();
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn the_socket_is_its_users_alone_and_goes_with_the_server() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let socket = folder.path("pool.silt.control");
    let server = Server::start(&pool, &[]);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let second = ["serve", &pool, "--listen", "127.0.0.1:0", "--log-level", "off"];
    let sentence = siltstone(second).fails(5);
    assert!(sentence.contains("in use by process "), "{sentence}");
    siltstone(["volume", "create", &pool, "disk", "--size", "1M"]).succeeds();
    assert!(server.stop().success());
    assert!(!socket.exists());

    let server = Server::start(&pool, &[]);
    server.kill();
    assert!(socket.exists(), "a killed server leaves it behind");
    siltstone(["volume", "create", &pool, "other", "--size", "1M"]).succeeds();
    let server = Server::start(&pool, &[]);
    let list = siltstone(["volume", "list", &pool]).succeeds();
    assert!(list.contains("disk") && list.contains("other"), "{list}");
    assert!(server.stop().success());
    assert!(!socket.exists());
}

#[test]
fn the_socket_can_be_elsewhere_or_nowhere() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    let elsewhere = folder.text("elsewhere");
    let server = Server::start(&pool, &["--control", &elsewhere]);
    assert!(!folder.path("pool.silt.control").exists());
    siltstone(["stat", &pool]).fails(5);
    siltstone(["stat", &pool, "--control", &elsewhere]).succeeds();
    // Another pool must not be mistaken for this one.
    let other = folder.text("other.silt");
    siltstone(["create", &other, "--size", "128M"]).succeeds();
    let other_server = Server::start(&other, &[]);
    let wrong = ["volume", "create", &other, "v", "--size", "1M", "--control", &elsewhere];
    let sentence = siltstone(wrong).fails(1);
    assert!(sentence.contains("serves another pool"), "{sentence}");
    assert!(other_server.stop().success());
    assert!(server.stop().success());

    fs::write(&elsewhere, "precious").unwrap();
    let serve = ["serve", &pool, "--listen", "127.0.0.1:0", "--log-level", "off"];
    let sentence = siltstone([&serve[..], &["--control", &elsewhere]].concat()).fails(1);
    assert!(sentence.contains("is not a socket"), "{sentence}");
    assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");

    let nowhere = Server::start(&pool, &["--control", "none"]);
    assert!(!folder.path("pool.silt.control").exists());
    assert!(nowhere.stop().success());
}

/// The path of a socket can be longer than an address of one.
#[test]
fn a_pool_deep_down_is_controlled_too() {
    let folder = Folder::new();
    let deep = folder.path(&"d".repeat(200));
    fs::create_dir(&deep).unwrap();
    let pool = deep.join("pool");
    let pool = pool.to_str().unwrap();
    siltstone(["create", pool, "--size", "128M"]).succeeds();
    let server = Server::start(pool, &[]);
    siltstone(["volume", "create", pool, "disk", "--size", "1M"]).succeeds();
    assert!(server.stop().success());
}

#[test]
fn the_runtime_directory_is_used_if_the_socket_cannot_be_beside_the_pool() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    // Something else is in the place.
    fs::write(folder.path("pool.silt.control"), "precious").unwrap();
    let runtime = tempfile::Builder::new().prefix("silt").tempdir().unwrap();
    let socket = runtime.path().join("nbd");
    let mut serve = command();
    serve.args(["serve", &pool, "--stop-at-eof", "--create", "disk=1M", "--listen"]);
    serve.arg(format!("unix:{}", socket.display())).env("XDG_RUNTIME_DIR", runtime.path());
    let mut serve =
        serve.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ready = String::new();
    let mut output = BufReader::new(serve.stdout.take().unwrap());
    while !ready.ends_with("ready\n") {
        assert!(output.read_line(&mut ready).unwrap() > 0, "{ready}");
    }
    let mut list = command();
    list.args(["volume", "list", &pool]).env("XDG_RUNTIME_DIR", runtime.path());
    assert!(Outcome::of(&mut list).succeeds().contains("disk"));
    let directory = fs::metadata(runtime.path().join("siltstone")).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o700);
    drop(serve.stdin.take());
    assert!(serve.wait().unwrap().success());
    let left = fs::read_dir(runtime.path().join("siltstone")).unwrap().count();
    assert_eq!(left, 0, "the socket goes with the server");
    assert_eq!(fs::read(folder.path("pool.silt.control")).unwrap(), b"precious");
}

/// `top` says what a server does, and what bounds it; of a pool at rest there is nothing to say.
#[test]
fn top_tells_what_a_server_does_and_what_bounds_it() {
    let folder = Folder::new();
    let pool = folder.pool("128M");
    siltstone(["volume", "create", &pool, "busy", "--size", "2M"]).succeeds();
    let refused = siltstone(["top", &pool]).fails(2);
    assert!(refused.contains("is not being served, and top shows what a server does"), "{refused}");

    let server = Server::start(&pool, &[]);
    let stop = AtomicBool::new(false);
    let (said, table) = std::thread::scope(|scope| {
        let client = scope.spawn(|| keep_busy(&server, &stop));
        let said = siltstone(["top", &pool, "--count", "2", "--json"]);
        let table = siltstone(["top", &pool, "--count", "1", "--stages"]);
        // Before anything is asserted, or a failure would wait for the client for ever.
        stop.store(true, Ordering::Relaxed);
        assert!(client.join().unwrap() > 0);
        (said.succeeds(), table.succeeds())
    });
    assert!(server.stop().success());
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{said}");
    // One client that waits for each write and flush cannot keep the pipeline busy.
    let bounds = ["clients", "flushes"];
    for line in &lines {
        assert!(line["seconds"].as_f64().unwrap() > 0.5, "{line}");
        assert!(line["written_bytes_per_second"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["flushes_per_second"].as_f64().unwrap() > 0.0, "{line}");
        assert!(bounds.contains(&line["bound"].as_str().unwrap()), "{line}");
        assert_eq!(line["utilisation"].as_array().unwrap().len(), 4, "{line}");
    }
    assert!(table.trim_start().starts_with("WRITTEN"), "{table}");
    assert!(bounds.iter().any(|bound| table.contains(&format!(" {bound} "))), "{table}");
    assert!(table.contains("\n    compress "), "{table}");
}
