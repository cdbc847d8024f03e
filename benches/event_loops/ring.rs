//! Transport on io_uring: a ring for each core, connections dealt out among them.

use std::{
    error::Error,
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use memmap2::MmapMut;

use crate::{MAX_REPLIES, REPLY_BYTES, REQUEST_BYTES, cores, replies};

const ENTRIES: u32 = 4096;
/// Provided buffers, and the size of each.
const BUFFERS: u16 = 1024;
const BUFFER_BYTES: usize = 4096;
const GROUP: u16 = 0;
/// MSG_WAITALL: a send is complete or has failed.
const WAIT_ALL: i32 = 0x100;
/// Marks a send's completion; the rest is the connection.
const SEND: u64 = 1 << 32;

/// Serves until the process is ended.
pub(crate) fn serve(streams: Vec<UnixStream>) -> Result<(), Box<dyn Error>> {
    let mut shares: Vec<Vec<UnixStream>> = (0..cores()).map(|_| Vec::new()).collect();
    let count = shares.len();
    for (number, stream) in streams.into_iter().enumerate() {
        shares[number % count].push(stream);
    }
    let replies = Arc::new(replies());
    let threads: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let replies = replies.clone();
            std::thread::spawn(move || EventLoop::new(share, replies).and_then(EventLoop::run))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "an event loop panicked")??;
    }
    Ok(())
}

struct Connection {
    stream: UnixStream,
    /// Bytes of a request that has not come completely.
    partial: usize,
    /// Replies that are owed, and whether some are being sent: bytes of them.
    owed: usize,
    sending_bytes: usize,
}

struct EventLoop {
    ring: IoUring,
    connections: Vec<Connection>,
    replies: Arc<Vec<u8>>,
    buffers: Buffers,
}

impl EventLoop {
    fn new(streams: Vec<UnixStream>, replies: Arc<Vec<u8>>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(ENTRIES)?;
        let buffers = Buffers::register(&ring)?;
        let connection = |stream| Connection { stream, partial: 0, owed: 0, sending_bytes: 0 };
        let connections = streams.into_iter().map(connection).collect();
        Ok(Self { ring, connections, replies, buffers })
    }

    fn run(mut self) -> io::Result<()> {
        for number in 0..self.connections.len() {
            self.receive(number)?;
        }
        loop {
            self.ring.submit_and_wait(1)?;
            let completions: Vec<cqueue::Entry> = self.ring.completion().collect();
            for completion in completions {
                let number = (completion.user_data() & (SEND - 1)) as usize;
                match completion.user_data() & SEND != 0 {
                    true => self.sent(number, completion.result())?,
                    false => self.received(number, &completion)?,
                }
            }
        }
    }

    fn received(&mut self, number: usize, completion: &cqueue::Entry) -> io::Result<()> {
        let buffer = cqueue::buffer_select(completion.flags());
        let connection = &mut self.connections[number];
        if let Ok(len @ 1..) = usize::try_from(completion.result()) {
            let len = connection.partial + len;
            connection.owed += len / REQUEST_BYTES;
            connection.partial = len % REQUEST_BYTES;
        } else if completion.result() == 0 {
            return Ok(());
        }
        if let Some(buffer) = buffer {
            self.buffers.give_back(buffer);
        }
        if self.connections[number].sending_bytes == 0 {
            self.send(number)?;
        }
        // It ends when there is no buffer for it.
        if !cqueue::more(completion.flags()) { self.receive(number) } else { Ok(()) }
    }

    fn sent(&mut self, number: usize, result: i32) -> io::Result<()> {
        let connection = &mut self.connections[number];
        let sending_bytes = std::mem::take(&mut connection.sending_bytes);
        match usize::try_from(result) {
            Ok(sent) if sent == sending_bytes => self.send(number),
            Ok(sent) => Err(io::Error::other(format!("{sent} of {sending_bytes} bytes were sent"))),
            // The client has left.
            Err(_) => Ok(()),
        }
    }

    fn receive(&mut self, number: usize) -> io::Result<()> {
        let descriptor = types::Fd(self.connections[number].stream.as_raw_fd());
        self.push(&opcode::RecvMulti::new(descriptor, GROUP).build().user_data(number as u64))
    }

    fn send(&mut self, number: usize) -> io::Result<()> {
        let connection = &mut self.connections[number];
        let count = connection.owed.min(MAX_REPLIES);
        if count == 0 {
            return Ok(());
        }
        connection.owed -= count;
        connection.sending_bytes = count * REPLY_BYTES;
        let descriptor = types::Fd(connection.stream.as_raw_fd());
        let bytes = &self.replies[..connection.sending_bytes];
        let send = opcode::Send::new(descriptor, bytes.as_ptr(), bytes.len() as u32)
            .flags(WAIT_ALL)
            .build()
            .user_data(SEND | number as u64);
        self.push(&send)
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: what entries point to outlives the ring: the sockets and the replies are owned by
        // this loop, which ends only with the process, and replies are never changed.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }
}

/// Buffers that the kernel takes as bytes arrive, and gets back here.
struct Buffers {
    /// The ring of entries, then the buffers.
    memory: MmapMut,
    tail: u16,
}

const RING_BYTES: usize = BUFFERS as usize * size_of::<types::BufRingEntry>();

impl Buffers {
    fn register(ring: &IoUring) -> io::Result<Self> {
        let memory = MmapMut::map_anon(RING_BYTES + usize::from(BUFFERS) * BUFFER_BYTES)?;
        let mut buffers = Self { memory, tail: 0 };
        let address = buffers.memory.as_mut_ptr() as u64;
        // SAFETY: the memory is page-aligned, large enough for the entries, and lives as long as
        // the ring, which its owner drops first or never.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, BUFFERS, GROUP, 0) }?;
        (0..BUFFERS).for_each(|number| buffers.give_back(number));
        Ok(buffers)
    }

    fn give_back(&mut self, number: u16) {
        let base = self.memory.as_mut_ptr();
        let entries = base.cast::<types::BufRingEntry>();
        let at = RING_BYTES + usize::from(number) * BUFFER_BYTES;
        // SAFETY: entry and buffer lie within the memory; the kernel looks at neither until the
        // tail has passed the entry.
        unsafe {
            let entry = &mut *entries.add(usize::from(self.tail % BUFFERS));
            entry.set_addr(base.add(at) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(number);
            self.tail = self.tail.wrapping_add(1);
            let tail = types::BufRingEntry::tail(entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}
