//! A simulated medium in memory, for tests and torture runs of everything above.
//!
//! It remembers every write, flush and discard ([`SimDevice::history_len`] events), and makes the
//! medium as it may be after a power cut at any of them ([`SimDevice::crash_at`]): what a
//! completed flush covers, or what was written with immediate durability, is there; every other
//! change is kept, lost or torn. It completes requests in order or shuffled, shows each one to a
//! hook that may fail it or cut the power, and does on request what bad disks do ([`fault`]):
//! fails, loses, misdirects, tears, damages.
//!
//! - [`fault`]: what can go wrong, on request.
//! - `perform`: carrying operations out, as asked or as a fault has it.
//! - `image`: the contents, sparse and cheap to clone.
//! - `history`: what happened, and since when it is durable.
//! - `crash`: what is left after a power cut.
//! - `machine`: the machine around the devices, whose tasks and time a seed drives.
//! - `digest`: one number for all that happened, to compare two runs.

mod crash;
mod digest;
pub mod fault;
mod history;
mod image;
mod machine;
mod perform;
mod shuffle;

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

pub use crash::{CrashPolicy, SECTOR_BYTES};
pub use fault::{Cause, Fault, FaultCounters, FaultKind, Times};
pub use history::Event;
pub use machine::Machine;

use crate::{BLOCK_BYTES, Device, DeviceError, Operation, Request, SeededRandom, validate::admit};
use fault::Faults;
use history::{Change, History};
use image::Image;
use shuffle::Shuffler;

/// When requests complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionMode {
    /// At once, before `submit` returns.
    Inline,
    /// Later, on a thread of the device's, in a random order, with pauses: for finding code that
    /// forgets to wait. The seed chooses order and pauses; timing still varies.
    Shuffled {
        /// Where the random numbers start.
        seed: u64,
    },
    /// When [`SimDevice::complete_queued`] says so: for a simulation that decides every order.
    Queued,
}

/// What a hook decides about an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it happen.
    Proceed,
    /// Fail it; nothing is changed.
    Fail(io::ErrorKind),
    /// Cut the power now: this operation never completes on the medium, and it and all that
    /// follow fail as [`DeviceError::Closed`].
    PowerCut,
}

/// Sees every write, flush and discard after its submission is recorded. Runs on the submitter's
/// thread, one call at a time; it may look at the device, and must not submit to it.
pub type Hook = Box<dyn FnMut(&Event) -> Verdict + Send>;

/// How much was asked of a device so far; what failed is counted too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Bytes of all reads.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of all writes.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
}

/// A simulated device.
///
/// The history holds all that was ever written, and thus memory; see
/// [`forget_history`](Self::forget_history).
pub struct SimDevice {
    medium: Arc<Medium>,
    completing: Mutex<Completing>,
    hook: Mutex<Option<Hook>>,
}

/// What completes requests, by mode.
enum Completing {
    Inline,
    Shuffled(Shuffler),
    Queued(Vec<Underway>),
}

/// What the device shares with the thread that completes its requests.
struct Medium {
    state: Mutex<State>,
    size_bytes: AtomicU64,
}

struct State {
    image: Image,
    history: History,
    faults: Faults,
    counters: Counters,
    has_power: bool,
    /// The sizes that the device had, oldest first.
    sizes: Vec<Size>,
}

/// A size of the device.
struct Size {
    size_bytes: u64,
    /// The event that was next when it became so large.
    since: usize,
    /// Until a flush has made it durable, a power cut takes it back.
    needs_flush: bool,
}

/// A request on its way: its number in the history unless it is a read, and whether a hook has
/// condemned it.
struct Underway {
    request: Request,
    entry: Option<usize>,
    refused: Option<io::ErrorKind>,
}

impl SimDevice {
    /// An empty device of any size; it takes memory only for what is written.
    ///
    /// # Panics
    /// If the size is not a multiple of [`BLOCK_BYTES`].
    #[must_use]
    pub fn new(size_bytes: u64) -> Arc<Self> {
        Self::with_image(size_bytes, Image::default())
    }

