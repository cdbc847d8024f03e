//! What is watched, and what is seen of it at one moment.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use siltstone_engine::{Explanation, Pool, PoolStat, SpaceParts, VolumeStat};
use siltstone_nbd::{Connections, Operation, OperationTraffic};

use super::{content::Content, events::Events, series::Series, traffic::VolumeTraffic};
use crate::connected::ConnectedVolumes;

/// A server, as far as it is watched.
pub(crate) struct Watched {
    /// The pool that it serves.
    pub(crate) pool: Arc<Pool>,
    /// Where that is.
    pub(crate) pool_path: PathBuf,
    /// How many clients there are.
    pub(crate) connections: Connections,
    /// Which volumes they are connected to.
    pub(crate) connected: Arc<ConnectedVolumes>,
    /// What they do with them.
    pub(crate) traffic: Arc<VolumeTraffic>,
    /// What the log says.
    pub(crate) events: Arc<Events>,
    /// When it began.
    pub(crate) started: SystemTime,
}

/// What is seen at one moment.
pub(super) struct Observation {
    /// The pool, with what the last walk over its map has found.
    pub(super) stat: PoolStat,
    /// How long ago that was, and how long it took.
    pub(super) content_ages: Option<(Duration, Duration)>,
    pub(super) pool_path: PathBuf,
    pub(super) started: SystemTime,
    /// Clients, and how many there may be.
    pub(super) connections: (usize, usize),
    /// Those that have not chosen a volume: now, and ended because too many came after them.
    pub(super) half_open: (usize, u64),
    /// By volume.
    pub(super) connected: Vec<(String, usize)>,
    /// By volume, in the order of [`Operation::ALL`].
    pub(super) traffic: Vec<(String, [OperationTraffic; Operation::ALL.len()])>,
    /// What bounded the last second.
    pub(super) explanation: Option<Explanation>,
    /// Warnings and errors in the log so far.
    pub(super) logged: (u64, u64),
    pub(super) newest_event: u64,
}

impl Watched {
    /// Looks at everything.
    pub(super) fn observe(&self, content: Option<Arc<Content>>, series: &Series) -> Observation {
        let mut stat = self.pool.quick_stat();
        if let Some(content) = &content {
            enrich(&mut stat, content);
        }
        let traffic = self.traffic.all().into_iter();
        let traffic =
            traffic.map(|(name, traffic)| (name, Operation::ALL.map(|op| traffic.of(op))));
        Observation {
            stat,
            content_ages: content.map(|content| (content.at.elapsed(), content.took)),
            pool_path: self.pool_path.clone(),
            started: self.started,
            connections: (self.connections.now(), self.connections.limit()),
            half_open: (self.connections.half_open(), self.connections.pushed_out()),
            connected: self.connected.counts(),
            traffic: traffic.collect(),
            explanation: series.last_explanation(),
            logged: self.events.totals(),
            newest_event: self.events.newest(),
        }
    }
}

/// Adds what a walk has found. The garbage that only it can see is still there, as far as anybody knows.
fn enrich(stat: &mut PoolStat, content: &Content) {
    let (then, quick) = (&content.stat, &content.quick);
    if let Some(space) = corrected(stat.space, then.space, quick.space) {
        stat.space = space;
        let hidden_percent = quick.used_percent.saturating_sub(then.used_percent);
        stat.used_percent = stat.used_percent.saturating_sub(hidden_percent);
    }
    stat.content = then.content;
    let add = |now: &mut [VolumeStat], then: &[VolumeStat]| {
        for volume in now {
            let found = then.iter().find(|found| found.name == volume.name);
            volume.content = found.and_then(|found| found.content);
        }
    };
    add(&mut stat.volumes, &then.volumes);
    add(&mut stat.snapshots, &then.snapshots);
}

/// What `now` would be with a walk, which found `then` when nothing but it said `quick`; `None` if so much has
/// changed since that nobody can say.
fn corrected(now: SpaceParts, then: SpaceParts, quick: SpaceParts) -> Option<SpaceParts> {
    let correct = |now: u64, then: u64, quick: u64| {
        now.checked_add(then).and_then(|sum| sum.checked_sub(quick))
    };
    let parts = SpaceParts {
        stored_bytes: correct(now.stored_bytes, then.stored_bytes, quick.stored_bytes)?,
        garbage_bytes: correct(now.garbage_bytes, then.garbage_bytes, quick.garbage_bytes)?,
        overhead_bytes: correct(now.overhead_bytes, then.overhead_bytes, quick.overhead_bytes)?,
        ..now
    };
    // Clients that wrote between the walk and what it is compared with must not make it a wrong sum.
    (parts.total_bytes() == now.total_bytes()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(stored_bytes: u64, garbage_bytes: u64, overhead_bytes: u64) -> SpaceParts {
        SpaceParts { stored_bytes, garbage_bytes, overhead_bytes, ..SpaceParts::default() }
    }

    #[test]
    fn garbage_that_a_walk_has_found_is_remembered_and_the_sum_kept() {
        let (then, quick) = (parts(60, 35, 5), parts(80, 12, 8));
        assert_eq!(corrected(quick, then, quick), Some(then));
        assert_eq!(corrected(parts(100, 12, 8), then, quick), Some(parts(80, 35, 5)));
        // The garbage has been collected since, or something came between the two.
        assert_eq!(corrected(parts(10, 0, 0), then, quick), None);
        assert_eq!(corrected(quick, parts(60, 36, 5), quick), None);
    }
}
