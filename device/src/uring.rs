//! The io_uring engine: one ring, owned by one thread.
//!
//! Submitters put a batch into an inbox under a short lock. If the ring's thread sleeps in the
//! kernel they wake it through an eventfd that the ring itself reads: one system call a batch,
//! and none while the thread is awake. The thread ("device-completion") moves requests from the
//! inbox to the ring, submits and waits with a single system call, then reaps every completion
//! there is and calls their closures, whose own submissions join the next such call.
//!
//! What a completion puts off until then ([`when_submitted`](crate::when_submitted)) is done between
//! submitting and waiting.
//!
//! Reads that come while many short ones are under way wake nobody: one of those completes soon, and then
//! the thread looks into the inbox. Under load submissions so ride on completions, several to a system
//! call and to a notification of the device, which is what they cost most by.
//!
//! Why submitters do not enter the ring themselves: the kernel runs a request's completion work
//! on the thread that submitted it, so it would interrupt whatever that thread does next, and it
//! cancels what a thread has queued when that thread exits. With one thread it can also skip most
//! of its locking (SINGLE_ISSUER, DEFER_TASKRUN).
//!
//! Invariants: at most `depth` requests are in the kernel, plus the read of the eventfd, so
//! neither queue of the ring overflows. Each is kept in a slot, buffer included, until its
//! completion is reaped. The ring is torn down only when nothing is in the kernel.
//!
//! A completion that panics aborts the process; see [`crate::completing`].

