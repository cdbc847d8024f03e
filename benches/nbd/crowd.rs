//! One thread that keeps very many connections busy.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use rustix::{
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    fd::OwnedFd,
};
use siltstone_device::SeededRandom;
use siltstone_nbd::protocol::command;
use zerocopy::IntoBytes;

use crate::client::{self, Replies};

pub(crate) const BLOCK_BYTES: usize = 4096;
/// What is read: half of the default frame cache.
pub(crate) const BLOCKS: u64 = (32 << 20) / BLOCK_BYTES as u64;
const EVENTS_A_CALL: usize = 64;

/// A connection that always has as many reads under way.
struct Member {
    stream: UnixStream,
    replies: Replies,
    done: u64,
}

/// Connections that all read single blocks at random places.
pub(crate) struct Crowd {
    ready: OwnedFd,
    members: Vec<Member>,
    random: SeededRandom,
    received: Vec<u8>,
    requests: Vec<u8>,
}

impl Crowd {
    /// Connections in transmission, each with `depth` requests on their way from now on.
    pub(crate) fn start(streams: Vec<UnixStream>, depth: usize) -> io::Result<Self> {
        let ready = epoll::create(CreateFlags::CLOEXEC)?;
        let mut crowd = Self {
            ready,
            members: Vec::new(),
            random: SeededRandom::new(1),
            received: vec![0; depth * (BLOCK_BYTES + 64)],
            requests: Vec::new(),
        };
        for (number, stream) in streams.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            epoll::add(&crowd.ready, &stream, EventData::new_u64(number as u64), EventFlags::IN)?;
            crowd.members.push(Member { stream, replies: Replies::new(BLOCK_BYTES), done: 0 });
            crowd.request(number, depth as u64)?;
        }
        Ok(crowd)
    }

    fn request(&mut self, member: usize, count: u64) -> io::Result<()> {
        self.requests.clear();
        for _ in 0..count {
            let offset = self.random.below(BLOCKS) * BLOCK_BYTES as u64;
            let request = client::request(command::READ, 0, offset, BLOCK_BYTES);
            self.requests.extend_from_slice(request.as_bytes());
        }
        // So few requests always fit into a socket.
        self.members[member].stream.write_all(&self.requests)
    }

    /// Goes on for a while; returns how many requests of each were answered.
    pub(crate) fn run(&mut self, time: Duration) -> io::Result<Vec<u64>> {
        self.members.iter_mut().for_each(|member| member.done = 0);
        let start = Instant::now();
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_A_CALL);
        while start.elapsed() < time {
            events.clear();
            epoll::wait(&self.ready, rustix::buffer::spare_capacity(&mut events), None)?;
            for event in &events {
                let number = event.data.u64() as usize;
                let member = &mut self.members[number];
                let len = member.stream.read(&mut self.received)?;
                if len == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let completed = member.replies.take(&self.received[..len])?;
                member.done += completed;
                self.request(number, completed)?;
            }
        }
        Ok(self.members.iter().map(|member| member.done).collect())
    }
}
