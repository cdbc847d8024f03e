//! Runs the real program: commands, servers that never outlive their test, disk images.
#![allow(dead_code, unreachable_pub)] // Every test program uses its own part of this.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub mod http;

pub const MIB: u64 = 1 << 20;

/// A folder for one test, on the disk that holds the build (not on a tmpfs), removed at its end.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        let parent = env!("CARGO_TARGET_TMPDIR");
        std::fs::create_dir_all(parent).unwrap();
        Self(tempfile::Builder::new().prefix("s").tempdir_in(parent).unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path as text, for command lines.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A new pool.
    pub fn pool(&self, size: &str) -> String {
        let pool = self.text("pool.silt");
        siltstone(["create", &pool, "--size", size]).succeeds();
        pool
    }

    /// A file system with real files in it, as a sparse image of 128 MiB.
    pub fn image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let files = ["/usr/lib/python3", "/usr/share/perl", "/usr/share/doc", "/etc"];
        let files = files.into_iter().find(|path| Path::new(path).is_dir()).unwrap();
        let image = path.to_str().unwrap();
        run("mke2fs", ["-q", "-F", "-t", "ext4", "-d", files, image, "128M"]);
        path
    }
}

/// The program, with no log filter from outside.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siltstone"));
    command.env_remove("RUST_LOG");
    // What imports remember is not for the one who runs tests.
    command.env("XDG_STATE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/state"));
    command
}

/// Runs the program to its end.
pub fn siltstone<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Outcome {
    Outcome::of(command().args(arguments).stdin(Stdio::null()))
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Asserts success; returns what it printed.
    #[track_caller]
    pub fn succeeds(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        assert_eq!(self.stderr, "");
        self.stdout
    }

    /// Asserts that it failed with one sentence, which it returns, and nothing else.
    #[track_caller]
    pub fn fails(self, status: i32) -> String {
        assert_eq!(self.status.code(), Some(status), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        let sentence = self.stderr.strip_prefix("siltstone: ");
        let sentence = sentence.and_then(|text| text.strip_suffix('\n'));
        let sentence = sentence.unwrap_or_else(|| panic!("not a sentence: {self:#?}"));
        assert!(!sentence.is_empty() && !sentence.contains('\n'), "{self:#?}");
        sentence.to_owned()
    }
}

/// Whether a program is there; if not, says so: tests that need it pass.
pub fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("{program} is not installed: not tested");
    }
    found
}

/// The same for a program without which continuous integration is not set up as it should be.
pub fn needs(program: &str) -> bool {
    let found = has(program);
    assert!(found || std::env::var_os("CI").is_none(), "{program} is not installed");
    found
}

/// Runs another program, which must succeed; returns what it printed.
#[track_caller]
pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(program: &str, arguments: I) -> String {
    let outcome = Outcome::of(Command::new(program).args(arguments).stdin(Stdio::null()));
    assert!(outcome.status.success(), "{program}: {outcome:#?}");
    outcome.stdout
}

/// Asserts that two files have the same contents.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let (mut a, mut b) = (File::open(left).unwrap(), File::open(right).unwrap());
    let len = a.metadata().unwrap().len();
    assert_eq!(len, b.metadata().unwrap().len(), "lengths of {left:?} and {right:?}");
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..len).step_by(1 << 20) {
        let count = (len - at).min(1 << 20) as usize;
        a.read_exact(&mut x[..count]).unwrap();
        b.read_exact(&mut y[..count]).unwrap();
        assert!(x[..count] == y[..count], "{left:?} and {right:?} differ in the MiB at {at}");
    }
}

/// A running `siltstone serve`, on a unix socket of its own. Dropping it kills it.
pub struct Server {
    child: Child,
    /// What it printed until it was ready.
    announcement: String,
    socket: PathBuf,
    folder: TempDir,
}

impl Server {
    /// Starts a server, and waits until it is ready. `arguments` follow the pool's path.
    pub fn start(pool: impl AsRef<Path>, arguments: &[&str]) -> Self {
        Self::start_as(command(), pool, arguments)
    }

    /// The same; `program` is the program, with what it is to find in its environment.
    pub fn start_as(mut program: Command, pool: impl AsRef<Path>, arguments: &[&str]) -> Self {
        // Short, as a socket's path must be; and away from build folders, which may be deep.
        let folder = tempfile::Builder::new().prefix("silt").tempdir().unwrap();
        let socket = folder.path().join("s");
        let log = File::create(folder.path().join("log")).unwrap();
        let mut child = program
            .arg("serve")
            .arg(pool.as_ref())
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut server = Self { child, announcement: String::new(), socket, folder };
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            server.announcement += &line;
            server.announcement.push('\n');
            if line == "ready" {
                return server;
            }
        }
        panic!("the server ended before it was ready: {}", server.log());
    }

    /// The NBD URI of a volume with a plain name.
    pub fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.socket.display())
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The most memory that the server has ever had, in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.memory_bytes("VmHWM:")
    }

    /// The memory that the server has at this moment, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.memory_bytes("VmRSS:")
    }

    fn memory_bytes(&self, which: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
    }

    /// What the server printed until it was ready.
    pub fn announcement(&self) -> &str {
        &self.announcement
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until the server has logged something, for at most half a minute.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        self.wait_until(|| self.log().contains(text), &format!("{text:?} is in the log"));
    }

    /// Waits until something is so, for at most half a minute.
    #[track_caller]
    pub fn wait_until(&self, is_so: impl Fn() -> bool, what: &str) {
        for _ in 0..3000 {
            if is_so() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("not so after half a minute: {what}. The log: {}", self.log());
    }

    /// Sends a signal, after which the server goes on.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks the server to stop, and waits for its end.
    pub fn stop(self) -> ExitStatus {
        self.end(Signal::TERM)
    }

    /// Asks the server to stop, which must go well; returns all that it has logged.
    #[track_caller]
    pub fn stop_for_log(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{}", self.log());
        self.log()
    }

    /// Ends the server at once, as a crash would.
    pub fn kill(self) -> ExitStatus {
        self.end(Signal::KILL)
    }

    /// Sends a signal, and waits for the server's end.
    pub fn end(mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let status = self.child.wait().unwrap();
        if !status.success() && signal != Signal::KILL {
            println!("the server's log: {}", self.log());
        }
        status
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Of a child that has been waited for, this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
