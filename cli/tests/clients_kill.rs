//! `kill -9` of the server under clients that write and flush: nothing that was acknowledged as
//! durable is lost, and a server that does lose it is found out.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    ops::ControlFlow,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use siltstone_torture::kill::{self, Limit, Plan, Program, SnapshotChange};
use support::{Folder, command, siltstone};

#[test]
fn no_durable_write_is_lost_when_the_server_is_killed() {
    let folder = Folder::new();
    let directory = folder.text("pools");
    std::fs::create_dir(&directory).unwrap();
    let text = siltstone([
        "torture",
        "--kill",
        "--kills",
        "50",
        "--seed",
        "1",
        "--jobs",
        "2",
        "--directory",
        &directory,
    ])
    .succeeds();
    assert!(text.starts_with("50 kills under load"), "{text}");
    assert!(text.ends_with(", 0 violations\n"), "{text}");
    let left = std::fs::read_dir(&directory).unwrap().count();
    assert_eq!(left, 0, "sound pools are removed");
}

/// Serves an empty pool in the place of the one that clients have written to.
struct Forgetful {
    empty: String,
    starts: AtomicU64,
}

impl Program for Forgetful {
    fn serve(&self, pool: &Path, socket: &Path) -> Command {
        let forgets = self.starts.fetch_add(1, Ordering::Relaxed) >= 10;
        let pool = if forgets { Path::new(&self.empty) } else { pool };
        let mut serve = command();
        serve.arg("serve").arg(pool).arg("--listen").arg(format!("unix:{}", socket.display()));
        serve
    }

    fn change(&self, pool: &Path, change: &SnapshotChange<'_>) -> Command {
        let mut command = command();
        command.args(change.arguments(pool));
        command
    }

    fn check(&self, pool: &Path) -> Command {
        let mut check = command();
        check.arg("check").arg(pool);
        check
    }
}

#[test]
fn a_server_that_loses_durable_writes_is_found_out_and_its_pool_is_kept() {
    let folder = Folder::new();
    let empty = folder.pool("64M");
    siltstone(["volume", "create", &empty, "disk", "--size", "16M"]).succeeds();
    let program = Forgetful { empty, starts: AtomicU64::new(0) };
    let plan = Plan { seed: 1, limit: Limit::Kills(100), jobs: 1, directory: folder.path("") };
    let outcome = kill::run(&plan, &program, |_, _| ControlFlow::Continue(())).unwrap();
    let [failure] = outcome.failures.as_slice() else { panic!("{outcome:?}") };
    // Where there was something, there are zeros.
    assert!(failure.reason.contains("found:    zeros"), "{failure}");
    assert!(failure.pool.is_file(), "{failure}");
}

#[test]
fn a_server_that_ends_by_itself_is_a_violation_that_quotes_it() {
    /// Has nothing to serve.
    struct Empty;
    impl Program for Empty {
        fn serve(&self, pool: &Path, _: &Path) -> Command {
            let mut serve = command();
            serve.arg("serve").arg(pool.with_extension("missing"));
            serve
        }

        fn change(&self, _: &Path, _: &SnapshotChange<'_>) -> Command {
            unreachable!("there is nothing to change")
        }

        fn check(&self, _: &Path) -> Command {
            unreachable!("there is nothing to check")
        }
    }
    let folder = Folder::new();
    let plan = Plan { seed: 1, limit: Limit::Kills(1), jobs: 1, directory: folder.path("") };
    let outcome = kill::run(&plan, &Empty, |_, _| ControlFlow::Continue(())).unwrap();
    let [failure] = outcome.failures.as_slice() else { panic!("{outcome:?}") };
    assert!(failure.reason.contains("does not exist"), "{failure}");
}
