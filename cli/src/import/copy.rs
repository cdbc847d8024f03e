//! The copy of an image into a volume: one thread reads ahead, one writes, and one makes that durable.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use siltstone_engine::{Pool, Volume, stats::CounterValues};

use super::{BLOCK_BYTES, beginning::Beginning, flusher::Flusher, summary::Imported};
use crate::{
    errors::CliError,
    image::{Image, Piece},
    resume::Extent,
    session::Session,
    size::human,
    waiting,
};

/// Pieces that are read ahead of the engine.
const PIECES_AHEAD: usize = 8;
/// How often an import that waits for its image looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often people are told what was saved.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// An import under way.
pub(super) struct Import<'a> {
    pub(super) pool: &'a Pool,
    pub(super) volume: &'a Volume,
    /// The volume's.
    pub(super) identity: &'a str,
    /// The volume holds nothing but what this has written.
    pub(super) is_new: bool,
    /// The volume holds the image up to here.
    pub(super) at: u64,
    /// That is durable up to here.
    pub(super) durable_bytes: u64,
    /// Before this began, something was written in the volume behind where it began.
    pub(super) holds_more: bool,
    /// Something may be written.
    pub(super) has_begun: bool,
    /// Why it cannot go on from there later.
    pub(super) why_not_resumed: Option<String>,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    /// Bytes read from the image, but for its holes.
    pub(super) read_bytes: u64,
    /// Bytes of blocks among them that are not all zeros.
    pub(super) data_bytes: u64,
}

impl<'a> Import<'a> {
    /// The import of an image from its beginning on.
    pub(super) fn new(
        pool: &'a Pool,
        volume: &'a Volume,
        identity: &'a str,
        is_new: bool,
        beginning: Beginning,
    ) -> Self {
        let Beginning { from_bytes: at, holds_more } = beginning;
        Self {
            pool,
            volume,
            identity,
            is_new,
            at,
            durable_bytes: at,
            holds_more,
            has_begun: false,
            why_not_resumed: None,
        }
    }

    /// Copies the image from where the import is. It is durable when this returns.
    pub(super) fn run(
        &mut self,
        mut image: Image,
        session: &mut dyn Session,
    ) -> Result<Imported, CliError> {
        let name = image.name().to_owned();
        let (size_bytes, is_converted) = (image.size_bytes(), image.is_converted());
        if size_bytes.is_none() {
            self.why_not_resumed = Some("a stream cannot be read twice".into());
        }
        session.begin(size_bytes, self.at)?;
        // What the index does not know yet would be stored again.
        let warm = self.pool.wait_index_warm_async();
        waiting::unless_cancelled(warm, &session.cancellation(), Duration::ZERO)??;
        // So that what others wrote before is counted before.
        self.pool.checkpoint()?;
        let (start, before) = (Instant::now(), self.pool.counters());
        let from_bytes = self.at;
        image.prepare(from_bytes, session)?;
        let why_not = session.begin_marks(self.identity, from_bytes)?;
        self.why_not_resumed = self.why_not_resumed.take().or(why_not);
        self.has_begun = true;
        let copied = self.copy(image, &before, session)?;
        if is_converted {
            session.end_image()?;
        }
        self.volume.flush()?;
        self.pool.checkpoint()?;
        let seconds = start.elapsed().as_secs_f64();
        let image_bytes = size_bytes.unwrap_or(copied.read_bytes);
        Ok(Imported {
            image: name,
            volume: self.volume.name().into(),
            image_bytes,
            from_bytes,
            copied,
            seconds,
            before,
            after: self.pool.counters(),
        })
    }

    /// Makes durable what is there, as far as that is possible, for an import that goes on from there; how
    /// much that is.
    pub(super) fn keep(&mut self, session: &mut dyn Session) -> u64 {
        // Why the import has ended matters more than a failure here.
        if self.volume.flush().is_ok() && session.mark(self.identity, Extent::UpTo(self.at)).is_ok()
        {
            self.durable_bytes = self.at;
        }
        self.durable_bytes
    }

