//! Received bytes that have not been looked at: many small requests arrive with one system call.
//!
//! A connection that waits for its client holds no buffer: it takes one when there may be
//! something to receive, and gives it back to its thread when all that came is consumed. What is
//! left then is the beginning of a header at most, which is kept in as much memory as it needs.

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Enough for a dozen 4 KiB writes or two thousand reads.
pub(crate) const INPUT_BUFFER_BYTES: usize = 64 << 10;
/// What is left in a buffer is kept without it if it is no more than this: any header fits.
const SMALL_BYTES: usize = 64;
/// Buffers that a thread keeps for the next connection that it polls. While one is polled it
/// holds one; more come together only where connections gave back what they got elsewhere.
const SPARE_BUFFERS: usize = 2;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes received and not yet consumed: `bytes[start..end]`.
#[derive(Default)]
pub(crate) struct Input {
    /// A buffer, or just what is left of one.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
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

    /// Receives more; resolves to how much, zero at the end of the stream. Holds no buffer while
    /// there is nothing.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        self.make_room();
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        match Pin::new(stream).poll_read(context, &mut room) {
            Poll::Ready(Ok(())) => {
                let received = room.filled().len();
                self.end += received;
                Poll::Ready(Ok(received))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.release();
                Poll::Pending
            }
        }
    }

    /// Gives the buffer back if it holds little or nothing.
    pub(crate) fn release(&mut self) {
        let rest = &self.bytes[self.start..self.end];
        if self.bytes.len() < INPUT_BUFFER_BYTES || rest.len() > SMALL_BYTES {
            return;
        }
        let rest: Box<[u8]> = rest.into();
        (self.start, self.end) = (0, rest.len());
        let buffer = std::mem::replace(&mut self.bytes, rest);
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_BUFFERS {
                spare.push(buffer);
            }
        });
    }

    /// Has a buffer, with what is left at its front. That is little: the beginning of a header.
    fn make_room(&mut self) {
        let len = self.end - self.start;
        if self.bytes.len() == INPUT_BUFFER_BYTES {
            self.bytes.copy_within(self.start..self.end, 0);
        } else {
            let spare = SPARE.with_borrow_mut(Vec::pop);
            let mut buffer = spare.unwrap_or_else(|| vec![0; INPUT_BUFFER_BYTES].into());
            buffer[..len].copy_from_slice(self.as_slice());
            self.bytes = buffer;
        }
        (self.start, self.end) = (0, len);
        assert!(len < self.bytes.len(), "a full buffer holds a request that can be taken");
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.start = self.end;
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Thousands of idle connections cost what they hold while they wait.
    #[test]
    fn a_connection_that_waits_holds_no_buffer() {
        let mut input = Input::default();
        let mut context = Context::from_waker(Waker::noop());
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        assert!(input.poll_fill(&mut far, &mut context).is_pending());
        assert_eq!(input.bytes.len(), 0);
        let sent: Vec<u8> = (0..100).collect();
        let written = Pin::new(&mut near);
        assert!(tokio::io::AsyncWrite::poll_write(written, &mut context, &sent).is_ready());
        assert!(matches!(input.poll_fill(&mut far, &mut context), Poll::Ready(Ok(100))));
        // The beginning of a header is left.
        input.consume(90);
        assert!(input.poll_fill(&mut far, &mut context).is_pending());
        assert_eq!(input.bytes.len(), 10);
        let written = Pin::new(&mut near);
        assert!(tokio::io::AsyncWrite::poll_write(written, &mut context, &sent).is_ready());
        assert!(matches!(input.poll_fill(&mut far, &mut context), Poll::Ready(Ok(100))));
        assert_eq!(input.as_slice(), [&sent[90..], &sent[..]].concat());
    }

    /// Requests that the limits make wait are not lost.
    #[test]
    fn what_is_not_consumed_stays() {
        let mut input = Input::default();
        let mut context = Context::from_waker(Waker::noop());
        let sent = [7; 2 * SMALL_BYTES];
        assert!(input.poll_fill(&mut &sent[..], &mut context).is_ready());
        input.release();
        assert_eq!(input.as_slice(), sent);
    }
}
