//! The session of a command that a server carries out: its terminal is at the other end of the
//! control socket.

use std::{
    borrow::Cow,
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    message::{Answer, Failure, Opened, pieces},
    packet::{Connection, ControlError},
};
use crate::{
    args::pool::PoolCommand,
    connected::ConnectedVolumes,
    errors::CliError,
    image::{Contents, Image},
    resume::{Extent, Recalled},
    session::{Cancellation, Session},
    target::Target,
    waiting::{self, Direction},
};

/// How often progress is sent.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Of 64 bytes at most.
const IDENTITIES_PER_MESSAGE: usize = 128;

/// A client, until its command has ended.
pub(crate) struct Remote<'a> {
    connection: Arc<Connection>,
    command: &'a PoolCommand,
    connected: Arc<ConnectedVolumes>,
    stopping: Arc<AtomicBool>,
    next_progress: Instant,
}

impl<'a> Remote<'a> {
    /// The session of `command`. It is cancelled if the client leaves, or the server is `stopping`.
    pub(crate) fn new(
        connection: Arc<Connection>,
        command: &'a PoolCommand,
        connected: Arc<ConnectedVolumes>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self { connection, command, connected, stopping, next_progress: Instant::now() }
    }

    /// Tells how the command ended.
    pub(crate) fn end(&self, ended: &Result<(), CliError>) {
        let failure = ended.as_ref().err().map(Failure::from);
        if let Err(error) = self.connection.send(&Answer::Ended { failure }, None) {
            tracing::debug!(%error, "a client has left before its command ended");
        }
    }

    /// A client that cannot be told anything has left.
    fn tell(&self, answer: &Answer<'_>) -> Result<(), CliError> {
        self.connection.send(answer, None).map_err(|error| {
            tracing::debug!(%error, "a client has left");
            CliError::Interrupted
        })
    }

    /// Asks for an open file, and what it is.
    fn open(&self, request: &Answer<'_>) -> Result<(Opened, Option<File>), CliError> {
        self.tell(request)?;
        let cancelled = self.cancellation();
        let is_stopping = || self.stopping.load(Ordering::Relaxed);
        // A client may wait for as long as it likes: for the writer of a pipe, say.
        if !waiting::until(&*self.connection, Direction::Read, is_stopping) {
            return Err(CliError::Stopping);
        }
        let packet = self.connection.receive()?.ok_or(CliError::Interrupted)?;
        match packet.message()? {
            Opened::Failed(failure) => Err(failure.into()),
            opened => {
                cancelled()?;
                Ok((opened, packet.file))
            }
        }
    }
}

