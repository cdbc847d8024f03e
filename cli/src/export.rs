//! `siltstone export`.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, Scope},
    time::{Duration, Instant},
};

use siltstone_cursor::MapError;
use siltstone_engine::{EngineError, LostRange, Pool, StatusRun, Volume};

use crate::{
    args::pool::{ExportArguments, PoolArgument},
    errors::CliError,
    export_adapter::joined,
    image::{PIECE_BYTES, format::ImageFormat},
    on_pool::{Access, PoolOperation},
    plural::count,
    session::{Cancellation, Session},
    size::{human, per_second},
    target::{self, Target},
};

/// Threads that read and decompress.
const MAX_READERS: usize = 8;
/// Pieces under way for each of them.
const PIECES_PER_READER: usize = 2;
/// How often it is made durable, and written down, how far an export is that may be resumed.
const MARK_EVERY: Duration = Duration::from_secs(2);
/// What a salvage loses at a time.
const BLOCK_BYTES: usize = 4096;
/// Runs that are asked for at a time.
const MAX_RUNS: usize = 4096;

impl PoolOperation for ExportArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        Access::Read
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let volume = pool.volume(&self.volume)?;
        let size_bytes = volume.size_bytes();
        if self.resume && !volume.name().contains('@') {
            return Err(CliError::VolumeResumed { volume: self.volume.clone() });
        }
        if let Some(format) = ImageFormat::of_name(&self.file) {
            return Err(CliError::NotRaw { path: self.file.clone(), format });
        }
        session.begin(Some(size_bytes), 0)?;
        let identity = self.resume.then(|| volume.identity().to_string());
        let (mut target, done_bytes) = session.open_target(size_bytes, identity.as_deref())?;
        if done_bytes > 0 {
            session.begin(Some(size_bytes), done_bytes)?;
        }
        let start = Instant::now();
        let mut part = Part { volume: &volume, at: done_bytes, size_bytes, salvage: self.salvage };
        let copied = part.copy(self.resume, &mut target, session);
        session.finish();
        let copied = copied.map_err(|error| match error {
            CliError::Engine(source) if is_damage(&source) => CliError::NotSalvaged { source },
            error if self.resume => part.unfinished(error, &target, session),
            error => error,
        })?;
        session.keep_target()?;
        let seconds = start.elapsed().as_secs_f64();
        let text = copied.summary(&self.volume, target.name(), size_bytes, seconds);
        if target::is_stdout(&self.file) {
            session.note(&text)?;
        } else {
            session.print(&text)?;
        }
        if copied.lost.is_empty() {
            return Ok(());
        }
        Err(CliError::Salvaged {
            volume: self.volume.clone(),
            file: target.name().into(),
            lost_ranges: copied.lost.len(),
            lost_bytes: copied.lost.iter().map(|range| range.end - range.start).sum(),
        })
    }
}

/// What was copied, and what was not.
struct Copied {
    /// What an interrupted export had left to do.
    from_bytes: u64,
    data_bytes: u64,
    /// What could not be read, in order.
    lost: Vec<Range<u64>>,
}

impl Copied {
    fn summary(&self, volume: &str, target: &str, size_bytes: u64, seconds: f64) -> String {
        let mut text = String::new();
        for Range { start, end } in &self.lost {
            let bytes = count(end - start, "byte");
            text += &format!("lost: volume '{volume}', {bytes} at byte {start}\n");
        }
        let resumed = match self.from_bytes {
            0 => String::new(),
            from_bytes => format!(" of it from {} on", human(from_bytes)),
        };
        text + &format!(
            "exported volume '{volume}' to {target}: {}{resumed} in {seconds:.1} s ({} of data), {} of it not \
             zero\n",
            human(size_bytes),
            per_second(self.data_bytes, seconds),
            human(self.data_bytes)
        )
    }
}

/// A part of the volume that is read at a time.
struct Piece {
    offset_bytes: u64,
    /// As long as the piece when it is read.
    memory: Vec<u8>,
    /// What is a hole in it, sorted; what is lost too.
    holes: Vec<Range<u32>>,
    lost: Vec<Range<u32>>,
}

/// A thread that reads pieces and returns them in order.
struct Reader {
    requests: Sender<Piece>,
    answers: Receiver<Result<Piece, EngineError>>,
}

impl Reader {
    fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        volume: &'scope Volume,
        salvage: bool,
    ) -> Self {
        let (requests, to_read) = channel::<Piece>();
        let (done, answers) = channel();
        scope.spawn(move || {
            for mut piece in to_read {
                let read = match read(volume, &mut piece) {
                    Err(error) if salvage && is_damage(&error) => {
                        salvage_blocks(volume, &mut piece)
                    }
                    read => read,
                };
                let read = read.map(|()| piece);
                if done.send(read).is_err() {
                    break;
                }
            }
        });
        Self { requests, answers }
    }
}

