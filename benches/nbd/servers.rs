//! The two servers, each in a process of its own, and what they take of the machine.

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use siltstone_benches::program;

use crate::client;

/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Clock ticks of /proc: the same on all of Linux.
const TICKS_A_SECOND: f64 = 100.0;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A server that runs until it is dropped.
pub(crate) struct Server {
    child: Child,
    /// Siltstone's server ends when this does.
    input: Option<ChildStdin>,
    pub(crate) socket: PathBuf,
    pub(crate) export: &'static str,
}

/// How qemu-nbd gets at its file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum QemuAccess {
    /// As it does if nobody tells it: through the page cache.
    Default,
    /// Without the page cache, by io_uring.
    DirectUring,
    /// Without the page cache, by the older interface.
    DirectAio,
}

impl QemuAccess {
    pub(crate) const DIRECT: [Self; 2] = [Self::DirectUring, Self::DirectAio];

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::DirectUring => &["--cache=none", "--aio=io_uring"],
            Self::DirectAio => &["--cache=none", "--aio=native"],
        }
    }
}

/// Serves a pool.
pub(crate) fn siltstone(program: &Path, pool: &Path, options: &[&str]) -> Result<Server> {
    let socket = pool.with_extension("sock");
    let mut child = Command::new(program)
        .arg("serve")
        .arg(pool)
        .arg("--listen")
        .arg(format!("unix:{}", socket.display()))
        .args(["--control", "none", "--stop-at-eof"])
        .args(options)
        .env("RUST_LOG", "error")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let input = child.stdin.take();
    let output = child.stdout.take();
    // From here on it is ended whatever happens.
    let server = Server { child, input, socket, export: "" };
    let lines = output.map(BufReader::new).into_iter().flat_map(BufRead::lines);
    for line in lines {
        if line? == "ready" {
            return Ok(server);
        }
    }
    Err("the server did not start".into())
}

/// Serves a raw file with qemu-nbd.
pub(crate) fn qemu(file: &Path, access: QemuAccess) -> Result<Server> {
    let socket = file.with_extension("qemu.sock");
    // One that an interrupted run left behind.
    let _ = fs::remove_file(&socket);
    let child = Command::new("qemu-nbd")
        .args(["--persistent", "--shared=0", "--format=raw", "--socket"])
        .arg(&socket)
        .args(access.options())
        .arg(file)
        .spawn()
        .map_err(|error| format!("qemu-nbd, from qemu-utils, cannot be run: {error}"))?;
    let mut server = Server { child, input: None, socket, export: "" };
    let start = Instant::now();
    while let Err(error) = client::connect(&server.socket, server.export) {
        if start.elapsed() > START_TIMEOUT || server.child.try_wait()?.is_some() {
            return Err(format!("qemu-nbd does not serve: {error}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(server)
}

impl Server {
    /// The processor time that it has taken so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name before may hold anything; the 12th and 13th field behind it count.
        let fields = stat.rsplit_once(") ").ok_or("/proc/PID/stat has no name")?.1;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
        Ok(ticks.sum::<std::result::Result<f64, _>>()? / TICKS_A_SECOND)
    }

    /// The memory that it has.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        Ok(program::resident_bytes(self.child.id())?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match self.input.take() {
            Some(input) => drop(input),
            // It may have ended by itself.
            None => _ = self.child.kill(),
        }
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}
