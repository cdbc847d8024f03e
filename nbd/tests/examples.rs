//! The custom exports of the example, through real clients. A test whose program is not installed says so
//! and passes.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

#[allow(dead_code)] // Its `main` is for who runs it by hand.
#[path = "../examples/custom_export.rs"]
mod custom_export;

use std::{path::Path, process::Command, time::Duration};

use siltstone_nbd::{Listen, Server, ServerConfig};

/// Runs a client against the example's exports; returns what it printed.
fn client(arguments: impl FnOnce(&dyn Fn(&str) -> String) -> Vec<String>) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", socket.display());
    let arguments = arguments(&uri);
    let program = Path::new("/usr/bin").join(&arguments[0]);
    if !program.exists() {
        eprintln!("SKIPPED: {} is not installed", program.display());
        return None;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listen = [Listen::Unix(socket.clone())];
    let bound = Server::bind(&listen, custom_export::catalog(), ServerConfig::default());
    let server = runtime.block_on(bound).unwrap();
    // The system's own python first: it is the one that has libnbd's module.
    let path = format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("timeout");
    command.env("PATH", path).arg("60").arg(&program).args(&arguments[1..]);
    let output = command.output().unwrap();
    runtime.block_on(server.shutdown(Duration::from_secs(5)));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?} {arguments:?}:\n{text}{errors}");
    Some(text)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

#[test]
fn both_exports_are_listed() {
    let Some(text) = client(|uri| words(&["nbdinfo", "--list", "--json", &uri("")])) else {
        return;
    };
    for part in ["\"pattern\"", "\"ram\"", "1099511627776", "67108864"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn the_pattern_is_read_at_any_byte_and_never_written() {
    let script = "\
import struct
at = (1 << 40) - 13
whole = b''.join(struct.pack('>Q', word * 8) for word in range((at - 3) // 8, 1 << 37))
assert h.pread(13, at) == whole[-13:], h.pread(13, at)
assert h.pread(8, 4096) == struct.pack('>Q', 4096)
assert h.is_read_only()
h.set_strict_mode(0)
try:
    h.pwrite(b'x', 0)
    raise SystemExit('a write was taken')
except nbd.Error as error:
    assert error.errno == 'EPERM', error.errno
print('done')
";
    if let Some(text) = client(|uri| words(&["nbdsh", "-u", &uri("pattern"), "-c", script])) {
        assert_eq!(text, "done\n");
    }
}

#[test]
fn the_ram_disk_keeps_what_is_written_and_zeroes_what_is_trimmed() {
    let script = "\
h.pwrite(b'hello' * 1000, 12345, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(5000, 12345) == b'hello' * 1000
h.zero(4096, 12345)
assert h.pread(5000, 12345) == bytes(4096) + (b'hello' * 1000)[4096:]
h.trim(8192, 12288)
assert h.pread(8192, 12288) == bytes(8192)
print('done')
";
    if let Some(text) = client(|uri| words(&["nbdsh", "-u", &uri("ram"), "-c", script])) {
        assert_eq!(text, "done\n");
    }
}

#[test]
fn qemu_writes_to_the_ram_disk_and_verifies_it() {
    let steps = ["write -P 7 1M 3M", "read -P 7 1M 3M", "write -z 2M 64k", "read -P 0 2M 64k"];
    let printed = client(|uri| {
        let mut arguments = words(&["qemu-io", "-f", "raw"]);
        arguments.extend(steps.iter().flat_map(|step| words(&["-c", step])));
        arguments.push(uri("ram"));
        arguments
    });
    if let Some(text) = printed {
        assert!(!text.contains("failed"), "{text}");
        assert_eq!(text.matches("1 ops;").count(), steps.len(), "{text}");
    }
}
