//! Admission: where a change gets its sequence number and becomes visible, and where reducers
//! fetch their batches.
//!
//! # The queue
//! `pending` holds every change that is not yet published, in sequence order:
//! ```text
//! front | taken by reducers, not yet published | waiting to be taken | back
//! ```
//! Batches are cut from it in order and published in order, so the published changes are always a
//! prefix: one sequence number says it all.
//!
//! # Lock order
//! The queue's lock comes before any overlay's. It is held for a few instructions, never across a
//! copy or a wait.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use event_listener::Event;
use siltstone_device::{BlockAddress, Runtime, Sequence, runtime::either, sync::Mutex};

use crate::{
    overlay::{Change, ChangeBody, Merge},
    volume_core::VolumeCore,
};

/// Most changes in a batch, whatever their size.
pub(crate) const MAX_BATCH_CHANGES: usize = 1024;

/// A change that has its memory and space and only lacks a sequence number.
pub(crate) struct Admittable {
    pub(crate) volume: Arc<VolumeCore>,
    pub(crate) address: BlockAddress,
    pub(crate) len_blocks: u32,
    pub(crate) body: ChangeBody,
    pub(crate) staged_bytes: usize,
    pub(crate) space_bytes: u64,
    /// Where in the volume the client's range ends: the change is refused if the volume is smaller
    /// by now. 0 for changes that have no client.
    pub(crate) end_bytes: u64,
}

/// Why a change was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The merge that it completes has been superseded: read the block again.
    Superseded,
    /// The volume is smaller by now, or deleted.
    OutOfVolume,
    /// The pool is being closed or has failed: nobody would take the change on.
    Closed,
}

/// Changes that are reduced together: consecutive in the total order.
pub(crate) struct Batch {
    /// Counts from 0 since the pool was opened, without gaps.
    pub(crate) number: u64,
    pub(crate) changes: Vec<Arc<Change>>,
    /// Bytes that came later and wait for their turn, or for a place in the backlog.
    pub(crate) behind_bytes: usize,
}

/// What a flush finds unpublished.
pub(crate) struct Unpublished {
    /// Every change up to here is in the map.
    pub(crate) published: Sequence,
    /// Every change up to here has been admitted.
    pub(crate) admitted: Sequence,
    /// The changes between, after the sequence asked about.
    pub(crate) changes: Vec<Arc<Change>>,
    pub(crate) data_bytes: usize,
}

/// See the module's page.
pub(crate) struct Admission {
    queue: Mutex<Queue>,
    /// Something for reducers to look at.
    work: Event,
    /// The published prefix has grown.
    published: Event,
    batch_bytes: usize,
    linger: Duration,
    runtime: Arc<dyn Runtime>,
}

struct Queue {
    next_sequence: Sequence,
    published: Sequence,
    pending: VecDeque<Arc<Change>>,
    /// How many of `pending`, from the front, reducers have taken.
    taken: usize,
    /// Data bytes of the rest.
    waiting_bytes: usize,
    next_batch: u64,
    /// Changes up to here are not to wait for company.
    drain_to: Sequence,
    closed: bool,
}

impl Admission {
    /// An empty queue; the next change comes after `last`.
    pub(crate) fn new(
        last: Sequence,
        batch_bytes: usize,
        linger: Duration,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let queue = Queue {
            next_sequence: last.next(),
            published: last,
            pending: VecDeque::new(),
            taken: 0,
            waiting_bytes: 0,
            next_batch: 0,
            drain_to: Sequence(0),
            closed: false,
        };
        Self {
            queue: Mutex::new(queue),
            work: Event::new(),
            published: Event::new(),
            batch_bytes,
            linger,
            runtime,
        }
    }