    fn copy(
        &mut self,
        image: Image,
        before: &CounterValues,
        session: &mut dyn Session,
    ) -> Result<Copied, CliError> {
        let (sender, pieces) = sync_channel(PIECES_AHEAD);
        let enough = AtomicBool::new(false);
        let (volume, from_bytes) = (self.volume, self.at);
        let is_resumable = image.size_bytes().is_some();
        thread::scope(|scope| {
            let enough = &enough;
            let reader = thread::Builder::new().name("image-reader".into());
            let read = move || {
                let mut sink = |piece| sender.send(Ok(piece)).is_ok();
                let is_enough = || enough.load(Ordering::Relaxed);
                if let Err(error) = image.read(from_bytes, volume, &mut sink, &is_enough) {
                    // If nobody waits for it any more, another error is being reported.
                    let _ = sender.send(Err(error));
                }
            };
            let reader = reader.spawn_scoped(scope, read);
            reader.map_err(|source| CliError::System { action: "start a thread", source })?;
            let flusher = is_resumable.then(|| Flusher::start(scope, volume)).transpose();
            let written = flusher
                .and_then(|mut flusher| self.write(&pieces, flusher.as_mut(), before, session));
            enough.store(true, Ordering::Relaxed);
            // The reader may be waiting for room in it.
            drop(pieces);
            written
        })
    }

    fn write(
        &mut self,
        pieces: &Receiver<Result<Piece, CliError>>,
        mut flusher: Option<&mut Flusher>,
        before: &CounterValues,
        session: &mut dyn Session,
    ) -> Result<Copied, CliError> {
        let mut copied = Copied::default();
        let mut next_word = Instant::now() + TELL_EVERY;
        loop {
            let now = Instant::now();
            if now >= next_word {
                self.tell_savings(&copied, before, session);
                next_word = now + TELL_EVERY;
            }
            session.advance(self.at, None)?;
            if let Some(flusher) = &mut flusher
                && let Some(durable) = flusher.durable(self.at)?
            {
                session.mark(self.identity, Extent::UpTo(durable))?;
                self.durable_bytes = durable;
            }
            let piece = match pieces.recv_timeout(LOOK_EVERY) {
                Ok(piece) => piece?,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(copied),
            };
            let (start, end) = match piece {
                Piece::Data(offset_bytes, mut buffer, len_bytes) => {
                    copied.read_bytes += len_bytes;
                    let blocks = buffer.as_mut_slice().chunks(BLOCK_BYTES as usize);
                    let blocks = blocks.filter(|block| block.iter().any(|byte| *byte != 0));
                    copied.data_bytes += blocks.map(|block| block.len() as u64).sum::<u64>();
                    pollster::block_on(self.volume.write_buffer(buffer))?;
                    (offset_bytes, offset_bytes + len_bytes)
                }
                Piece::Hole(range) => {
                    if !self.is_new {
                        self.volume.write_zeroes(range.start, range.end - range.start)?;
                    }
                    (range.start, range.end)
                }
            };
            // Pieces come in order; one that did not would not count as a beginning of the image.
            if start == self.at {
                self.at = end;
            }
        }
    }

    /// Shows what was saved until now, as far as it can be told whose it is.
    fn tell_savings(&self, copied: &Copied, before: &CounterValues, session: &mut dyn Session) {
        let now = self.pool.counters();
        if now.written_bytes - before.written_bytes != copied.read_bytes {
            return session.remark("");
        }
        let duplicate_bytes = (now.linked_blocks - before.linked_blocks) * BLOCK_BYTES;
        let stored_bytes = now.unit_bytes - before.unit_bytes;
        session.remark(&format!(
            "{} data, {} of it duplicates, {} stored",
            human(copied.data_bytes),
            human(duplicate_bytes),
            human(stored_bytes)
        ));
    }
}