impl Session for Remote<'_> {
    fn print(&mut self, text: &str) -> Result<(), CliError> {
        pieces(text).try_for_each(|piece| self.tell(&Answer::Print(Cow::Borrowed(piece))))
    }

    fn note(&mut self, text: &str) -> Result<(), CliError> {
        pieces(text).try_for_each(|piece| self.tell(&Answer::Note(Cow::Borrowed(piece))))
    }

    fn begin(&mut self, bytes_total: Option<u64>, bytes_before: u64) -> Result<(), CliError> {
        self.tell(&Answer::Begin { bytes_total, bytes_before })
    }

    fn advance(&mut self, bytes: u64, bytes_total: Option<u64>) -> Result<(), CliError> {
        self.cancellation()()?;
        let now = Instant::now();
        if now >= self.next_progress {
            self.next_progress = now + PROGRESS_INTERVAL;
            // One who does not look is not waited for; one who has left is noticed above.
            let _ = self.connection.send_if_room(&Answer::Advance { bytes, bytes_total });
        }
        Ok(())
    }

    fn remark(&mut self, text: &str) {
        // As above; and it is short.
        let _ = self.connection.send_if_room(&Answer::Remark(Cow::Borrowed(text)));
    }

    fn finish(&mut self) {
        // One who has left sees no bar.
        let _ = self.tell(&Answer::Finish);
    }

    fn cancellation(&self) -> Cancellation {
        let (connection, stopping) = (Arc::clone(&self.connection), Arc::clone(&self.stopping));
        Arc::new(move || {
            if stopping.load(Ordering::Relaxed) {
                return Err(CliError::Stopping);
            }
            if connection.is_peer_gone() { Err(CliError::Interrupted) } else { Ok(()) }
        })
    }

    fn has_clients(&self, volume: &str) -> bool {
        self.connected.stay(volume)
    }

    fn open_image(&mut self, index: usize) -> Result<Image, CliError> {
        let contents = match self.open(&Answer::OpenImage { index })? {
            (Opened::Image { size_bytes }, Some(file)) => Contents::Sized { file, size_bytes },
            (Opened::Stream { as_is }, Some(file)) => Contents::Stream { file, as_is },
            (Opened::Converted { size_bytes }, None) => {
                Contents::Converted { size_bytes, socket: None }
            }
            _ => return Err(ControlError::Unexpected { what: "an image was asked for" }.into()),
        };
        Ok(Image::new(self.command.file(index), contents))
    }

    fn convert_image(&mut self, from_bytes: u64) -> Result<UnixStream, CliError> {
        match self.open(&Answer::ConvertImage { from_bytes })? {
            (Opened::Converting, Some(socket)) => Ok(OwnedFd::from(socket).into()),
            _ => Err(ControlError::Unexpected { what: "an image was to be converted" }.into()),
        }
    }

    fn end_image(&mut self) -> Result<(), CliError> {
        match self.open(&Answer::EndImage)? {
            (Opened::Sent, None) => Ok(()),
            _ => Err(ControlError::Unexpected { what: "an image was to be converted" }.into()),
        }
    }

    fn recall(&mut self, volume: &str) -> Result<Recalled, CliError> {
        match self.open(&Answer::Recall { volume: Cow::Borrowed(volume) })? {
            (Opened::Recalled(recalled), None) => Ok(recalled),
            _ => Err(ControlError::Unexpected { what: "an earlier import was asked for" }.into()),
        }
    }

    fn begin_marks(&mut self, volume: &str, from_bytes: u64) -> Result<Option<String>, CliError> {
        match self.open(&Answer::BeginMarks { volume: Cow::Borrowed(volume), from_bytes })? {
            (Opened::Begun { why_not }, None) => Ok(why_not),
            _ => Err(ControlError::Unexpected { what: "an import was to be noted" }.into()),
        }
    }

    fn mark(&mut self, volume: &str, done: Extent) -> Result<(), CliError> {
        let mark = Answer::Mark { volume: Cow::Borrowed(volume), done };
        if done == Extent::Whole {
            return self.tell(&mark);
        }
        // The next one takes its place: one who has stopped its terminal is not waited for.
        let _ = self.connection.send_if_room(&mark);
        Ok(())
    }

    fn unfinished(&mut self, volumes: &[String]) -> Result<Vec<bool>, CliError> {
        let mut unfinished = Vec::with_capacity(volumes.len());
        for some in volumes.chunks(IDENTITIES_PER_MESSAGE) {
            match self.open(&Answer::Unfinished { volumes: Cow::Borrowed(some) })? {
                (Opened::Unfinished { volumes }, None) if volumes.len() == some.len() => {
                    unfinished.extend(volumes);
                }
                _ => return Err(ControlError::Unexpected { what: "imports were asked for" }.into()),
            }
        }
        Ok(unfinished)
    }

    fn forget(&mut self, volume: &str) -> Result<(), CliError> {
        self.tell(&Answer::Forget { volume: Cow::Borrowed(volume) })
    }

    fn open_target(
        &mut self,
        size_bytes: u64,
        resumed: Option<&str>,
    ) -> Result<(Target, u64), CliError> {
        let resumed = resumed.map(Cow::Borrowed);
        match self.open(&Answer::OpenTarget { size_bytes, resumed })? {
            (Opened::Target { kind, done_bytes }, Some(file)) => {
                Ok((Target::new(self.command.file(0), file, kind), done_bytes))
            }
            _ => Err(ControlError::Unexpected { what: "a file to write was asked for" }.into()),
        }
    }

    fn mark_target(&mut self, done_bytes: u64) -> Result<(), CliError> {
        let _ = self.connection.send_if_room(&Answer::MarkTarget { done_bytes });
        Ok(())
    }

    fn keep_target(&mut self) -> Result<(), CliError> {
        self.tell(&Answer::KeepTarget)
    }
}

impl PoolCommand {
    /// What one of the files is called that the command names; empty if it names none.
    fn file(&self, index: usize) -> &Path {
        match self {
            Self::Import(arguments) => arguments.file(index),
            Self::Export(arguments) => Some(arguments.file.as_path()),
            _ => None,
        }
        .unwrap_or(Path::new(""))
    }
}
