//! A client that costs as little as a client can: what is measured is to be the server. Requests
//! leave together, replies are taken as they come and only counted.

use std::{
    io::{self, IoSlice, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use siltstone_nbd::protocol::{
    self, CompactRequest, OPTION_MAGIC, OptionHeader, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
    SimpleReply, command, handshake_flag, option,
};
use zerocopy::{FromBytes, IntoBytes};

/// What is received at a time.
const RECEIVE_BYTES: usize = 1 << 20;
const REPLY_BYTES: usize = size_of::<SimpleReply>();

/// What a server's word is worth: it answers in the protocol, or this.
fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Connects and negotiates; the stream is then in transmission, with simple replies.
pub(crate) fn connect(socket: &Path, export: &str) -> io::Result<UnixStream> {
    let mut stream = greet(socket)?;
    choose(&mut stream, export)?;
    Ok(stream)
}

/// Connects and answers the greeting.
pub(crate) fn greet(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    let mut greeting = [0; size_of::<protocol::Greeting>()];
    stream.read_exact(&mut greeting)?;
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    stream.write_all(&u32::from(flags).to_be_bytes())?;
    Ok(stream)
}

/// Chooses an export.
pub(crate) fn choose(stream: &mut (impl Read + Write), export: &str) -> io::Result<()> {
    stream.write_all(&option(option::EXPORT_NAME, export.as_bytes()))?;
    // Size and flags.
    stream.read_exact(&mut [0; 10])
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let (magic, len) = (OPTION_MAGIC.into(), (data.len() as u32).into());
    let header = OptionHeader { magic, option: option.into(), len };
    [header.as_bytes(), data].concat()
}

pub(crate) fn request(command: u16, cookie: u64, offset: u64, len_bytes: usize) -> CompactRequest {
    CompactRequest {
        magic: REQUEST_MAGIC.into(),
        flags: 0.into(),
        command: command.into(),
        cookie: cookie.into(),
        offset: offset.into(),
        len: (len_bytes as u32).into(),
    }
}

/// Counts replies in a stream of bytes. All of them have the same payload.
pub(crate) struct Replies {
    payload_bytes: usize,
    /// The part of a reply's head that has come.
    head: [u8; REPLY_BYTES],
    head_len: usize,
    /// Payload that has yet to come.
    rest: usize,
}

impl Replies {
    pub(crate) fn new(payload_bytes: usize) -> Self {
        Self { payload_bytes, head: [0; REPLY_BYTES], head_len: 0, rest: 0 }
    }

    /// Takes what was received; returns how many replies it completed.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> io::Result<u64> {
        let mut completed = 0;
        while !bytes.is_empty() {
            if self.rest == 0 {
                let len = bytes.len().min(REPLY_BYTES - self.head_len);
                self.head[self.head_len..][..len].copy_from_slice(&bytes[..len]);
                self.head_len += len;
                bytes = &bytes[len..];
                if self.head_len < REPLY_BYTES {
                    return Ok(completed);
                }
                let (head, _) = SimpleReply::ref_from_prefix(&self.head)
                    .map_err(|_| broken("a reply has no head"))?;
                if head.magic.get() != SIMPLE_REPLY_MAGIC {
                    return Err(broken("a reply does not begin like one"));
                }
                if head.error.get() != 0 {
                    return Err(broken("the server refused a request"));
                }
                (self.head_len, self.rest) = (0, self.payload_bytes);
            }
            let len = bytes.len().min(self.rest);
            bytes = &bytes[len..];
            self.rest -= len;
            completed += u64::from(self.rest == 0);
        }
        Ok(completed)
    }
}

/// One connection with `depth` requests under way.
pub(crate) struct Pipeline<S = UnixStream> {
    stream: S,
    depth: u64,
    received: Vec<u8>,
}

impl Pipeline {
    pub(crate) fn new(socket: &Path, export: &str, depth: u64) -> io::Result<Self> {
        Ok(Self::over(connect(socket, export)?, depth))
    }
}

impl<S: Read + Write> Pipeline<S> {
    /// On a stream in transmission.
    pub(crate) fn over(stream: S, depth: u64) -> Self {
        Self { stream, depth, received: vec![0; RECEIVE_BYTES] }
    }

    /// Reads `len_bytes` at each offset that `next` gives; returns how many reads that were.
    pub(crate) fn read(
        &mut self,
        len_bytes: usize,
        mut next: impl FnMut() -> Option<u64>,
    ) -> io::Result<u64> {
        let mut replies = Replies::new(len_bytes);
        let mut requests = Vec::new();
        let (mut sent, mut done) = (0, 0);
        loop {
            while sent - done < self.depth
                && let Some(offset) = next()
            {
                let request = request(command::READ, sent, offset, len_bytes);
                requests.extend_from_slice(request.as_bytes());
                sent += 1;
            }
            self.stream.write_all(&requests)?;
            requests.clear();
            if sent == done {
                return Ok(done);
            }
            done += self.receive(&mut replies)?;
        }
    }

    /// Writes each piece of data that `next` gives at its offset; returns how many that were.
    pub(crate) fn write<'d>(
        &mut self,
        mut next: impl FnMut() -> Option<(u64, &'d [u8])>,
    ) -> io::Result<u64> {
        let mut replies = Replies::new(0);
        let (mut sent, mut done) = (0, 0);
        loop {
            while sent - done < self.depth
                && let Some((offset, data)) = next()
            {
                let request = request(command::WRITE, sent, offset, data.len());
                let mut slices = [IoSlice::new(request.as_bytes()), IoSlice::new(data)];
                let mut rest = &mut slices[..];
                while !rest.is_empty() {
                    let written = self.stream.write_vectored(rest)?;
                    IoSlice::advance_slices(&mut rest, written);
                }
                sent += 1;
            }
            if sent == done {
                return Ok(done);
            }
            done += self.receive(&mut replies)?;
        }
    }

    /// Makes everything durable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(request(command::FLUSH, 0, 0, 0).as_bytes())?;
        let mut replies = Replies::new(0);
        while self.receive(&mut replies)? == 0 {}
        Ok(())
    }

    /// The contents of a range: that the server gives the right ones is looked at, too.
    pub(crate) fn contents(&mut self, offset: u64, len_bytes: usize) -> io::Result<Vec<u8>> {
        self.stream.write_all(request(command::READ, 0, offset, len_bytes).as_bytes())?;
        let mut reply = vec![0; REPLY_BYTES + len_bytes];
        self.stream.read_exact(&mut reply)?;
        Ok(reply.split_off(REPLY_BYTES))
    }

    fn receive(&mut self, replies: &mut Replies) -> io::Result<u64> {
        match self.stream.read(&mut self.received)? {
            0 => Err(broken("the server closed the connection")),
            len => replies.take(&self.received[..len]),
        }
    }
}