    /// An empty device whose requests complete shuffled.
    #[must_use]
    pub fn shuffled(size_bytes: u64, seed: u64) -> Arc<Self> {
        let device = Self::new(size_bytes);
        device.set_completion_mode(CompletionMode::Shuffled { seed });
        device
    }

    fn with_image(size_bytes: u64, image: Image) -> Arc<Self> {
        assert!(size_bytes.is_multiple_of(BLOCK_BYTES as u64), "a size is whole blocks");
        let history = History::new(image.clone());
        let (faults, counters) = (Faults::default(), Counters::default());
        let sizes = vec![Size { size_bytes, since: 0, needs_flush: false }];
        let state = State { image, history, faults, counters, has_power: true, sizes };
        let (state, size_bytes) = (Mutex::new(state), AtomicU64::new(size_bytes));
        Arc::new(Self {
            medium: Arc::new(Medium { state, size_bytes }),
            completing: Mutex::new(Completing::Inline),
            hook: Mutex::new(None),
        })
    }

    /// Chooses when requests complete from now on; those under way complete as they would have.
    /// Not to be called from a completion.
    pub fn set_completion_mode(&self, mode: CompletionMode) {
        let new = match mode {
            CompletionMode::Inline => Completing::Inline,
            CompletionMode::Shuffled { seed } => {
                Completing::Shuffled(Shuffler::start(&self.medium, seed))
            }
            CompletionMode::Queued => Completing::Queued(Vec::new()),
        };
        // The old one completes what it has: not under the lock, which its completions may need.
        let old = std::mem::replace(&mut *self.completing.lock(), new);
        if let Completing::Queued(waiting) = old {
            waiting.into_iter().for_each(|underway| self.medium.complete(underway));
        }
    }

    /// Requests that wait for [`complete_queued`](Self::complete_queued).
    #[must_use]
    pub fn queued_len(&self) -> usize {
        match &*self.completing.lock() {
            Completing::Queued(waiting) => waiting.len(),
            Completing::Inline | Completing::Shuffled(_) => 0,
        }
    }

    /// Carries out and completes one of the requests that wait, by its place among them.
    ///
    /// # Panics
    /// If so many do not wait.
    pub fn complete_queued(&self, chosen: usize) {
        let underway = match &mut *self.completing.lock() {
            Completing::Queued(waiting) => waiting.swap_remove(chosen),
            Completing::Inline | Completing::Shuffled(_) => panic!("nothing waits in this mode"),
        };
        self.medium.complete(underway);
    }

    /// Shows every later write, flush and discard to `hook`; replaces an earlier hook.
    pub fn set_hook(&self, hook: Hook) {
        *self.hook.lock() = Some(hook);
    }

    /// Takes the hook away.
    pub fn clear_hook(&self) {
        *self.hook.lock() = None;
    }

    /// Grows the device to this size if it is smaller, behind everybody's back and durably.
    ///
    /// # Panics
    /// If the size is not a multiple of [`BLOCK_BYTES`].
    pub fn set_size(&self, size_bytes: u64) {
        self.change_size(size_bytes, false);
    }

    fn change_size(&self, size_bytes: u64, needs_flush: bool) {
        assert!(size_bytes.is_multiple_of(BLOCK_BYTES as u64), "a size is whole blocks");
        let mut state = self.medium.state.lock();
        let before = self.medium.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
        if before < size_bytes {
            let since = state.history.len();
            state.sizes.push(Size { size_bytes, since, needs_flush });
        }
    }

    /// Cuts the power: every operation under way and every later one fails as
    /// [`DeviceError::Closed`].
    pub fn cut_power(&self) {
        self.medium.state.lock().has_power = false;
    }

    /// Events in the history: two for each write, flush and discard that has completed, one for
    /// each under way.
    #[must_use]
    pub fn history_len(&self) -> usize {
        self.medium.state.lock().history.len()
    }

    /// A device with the contents that this one may have after the power was cut when the event
    /// with this index was about to happen; `history_len()` is now. Its history begins there.
    ///
    /// # Panics
    /// If there is no such event.
    #[must_use]
    pub fn crash_at(&self, event_index: usize, random: &mut SeededRandom) -> Arc<Self> {
        self.crash_with(event_index, CrashPolicy::Random, random)
    }

