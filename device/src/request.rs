//! Requests to a device, and futures that await them.
//!
//! A request carries its buffer to the device and a completion that gets it back. The futures
//! here are the usual way to use that: they submit at once (not when first polled), so several
//! may be started and then awaited together.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures_channel::oneshot;

use crate::{AlignedBuffer, ByteOffset, Device, DeviceError, Operation, failures};

/// Called once with the buffer and the outcome of a read or write.
pub type BufferCompletion = Box<dyn FnOnce(AlignedBuffer, Result<(), DeviceError>) + Send>;
/// Called once with the outcome of a flush or discard.
pub type Completion = Box<dyn FnOnce(Result<(), DeviceError>) + Send>;

/// When a completed write survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After the next completed flush.
    Flush,
    /// At completion: forced unit access (RWF_DSYNC). Covers this write alone.
    Immediate,
}

/// One operation. Offsets and lengths are multiples of [`crate::BLOCK_BYTES`].
pub enum Request {
    /// Fills the buffer (all of its length) from `offset`.
    Read {
        /// Where to read.
        offset: ByteOffset,
        /// What to fill.
        buffer: AlignedBuffer,
        /// Whom to tell.
        completion: BufferCompletion,
    },
    /// Writes the buffer (all of its length) at `offset`.
    Write {
        /// Where to write.
        offset: ByteOffset,
        /// What to write.
        buffer: AlignedBuffer,
        /// When it must be durable.
        durability: Durability,
        /// Whom to tell.
        completion: BufferCompletion,
    },
    /// Makes every write durable that completed before this was submitted.
    Flush {
        /// Whom to tell.
        completion: Completion,
    },
    /// Gives the range back to the medium; it reads as zeros or old data until written.
    Discard {
        /// Where the range starts.
        offset: ByteOffset,
        /// Its length.
        len_bytes: u64,
        /// Whom to tell.
        completion: Completion,
    },
}

impl Request {
    /// What the request asks for.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self {
            Self::Read { .. } => Operation::Read,
            Self::Write { .. } => Operation::Write,
            Self::Flush { .. } => Operation::Flush,
            Self::Discard { .. } => Operation::Discard,
        }
    }

    /// Where the request works: its first byte and its length in bytes. A flush concerns the
    /// whole device and says (0, 0).
    #[must_use]
    pub fn range(&self) -> (ByteOffset, u64) {
        match self {
            Self::Read { offset, buffer, .. } | Self::Write { offset, buffer, .. } => {
                (*offset, buffer.len() as u64)
            }
            Self::Flush { .. } => (ByteOffset(0), 0),
            Self::Discard { offset, len_bytes, .. } => (*offset, *len_bytes),
        }
    }

    /// Gives the request's outcome, and its buffer as it is, to whoever waits for it.
    pub fn complete(self, outcome: Result<(), DeviceError>) {
        if let Err(error) = &outcome {
            failures::note(error);
        }
        match self {
            Self::Read { buffer, completion, .. } | Self::Write { buffer, completion, .. } => {
                completion(buffer, outcome);
            }
            Self::Flush { completion } | Self::Discard { completion, .. } => completion(outcome),
        }
    }

    /// Completes the request as failed, with its buffer as it is.
    pub fn fail(self, error: DeviceError) {
        self.complete(Err(error));
    }

    /// What to report when the operating system refuses the request.
    pub(crate) fn io_error(&self, source: impl Into<std::io::Error>) -> DeviceError {
        let (offset, len_bytes) = self.range();
        DeviceError::io(self.operation(), offset.0, len_bytes, source.into())
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read { offset, buffer, .. } => {
                write!(f, "Read({} bytes at {offset})", buffer.len())
            }
            Self::Write { offset, buffer, durability, .. } => {
                write!(f, "Write({} bytes at {offset}, {durability:?})", buffer.len())
            }
            Self::Flush { .. } => write!(f, "Flush"),
            Self::Discard { offset, len_bytes, .. } => {
                write!(f, "Discard({len_bytes} bytes at {offset})")
            }
        }
    }
}

/// An operation under way; resolves to its outcome. Dropping it does not cancel the operation.
#[must_use = "an operation's outcome must be looked at"]
pub struct Pending<T> {
    operation: Operation,
    outcome: oneshot::Receiver<Result<T, DeviceError>>,
}

impl<T> Pending<T> {
    /// The outcome, if it is known already. It is told once: do not ask or wait again then.
    pub fn outcome_now(&mut self) -> Option<Result<T, DeviceError>> {
        match self.outcome.try_recv() {
            Ok(outcome) => outcome,
            Err(oneshot::Canceled) => Some(Err(DeviceError::Closed { operation: self.operation })),
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, DeviceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let closed = DeviceError::Closed { operation: self.operation };
        Pin::new(&mut self.outcome).poll(context).map(|outcome| outcome.unwrap_or(Err(closed)))
    }
}

fn pending<T>(operation: Operation) -> (oneshot::Sender<Result<T, DeviceError>>, Pending<T>) {
    let (sender, outcome) = oneshot::channel();
    (sender, Pending { operation, outcome })
}

/// A read of `buffer.len()` bytes at `offset`, as a request and the future of its buffer; for
/// batches that are submitted together.
pub fn prepare_read(
    offset: ByteOffset,
    buffer: AlignedBuffer,
) -> (Request, Pending<AlignedBuffer>) {
    let (sender, pending) = pending(Operation::Read);
    let completion = Box::new(move |buffer, outcome: Result<(), DeviceError>| {
        // The receiver may be gone: nobody waits any more.
        let _ = sender.send(outcome.map(|()| buffer));
    });
    (Request::Read { offset, buffer, completion }, pending)
}

/// Starts to read `buffer.len()` bytes at `offset`.
pub fn read(
    device: &dyn Device,
    offset: ByteOffset,
    buffer: AlignedBuffer,
) -> Pending<AlignedBuffer> {
    let (request, pending) = prepare_read(offset, buffer);
    device.submit(vec![request]);
    pending
}

/// A write of `buffer` at `offset`, as a request and the future of its buffer; for batches that
/// are submitted together.
pub fn prepare_write(
    offset: ByteOffset,
    buffer: AlignedBuffer,
    durability: Durability,
) -> (Request, Pending<AlignedBuffer>) {
    let (sender, pending) = pending(Operation::Write);
    let completion = Box::new(move |buffer, outcome: Result<(), DeviceError>| {
        let _ = sender.send(outcome.map(|()| buffer));
    });
    (Request::Write { offset, buffer, durability, completion }, pending)
}

/// Starts to write `buffer` at `offset`; resolves to the buffer.
pub fn write(
    device: &dyn Device,
    offset: ByteOffset,
    buffer: AlignedBuffer,
    durability: Durability,
) -> Pending<AlignedBuffer> {
    let (request, pending) = prepare_write(offset, buffer, durability);
    device.submit(vec![request]);
    pending
}

/// Starts a flush.
pub fn flush(device: &dyn Device) -> Pending<()> {
    let (sender, pending) = pending(Operation::Flush);
    let completion = Box::new(move |outcome| {
        let _ = sender.send(outcome);
    });
    device.submit(vec![Request::Flush { completion }]);
    pending
}

/// Starts to discard `len_bytes` at `offset`.
pub fn discard(device: &dyn Device, offset: ByteOffset, len_bytes: u64) -> Pending<()> {
    let (sender, pending) = pending(Operation::Discard);
    let completion = Box::new(move |outcome| {
        let _ = sender.send(outcome);
    });
    device.submit(vec![Request::Discard { offset, len_bytes, completion }]);
    pending
}