use std::{
    collections::VecDeque,
    io,
    mem::take,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use io_uring::{IoUring, opcode, squeue, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes;

use crate::{
    DeviceError, Durability, Request,
    completing::{abort_on_panic, complete_all, keep_later, take_later},
    lock::LockedFile,
};

/// Bounds of the queue depth.
const MAX_DEPTH: u32 = 4096;
/// What one read or write asks of the kernel at most; the rest is a continuation.
const MAX_TRANSFER_BYTES: usize = 1 << 30;
/// How often the kernel may ask for a request to be tried again before that is an error.
const MAX_RETRIES: u32 = 10_000;
/// Completions that are told before what they submitted goes to the kernel. A device that is given
/// all its work at once and reports all of it at once is idle while the completions run. Random
/// reads at depth 32 on a virtio disk, median of five: rounds of 2, 4, 8, 16 and without limit
/// give 58, 55, 48, 42 and 45 thousand a second; 4 needs half the system calls of 2.
const COMPLETIONS_A_ROUND: usize = 4;
/// Reads of at most this length are short: the device completes them in its usual time.
const SHORT_READ_BYTES: usize = 64 << 10;
/// While so many short reads are under way a read that comes waits for the first of them rather than wake the
/// thread: on average an eighth of the time that it will take itself.
const BUSY_DEPTH: usize = 8;
/// Marks the completion of the eventfd's read; slots are numbered from 0.
const WAKE: u64 = u64::MAX;
/// The only registered file.
const FILE: types::Fixed = types::Fixed(0);

/// A running ring.
pub(crate) struct UringEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Inbox {
    arrived: Vec<Request>,
    /// The thread is in the kernel, or about to be, and does not know of what arrives now.
    asleep: bool,
    /// It will be back soon, for the device has many short reads.
    soon_back: bool,
    closing: bool,
}

impl UringEngine {
    /// Sets up a ring for `file` and starts its thread.
    pub(crate) fn start(file: &Arc<LockedFile>, queue_depth: u32) -> io::Result<Self> {
        let depth = queue_depth.clamp(1, MAX_DEPTH);
        let wake = eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { inbox: Mutex::default(), wake });
        // A ring for a single issuer belongs to the thread that makes it.
        let (started, outcome) = mpsc::sync_channel(1);
        let (file, inner) = (Arc::clone(file), Arc::clone(&shared));
        let thread = thread::Builder::new().name("device-completion".into()).spawn(move || {
            abort_on_panic(|| match RingThread::new(file, inner, depth) {
                Ok(ring) => {
                    let _ = started.send(Ok(()));
                    ring.run();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            });
        })?;
        outcome.recv().expect("the thread reports before it ends")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues requests, which have been validated.
    pub(crate) fn submit(&self, batch: Vec<Request>) {
        if batch.is_empty() {
            return;
        }
        let is_read = |request: &Request| matches!(request, Request::Read { .. });
        let can_wait = batch.iter().all(is_read);
        let mut inbox = self.shared.inbox.lock();
        if inbox.arrived.is_empty() {
            inbox.arrived = batch;
        } else {
            inbox.arrived.extend(batch);
        }
        if can_wait && inbox.soon_back {
            return;
        }
        let asleep = take(&mut inbox.asleep);
        drop(inbox);
        if asleep {
            self.shared.wake();
        }
    }
}

impl Shared {
    fn wake(&self) {
        // Cannot fail: the counter is far from its limit, and a signal interrupts only a wait.
        rustix::io::write(&self.wake, 1_u64.as_bytes()).expect("an eventfd takes a wake-up");
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        self.shared.inbox.lock().closing = true;
        // Always: the thread ends only after it has seen this last wake-up.
        self.shared.wake();
        let thread = self.thread.take().expect("dropped once");
        // A completion may own the device's last reference: its thread ends by itself.
        if thread.thread().id() != thread::current().id() {
            thread.join().expect("the ring's thread aborts rather than panics");
        }
    }
}

/// A request, and how far it has come.
struct Started {
    request: Request,
    done_bytes: usize,
    retries: u32,
}

/// What the ring's thread owns.
struct RingThread {
    ring: IoUring,
    shared: Arc<Shared>,
    /// The file is registered with the ring; this keeps it locked.
    file: Arc<LockedFile>,
    /// What the kernel has, by slot.
    slots: Vec<Option<Started>>,
    free_slots: Vec<usize>,
    /// How many of those are short reads.
    short_reads: usize,
    /// What waits for a slot, in order of arrival.
    backlog: VecDeque<Started>,
    /// Requests whose outcome is known and not yet told.
    finished: Vec<(Request, Result<(), DeviceError>)>,
    /// Where the kernel stores the eventfd's counter.
    wake_counter: Box<u64>,
    /// The kernel has a read of the eventfd.
    wake_armed: bool,
}

impl RingThread {
    fn new(file: Arc<LockedFile>, shared: Arc<Shared>, depth: u32) -> io::Result<Self> {
        let ring = build_ring(depth + 1)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let depth = depth as usize;
        Ok(Self {
            ring,
            shared,
            file,
            slots: (0..depth).map(|_| None).collect(),
            free_slots: (0..depth).rev().collect(),
            short_reads: 0,
            backlog: VecDeque::new(),
            finished: Vec::with_capacity(depth),
            wake_counter: Box::new(0),
            wake_armed: false,
        })
    }

    fn run(mut self) {
        keep_later();
        loop {
            let closing = self.receive();
            if !closing && !self.wake_armed {
                self.arm_wake();
            }
            self.fill();
            self.do_what_waited();
            let idle = self.free_slots.len() == self.slots.len();
            if closing && idle && !self.wake_armed {
                break;
            }
            self.submit_and_wait();
            self.reap();
            let mut inbox = self.shared.inbox.lock();
            (inbox.asleep, inbox.soon_back) = (false, false);
            drop(inbox);
            complete_all(&mut self.finished);
        }
        assert!(self.backlog.is_empty(), "everything was completed before the ring closes");
        // Closing the ring would let go of the file too, but some time later. A failure only
        // means that.
        let _ = self.ring.submitter().unregister_files();
    }

    /// Does what completions have put off until everything is submitted.
    fn do_what_waited(&mut self) {
        let later = take_later();
        if later.is_empty() {
            return;
        }
        if !self.ring.submission().is_empty() {
            self.submit(0);
        }
        later.into_iter().for_each(|work| work());
    }

    /// Takes what has arrived; from here on, submitters must wake this thread. Returns whether
    /// the engine closes.
    fn receive(&mut self) -> bool {
        let mut inbox = self.shared.inbox.lock();
        inbox.asleep = true;
        inbox.soon_back = self.short_reads >= BUSY_DEPTH;
        let arrived = take(&mut inbox.arrived);
        let closing = inbox.closing;
        drop(inbox);
        let start = |request| Started { request, done_bytes: 0, retries: 0 };
        self.backlog.extend(arrived.into_iter().map(start));
        closing
    }

    fn arm_wake(&mut self) {
        let target: *mut u64 = &raw mut *self.wake_counter;
        let descriptor = types::Fd(self.shared.wake.as_raw_fd());
        let entry = opcode::Read::new(descriptor, target.cast(), size_of::<u64>() as u32).build();
        self.push(&entry.user_data(WAKE));
        self.wake_armed = true;
    }

    /// Moves requests from the backlog to the ring while there are slots.
    fn fill(&mut self) {
        while let Some(slot) = self.free_slots.pop() {
            let Some(mut started) = self.backlog.pop_front() else {
                self.free_slots.push(slot);
                return;
            };
            let entry = started.entry().user_data(slot as u64);
            self.short_reads += usize::from(started.is_short_read());
            self.slots[slot] = Some(started);
            self.push(&entry);
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the memory that entries point to is owned by this struct (a slot's request, or
        // the wake counter), does not move, and stays until the completion is reaped: `run` does
        // not return before, and a panic aborts.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the ring has an entry for every slot and one for the wake-up");
    }

    /// Gives the kernel what was pushed, and waits until there is a completion to reap.
    fn submit_and_wait(&mut self) {
        let has_completions = !self.ring.completion().is_empty();
        if has_completions && self.ring.submission().is_empty() {
            return;
        }
        self.submit(usize::from(!has_completions));
    }

    /// Gives the kernel what was pushed, and waits for so many completions.
    fn submit(&mut self, wait_for: usize) {
        match self.ring.submit_and_wait(wait_for) {
            Ok(_) => {}
            // Busy: completions must be reaped first; again: the kernel is short of memory.
            // Either way nothing was lost, and the next round tries again.
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EBUSY) => {}
                Some(libc::EAGAIN) => thread::sleep(std::time::Duration::from_millis(1)),
                _ => panic!("io_uring_enter failed: {error}"),
            },
        }
    }

    fn reap(&mut self) {
        for entry in self.ring.completion().take(COMPLETIONS_A_ROUND) {
            if entry.user_data() == WAKE {
                self.wake_armed = false;
                continue;
            }
            let slot = entry.user_data() as usize;
            let started = self.slots[slot].take().expect("a completion belongs to a used slot");
            self.free_slots.push(slot);
            self.short_reads -= usize::from(started.is_short_read());
            match started.advance(entry.result()) {
                Progress::Finished(request, outcome) => self.finished.push((request, outcome)),
                Progress::Unfinished(started) => self.backlog.push_front(started),
            }
        }
    }
}

impl Drop for RingThread {
    fn drop(&mut self) {
        let idle = self.free_slots.len() == self.slots.len() && !self.wake_armed;
        assert!(idle, "{}: the kernel must be done with all buffers", self.file.path.display());
    }
}

/// A ring with the flags that suit a single thread, or without them on kernels before 6.1.
fn build_ring(entries: u32) -> io::Result<IoUring> {
    let modern = IoUring::builder()
        .dontfork()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries);
    match modern {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().dontfork().build(entries)
        }
        outcome => outcome,
    }
}

/// What a completion means for its request.
enum Progress {
    Finished(Request, Result<(), DeviceError>),
    /// To be submitted again, for all or for the rest of it.
    Unfinished(Started),
}

impl Started {
    fn is_short_read(&self) -> bool {
        matches!(&self.request, Request::Read { buffer, .. } if buffer.len() <= SHORT_READ_BYTES)
    }

    /// The ring's description of what remains to be done.
    fn entry(&mut self) -> squeue::Entry {
        match &mut self.request {
            Request::Read { offset, buffer, .. } => {
                let position = offset.0 + self.done_bytes as u64;
                let rest = &mut buffer[self.done_bytes..];
                let len = rest.len().min(MAX_TRANSFER_BYTES) as u32;
                opcode::Read::new(FILE, rest.as_mut_ptr(), len).offset(position).build()
            }
            Request::Write { offset, buffer, durability, .. } => {
                let flags = match durability {
                    Durability::Flush => 0,
                    Durability::Immediate => libc::RWF_DSYNC,
                };
                let position = offset.0 + self.done_bytes as u64;
                let rest = &buffer[self.done_bytes..];
                let len = rest.len().min(MAX_TRANSFER_BYTES) as u32;
                opcode::Write::new(FILE, rest.as_ptr(), len)
                    .offset(position)
                    .rw_flags(flags)
                    .build()
            }
            Request::Flush { .. } => {
                opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build()
            }
            Request::Discard { offset, len_bytes, .. } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(FILE, *len_bytes).offset(offset.0).mode(mode).build()
            }
        }
    }

    /// Takes a completion's result into account.
    fn advance(mut self, result: i32) -> Progress {
        let Ok(count) = usize::try_from(result) else {
            return self.failed(-result);
        };
        let (len, kind) = match &self.request {
            Request::Read { buffer, .. } => (buffer.len(), io::ErrorKind::UnexpectedEof),
            Request::Write { buffer, .. } => (buffer.len(), io::ErrorKind::WriteZero),
            Request::Flush { .. } | Request::Discard { .. } => {
                return Progress::Finished(self.request, Ok(()));
            }
        };
        self.done_bytes += count;
        assert!(self.done_bytes <= len, "the kernel moved more bytes than it was asked to");
        if self.done_bytes == len {
            return Progress::Finished(self.request, Ok(()));
        }
        if count == 0 {
            let error = self.request.io_error(kind);
            return Progress::Finished(self.request, Err(error));
        }
        Progress::Unfinished(self)
    }

    fn failed(mut self, errno: i32) -> Progress {
        match errno {
            libc::EAGAIN | libc::EINTR if self.retries < MAX_RETRIES => {
                self.retries += 1;
                Progress::Unfinished(self)
            }
            // Nothing promises that a medium can take space back; see `Request::Discard`.
            libc::EOPNOTSUPP if matches!(self.request, Request::Discard { .. }) => {
                Progress::Finished(self.request, Ok(()))
            }
            _ => {
                let error = self.request.io_error(io::Error::from_raw_os_error(errno));
                Progress::Finished(self.request, Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AlignedBuffer, BLOCK_BYTES, ByteOffset};

    fn read() -> Started {
        let (offset, buffer) = (ByteOffset(0), AlignedBuffer::zeroed(2 * BLOCK_BYTES));
        let request = Request::Read { offset, buffer, completion: Box::new(|_, _| ()) };
        Started { request, done_bytes: 0, retries: 0 }
    }

    fn write() -> Started {
        let (offset, buffer) = (ByteOffset(0), AlignedBuffer::zeroed(2 * BLOCK_BYTES));
        let (durability, completion) = (Durability::Immediate, Box::new(|_, _| ()));
        let request = Request::Write { offset, buffer, durability, completion };
        Started { request, done_bytes: 0, retries: 0 }
    }

    fn unfinished(progress: Progress) -> Started {
        match progress {
            Progress::Unfinished(started) => started,
            Progress::Finished(_, outcome) => panic!("finished: {outcome:?}"),
        }
    }

    fn finished(progress: Progress) -> Result<(), io::ErrorKind> {
        match progress {
            Progress::Finished(_, Ok(())) => Ok(()),
            Progress::Finished(_, Err(DeviceError::Io { source, .. })) => Err(source.kind()),
            Progress::Finished(_, Err(error)) => panic!("{error}"),
            Progress::Unfinished(started) => panic!("only {} bytes done", started.done_bytes),
        }
    }

    #[test]
    fn what_a_short_transfer_leaves_is_asked_for_again() {
        for started in [read(), write()] {
            let started = unfinished(started.advance(512));
            assert_eq!(started.done_bytes, 512);
            let started = unfinished(started.advance(-libc::EAGAIN));
            let started = unfinished(started.advance(4096));
            assert_eq!(started.done_bytes, 4608);
            assert_eq!(finished(started.advance(3584)), Ok(()));
        }
    }

    #[test]
    fn a_transfer_that_stops_is_an_error() {
        for (started, kind) in
            [(read(), io::ErrorKind::UnexpectedEof), (write(), io::ErrorKind::WriteZero)]
        {
            let started = unfinished(started.advance(4096));
            assert_eq!(finished(started.advance(0)), Err(kind));
        }
    }
}