    /// As [`crash_at`](Self::crash_at), with a choice of what becomes of uncertain changes.
    ///
    /// # Panics
    /// If there is no such event.
    #[must_use]
    pub fn crash_with(
        &self,
        event_index: usize,
        policy: CrashPolicy,
        random: &mut SeededRandom,
    ) -> Arc<Self> {
        let state = self.medium.state.lock();
        assert!(event_index <= state.history.len(), "event {event_index} has not happened");
        let image = state.history.image_at(event_index, policy, random);
        let size_bytes = state.size_at(event_index);
        drop(state);
        Self::with_image(size_bytes, image)
    }

    /// A device with the contents that reads of this one see now. Its history begins there.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Self> {
        let image = self.medium.state.lock().image.clone();
        Self::with_image(self.size_bytes(), image)
    }

    /// Begins the history anew, as if all that was written were durable, and frees its memory.
    ///
    /// # Panics
    /// If an operation is under way.
    pub fn forget_history(&self) {
        let mut state = self.medium.state.lock();
        assert_eq!(state.history.in_flight(), 0, "operations are under way");
        state.history = History::new(state.image.clone());
        state.sizes = vec![Size { size_bytes: self.size_bytes(), since: 0, needs_flush: false }];
    }

    /// One number for all events of the history: order, operation, offset, length, contents and
    /// outcome. Two runs that gave the device the same work, with the same faults, have the same.
    /// Reads are not in it.
    #[must_use]
    pub fn history_digest(&self) -> u64 {
        self.medium.state.lock().history.digest()
    }

    /// Prepares a fault.
    ///
    /// # Panics
    /// If the operation cannot go wrong in this way ([`Fault::kind`]), or is misdirected to
    /// something that is not a multiple of [`BLOCK_BYTES`].
    pub fn inject(&self, fault: Fault) {
        let mut state = self.medium.state.lock();
        let submitted = state.counters.operations();
        state.faults.add(fault, submitted);
    }

    /// Every read that touches these bytes fails from now on, until they are written.
    pub fn fail_reads(&self, range_bytes: Range<u64>) {
        let (operation, times) = (Operation::Read, Times::UntilWritten);
        let cause = Cause::Errno(libc::EIO);
        self.inject(Fault { operation, range_bytes, times, cause });
    }

    /// How often faults of each kind have struck so far. Damage by [`corrupt`](Self::corrupt) and
    /// [`flip_bit`](Self::flip_bit) counts as bit rot.
    #[must_use]
    pub fn struck(&self) -> FaultCounters {
        self.medium.state.lock().faults.struck()
    }

    /// Forgets all faults that have not struck, or not often enough.
    pub fn clear_faults(&self) {
        self.medium.state.lock().faults.clear();
    }

    /// Replaces bytes on the medium, durably and behind everybody's back, at any offset.
    pub fn corrupt(&self, offset_bytes: u64, bytes: &[u8]) {
        let mut state = self.medium.state.lock();
        state.faults.count(FaultKind::BitRot);
        state.damage(offset_bytes, bytes.to_vec());
    }

    /// Inverts one bit (0 to 7) of a byte on the medium.
    ///
    /// # Panics
    /// If a byte has no such bit.
    pub fn flip_bit(&self, offset_bytes: u64, bit: u8) {
        assert!(bit < 8, "a byte has 8 bits");
        let byte = self.peek(offset_bytes, 1)[0];
        self.corrupt(offset_bytes, &[byte ^ 1 << bit]);
    }

    /// What the medium holds, at any offset, without a request.
    #[must_use]
    pub fn peek(&self, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        self.medium.state.lock().image.read(offset_bytes, &mut bytes);
        bytes
    }

    /// How much was asked of the device so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.medium.state.lock().counters
    }

    /// Records a valid request and shows it to the hook; `None` if it was completed for want of
    /// power.
    fn start(&self, request: Request) -> Option<Underway> {
        let change = change_of(&request);
        let mut state = self.medium.state.lock();
        state.counters.count(&request);
        if !state.has_power {
            drop(state);
            fail_closed(request);
            return None;
        }
        let recorded = change.map(|change| state.history.begin(change));
        drop(state);
        let Some((entry, event)) = recorded else {
            return Some(Underway { request, entry: None, refused: None });
        };
        let verdict = self.hook.lock().as_mut().map_or(Verdict::Proceed, |hook| hook(&event));
        let refused = match verdict {
            Verdict::Proceed => None,
            Verdict::Fail(kind) => Some(kind),
            Verdict::PowerCut => {
                self.cut_power();
                fail_closed(request);
                return None;
            }
        };
        Some(Underway { request, entry: Some(entry), refused })
    }
}

