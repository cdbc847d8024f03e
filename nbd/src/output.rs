//! Replies that wait to be sent: as many as are ready leave with one system call.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;
use zerocopy::{Immutable, IntoBytes};

use crate::{
    export::ReadBytes,
    protocol::{ExtendedChunk, HolePayload},
};

/// Slices of one vectored write.
const MAX_SLICES: usize = 128;
/// The largest head: an extended chunk and a hole.
const MAX_HEAD_BYTES: usize = size_of::<ExtendedChunk>() + size_of::<HolePayload>();

/// The fixed part of a reply or chunk, encoded.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    bytes: [u8; MAX_HEAD_BYTES],
    len: u8,
}

impl Head {
    pub(crate) fn new(part: &(impl IntoBytes + Immutable)) -> Self {
        Self { bytes: [0; MAX_HEAD_BYTES], len: 0 }.with(part)
    }

    pub(crate) fn with(mut self, part: &(impl IntoBytes + Immutable)) -> Self {
        let part = part.as_bytes();
        let end = usize::from(self.len) + part.len();
        self.bytes[usize::from(self.len)..end].copy_from_slice(part);
        self.len = end as u8;
        self
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What follows a head.
pub(crate) enum Body {
    None,
    Owned(Vec<u8>),
    Whole(ReadBytes),
    Part(Arc<ReadBytes>, Range<usize>),
}

impl Body {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Owned(bytes) => bytes,
            Self::Whole(bytes) => (**bytes).as_ref(),
            Self::Part(bytes, range) => &(***bytes).as_ref()[range.clone()],
        }
    }
}

/// A reply, or a chunk of one.
pub(crate) struct Piece {
    pub(crate) head: Head,
    pub(crate) body: Body,
    /// On a reply's last piece: the bytes that its request was charged for.
    pub(crate) completes: Option<usize>,
}

/// What sending has completed.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) replies: usize,
    pub(crate) charge: usize,
    pub(crate) bytes: usize,
}

/// The queue. Bounded by the limits on requests: every piece belongs to one in flight.
#[derive(Default)]
pub(crate) struct Output {
    pieces: VecDeque<Piece>,
    /// Of the first piece.
    sent_bytes: usize,
    waiting_bytes: usize,
}

impl Output {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(crate) fn push(&mut self, piece: Piece) {
        self.waiting_bytes += piece.head.as_slice().len() + piece.body.as_slice().len();
        self.pieces.push_back(piece);
    }

    /// Sends as much as one system call takes.
    pub(crate) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Sent>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        let mut skip = self.sent_bytes;
        'pieces: for piece in &self.pieces {
            for slice in [piece.head.as_slice(), piece.body.as_slice()] {
                let rest = &slice[skip.min(slice.len())..];
                skip -= slice.len() - rest.len();
                if !rest.is_empty() {
                    slices[count] = IoSlice::new(rest);
                    count += 1;
                }
                if count == MAX_SLICES {
                    break 'pieces;
                }
            }
        }
        let sent = ready!(Pin::new(stream).poll_write_vectored(context, &slices[..count]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(self.advance(sent)))
    }

    fn advance(&mut self, sent: usize) -> Sent {
        self.waiting_bytes -= sent;
        self.sent_bytes += sent;
        let mut completed = Sent { bytes: sent, ..Sent::default() };
        while let Some(piece) = self.pieces.front() {
            let len = piece.head.as_slice().len() + piece.body.as_slice().len();
            if self.sent_bytes < len {
                break;
            }
            if let Some(charge) = piece.completes {
                completed.replies += 1;
                completed.charge += charge;
            }
            self.sent_bytes -= len;
            self.pieces.pop_front();
        }
        completed
    }
}
