//! Work that needs a process of its own: because its memory is measured, or because it is killed.
//!
//! A child is this program again, with a hidden option that says what to do. The data for its pool comes
//! through its standard input, so that none of it is in its memory; what it measured it prints, as JSON.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    process::{self, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use siltstone_device::SeededRandom;
use siltstone_engine::{
    CreateOptions, EngineError, OpenOptions, Pool, Tuning, Volume, VolumeOptions,
};

use super::{bed::Bed, limit::PIECE_BYTES, options::Options, spread::Spread};
use crate::{data::BLOCK_BYTES, error::BenchError, report::say};

/// The pool of children, in the directory.
pub(crate) const POOL: &str = "siltstone-bench-child-pool";
/// The volume that children write.
pub(crate) const VOLUME: &str = "disk";
/// The size of the simulated pool.
const LARGE_BYTES: u64 = 100 << 40;

/// What a child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Writes what comes in, reads it back in order and at random, and says what memory that took.
    Memory,
    /// Writes what comes in and flushes, until it is killed.
    Load,
    /// Opens a simulated pool of 100 TiB, and says how long that took.
    Large,
}

/// What [`Work::Memory`] found, in bytes.
#[derive(Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Before the pool was opened.
    pub(crate) before_bytes: u64,
    /// With the pool open.
    pub(crate) open_bytes: u64,
    /// The most that there ever was.
    pub(crate) peak_bytes: u64,
}

/// What [`Work::Large`] found.
#[derive(Serialize, Deserialize)]
pub(crate) struct Large {
    /// Until the pool was open and had answered.
    pub(crate) open_seconds: f64,
    /// What the open pool takes.
    pub(crate) memory_bytes: u64,
}

/// Does a child's work.
pub(super) fn run(work: Work, options: &Options) -> Result<(), BenchError> {
    let directory = options.directory.as_deref().unwrap_or(Path::new("."));
    let seconds = Duration::from_secs_f64(options.seconds);
    match work {
        Work::Memory => memory(directory, seconds).map(|found| say(to_json(&found))),
        Work::Load => load(directory),
        Work::Large => large(directory).map(|found| say(to_json(&found))),
    }
}

fn to_json(found: &impl Serialize) -> String {
    serde_json::to_string(found).expect("numbers can be written")
}

fn memory(directory: &Path, seconds: Duration) -> Result<Memory, BenchError> {
    let before_bytes = status_bytes("VmRSS:")?;
    let pool = Pool::open(&directory.join(POOL), &OpenOptions::default())?;
    let open_bytes = status_bytes("VmRSS:")?;
    let volume = pool.volume(VOLUME)?;
    let clients = cores()?;
    let written_bytes = write_input(&pool, clients, false)?;
    pool.checkpoint()?;
    let mut out = vec![0; PIECE_BYTES];
    for at in (0..written_bytes / PIECE_BYTES as u64).map(|piece| piece * PIECE_BYTES as u64) {
        volume.read_at(at, &mut out)?;
    }
    let end = Instant::now() + seconds;
    thread::scope(|scope| {
        let read = |seed| {
            let (volume, mut random, mut out) =
                (&volume, SeededRandom::new(seed), [0; BLOCK_BYTES]);
            scope.spawn(move || {
                while Instant::now() < end {
                    let block = random.below(written_bytes / BLOCK_BYTES as u64);
                    volume.read_at(block * BLOCK_BYTES as u64, &mut out)?;
                }
                Ok::<(), EngineError>(())
            })
        };
        let readers: Vec<_> = (0..clients as u64).map(read).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a reader returns"))
    })?;
    Ok(Memory { before_bytes, open_bytes, peak_bytes: status_bytes("VmHWM:")? })
}

fn load(directory: &Path) -> Result<(), BenchError> {
    let pool = Pool::open(&directory.join(POOL), &OpenOptions::default())?;
    // Whoever waits to kill this knows by the line that it is at work.
    say("open");
    write_input(&pool, cores()?, true)?;
    Ok(())
}

/// Writes standard input to the volume in its order, around and around, and flushes now and then if that is
/// wanted. Returns how much there was.
fn write_input(pool: &Pool, clients: usize, flushes: bool) -> Result<u64, BenchError> {
    const PIECES_A_FLUSH: u64 = 64;
    let volume = pool.volume(VOLUME)?;
    let pieces = volume.size_bytes() / PIECE_BYTES as u64;
    let input = Mutex::new((io::stdin(), 0));
    let client = || -> Result<(), BenchError> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let number = {
                let mut input = input.lock();
                match input.0.read_exact(&mut piece) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    read => read.map_err(|source| system("read standard input", source))?,
                }
                input.1 += 1;
                input.1 - 1
            };
            volume.write_at(number % pieces * PIECE_BYTES as u64, &piece)?;
            if flushes && number % PIECES_A_FLUSH == 0 {
                volume.flush()?;
            }
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client returns"))
    })?;
    pool.flush()?;
    let written = input.lock().1;
    Ok(written.min(pieces) * PIECE_BYTES as u64)
}

