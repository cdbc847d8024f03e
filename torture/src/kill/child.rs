//! The program under test as a child process: started, asked, killed; never anything else.

use std::{
    fs::File,
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    Program, SnapshotChange,
    nbd_client::{ClientError, NbdClient},
};
use crate::clients::Violation;

/// A child that takes longer to come up, to end or to check a pool has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a child is asked.
const POLL: Duration = Duration::from_millis(1);
const SIGKILL: i32 = 9;
/// How much of a child's log a violation quotes, from its end.
const QUOTED_BYTES: usize = 4000;

/// Where a server and its pool are.
#[derive(Debug)]
pub(super) struct Place {
    /// The pool.
    pub(super) pool: PathBuf,
    /// The socket that it is served on.
    pub(super) socket: PathBuf,
    /// What children print.
    pub(super) log: PathBuf,
}

impl Place {
    fn spawn(&self, mut command: Command, log: &Path) -> Result<Child, Violation> {
        // What a terminal sends to this process and its children alike (Ctrl-C) is for this
        // process alone to act on. However it ends, the pipe to the child ends with it.
        command.process_group(0).stdin(Stdio::piped());
        let mut start = || {
            let log = File::create(log)?;
            command.stdout(log.try_clone()?).stderr(log).spawn()
        };
        let failed = |error| Violation(format!("a child cannot be started: {error}"));
        start().map_err(failed)
    }

    /// Adds what the server printed to what it did wrong.
    pub(super) fn quote(&self, what: impl std::fmt::Display) -> Violation {
        quote(&self.log, what)
    }

    /// Checks the whole pool, which nobody serves.
    pub(super) fn check(&self, program: &dyn Program) -> Result<(), Violation> {
        self.command(program.check(&self.pool), "the check of the pool")
    }

    /// Makes a change of snapshots, by a server if there is one.
    pub(super) fn change(
        &self,
        program: &dyn Program,
        change: &SnapshotChange<'_>,
    ) -> Result<(), Violation> {
        self.command(program.change(&self.pool, change), format!("{change:?}"))
    }

    /// Runs a command to its end, which must be a success.
    fn command(&self, command: Command, what: impl std::fmt::Display) -> Result<(), Violation> {
        let log = self.log.with_extension("command");
        let mut child = Running(self.spawn(command, &log)?);
        match child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(quote(&log, format!("{what} ended with {status}"))),
            Err(reason) => Err(quote(&log, format!("{what} {reason}"))),
        }
    }
}

/// Adds the end of a log to what its writer did wrong.
fn quote(log: &Path, what: impl std::fmt::Display) -> Violation {
    let log = std::fs::read(log).unwrap_or_default();
    let end = String::from_utf8_lossy(&log[log.len().saturating_sub(QUOTED_BYTES)..]);
    Violation(format!("{what}; the end of its log:\n{}", end.trim_end()))
}

/// A child that does not outlive this process's interest in it.
struct Running(Child);

impl Running {
    /// Waits for its end, but not for ever.
    fn wait(&mut self) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.0.try_wait();
            match status.map_err(|error| format!("cannot be waited for: {error}"))? {
                Some(status) => return Ok(status),
                None if Instant::now() >= deadline => {
                    return Err(format!("did not end within {PATIENCE:?}"));
                }
                None => thread::sleep(POLL),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Of a child that has been waited for, this does nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server.
pub(super) struct Server<'a> {
    child: Running,
    place: &'a Place,
    /// When it was started.
    begun: Instant,
}

impl<'a> Server<'a> {
    /// Starts a server, and does not wait for it.
    pub(super) fn spawn(program: &dyn Program, place: &'a Place) -> Result<Self, Violation> {
        let begun = Instant::now();
        let child = Running(place.spawn(program.serve(&place.pool, &place.socket), &place.log)?);
        Ok(Self { child, place, begun })
    }

    /// Waits until it takes clients; the first one, and how long that took from its start.
    pub(super) fn first_client(
        &mut self,
        volume: &str,
    ) -> Result<(NbdClient, Duration), Violation> {
        loop {
            match self.connect(volume) {
                Ok(client) => return Ok((client, self.begun.elapsed())),
                Err(ClientError::Connection(error)) if is_not_there(&error) => {}
                Err(error) => return Err(self.place.quote(format!("a new server: {error}"))),
            }
            if let Ok(Some(status)) = self.child.0.try_wait() {
                let text = format!("the server ended by itself while it started: {status}");
                return Err(self.place.quote(text));
            }
            if self.begun.elapsed() >= PATIENCE {
                let text = format!("the server did not come up within {PATIENCE:?}");
                return Err(self.place.quote(text));
            }
            thread::sleep(POLL);
        }
    }

    /// A client more.
    pub(super) fn connect(&self, volume: &str) -> Result<NbdClient, ClientError> {
        NbdClient::connect(&self.place.socket, volume)
    }

    /// Kills it. That it ended before, by itself, is a violation.
    pub(super) fn kill(mut self) -> Result<(), Violation> {
        let killed = self.child.0.kill().and_then(|()| self.child.0.wait());
        match killed {
            Ok(status) if status.signal() == Some(SIGKILL) => Ok(()),
            Ok(status) => Err(self.place.quote(format!("the server ended by itself: {status}"))),
            Err(error) => Err(Violation(format!("the server cannot be killed: {error}"))),
        }
    }

    /// Asks it to end, as an operator would.
    pub(super) fn stop(mut self) -> Result<(), Violation> {
        let asked = kill_process(Pid::from_child(&self.child.0), Signal::TERM);
        asked.map_err(|error| Violation(format!("the server cannot be asked to end: {error}")))?;
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.place.quote(format!("asked to end, it did with {status}"))),
            Err(reason) => Err(self.place.quote(format!("asked to end, the server {reason}"))),
        }
    }
}

/// Whether nobody listens yet: there is no socket, or only one that a killed server has left.
fn is_not_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
