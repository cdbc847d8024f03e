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

use std::{sync::Arc, time::Duration};

use event_listener::Event;
use siltstone_device::{DeviceError, Request, SegmentId, runtime::either};

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
pub(crate) async fn run(core: &Arc<Core>) {
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
        self.space.free_bytes(self.room()) > LEAST_ROOM_SEGMENTS * segment_bytes
    }

    /// Gives back everything that is free and of which the medium may hold something; `is_closing` if
    /// nobody needs room any more.
    pub(crate) async fn give_everything_back(self: &Arc<Self>, is_closing: bool) {
        self.table.hasten_undiscarded();
        // Looked at for each: what is being given back is room that a write would miss.
        let take = || {
            let may_take = is_closing || self.has_room_to_give_back();
            may_take.then(|| self.table.take_for_discard()).flatten()
        };
        loop {
            let ids: Vec<_> = std::iter::from_fn(take).take(AT_ONCE).collect();
            if ids.is_empty() {
                return;
            }
            self.give_back(&ids).await;
        }
    }

    /// Has the medium take segments back, and waits for that. They are free again when it has, also if
    /// nobody waits any more. A medium that cannot take anything back loses nothing by it.
    async fn give_back(self: &Arc<Self>, ids: &[SegmentId]) {
        let layout = &self.superblock.layout;
        let (requests, ends): (Vec<_>, Vec<_>) = ids
            .iter()
            .map(|&id| {
                let (told, end) = tokio::sync::oneshot::channel();
                let core = Arc::downgrade(self);
                let completion = Box::new(move |outcome: std::result::Result<(), DeviceError>| {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "the device does not take discarded space back");
                    }
                    if let Some(core) = core.upgrade() {
                        core.table.discarded(id);
                    }
                    // Whoever asked may have given up.
                    let _ = told.send(());
                });
                let (offset, len_bytes) =
                    (layout.geometry().segment_start(id), layout.segment_bytes);
                (Request::Discard { offset, len_bytes, completion }, end)
            })
            .unzip();
        self.device.submit(requests);
        for end in ends {
            // An error would say that it was dropped.
            let _ = end.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use siltstone_device::{
        SeededRandom,
        sim::{CompletionMode, SimDevice},
    };

    use crate::{CreateOptions, OpenOptions, Pool, Tuning, VolumeOptions};

    /// An operator may interrupt a collection while the medium is busy with discards.
    #[test]
    fn what_is_being_given_back_comes_free_though_nobody_waits() {
        let device = SimDevice::new(64 << 20);
        Pool::create_on(device.clone(), None, &CreateOptions::default()).expect("room enough");
        let never = std::time::Duration::from_secs(3600);
        let tuning = Tuning { discard_delay: never, ..Tuning::default() };
        let options = OpenOptions { tuning, ..OpenOptions::default() };
        let pool = Pool::open_on(device.clone(), None, &options).expect("a pool");
        let volume = pool.create_volume("v", &VolumeOptions::new(8 << 20)).expect("a volume");
        let mut noise = vec![0; 8 << 20];
        SeededRandom::new(1).fill(&mut noise);
        volume.write_at(0, &noise).expect("room enough");
        volume.flush().expect("a sound device");
        pool.delete_volume("v").expect("it is there");
        let core = pool.core();
        for _ in 0..3 {
            let compacting = core.checkpointing.run(true, || core.health.check());
            pollster::block_on(compacting).expect("a sound device");
        }
        let free = core.table.free_segments();
        device.set_completion_mode(CompletionMode::Queued);
        {
            let giving = pin!(core.give_everything_back(true));
            let is_waiting = giving.poll(&mut Context::from_waker(Waker::noop())).is_pending();
            assert!(is_waiting, "something was freed");
        }
        assert!(core.table.free_segments() < free, "it is not to be written meanwhile");
        // Completes what waits.
        device.set_completion_mode(CompletionMode::Inline);
        assert_eq!(core.table.free_segments(), free);
        pool.close().expect("a sound device");
    }
}
