//! `siltstone export`.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, Scope},
    time::Instant,
};

use siltstone_engine::{EngineError, StatusRun, Volume};

use crate::{
    args::ExportArguments, errors::CliError, export_adapter::joined, image::PIECE_BYTES, open,
    output::print, progress, size::human, target::Target,
};

/// Threads that read and decompress.
const MAX_READERS: usize = 8;
/// Pieces under way for each of them.
const PIECES_PER_READER: usize = 2;
/// Runs that are asked for at a time.
const MAX_RUNS: usize = 4096;

pub(crate) fn run(arguments: &ExportArguments) -> Result<(), CliError> {
    let pool = open::open_read_only(&arguments.pool)?;
    let volume = pool.volume(&arguments.volume)?;
    let size_bytes = volume.size_bytes();
    let mut target = Target::open(arguments, size_bytes)?;
    let start = Instant::now();
    let bar = progress::bytes(Some(size_bytes));
    let copied = copy(&volume, &mut target, &|at| bar.set_position(at));
    bar.finish_and_clear();
    let data_bytes = match copied.and_then(|bytes| target.finish(size_bytes).map(|()| bytes)) {
        Ok(data_bytes) => data_bytes,
        Err(error) => {
            target.remove_if_new();
            return Err(error);
        }
    };
    pool.close()?;
    let seconds = start.elapsed().as_secs_f64();
    let text = format!(
        "exported volume '{}' to {}: {} in {seconds:.1} s ({:.0} MB/s), {} of it not zero\n",
        arguments.volume,
        target.name(),
        human(size_bytes),
        data_bytes as f64 / 1e6 / seconds.max(1e-3),
        human(data_bytes)
    );
    if target.is_stdout() {
        eprint!("{text}");
        return Ok(());
    }
    print(&text)
}

/// A part of the volume that is read at a time.
struct Piece {
    offset_bytes: u64,
    /// As long as the piece when it is read.
    memory: Vec<u8>,
    /// What is a hole in it, sorted.
    holes: Vec<Range<u32>>,
}

/// A thread that reads pieces and returns them in order.
struct Reader {
    requests: Sender<Piece>,
    answers: Receiver<Result<Piece, EngineError>>,
}

impl Reader {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, volume: &'scope Volume) -> Self {
        let (requests, to_read) = channel::<Piece>();
        let (done, answers) = channel();
        scope.spawn(move || {
            for mut piece in to_read {
                let read = read(volume, &mut piece).map(|()| piece);
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

/// Copies what is not a hole, in order; returns how much that was. Readers take turns, so that
/// their answers come in order too.
fn copy(volume: &Volume, target: &mut Target, progress: &dyn Fn(u64)) -> Result<u64, CliError> {
    let readers = thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..readers).map(|_| Reader::start(scope, volume)).collect();
        let mut allocated = Allocated::new(volume);
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
                let piece = Piece { offset_bytes, memory, holes: Vec::new() };
                // A reader that is gone has left an error, which is received in its turn.
                let _ = readers[turn].requests.send(piece);
                waiting.push_back(turn);
            }
            let Some(turn) = waiting.pop_front() else { return Ok(data_bytes) };
            let answer = readers[turn].answers.recv();
            let piece = answer.expect("a reader answers every request before it ends")?;
            data_bytes += write(&piece, target)?;
            progress(piece.offset_bytes + piece.memory.len() as u64);
            spare.push(piece.memory);
        }
    })
}

/// Writes what is between the holes of a piece.
fn write(piece: &Piece, target: &mut Target) -> Result<u64, CliError> {
    let end = piece.memory.len();
    let mut at = 0;
    let mut data_bytes = 0;
    let past_the_end = end as u32..end as u32;
    for hole in piece.holes.iter().chain([&past_the_end]) {
        let data = &piece.memory[at..hole.start as usize];
        if !data.is_empty() {
            target.write_at(piece.offset_bytes + at as u64, data)?;
            data_bytes += data.len() as u64;
        }
        at = hole.end as usize;
    }
    Ok(data_bytes)
}

/// Walks over the allocated parts of a volume.
struct Allocated<'a> {
    volume: &'a Volume,
    /// What is known of the volume from `at` on, a hole or data first.
    runs: VecDeque<StatusRun>,
    /// How far the runs reach that were asked for.
    known_bytes: u64,
    at: u64,
}

impl<'a> Allocated<'a> {
    fn new(volume: &'a Volume) -> Self {
        Self { volume, runs: VecDeque::new(), known_bytes: 0, at: 0 }
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
                    let len_bytes = self.volume.size_bytes() - self.known_bytes;
                    if len_bytes == 0 {
                        return Ok(None);
                    }
                    let status = self.volume.status(self.known_bytes, len_bytes, MAX_RUNS);
                    self.runs = pollster::block_on(status)?.into();
                    let last = self.runs.back().expect("a status is never empty");
                    self.known_bytes = last.offset_bytes + last.len_bytes;
                }
            }
        }
    }
}
