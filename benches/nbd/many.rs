//! Very many connections: what each costs that does nothing, and whether one that does something
//! gets its share.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::Instant,
};

use rustix::{
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use siltstone_device::SeededRandom;
use siltstone_nbd::protocol::command;
use zerocopy::IntoBytes;

use crate::{
    Outcome,
    bed::Bed,
    client::{self, Replies},
    report::{Report, Target, Turns, Unit},
    servers::{self, Server},
};

const BLOCK_BYTES: usize = 4096;
/// Requests under way on each connection that does something.
const DEPTH: usize = 4;
/// What they read: half of the default frame cache.
const BLOCKS: u64 = (32 << 20) / BLOCK_BYTES as u64;
/// Descriptors for all else.
const SPARE_DESCRIPTORS: u64 = 100;

/// A server, and so many connections to it.
fn connected(bed: &Bed, connections: usize) -> Result<(Server, u64, Vec<UnixStream>), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    raise_descriptor_limit(connections as u64 + SPARE_DESCRIPTORS).map_err(|e| text(&e))?;
    let limit = (connections + 1).to_string();
    let options = ["--max-connections", &limit];
    let server =
        servers::siltstone(&bed.program, &bed.pool, &options).map_err(|error| text(&error))?;
    // What serving at all takes is there before the others come.
    let first = client::connect(&server.socket, server.export).map_err(|error| text(&error))?;
    let before = server.resident_bytes().map_err(|error| text(&error))?;
    drop(first);
    let streams: io::Result<_> =
        (0..connections).map(|_| client::connect(&server.socket, server.export)).collect();
    Ok((server, before, streams.map_err(|error| text(&error))?))
}

fn raise_descriptor_limit(wanted: u64) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })?)
}

/// The memory of connections that do nothing: just negotiated, and after each did something.
pub(crate) fn idle(bed: &Bed, report: &mut Report, connections: usize) -> Outcome {
    let (server, before, mut streams) = connected(bed, connections)?;
    let each = |server: &Server| -> Result<f64, Box<dyn std::error::Error>> {
        let more = server.resident_bytes()?.saturating_sub(before);
        Ok(more as f64 / connections as f64)
    };
    let name = format!("memory of {connections} connections, of each");
    let mut fresh = Turns::new(&name, Unit::BytesEach, Target::NONE);
    fresh.add_alone(each(&server)?);
    report.add(fresh);
    let mut random = SeededRandom::new(1);
    for stream in &mut streams {
        let mut replies = Replies::new(BLOCK_BYTES);
        let offset = random.below(BLOCKS) * BLOCK_BYTES as u64;
        stream.write_all(client::request(command::READ, 0, offset, BLOCK_BYTES).as_bytes())?;
        let mut received = [0; BLOCK_BYTES];
        let mut done = 0;
        while done == 0 {
            let len = stream.read(&mut received)?;
            done = replies.take(&received[..len])?;
        }
    }
    let mut used = Turns::new("the same after a read on each", Unit::BytesEach, Target::NONE);
    used.add_alone(each(&server)?);
    report.add(used);
    Ok(())
}

/// A connection that always has [`DEPTH`] reads under way.
struct Active {
    stream: UnixStream,
    replies: Replies,
    done: u64,
}

/// The slowest of many busy connections beside the median one.
pub(crate) fn active(bed: &Bed, report: &mut Report, connections: usize) -> Outcome {
    let (server, _, streams) = connected(bed, connections)?;
    let ready = epoll::create(CreateFlags::CLOEXEC)?;
    let mut clients = Vec::new();
    for (number, stream) in streams.into_iter().enumerate() {
        stream.set_nonblocking(true)?;
        epoll::add(&ready, &stream, EventData::new_u64(number as u64), EventFlags::IN)?;
        clients.push(Active { stream, replies: Replies::new(BLOCK_BYTES), done: 0 });
    }
    let name = format!("{connections} active connections, slowest");
    let mut slowest = Turns::new(&name, Unit::OperationsPerSecond, Target::NONE);
    let mut total = Turns::new("the same, all together", Unit::OperationsPerSecond, Target::NONE);
    let mut random = SeededRandom::new(1);
    let mut received = vec![0; DEPTH * (BLOCK_BYTES + 64)];
    let mut request = |stream: &mut UnixStream, count: u64| -> io::Result<()> {
        let mut requests = Vec::new();
        for _ in 0..count {
            let offset = random.below(BLOCKS) * BLOCK_BYTES as u64;
            let request = client::request(command::READ, 0, offset, BLOCK_BYTES);
            requests.extend_from_slice(request.as_bytes());
        }
        // So few requests always fit into a socket.
        stream.write_all(&requests)
    };
    for client in &mut clients {
        request(&mut client.stream, DEPTH as u64)?;
    }
    for _ in 0..bed.rounds {
        clients.iter_mut().for_each(|client| client.done = 0);
        let start = Instant::now();
        let mut events: Vec<Event> = Vec::with_capacity(64);
        while start.elapsed() < bed.seconds {
            events.clear();
            epoll::wait(&ready, rustix::buffer::spare_capacity(&mut events), None)?;
            for event in &events {
                let client = &mut clients[event.data.u64() as usize];
                let len = client.stream.read(&mut received)?;
                if len == 0 {
                    return Err("the server closed a connection".into());
                }
                let completed = client.replies.take(&received[..len])?;
                client.done += completed;
                request(&mut client.stream, completed)?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let mut rates: Vec<f64> = clients.iter().map(|c| c.done as f64 / seconds).collect();
        rates.sort_by(f64::total_cmp);
        slowest.add(rates[0], rates[rates.len() / 2]);
        total.add_alone(rates.iter().sum());
    }
    report.add(slowest);
    report.add(total);
    drop(server);
    Ok(())
}
