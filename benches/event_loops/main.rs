//! What event loops on io_uring would gain the NBD server over tokio's on epoll.
//!
//! `cargo bench -p siltstone-benches --bench event_loops -- [OPTIONS]`
//!
//! Two servers that do nothing but transport: they take NBD requests from unix sockets and answer
//! each with 4 KiB out of memory. Both answer all requests that came together with one call; both
//! have as many threads as there are cores. The client is the same. What counts is the server's
//! processor time for a request; what it is spent on beyond this, storage and protocol, is the
//! same whichever loop carries it.
//!
//! - `epoll`: on tokio; `ring`: on io_uring, with multishot receives into provided buffers.

#[path = "../nbd/client.rs"]
#[allow(dead_code)] // The other user needs more of it.
mod client;
#[path = "../nbd/crowd.rs"]
mod crowd;
mod epoll;
mod ring;

use std::{
    error::Error,
    fs,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use siltstone_benches::{
    open_files,
    report::{Report, Target, Turns, Unit},
};

use crate::crowd::{BLOCK_BYTES, Crowd};

/// A simple reply's head and a block.
const REPLY_BYTES: usize = 16 + BLOCK_BYTES;
/// A compact request.
const REQUEST_BYTES: usize = 28;
/// The most replies that are sent with one call.
const MAX_REPLIES: usize = 64;
/// Connections, and requests under way on each.
const LOADS: [(usize, usize); 5] = [(1, 1), (1, 32), (4, 32), (64, 4), (1000, 4)];

/// Compares event loops.
#[derive(Parser)]
struct Arguments {
    /// How long each measurement runs.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How often each is measured, in turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Where the sockets go.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Writes the rows to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Serves, in a process that the bench starts.
    #[arg(long, hide = true, requires_all = ["socket", "connections"])]
    serve: Option<Loop>,
    #[arg(long, hide = true)]
    socket: Option<PathBuf>,
    #[arg(long, hide = true)]
    connections: Option<usize>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Loop {
    Epoll,
    Ring,
}

/// Replies that are sent over and over: a head that says "done", and a block.
fn replies() -> Vec<u8> {
    let mut reply = vec![0x5a; REPLY_BYTES];
    reply[..16].fill(0);
    reply[..4].copy_from_slice(&siltstone_nbd::protocol::SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply.repeat(MAX_REPLIES)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match (&arguments.serve, &arguments.socket, arguments.connections) {
        (Some(kind), Some(socket), Some(connections)) => serve(*kind, socket, connections),
        _ if arguments.bench => measure(&arguments),
        _ => {
            println!("This measures for a minute: run it by cargo bench, or with --bench.");
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Accepts so many connections, then serves them until it is ended.
fn serve(kind: Loop, socket: &Path, connections: usize) -> Result<(), Box<dyn Error>> {
    open_files::allow_connections(connections)?;
    let listener = UnixListener::bind(socket)?;
    let streams: std::io::Result<Vec<UnixStream>> = listener.incoming().take(connections).collect();
    match kind {
        Loop::Epoll => epoll::serve(streams?),
        Loop::Ring => ring::serve(streams?),
    }
}

struct Server {
    child: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Microseconds of the server's processor time for a request, and requests a second.
fn run(
    arguments: &Arguments,
    kind: Loop,
    load: (usize, usize),
) -> Result<(f64, f64), Box<dyn Error>> {
    let (connections, depth) = load;
    let socket = arguments.directory.join("event-loops.sock");
    // One that an interrupted run left behind.
    let _ = fs::remove_file(&socket);
    let name = kind.to_possible_value().ok_or("a loop has a name")?.get_name().to_owned();
    let child = Command::new(std::env::current_exe()?)
        .args(["--serve", &name, "--connections", &connections.to_string(), "--socket"])
        .arg(&socket)
        .stdin(Stdio::null())
        .spawn()?;
    let mut server = Server { child, socket };
    while !server.socket.exists() {
        if server.child.try_wait()?.is_some() {
            return Err("the server did not start".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let streams: std::io::Result<_> =
        (0..connections).map(|_| UnixStream::connect(&server.socket)).collect();
    let mut crowd = Crowd::start(streams?, depth)?;
    let time = Duration::from_secs_f64(arguments.seconds);
    crowd.run(time / 4)?;
    let (start, cpu_start) = (Instant::now(), cpu_us(&server)?);
    let count: u64 = crowd.run(time)?.into_iter().sum();
    let cpu_us = cpu_us(&server)? - cpu_start;
    Ok((cpu_us / count as f64, count as f64 / start.elapsed().as_secs_f64()))
}

/// The processor time of the server so far, all its threads', to the nanosecond.
fn cpu_us(server: &Server) -> Result<f64, Box<dyn Error>> {
    let mut total_ns = 0.0;
    for thread in fs::read_dir(format!("/proc/{}/task", server.child.id()))? {
        let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
        total_ns += stat.split(' ').next().ok_or("schedstat is empty")?.parse::<f64>()?;
    }
    Ok(total_ns / 1e3)
}

fn measure(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    open_files::allow_connections(LOADS[LOADS.len() - 1].0)?;
    println!("measured: io_uring; limit: tokio");
    let mut report = Report::new(false, None);
    for load in LOADS {
        report.begin("event_loops");
        let name = format!("{} connections, qd {}", load.0, load.1);
        let mut cost = Turns::new(&name, Unit::MicrosecondsEach, Target::NONE);
        let mut rate = Turns::new("  rate", Unit::OperationsPerSecond, Target::NONE);
        for _ in 0..arguments.rounds {
            let (epoll_us, epoll_rate) = run(arguments, Loop::Epoll, load)?;
            let (ring_us, ring_rate) = run(arguments, Loop::Ring, load)?;
            cost.add(ring_us, epoll_us);
            rate.add(ring_rate, epoll_rate);
        }
        report.add(cost);
        report.add(rate);
    }
    if let Some(path) = &arguments.json {
        report.save(path, 0.0)?;
    }
    Ok(())
}
