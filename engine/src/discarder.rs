//! Giving freed segments back to the medium: a file gets holes, a solid-state disk has less to keep.
//!
//! Mostly what is freed is soon written again, and then giving it back would be work for nothing, twice:
//! a file system has to allocate it anew. So a free segment is given back only when it has not been
//! needed for a while, and those that were freed last are used first. It is done one at a time, and
//! with pauses: many file systems stop all other writes to a file while they make a hole in it.
//! A forced collection gives everything back at once, and so does closing the pool.
//!
//! What is to be given back is not written down. After a crash it stays with the pool until it is used
//! again, or until a collection is asked for.

use std::time::Duration;

use event_listener::Event;
use siltstone_device::{SegmentId, request, runtime::either};

use crate::{core::Core, health::Milestone};

/// Looking more often would only cost time.
const MIN_DELAY: Duration = Duration::from_millis(1);
/// The pause after giving one back, in times of what that took.
const PAUSE_TIMES: u32 = 4;
/// Segments that are given back at the same time when nobody has to be spared.
const AT_ONCE: usize = 16;
/// Free room for writes below which nothing is given back, in segments: it is about to be needed.
const LEAST_ROOM_SEGMENTS: u64 = 16;

/// What others tell the discarder.
#[derive(Default)]
pub(crate) struct Discarder {
    /// Something was freed.
    changed: Event,
    stopping: Milestone,
}

impl Discarder {
    /// Something was freed.
    pub(crate) fn note_freed(&self) {
        self.changed.notify(usize::MAX);
    }

    /// Ends the task.
    pub(crate) fn stop(&self) {
        self.stopping.set();
    }

    /// Lets the task look at the pool's health.
    pub(crate) fn wake(&self) {
        self.stopping.wake();
    }
}

/// The task.
pub(crate) async fn run(core: &Core) {
    let (discarder, runtime) = (&core.discarder, &core.runtime);
    let stopped = || async {
        // A failed pool stops, too.
        let _ = discarder.stopping.wait(|| core.health.check()).await;
    };
    while !discarder.stopping.is_set() && core.health.check().is_ok() {
        let changed = discarder.changed.listen();
        if !core.table.age_undiscarded() {
            either(changed, stopped()).await;
            continue;
        }
        drop(changed);
        let next = runtime.now() + core.tuning.discard_delay.max(MIN_DELAY);
        while core.has_room_to_give_back()
            && !discarder.stopping.is_set()
            && core.health.check().is_ok()
            && let Some(id) = core.table.take_for_discard()
        {
            let began = runtime.now();
            core.give_back(&[id]).await;
            let now = runtime.now();
            either(runtime.sleep_until(now + (now - began) * PAUSE_TIMES), stopped()).await;
        }
        either(runtime.sleep_until(next), stopped()).await;
    }
}

impl Core {
    /// Whether no write would miss what is given back while that takes.
    fn has_room_to_give_back(&self) -> bool {
        let segment_bytes = self.superblock.layout.segment_bytes;
        self.space.free_bytes(self.room()) >= LEAST_ROOM_SEGMENTS * segment_bytes
    }

    /// Gives back everything that is free and of which the medium may hold something; `is_closing` if
    /// nobody needs room any more.
    pub(crate) async fn give_everything_back(&self, is_closing: bool) {
        self.table.hasten_undiscarded();
        while is_closing || self.has_room_to_give_back() {
            let take = || self.table.take_for_discard();
            let ids: Vec<_> = std::iter::from_fn(take).take(AT_ONCE).collect();
            if ids.is_empty() {
                return;
            }
            self.give_back(&ids).await;
        }
    }

    /// A medium that cannot take anything back loses nothing by it.
    async fn give_back(&self, ids: &[SegmentId]) {
        let layout = &self.superblock.layout;
        let discard = |&id| {
            let start = layout.geometry().segment_start(id);
            request::discard(&*self.device, start, layout.segment_bytes)
        };
        let discards: Vec<_> = ids.iter().map(discard).collect();
        for (discard, &id) in discards.into_iter().zip(ids) {
            if let Err(error) = discard.await {
                tracing::debug!(%error, "the device does not take discarded space back");
            }
            self.table.discarded(id);
        }
    }
}
