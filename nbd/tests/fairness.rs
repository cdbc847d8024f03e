//! One busy connection among many: it must not keep the thread.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

use std::{
    collections::VecDeque,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use siltstone_nbd::{
    Limits, ServerConfig, Shutdown,
    memory_export::{FixedCatalog, MemoryExport},
    protocol::{
        CompactRequest, OPTION_MAGIC, OptionHeader, REQUEST_MAGIC, SimpleReply, command,
        handshake_flag, option,
    },
    serve_stream,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zerocopy::IntoBytes;

const BLOCK_BYTES: usize = 4096;
/// What a connection may do in one turn: 256 requests, and what it has in hand when it got there.
const MOST_REQUESTS_A_TURN: usize = 512;
const MOST_BYTES_A_TURN: usize = 4 << 20;

/// A client that has always sent more already, and takes every reply at once.
struct Endless {
    /// What comes before the first request.
    hello: VecDeque<u8>,
    /// What comes over and over after that.
    request: Vec<u8>,
    position: usize,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    received_bytes: AtomicUsize,
    sent_bytes: AtomicUsize,
    wakes: AtomicUsize,
}

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.counts.received_bytes.fetch_add(out.remaining(), Ordering::Relaxed);
        while out.remaining() > 0 {
            if let Some(byte) = self.hello.pop_front() {
                out.put_slice(&[byte]);
                continue;
            }
            let rest = &self.request[self.position..];
            let len = rest.len().min(out.remaining());
            out.put_slice(&rest[..len]);
            self.position = (self.position + len) % self.request.len();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.counts.sent_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Serves an endless client for some turns; returns what each turn received and sent.
fn turns(command: u16, payload: &[u8]) -> Vec<(usize, usize)> {
    let header = CompactRequest {
        magic: REQUEST_MAGIC.into(),
        flags: 0.into(),
        command: command.into(),
        cookie: 7.into(),
        offset: 0.into(),
        len: (BLOCK_BYTES as u32).into(),
    };
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let choice = OptionHeader {
        magic: OPTION_MAGIC.into(),
        option: option::EXPORT_NAME.into(),
        len: 0.into(),
    };
    let hello = [&u32::from(flags).to_be_bytes(), choice.as_bytes()].concat();
    let counts = Arc::new(Counts::default());
    let client = Endless {
        hello: hello.into(),
        request: [header.as_bytes(), payload].concat(),
        position: 0,
        counts: Arc::clone(&counts),
    };
    let catalog = FixedCatalog::new(vec![Arc::new(MemoryExport::new("disk", 1 << 20))]);
    let (limits, shutdown) = (Limits::new(ServerConfig::default()).unwrap(), Shutdown::new());
    let mut served = pin!(serve_stream(client, &catalog, &limits, shutdown.signal()));
    let waker = Waker::from(Arc::clone(&counts));
    let mut turns = Vec::new();
    for turn in 0..20 {
        assert!(served.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(
            counts.wakes.load(Ordering::Relaxed) > turn,
            "it goes on when the others had theirs"
        );
        let take = |count: &AtomicUsize| count.swap(0, Ordering::Relaxed);
        turns.push((take(&counts.received_bytes), take(&counts.sent_bytes)));
    }
    turns
}

#[tokio::test]
async fn a_client_that_never_stops_reading_lets_others_have_the_thread() {
    for (_, sent_bytes) in turns(command::READ, &[]) {
        let replies = sent_bytes / (size_of::<SimpleReply>() + BLOCK_BYTES);
        assert!((1..=MOST_REQUESTS_A_TURN).contains(&replies), "{replies} replies in one turn");
    }
}

#[tokio::test]
async fn a_client_that_never_stops_writing_lets_others_have_the_thread() {
    for (received_bytes, sent_bytes) in turns(command::WRITE, &[1; BLOCK_BYTES]) {
        let replies = sent_bytes / size_of::<SimpleReply>();
        assert!((1..=MOST_REQUESTS_A_TURN).contains(&replies), "{replies} replies in one turn");
        assert!(received_bytes <= MOST_BYTES_A_TURN, "{received_bytes} bytes in one turn");
    }
}
