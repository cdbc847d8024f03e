//! C programs on the library: the example as a user builds it, and one that calls every function, under the
//! compiler's sanitizers of addresses, leaks and undefined behaviour.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::process::Command;

use support::{STATIC_NEEDS, built, compiler, file, installed, run};

/// But for how much is free at the end.
const EXAMPLE_PRINTS: &str = "\
snapshot disk@first: 10737418240 bytes
byte 65536: 1 in the snapshot, 0 in the volume
as expected: there is no volume named 'tape' in this pool; 'siltstone volume list' shows them
the pool has 1073741824 bytes, and ";

#[test]
fn the_example_builds_against_the_installed_library_and_runs() {
    if !installed("pkg-config") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("prefix");
    run(Command::new(file("install.sh")).arg(&prefix).env("BUILT", built()));
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.args(["--cflags", "--libs", "siltstone"]);
    let flags = run(pkg_config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
    let program = folder.path().join("example");
    let mut compile = compiler();
    compile.arg("-o").arg(&program).arg(file("examples/example.c"));
    run(compile.args(flags.split_whitespace()).arg("-lpthread"));
    let mut example = Command::new(&program);
    example.env("LD_LIBRARY_PATH", prefix.join("lib")).arg(folder.path().join("pool"));
    let printed = run(&mut example);
    assert!(printed.starts_with(EXAMPLE_PRINTS), "{printed}");

    // The second time the pool is there already: a code, and the library's sentence.
    let output = example.output().unwrap();
    assert_eq!(output.status.code(), Some(siltstone::code::SILTSTONE_EXISTS));
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert!(sentence.starts_with("create: ") && sentence.contains("exists already"), "{sentence}");
}

#[test]
fn every_function_does_what_the_header_says() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("calls");
    let mut compile = compiler();
    compile.arg("-fsanitize=address,undefined").arg("-fno-sanitize-recover=all");
    compile.arg("-o").arg(&program).arg(file("tests/calls.c"));
    run(compile.arg(built().join("libsiltstone.a")).args(STATIC_NEEDS));
    let printed = run(Command::new(&program).arg(folder.path()));
    assert_eq!(printed, "all calls did what they should\n");
}

/// C++ programs include the header as it is.
#[test]
fn the_header_is_cpp_as_well() {
    if !installed("c++") {
        return;
    }
    let mut compile = Command::new("c++");
    compile.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-x", "c++"]);
    run(compile.arg(file("include/siltstone.h")));
}
