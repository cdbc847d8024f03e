//! A server that is used for long, and not left alone: does it stay as it was?
//!
//! `cargo bench -p siltstone-benches --bench soak -- [--minutes 60] [OPTIONS]`
//!
//! The real program serves a pool on a unix socket. Clients with different habits change volumes of
//! their own, each through one connection and one request at a time, and compare whatever they read
//! with what they wrote. Meanwhile an operator takes and deletes snapshots, makes and deletes clones,
//! has the server collect garbage, scrub and reload its config, looks at its metrics, and restarts it.
//! At the end thousands of strangers connect and do nothing. Nobody may see an error; and memory and
//! latencies at the end are held against those at the beginning.
//!
//! - `server`: the program, its config and its commands; `client`, `operator`, `strangers`: who uses it.
//! - `watch`: what is noted every few seconds, the verdict and the charts.
//! - `world`: what all of them share.
#![forbid(unsafe_code)]

mod client;
mod operator;
mod server;
mod strangers;
mod watch;
mod world;

use std::{
    error::Error,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use siltstone_benches::{cpu_time::load_average, data, open_files, program};

use crate::{
    client::{Client, Habit},
    operator::Operator,
    server::Place,
    watch::Watch,
    world::World,
};

/// Uses a server for long, and says whether it stays as it was.
#[derive(Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// How long the server is left between two things that the operator does, in seconds.
    #[arg(long, default_value_t = 4.0, value_parser = seconds)]
    pause: f64,
    /// Strangers who choose a volume and then do nothing.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(..=60_000))]
    idle: u32,
    /// Strangers who never choose one.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(..=10_000))]
    half_open: u32,
    /// What clients draw from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the pool goes; by default under the target directory.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Siltstone's program; by default it is built.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Writes the figures to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws memory and latencies as SVG in this directory.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    positive(text, 7.0 * 24.0 * 60.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    positive(text, 3600.0)
}

fn positive(text: &str, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text} is not a number"))?;
    if number > 0.0 && number <= most { Ok(number) } else { Err(format!("from 0 to {most}")) }
}

fn main() -> ExitCode {
    match soak() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// True if nobody saw an error.
fn soak() -> Result<bool, Box<dyn Error + Send + Sync>> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("This goes on for minutes: run it by cargo bench, or with --bench.");
        return Ok(true);
    }
    let strangers = (arguments.idle as usize, arguments.half_open as usize);
    open_files::allow_connections(strangers.0 + strangers.1)?;
    data::check_directory(&arguments.directory)?;
    let program = match arguments.program {
        Some(program) => program,
        None => program::build()?,
    };
    let time = Duration::from_secs_f64(arguments.minutes * 60.0);
    let pause = Duration::from_secs_f64(arguments.pause);
    println!("{:.1} minutes; load {:.1}", arguments.minutes, load_average());

    let place = Place::new(&arguments.directory, program, Habit::ALL.len(), strangers.0)?;
    let world = World::new(place.start()?);
    let watch = thread::scope(|scope| {
        let clients: Vec<_> = Habit::ALL
            .into_iter()
            .enumerate()
            .map(|(number, habit)| {
                let (world, place) = (&world, &place);
                scope.spawn(move || Client::new(world, place, number, habit, arguments.seed).run())
            })
            .collect();
        let operator = scope.spawn(|| Operator::new(&world, &place, pause).run());
        let mut watch = Watch::new(&world);
        let end = Instant::now() + time;
        while Instant::now() < end && !world.has_failed() {
            watch.step();
        }
        world.operator_is_done.store(true, Ordering::Relaxed);
        let joined = operator.join();
        world.note_panic("the operator", joined);
        if !world.has_failed() {
            strangers::visit(&world, &place, strangers.0, strangers.1);
        }
        world.clients_are_done.store(true, Ordering::Relaxed);
        for client in clients {
            let joined = client.join();
            world.note_panic("a client", joined);
        }
        watch
    });
    let figures = watch.finish(&world, &place);
    figures.print();
    if let Some(path) = arguments.json {
        figures.save(&path)?;
    }
    if let Some(directory) = arguments.plots {
        figures.draw(&directory)?;
    }
    Ok(figures.errors.is_empty())
}