    /// Admits a change. `at_sequence` is for replaying the log: the change keeps its number, which
    /// must be later than all admitted ones.
    ///
    /// Whether the change is still possible is decided here, under the lock that orders it: after a
    /// volume was made smaller or deleted, or the queue closed, nothing follows.
    ///
    /// # Errors
    /// The change itself, and why it was refused.
    pub(crate) fn admit(
        &self,
        change: Admittable,
        merge: Option<&Merge<'_>>,
        at_sequence: Option<Sequence>,
    ) -> Result<Sequence, (Admittable, Refusal)> {
        let admitted_at = self.runtime.now();
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err((change, Refusal::Closed));
        }
        let volume = &change.volume;
        if volume.check_exists().is_err() || change.end_bytes > volume.size_bytes() {
            return Err((change, Refusal::OutOfVolume));
        }
        if merge.is_some_and(Merge::is_superseded) {
            return Err((change, Refusal::Superseded));
        }
        let sequence = at_sequence.unwrap_or(queue.next_sequence);
        assert!(sequence >= queue.next_sequence, "sequence numbers only grow");
        queue.next_sequence = sequence.next();
        let change = Arc::new(Change {
            volume: change.volume,
            address: change.address,
            len_blocks: change.len_blocks,
            sequence,
            body: change.body,
            staged_bytes: change.staged_bytes,
            space_bytes: change.space_bytes,
            admitted_at,
        });
        change.volume.overlay.insert(&change);
        queue.waiting_bytes += change.data_bytes();
        queue.pending.push_back(change);
        let waiting = queue.pending.len() - queue.taken;
        let wake =
            waiting == 1 || queue.waiting_bytes >= self.batch_bytes || waiting >= MAX_BATCH_CHANGES;
        drop(queue);
        if wake {
            self.work.notify_additional(1);
        }
        Ok(sequence)
    }

    /// Calls `mark` with the number that the next change will get, while none is admitted.
    pub(crate) fn at_next<T>(&self, mark: impl FnOnce(Sequence) -> T) -> T {
        let queue = self.queue.lock();
        mark(queue.next_sequence)
    }

    /// The newest admitted change.
    pub(crate) fn admitted(&self) -> Sequence {
        Sequence(self.queue.lock().next_sequence.0 - 1)
    }

    /// Every change up to here is in the map.
    pub(crate) fn published(&self) -> Sequence {
        self.queue.lock().published
    }

    /// The newest batch that has been taken, or `None` if none has.
    pub(crate) fn newest_started(&self) -> Option<u64> {
        self.queue.lock().next_batch.checked_sub(1)
    }

    /// Waits for a batch; `None` once the queue is closed and empty.
    pub(crate) async fn take_batch(&self) -> Option<Batch> {
        loop {
            let (work, due) = {
                let mut queue = self.queue.lock();
                let due = match queue.pending.get(queue.taken) {
                    None if queue.closed => return None,
                    None => None,
                    Some(oldest) => {
                        let waiting = queue.pending.len() - queue.taken;
                        let full =
                            queue.waiting_bytes >= self.batch_bytes || waiting >= MAX_BATCH_CHANGES;
                        let urgent = queue.closed || oldest.sequence <= queue.drain_to;
                        let due = oldest.admitted_at + self.linger;
                        if full || urgent || self.runtime.now() >= due {
                            return Some(self.cut_batch(&mut queue));
                        }
                        Some(due)
                    }
                };
                (self.work.listen(), due)
            };
            match due {
                Some(due) => either(work, self.runtime.sleep_until(due)).await,
                None => work.await,
            }
        }
    }

    /// Takes the next batch from a queue that has changes to take.
    fn cut_batch(&self, queue: &mut Queue) -> Batch {
        let mut changes = Vec::new();
        let mut bytes = 0;
        while let Some(change) = queue.pending.get(queue.taken) {
            let more = change.data_bytes();
            let room = changes.is_empty()
                || (bytes + more <= self.batch_bytes && changes.len() < MAX_BATCH_CHANGES);
            if !room {
                break;
            }
            bytes += more;
            changes.push(Arc::clone(change));
            queue.taken += 1;
        }
        queue.waiting_bytes -= bytes;
        let number = queue.next_batch;
        queue.next_batch += 1;
        if queue.pending.len() > queue.taken {
            self.work.notify_additional(1);
        }
        Batch { number, changes, behind_bytes: queue.waiting_bytes }
    }

    /// The oldest batch has been published: its changes leave the queue.
    pub(crate) fn publish(&self, changes: &[Arc<Change>]) {
        let mut queue = self.queue.lock();
        for change in changes {
            let front = queue.pending.pop_front().expect("published changes were pending");
            assert!(Arc::ptr_eq(&front, change), "batches are published in order");
        }
        queue.taken -= changes.len();
        queue.published = changes.last().expect("a batch has changes").sequence;
        drop(queue);
        self.published.notify(usize::MAX);
    }

    /// What is not published after `after`, all at one moment.
    pub(crate) fn unpublished_after(&self, after: Sequence) -> Unpublished {
        let queue = self.queue.lock();
        let first = queue.pending.partition_point(|change| change.sequence <= after);
        let changes: Vec<_> = queue.pending.range(first..).cloned().collect();
        let data_bytes = changes.iter().map(|change| change.data_bytes()).sum();
        Unpublished {
            published: queue.published,
            admitted: Sequence(queue.next_sequence.0 - 1),
            changes,
            data_bytes,
        }
    }

    /// Whether what has come as far as the sealer, up to `sequence`, may wait for company there: `batch`, which
    /// is next, is being reduced, and nobody has everything sent through.
    pub(crate) fn is_company_coming(&self, batch: u64, sequence: Sequence) -> bool {
        let queue = self.queue.lock();
        queue.next_batch > batch && sequence > queue.drain_to
    }

    /// Sends everything up to `sequence` through the pipeline without waiting for company. Who calls this wakes the
    /// sealer.
    pub(crate) fn drain_to(&self, sequence: Sequence) {
        let mut queue = self.queue.lock();
        queue.drain_to = queue.drain_to.max(sequence);
        drop(queue);
        self.work.notify(usize::MAX);
    }

    /// Waits until everything up to `sequence` is published, or `give_up` says that it never will.
    pub(crate) async fn wait_published<E>(
        &self,
        sequence: Sequence,
        give_up: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let listener = self.published.listen();
            if self.published() >= sequence {
                return Ok(());
            }
            give_up()?;
            listener.await;
        }
    }

    /// Lets everyone who waits look again; after a failure.
    pub(crate) fn wake(&self) {
        self.published.notify(usize::MAX);
        self.work.notify(usize::MAX);
    }

    /// No more changes come: reducers finish what is there and stop.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.work.notify(usize::MAX);
    }

    /// Data that no reducer has taken.
    #[cfg(test)]
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.queue.lock().waiting_bytes
    }

    /// Changes admitted and not yet published.
    pub(crate) fn pending(&self) -> usize {
        self.queue.lock().pending.len()
    }
}

#[cfg(all(test, loom))]
mod models;
