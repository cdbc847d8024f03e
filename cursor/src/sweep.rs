//! Sweeps: every entry that points into segments that are to be emptied gets a new place.
//!
//! Each patch that was there when the sweep began is read once; one with such entries is rewritten in
//! its own level, with what a [`Relocator`] says in their place. Patches that are written meanwhile
//! need no look if whoever merges in that time passes the same relocator: nothing in them points
//! where nothing may point any more. Patches of level 0 are merged down, since their numbers are
//! their order; and a merge that was begun is finished first.
//!
//! A patch with a damaged page is passed over: what it says stays as it is.

use std::{collections::BTreeSet, sync::Arc};

use siltstone_device::runtime::yield_now;

use crate::{
    error::MapError,
    extent::Target,
    maintain::READ_AHEAD_PAGES,
    map::Map,
    patch::{Patch, Version},
    policy::{self, Decision},
    prefetch::PatchReader,
    space::{Edit, Relocator, Rewrite},
};

/// How far a sweep has come. In memory only: what it has rewritten stays rewritten.
#[derive(Debug)]
pub struct Sweep {
    /// Patches with this number or a higher one are younger than the sweep.
    made_before: u64,
    /// Older patches in which nothing points where nothing may.
    clean: BTreeSet<u64>,
}

impl Map {
    /// Begins a sweep over the patches of this moment.
    #[must_use]
    pub fn sweep(&self) -> Sweep {
        Sweep { made_before: self.next_patch(), clean: BTreeSet::new() }
    }

    /// Reads one patch, or does a bounded piece of rewriting; `None` once everything is swept.
    ///
    /// # Errors
    /// [`MapError::NoSpace`], a device failure, a damaged page, or what the relocator reports:
    /// nothing has changed then. After a damaged page ([`MapError::is_damage`]) the next step passes
    /// over that patch.
    ///
    /// # Panics
    /// If `rewrite` has no relocator.
    pub async fn sweep_step(
        &self,
        mut rewrite: Rewrite<'_>,
        sweep: &mut Sweep,
    ) -> Result<Option<Edit>, MapError> {
        let relocator = rewrite.relocator.as_deref_mut().expect("a sweep is for a relocator");
        let version = Arc::clone(&self.shared.snapshot().version);
        let damaged = self.shared.damaged();
        let (limits, made_before) = (&self.shared.limits, sweep.made_before);
        let empty = |version: &Version, damaged: &BTreeSet<u64>| {
            policy::decide_emptying(version, limits, made_before, damaged)
        };
        if empty(&version, &damaged).is_some() {
            return self.step(rewrite, &empty).await;
        }
        let Some(patch) = sweep.next(&version, &damaged) else { return Ok(None) };
        let points = self.points_where_moved(patch, relocator).await;
        if !points.inspect_err(|error| self.shared.note_damage(error))? {
            sweep.clean.insert(patch.id);
            return Ok(Some(Edit::default()));
        }
        let patch = Arc::clone(patch);
        self.step(rewrite, &|_, _| Some(Decision::Merge(policy::in_place(&patch)))).await
    }

    async fn points_where_moved(
        &self,
        patch: &Arc<Patch>,
        relocator: &mut dyn Relocator,
    ) -> Result<bool, MapError> {
        let (from, to) = (patch.first, patch.end());
        let patches = [Arc::clone(patch)].into_iter();
        let store = Arc::clone(&self.shared.store);
        let mut reader = PatchReader::new(store, patches, from, to, READ_AHEAD_PAGES);
        loop {
            while let Some(extent) = reader.buffered() {
                if let Target::Stored(place) = extent.target
                    && relocator.moves(place.segment())
                {
                    return Ok(true);
                }
            }
            if !reader.refill().await? {
                return Ok(false);
            }
            yield_now().await;
        }
    }
}

impl Sweep {
    /// The next patch below level 0 to look at.
    fn next<'a>(&self, version: &'a Version, damaged: &BTreeSet<u64>) -> Option<&'a Arc<Patch>> {
        let is_due = |patch: &&Arc<Patch>| {
            let id = &patch.id;
            *id < self.made_before && !self.clean.contains(id) && !damaged.contains(id)
        };
        version.sorted().iter().flatten().find(is_due)
    }
}
