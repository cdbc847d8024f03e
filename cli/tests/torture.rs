//! Torture as users meet it: what cannot be is refused, Ctrl-C ends it in order, nothing is left
//! behind.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Folder, Outcome, command, siltstone};
use tempfile::TempDir;

#[test]
fn what_only_looking_shows_to_be_impossible_is_refused() {
    let at = ["torture", "--damage", "--pool", "closed", "--at"];
    for (arguments, expected) in [
        // Seeds with few events, and with a disk that lies.
        (&["torture", "--seed", "3", "--cut", "1000000"][..], "events: it is cut at 0 to "),
        (&[&at[..], &["16777216"]].concat(), "16777216 bytes: what can be damaged is at 0 to 167"),
        (&[&at[..], &["4096", "--form", "zero-block"]].concat(), "all of it is zero"),
    ] {
        let sentence = siltstone(arguments).fails(2);
        assert!(sentence.contains(expected), "{sentence}");
    }
    let one_damaged = siltstone([&at[..], &["3"]].concat()).succeeds();
    assert!(one_damaged.contains("\n1 byte and 0 larger places "), "{one_damaged}");
}

/// Asks until there is an answer, for at most half a minute.
#[track_caller]
fn wait_for<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(answer) = answer() {
            return answer;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} has not come");
}

fn torture(arguments: &[&str]) -> Command {
    let mut torture = command();
    torture.arg("torture").args(arguments).stdin(Stdio::null());
    torture
}

/// Starts it, and waits until it would act on a SIGINT.
fn start(torture: &mut Command) -> Child {
    let child = torture.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    wait_for("the handler of signals", || {
        let status = fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        (caught & 1 << (Signal::INT.as_raw() - 1) != 0).then_some(())
    });
    child
}

fn interrupt(child: Child) -> Outcome {
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn an_interrupted_torture_says_what_it_has_done() {
    for arguments in [&[][..], &["--threads"], &["--damage"]] {
        let outcome = interrupt(start(&mut torture(arguments)));
        assert_eq!(outcome.status.code(), Some(130), "{outcome:#?}");
        assert!(outcome.stdout.ends_with(" s, interrupted, 0 violations\n"), "{outcome:#?}");
        assert_eq!(outcome.stderr, "siltstone: interrupted\n");
    }
    let outcome = interrupt(start(&mut torture(&["--json"])));
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["interrupted"], true, "{report:#}");
}

/// A directory in which servers are killed: the torture, and a pool that is being served.
fn kill_servers(directory: &Path, sockets: &TempDir) -> (Child, PathBuf) {
    fs::create_dir(directory).unwrap();
    let place = directory.to_str().unwrap();
    let mut torture = torture(&["--kill", "--jobs", "1", "--directory", place]);
    let child = start(torture.env("TMPDIR", sockets.path()));
    let pool = wait_for("a server", || {
        let folder = fs::read_dir(directory).unwrap().next()?.unwrap().path();
        let log = fs::read_to_string(folder.join("log")).ok()?;
        log.contains("ready").then(|| folder.join("pool.silt"))
    });
    (child, pool)
}

#[test]
fn an_interrupted_killer_of_servers_leaves_nothing_behind() {
    let folder = Folder::new();
    let (directory, sockets) = (folder.path("pools"), TempDir::new().unwrap());
    let (child, _) = kill_servers(&directory, &sockets);
    let outcome = interrupt(child);
    assert_eq!(outcome.status.code(), Some(130), "{outcome:#?}");
    assert!(outcome.stdout.ends_with(" s, interrupted, 0 violations\n"), "{outcome:#?}");
    for directory in [directory.as_path(), sockets.path()] {
        assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    }
}

#[test]
fn servers_end_with_a_killer_that_is_killed() {
    let folder = Folder::new();
    let sockets = TempDir::new().unwrap();
    let (mut child, pool) = kill_servers(&folder.path("pools"), &sockets);
    child.kill().unwrap();
    child.wait().unwrap();
    // A pool that is served would be in use.
    wait_for("the server's end", || {
        let outcome = siltstone([Path::new("check"), &pool]);
        assert!(outcome.status.success() || outcome.status.code() == Some(5), "{outcome:#?}");
        outcome.status.success().then_some(())
    });
}

#[test]
fn a_server_stops_in_order_when_its_input_ends_if_it_is_told_to() {
    let folder = Folder::new();
    let pool = folder.pool("64M");
    let socket = format!("unix:{}", folder.text("s"));
    let mut serve = command();
    serve.args(["serve", &pool, "--listen", &socket, "--stop-at-eof"]).stdin(Stdio::null());
    let outcome = Outcome::of(&mut serve);
    assert!(outcome.status.success(), "{outcome:#?}");
    assert!(outcome.stdout.ends_with("ready\n"), "{outcome:#?}");
    assert!(outcome.stderr.contains("closed the pool"), "{outcome:#?}");
}