fn large(directory: &Path) -> Result<Large, BenchError> {
    let device = Spread::new(directory, LARGE_BYTES)?;
    Pool::create_pretended_on(device.clone(), &CreateOptions::default())?;
    // What is there to be indexed is pretended, too.
    let tuning = Tuning { warm_index: false, ..Tuning::default() };
    let options = OpenOptions { tuning, ..OpenOptions::default() };
    let before_bytes = status_bytes("VmRSS:")?;
    let start = Instant::now();
    let pool = Pool::open_on(device, None, &options)?;
    let volume = pool.create_volume(VOLUME, &VolumeOptions::new(1 << 30))?;
    answer(&volume)?;
    let open_seconds = start.elapsed().as_secs_f64();
    let memory_bytes = status_bytes("VmRSS:")?.saturating_sub(before_bytes);
    // Its process ends: nothing of the pool is kept.
    Ok(Large { open_seconds, memory_bytes })
}

/// A read and a write, answered.
pub(crate) fn answer(volume: &Volume) -> Result<(), EngineError> {
    let mut block = [0; BLOCK_BYTES];
    volume.read_at(0, &mut block)?;
    volume.write_at(0, &block)
}

fn cores() -> Result<usize, BenchError> {
    let cores = thread::available_parallelism();
    cores.map(usize::from).map_err(|source| system("count the processors", source))
}

fn system(what: &'static str, source: io::Error) -> BenchError {
    BenchError::System { what, source }
}

/// What the system says of this process' memory.
fn status_bytes(field: &str) -> Result<u64, BenchError> {
    let path = Path::new("/proc/self/status");
    let text = fs::read_to_string(path).map_err(BenchError::file(path))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let missing = || system("learn what memory is used", io::ErrorKind::Unsupported.into());
    kib.map(|kib| kib << 10).ok_or_else(missing)
}

/// A child at work. It is killed when this is dropped.
pub(crate) struct Child {
    process: process::Child,
    output: BufReader<ChildStdout>,
    what: &'static str,
}

impl Child {
    /// Starts one; its pool is the bed's [`POOL`].
    pub(crate) fn start(bed: &Bed, work: Work) -> Result<Self, BenchError> {
        let what = match work {
            Work::Memory => "use memory",
            Work::Load => "be killed",
            Work::Large => "open a large pool",
        };
        let program = std::env::current_exe().map_err(|e| system("find this program", e))?;
        let work = work.to_possible_value().expect("each work has a name");
        let mut process = Command::new(program)
            .args(bed.child_arguments)
            .args(["--child", work.get_name(), "--seconds", &bed.seconds.as_secs_f64().to_string()])
            .arg("--directory")
            .arg(&bed.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| system("start a process", source))?;
        let output = process.stdout.take().expect("it was given a pipe");
        Ok(Self { process, output: BufReader::new(output), what })
    }

    /// Gives it data. False when it takes no more: it has ended.
    pub(crate) fn feed(&mut self, data: &[u8]) -> bool {
        self.process.stdin.as_mut().is_some_and(|input| input.write_all(data).is_ok())
    }

    /// Waits for a line of what it says.
    pub(crate) fn line(&mut self) -> Result<String, BenchError> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        read.map_err(|source| system("read what a process says", source))?;
        if line.ends_with('\n') {
            line.pop();
            return Ok(line);
        }
        Err(self.ended())
    }

    /// How it ended, of one that should not have.
    pub(crate) fn ended(&mut self) -> BenchError {
        match self.process.wait() {
            Ok(status) => BenchError::Child { what: self.what, how: status.to_string() },
            Err(source) => system("wait for a process", source),
        }
    }

    /// Ends its input, and waits for what it found.
    pub(crate) fn finish<T: for<'a> Deserialize<'a>>(mut self) -> Result<T, BenchError> {
        drop(self.process.stdin.take());
        let line = self.line()?;
        let what = self.what;
        serde_json::from_str(&line).map_err(|error| BenchError::Child {
            what,
            how: format!("it said {line:?}, and {error}"),
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SIGKILL; one that has ended cannot be killed, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