fn read(volume: &Volume, piece: &mut Piece) -> Result<(), EngineError> {
    let mut holes = Vec::new();
    // A piece's length has 32 bits.
    let mut note = |start: usize, len: usize| holes.push(start as u32..(start + len) as u32);
    let reading = volume.read_noting_holes(piece.offset_bytes, &mut piece.memory, &mut note);
    pollster::block_on(reading)?;
    piece.holes = joined(holes);
    Ok(())
}

/// Whether an error says that something is lost, so that others need not be.
fn is_damage(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::BlockDamaged { .. }
            | EngineError::Map(MapError::Page { .. } | MapError::Read { .. })
    )
}

/// Reads a piece block by block, and leaves out what cannot be read.
fn salvage_blocks(volume: &Volume, piece: &mut Piece) -> Result<(), EngineError> {
    let (mut holes, mut lost) = (Vec::new(), Vec::new());
    for (at, block) in piece.memory.chunks_mut(BLOCK_BYTES).enumerate() {
        let start = at * BLOCK_BYTES;
        let range = start as u32..(start + block.len()) as u32;
        match volume.read_at(piece.offset_bytes + start as u64, block) {
            Ok(()) if block.iter().all(|byte| *byte == 0) => holes.push(range),
            Ok(()) => {}
            Err(error) if is_damage(&error) => {
                holes.push(range.clone());
                lost.push(range);
            }
            Err(error) => return Err(error),
        }
    }
    (piece.holes, piece.lost) = (joined(holes), lost);
    Ok(())
}

/// What an export has yet to copy.
struct Part<'a> {
    volume: &'a Volume,
    /// What is before this is in the target.
    at: u64,
    /// What the volume's was at the start: it may change meanwhile.
    size_bytes: u64,
    salvage: bool,
}

impl Part<'_> {
    /// Why there is no more of it, and what is there.
    fn unfinished(&self, error: CliError, target: &Target, session: &mut dyn Session) -> CliError {
        let kept = target.sync().and_then(|()| session.mark_target(self.at));
        let done_bytes = if kept.is_ok() { self.at } else { 0 };
        let (source, volume, file) =
            (Box::new(error), self.volume.name().into(), target.name().into());
        CliError::UnfinishedExport { source, file, volume, done_bytes }
    }

    /// Copies what is not a hole, in order; with `salvage`, but for what cannot be read. Readers take turns, so that
    /// their answers come in order too.
    fn copy(
        &mut self,
        is_marked: bool,
        target: &mut Target,
        session: &mut dyn Session,
    ) -> Result<Copied, CliError> {
        let Part { volume, at, size_bytes, salvage } = *self;
        let mut next_mark = Instant::now() + MARK_EVERY;
        let cancellation = session.cancellation();
        let readers = thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS);
        thread::scope(|scope| {
            let readers: Vec<_> =
                (0..readers).map(|_| Reader::start(scope, volume, salvage)).collect();
            let mut allocated = Allocated::new(volume, at..size_bytes, salvage);
            let mut lost = allocated.hidden.clone();
            let mut spare: Vec<Vec<u8>> = Vec::new();
            let mut waiting = VecDeque::new();
            let mut turns = (0..readers.len()).cycle();
            let mut data_bytes = 0;
            loop {
                while waiting.len() < readers.len() * PIECES_PER_READER
                    && let Some((offset_bytes, len)) = allocated.next_piece()?
                {
                    let mut memory = spare.pop().unwrap_or_default();
                    memory.resize(len, 0);
                    let turn = turns.next().expect("the cycle has no end");
                    let piece = Piece { offset_bytes, memory, holes: Vec::new(), lost: Vec::new() };
                    // A reader that is gone has left an error, which is received in its turn.
                    let _ = readers[turn].requests.send(piece);
                    waiting.push_back(turn);
                }
                let Some(turn) = waiting.pop_front() else {
                    target.finish(allocated.size_bytes, &cancellation)?;
                    return Ok(Copied { from_bytes: at, data_bytes, lost: united(lost) });
                };
                let answer = readers[turn].answers.recv();
                let piece = answer.expect("a reader answers every request before it ends")?;
                data_bytes += write(&piece, target, &cancellation)?;
                let from = piece.offset_bytes;
                let of_volume =
                    |range: &Range<u32>| from + u64::from(range.start)..from + u64::from(range.end);
                lost.extend(piece.lost.iter().map(of_volume));
                self.at = from + piece.memory.len() as u64;
                session.advance(self.at, None)?;
                if is_marked && Instant::now() >= next_mark {
                    target.sync()?;
                    session.mark_target(self.at)?;
                    next_mark = Instant::now() + MARK_EVERY;
                }
                spare.push(piece.memory);
            }
        })
    }
}

