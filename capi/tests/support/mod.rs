//! The C compiler, and where the libraries are.
#![allow(dead_code, unreachable_pub)] // Every test program uses its own part of this.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A file of this crate.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The folder in which Cargo has put the libraries that it built with this test.
pub fn built() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().to_owned()
}

/// What the static library needs besides itself: as in the pkg-config file that `install.sh` makes.
pub const STATIC_NEEDS: [&str; 6] = ["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"];

/// The C compiler, told to take no doubtful program.
pub fn compiler() -> Command {
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    command.args(["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-g"]);
    command.arg("-I").arg(file("include"));
    command
}

/// Runs a command to its good end; returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    text
}

/// Whether a program is there.
pub fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|path| path.join(program).exists()));
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}
