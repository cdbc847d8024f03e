//! The fallback engine: a few threads that make ordinary system calls.
//!
//! Also carries out the one operation that io_uring has no general form of: discarding on a
//! block device.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::AsRawFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use rustix::{
    fs::{FallocateFlags, fallocate, fdatasync},
    io::{Errno, ReadWriteFlags, preadv2, pwritev2},
};

use crate::{
    ByteOffset, DeviceError, Durability, Request, completing::abort_on_panic, lock::LockedFile,
    request_queue::RequestQueue,
};

/// Threads that share a queue of requests to one file.
pub(crate) struct ThreadEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    file: Arc<LockedFile>,
    queue: RequestQueue,
}

impl ThreadEngine {
    /// Starts `count` threads.
    pub(crate) fn start(file: &Arc<LockedFile>, count: u32) -> Result<Self, DeviceError> {
        let queue = RequestQueue::default();
        let shared = Arc::new(Shared { file: Arc::clone(file), queue });
        let mut engine = Self { shared, threads: Vec::new() };
        for index in 0..count {
            let shared = Arc::clone(&engine.shared);
            let thread = thread::Builder::new()
                .name(format!("device-io-{index}"))
                .spawn(move || abort_on_panic(|| shared.serve()))
                .map_err(|error| DeviceError::open(&file.path, error))?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// Queues requests, which have been validated.
    pub(crate) fn submit(&self, batch: Vec<Request>) {
        self.shared.queue.push(batch, self.threads.len());
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        self.shared.queue.close();
        for thread in self.threads.drain(..) {
            // A completion may own the device's last reference: its thread ends by itself.
            if thread.thread().id() != thread::current().id() {
                thread.join().expect("device threads abort rather than panic");
            }
        }
    }
}

impl Shared {
    fn serve(&self) {
        while let Some(mut request) = self.queue.next() {
            let outcome = perform(&self.file, &mut request);
            request.complete(outcome);
        }
    }
}

/// Carries one request out, blocking.
fn perform(file: &LockedFile, request: &mut Request) -> Result<(), DeviceError> {
    let outcome = match request {
        Request::Read { offset, buffer, .. } => read_exact(file, *offset, buffer),
        Request::Write { offset, buffer, durability, .. } => {
            write_all(file, *offset, buffer, *durability)
        }
        Request::Flush { .. } => retrying(|| fdatasync(&**file)),
        Request::Discard { offset, len_bytes, .. } => discard(file, *offset, *len_bytes),
    };
    outcome.map_err(|error| request.io_error(error))
}

fn read_exact(file: &LockedFile, offset: ByteOffset, bytes: &mut [u8]) -> io::Result<()> {
    move_all(bytes.len(), io::ErrorKind::UnexpectedEof, |done| {
        let position = offset.0 + done as u64;
        let none = ReadWriteFlags::empty();
        preadv2(&**file, &mut [IoSliceMut::new(&mut bytes[done..])], position, none)
    })
}

fn write_all(
    file: &LockedFile,
    offset: ByteOffset,
    bytes: &[u8],
    durability: Durability,
) -> io::Result<()> {
    let flags = match durability {
        Durability::Flush => ReadWriteFlags::empty(),
        Durability::Immediate => ReadWriteFlags::DSYNC,
    };
    move_all(bytes.len(), io::ErrorKind::WriteZero, |done| {
        let position = offset.0 + done as u64;
        pwritev2(&**file, &[IoSlice::new(&bytes[done..])], position, flags)
    })
}

/// Calls `move_from` with how many bytes are done until all are; `kind` if it moves no more.
fn move_all(
    len: usize,
    kind: io::ErrorKind,
    mut move_from: impl FnMut(usize) -> rustix::io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        match move_from(done) {
            Ok(0) => return Err(kind.into()),
            Ok(count) => done += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn discard(file: &LockedFile, offset: ByteOffset, len_bytes: u64) -> io::Result<()> {
    let outcome = retrying(|| {
        if file.is_block_device {
            return discard_blocks(file, offset, len_bytes);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&**file, flags, offset.0, len_bytes)
    });
    match outcome {
        // Nothing promises that a medium can take space back; see `Request::Discard`.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        outcome => outcome,
    }
}

fn discard_blocks(file: &LockedFile, offset: ByteOffset, len_bytes: u64) -> rustix::io::Result<()> {
    /// `_IO(0x12, 119)` of linux/fs.h.
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [offset.0, len_bytes];
    // SAFETY: BLKDISCARD reads two u64 from the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

fn retrying(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) => {}
            outcome => return outcome.map_err(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one call after the other reports, and what comes of it all.
    fn moved(len: usize, calls: &[rustix::io::Result<usize>]) -> (Vec<usize>, io::Result<()>) {
        let mut starts = Vec::new();
        let outcome = move_all(len, io::ErrorKind::UnexpectedEof, |done| {
            starts.push(done);
            calls[starts.len() - 1]
        });
        (starts, outcome)
    }

    #[test]
    fn what_a_short_transfer_leaves_is_asked_for_again() {
        let (starts, outcome) = moved(8192, &[Ok(512), Err(Errno::INTR), Ok(4096), Ok(3584)]);
        outcome.unwrap();
        assert_eq!(starts, [0, 512, 512, 4608]);
    }

    #[test]
    fn a_transfer_that_stops_is_an_error() {
        let (starts, outcome) = moved(8192, &[Ok(4096), Ok(0)]);
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(starts, [0, 4096]);
        let (_, outcome) = moved(8192, &[Ok(4096), Err(Errno::IO)]);
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EIO));
    }
}
