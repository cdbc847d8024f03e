//! Very many connections: what each costs that does nothing, and whether one that does something
//! gets its share.

use std::{
    error::Error,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

use siltstone_benches::{
    open_files::allow_connections,
    report::{Report, Target, Turns, Unit},
};
use siltstone_nbd::protocol::command;
use zerocopy::IntoBytes;

use crate::{
    Outcome,
    bed::Bed,
    client::{self, Replies},
    crowd::{BLOCK_BYTES, Crowd},
    servers::{self, Server},
};

/// Requests under way on each connection that does something.
const DEPTH: usize = 4;

/// A server with `options`, the memory that it had before, and so many connections to it.
fn connected<S: Read + Write>(
    bed: &Bed,
    options: &[&str],
    connect: impl Fn(&Server) -> Result<S, Box<dyn Error>>,
    count: usize,
) -> Result<(Server, u64, Vec<S>), Box<dyn Error>> {
    allow_connections(count)?;
    let limit = (count + 1).to_string();
    let options = [&["--max-connections", &limit], options].concat();
    let server = servers::siltstone(&bed.program, &bed.pool, &options)?;
    // What serving at all takes is there before the others come.
    read_a_block(&mut connect(&server)?)?;
    let before = server.resident_bytes()?;
    let streams: Result<_, _> = (0..count).map(|_| connect(&server)).collect();
    Ok((server, before, streams?))
}

fn in_plaintext(server: &Server) -> Result<UnixStream, Box<dyn Error>> {
    Ok(client::connect(&server.socket, server.export)?)
}

/// The same for all: caches are not what is measured.
fn read_a_block(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut replies = Replies::new(BLOCK_BYTES);
    stream.write_all(client::request(command::READ, 0, 0, BLOCK_BYTES).as_bytes())?;
    let mut received = [0; BLOCK_BYTES];
    let mut done = 0;
    while done == 0 {
        let len = stream.read(&mut received)?;
        done = replies.take(&received[..len])?;
    }
    Ok(())
}

/// The memory of connections that do nothing: just negotiated, and after each did something.
pub(crate) fn idle(bed: &Bed, report: &mut Report, connections: usize) -> Outcome {
    let name = format!("memory of {connections} idle connections");
    idle_over(bed, report, &name, &[], in_plaintext, connections)
}

/// The same of connections made in any way.
pub(crate) fn idle_over<S: Read + Write>(
    bed: &Bed,
    report: &mut Report,
    name: &str,
    options: &[&str],
    connect: impl Fn(&Server) -> Result<S, Box<dyn Error>>,
    connections: usize,
) -> Outcome {
    let (server, before, mut streams) = connected(bed, options, connect, connections)?;
    let taken = |server: &Server| -> Result<f64, Box<dyn Error>> {
        Ok(server.resident_bytes()?.saturating_sub(before) as f64)
    };
    let mut fresh = Turns::new(name, Unit::Bytes, Target::NONE);
    fresh.add_alone(taken(&server)?);
    report.add(fresh);
    streams.iter_mut().try_for_each(read_a_block)?;
    let mut used = Turns::new("the same after a read on each", Unit::Bytes, Target::NONE);
    used.add_alone(taken(&server)?);
    report.add(used);
    Ok(())
}

/// The slowest of many busy connections beside the median one.
pub(crate) fn active(bed: &Bed, report: &mut Report, connections: usize) -> Outcome {
    let (server, _, streams) = connected(bed, &[], in_plaintext, connections)?;
    let name = format!("{connections} active connections, slowest");
    let mut slowest = Turns::new(&name, Unit::OperationsPerSecond, Target::NONE);
    let mut total = Turns::new("the same, all together", Unit::OperationsPerSecond, Target::NONE);
    let mut crowd = Crowd::start(streams, DEPTH)?;
    for _ in 0..bed.rounds {
        let counts = crowd.run(bed.seconds)?;
        let rate = |count: u64| count as f64 / bed.seconds.as_secs_f64();
        let mut rates: Vec<f64> = counts.into_iter().map(rate).collect();
        rates.sort_by(f64::total_cmp);
        slowest.add(rates[0], rates[rates.len() / 2]);
        total.add_alone(rates.iter().sum());
    }
    report.add(slowest);
    report.add(total);
    drop(server);
    Ok(())
}