impl State {
    /// The size that is sure to be left if the power goes when an event is about to happen.
    fn size_at(&self, event: usize) -> u64 {
        let is_left = |size: &&Size| {
            let since = size.since;
            since <= event && (!size.needs_flush || self.history.was_flushed(since, event))
        };
        let left = self.sizes.iter().rev().find(is_left);
        left.expect("the first size needs no flush").size_bytes
    }
}

impl Device for SimDevice {
    fn size_bytes(&self) -> u64 {
        self.medium.size_bytes.load(Ordering::Acquire)
    }

    /// As a file does: the size is durable with the next flush.
    fn grow_to(&self, size_bytes: u64) -> Result<(), DeviceError> {
        if !self.medium.state.lock().has_power {
            return Err(DeviceError::Closed { operation: Operation::Write });
        }
        self.change_size(size_bytes, true);
        Ok(())
    }

    fn submit(&self, batch: Vec<Request>) {
        for request in batch {
            let Some(request) = admit(request, self.size_bytes()) else { continue };
            let Some(underway) = self.start(request) else { continue };
            let mut completing = self.completing.lock();
            match &mut *completing {
                Completing::Inline => {
                    drop(completing);
                    self.medium.complete(underway);
                }
                Completing::Shuffled(shuffler) => shuffler.push(underway),
                Completing::Queued(waiting) => waiting.push(underway),
            }
        }
    }
}

impl Drop for SimDevice {
    /// Completes what waits, as every device does.
    fn drop(&mut self) {
        self.set_completion_mode(CompletionMode::Inline);
    }
}

impl Medium {
    /// Carries a request out and completes it.
    fn complete(&self, underway: Underway) {
        let Underway { mut request, entry, refused } = underway;
        let size_bytes = self.size_bytes.load(Ordering::Acquire);
        let outcome = self.state.lock().perform(&mut request, entry, refused, size_bytes);
        request.complete(outcome);
    }
}

/// How a request will change the medium; a read does not.
fn change_of(request: &Request) -> Option<Change> {
    match request {
        Request::Read { .. } => None,
        Request::Write { offset, buffer, durability, .. } => {
            let page = |bytes: &[u8]| Arc::new(bytes.try_into().expect("chunks are exact"));
            let pages = buffer.chunks_exact(BLOCK_BYTES).map(page).collect();
            let (offset_bytes, len_bytes) = (offset.0, buffer.len() as u64);
            Some(Change::Write { offset_bytes, len_bytes, pages, durability: *durability })
        }
        Request::Flush { .. } => Some(Change::Flush),
        Request::Discard { offset, len_bytes, .. } => {
            Some(Change::Discard { offset_bytes: offset.0, len_bytes: *len_bytes })
        }
    }
}

fn fail_closed(request: Request) {
    let operation = request.operation();
    request.fail(DeviceError::Closed { operation });
}

impl Counters {
    /// All operations.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.discards
    }

    fn count(&mut self, request: &Request) {
        let (_, len_bytes) = request.range();
        match request.operation() {
            Operation::Read => {
                self.reads += 1;
                self.read_bytes += len_bytes;
            }
            Operation::Write => {
                self.writes += 1;
                self.written_bytes += len_bytes;
            }
            Operation::Flush => self.flushes += 1,
            Operation::Discard => self.discards += 1,
        }
    }
}

impl std::fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimDevice({} bytes, {} events)", self.size_bytes(), self.history_len())
    }
}

#[cfg(test)]
mod tests;