/// Sorts ranges and joins those that touch or overlap.
fn united(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let touch = next.start <= before.end;
        if touch {
            before.end = before.end.max(next.end);
        }
        touch
    });
    ranges
}

/// Writes what is between the holes of a piece.
fn write(piece: &Piece, target: &mut Target, cancellation: &Cancellation) -> Result<u64, CliError> {
    let end = piece.memory.len();
    let mut at = 0;
    let mut data_bytes = 0;
    let past_the_end = end as u32..end as u32;
    for hole in piece.holes.iter().chain([&past_the_end]) {
        let data = &piece.memory[at..hole.start as usize];
        if !data.is_empty() {
            target.write_at(piece.offset_bytes + at as u64, data, cancellation)?;
            data_bytes += data.len() as u64;
        }
        at = hole.end as usize;
    }
    Ok(data_bytes)
}

/// Walks over the allocated parts of a volume.
struct Allocated<'a> {
    volume: &'a Volume,
    /// What it was at the start: it may change meanwhile.
    size_bytes: u64,
    /// What is known of the volume from `at` on, a hole or data first.
    runs: VecDeque<StatusRun>,
    /// How far the runs reach that were asked for.
    known_bytes: u64,
    at: u64,
    /// Go on where the map is damaged: what is known to be hidden by that, in order, is passed
    /// over, and what else cannot be asked for is left to the reader.
    salvage: bool,
    hidden: Vec<Range<u64>>,
}

impl<'a> Allocated<'a> {
    fn new(volume: &'a Volume, range: Range<u64>, salvage: bool) -> Self {
        let Range { start: at, end: size_bytes } = range;
        let hidden = match salvage {
            true => pollster::block_on(volume.hidden_ranges()),
            false => Vec::new(),
        };
        let range = |lost: &LostRange| lost.offset_bytes..lost.offset_bytes + lost.len_bytes;
        let hidden = hidden.iter().map(range).collect();
        let runs = VecDeque::new();
        Self { volume, size_bytes, runs, known_bytes: at, at, salvage, hidden }
    }

    /// Asks for what follows the runs that are known.
    fn ask(&mut self) -> Result<(), CliError> {
        let from = self.known_bytes;
        let next = self.hidden.partition_point(|hidden| hidden.end <= from);
        let end = match self.hidden.get(next) {
            Some(hidden) if hidden.start <= from => {
                self.known_bytes = hidden.end;
                return Ok(());
            }
            Some(hidden) => hidden.start,
            None => self.size_bytes,
        };
        match pollster::block_on(self.volume.status(from, end - from, MAX_RUNS)) {
            Ok(runs) => self.runs = runs.into(),
            Err(error) if self.salvage && is_damage(&error) => {
                let (offset_bytes, len_bytes) = (from, end - from);
                self.runs = [StatusRun { offset_bytes, len_bytes, is_hole: false }].into();
            }
            Err(error) => return Err(error.into()),
        }
        let last = self.runs.back().expect("a status is never empty");
        self.known_bytes = last.offset_bytes + last.len_bytes;
        Ok(())
    }

    /// The next offset with data, and how much to read there: up to the next multiple of a
    /// piece's size, holes included, but not a hole at the end.
    fn next_piece(&mut self) -> Result<Option<(u64, usize)>, CliError> {
        let Some(start) = self.skip_to_data(self.at)? else { return Ok(None) };
        let limit = (start + 1).next_multiple_of(PIECE_BYTES);
        let mut end = start;
        while let Some(next) = self.skip_to_data(end)?
            && next < limit
        {
            let run = self.runs.front().expect("data was found in it");
            end = (run.offset_bytes + run.len_bytes).min(limit);
        }
        self.at = end;
        Ok(Some((start, (end - start) as usize)))
    }

    /// The first offset from `at` on that is no hole; its run is the first then.
    fn skip_to_data(&mut self, at: u64) -> Result<Option<u64>, CliError> {
        loop {
            match self.runs.front() {
                Some(run) if run.is_hole || run.offset_bytes + run.len_bytes <= at => {
                    self.runs.pop_front();
                }
                Some(run) => return Ok(Some(run.offset_bytes.max(at))),
                None => {
                    if self.known_bytes == self.size_bytes {
                        return Ok(None);
                    }
                    self.ask()?;
                }
            }
        }
    }
}
