//! Received bytes that have not been looked at: many small requests arrive with one system call.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Enough for a dozen 4 KiB writes or two thousand reads.
pub(crate) const INPUT_BUFFER_BYTES: usize = 64 << 10;

/// Bytes received and not yet consumed: `bytes[start..end]`.
pub(crate) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; INPUT_BUFFER_BYTES].into(), start: 0, end: 0 }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end, "only received bytes are consumed");
    }

    /// Moves as much as there is, and as fits, into `target`; returns how much that was.
    pub(crate) fn take_into(&mut self, target: &mut [u8]) -> usize {
        let len = target.len().min(self.end - self.start);
        target[..len].copy_from_slice(&self.bytes[self.start..self.start + len]);
        self.consume(len);
        len
    }

    /// Receives more; resolves to how much, zero at the end of the stream. What is left in the
    /// buffer is the beginning of a header at most, so moving it to the front is cheap.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        assert!(self.end < self.bytes.len(), "a full buffer holds a request that can be taken");
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(stream).poll_read(context, &mut room))?;
        let received = room.filled().len();
        self.end += received;
        Poll::Ready(Ok(received))
    }

    /// The whole buffer, for bytes that nobody will look at.
    pub(crate) fn scratch(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
