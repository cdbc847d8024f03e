//! A client that keeps snapshots: takes, reads and deletes them, clones them, goes back to them.

use siltstone_engine::{EngineError, SnapshotName, Volume};

use super::{Client, Violation};
use crate::{
    content::{BLOCK, SECTOR, SECTORS, tags_of},
    pools::{CLONE, DISK, clone_name},
    tally::add,
};

/// More are not made.
const MOST_CLONES: usize = 3;
/// Snapshots of all volumes; more are not taken.
const MOST_SNAPSHOTS: usize = 12;
/// Snapshots are called `s` and a number below this, again when they are gone.
const NAMES: u64 = 16;
/// The smallest clone.
const LEAST_SECTORS: u64 = 8;

/// A client is done early: an operation failed, and what has become of it nobody knows.
struct Failed;

type Step<T> = Result<Result<T, Failed>, Violation>;

impl Client {
    /// Some operations of the one client that keeps snapshots of the disk and its clones.
    /// Between two of them it may wait for up to so many microseconds.
    ///
    /// # Errors
    /// The promise that was found broken.
    pub async fn keep_snapshots(
        &mut self,
        operations: u32,
        pause_us: u64,
    ) -> Result<(), Violation> {
        for _ in 0..operations {
            self.sleep(pause_us).await;
            if self.keep_a_step().await?.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn keep_a_step(&mut self) -> Step<()> {
        let (volumes, snapshots) = self.kept();
        let any_of = |random: &mut siltstone_device::SeededRandom, among: &[usize]| {
            among[random.below(among.len() as u64) as usize]
        };
        let volume = any_of(&mut self.random, &volumes);
        if snapshots.is_empty() {
            return self.take_snapshots(&volumes).await;
        }
        let snapshot = any_of(&mut self.random, &snapshots);
        let is_clone = self.world.model.lock().volumes[volume].name != DISK;
        match self.random.below(20) {
            0..=5 if snapshots.len() < MOST_SNAPSHOTS => self.take_snapshots(&volumes).await,
            0..=7 => self.delete_snapshots(&snapshots).await,
            8..=10 => self.read_snapshot(snapshot).await,
            11 | 12 if volumes.len() <= MOST_CLONES => self.clone_snapshot(snapshot).await,
            11..=13 => {
                let done = self.roll_back(snapshot).await?;
                match done.is_ok() && self.random.chance(1, 2) {
                    true => self.forget_snapshots_beside(snapshot).await,
                    false => Ok(done),
                }
            }
            14..=16 if is_clone => self.work_on_clone(volume).await,
            17 if is_clone => self.delete_clone(volume).await,
            18 | 19 => self.tidy().await,
            _ => Ok(Ok(())),
        }
    }

    /// The disk and its clones, and the snapshots of all of them.
    fn kept(&self) -> (Vec<usize>, Vec<usize>) {
        let model = self.world.model.lock();
        let is_kept = |at: &usize| {
            let name = &model.volumes[*at].name;
            model.is_usable(*at) && (name == DISK || name.starts_with(CLONE))
        };
        let volumes: Vec<_> = (0..model.volumes.len()).filter(is_kept).collect();
        let of = |at: &usize| model.snapshots_of(&model.volumes[*at].name);
        let snapshots = volumes.iter().flat_map(of).collect();
        (volumes, snapshots)
    }

    /// Whether a change of the catalog was made; that needs no room.
    fn changed(&self, outcome: Result<(), EngineError>, what: &str) -> Step<()> {
        if let Err(error @ EngineError::NoSpace { .. }) = &outcome {
            return Err(Violation(format!("{what} failed in a full pool: {error}")));
        }
        Ok(if self.allow(outcome, what)? { Ok(()) } else { Err(Failed) })
    }

    fn event(&self) -> usize {
        self.world.device.history_len()
    }

    async fn take_snapshots(&mut self, volumes: &[usize]) -> Step<()> {
        let own = format!("s{}", self.random.below(NAMES));
        let mut of = Vec::new();
        for &volume in volumes {
            let model = self.world.model.lock();
            let name = SnapshotName::new(&model.volumes[volume].name, &own);
            let name = name.expect("a name of letters and digits is one");
            let is_chosen = of.is_empty() || self.random.chance(1, 2);
            if is_chosen && !model.may_have_snapshot(&name) {
                of.push((name, volume));
            }
        }
        let names: Vec<_> = of.iter().map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            return Ok(Ok(()));
        }
        let event = self.event();
        let taking = self.world.model.lock().begin_snapshots(&of, event);
        let outcome = self.world.pool.create_snapshots_async(&names).await;
        let event = self.event();
        self.world.model.lock().end_snapshots(taking, event, outcome.is_ok());
        if outcome.is_ok() {
            add(&self.world.tally.snapshots, names.len() as u64);
        }
        self.changed(outcome, "taking snapshots")
    }

    async fn delete_snapshots(&mut self, snapshots: &[usize]) -> Step<()> {
        let mut gone = Vec::new();
        for &snapshot in snapshots {
            if gone.is_empty() || self.random.chance(1, 4) {
                gone.push(snapshot);
            }
        }
        self.delete_these_snapshots(&gone).await
    }

    async fn delete_these_snapshots(&mut self, gone: &[usize]) -> Step<()> {
        let event = self.event();
        let (deletion, names) = {
            let mut model = self.world.model.lock();
            let names: Vec<_> = gone.iter().map(|&at| model.snapshots[at].name.clone()).collect();
            (model.begin_delete_snapshots(gone, event), names)
        };
        let outcome = self.world.pool.delete_snapshots_async(&names).await;
        let event = self.event();
        if outcome.is_ok() {
            self.world.model.lock().end_change(deletion, event);
            for name in &names {
                if self.world.pool.volume(&name.to_string()).is_ok() {
                    return Err(Violation(format!("{name} is there after it was deleted")));
                }
            }
        }
        self.changed(outcome, "deleting snapshots")
    }

    /// Deletes all snapshots of the volume that one is of, so that the layer before can be adopted.
    async fn forget_snapshots_beside(&mut self, snapshot: usize) -> Step<()> {
        let gone = {
            let model = self.world.model.lock();
            model.snapshots_of(&model.snapshots[snapshot].name.volume)
        };
        self.delete_these_snapshots(&gone).await
    }

    fn handle(&self, snapshot: usize) -> Result<Volume, Violation> {
        let name = self.world.model.lock().snapshots[snapshot].name.to_string();
        self.world.pool.volume(&name).map_err(|error| Violation(error.to_string()))
    }

    /// All of a snapshot, or a part of it.
    async fn read_snapshot(&mut self, snapshot: usize) -> Step<()> {
        let volume = self.handle(snapshot)?;
        let blocks = volume.size_bytes().div_ceil(BLOCK as u64);
        let first = if self.random.chance(1, 2) { 0 } else { self.random.below(blocks) };
        let most = if self.random.chance(1, 2) { blocks } else { 16 };
        if self.random.chance(1, 8) {
            let refused = volume.write(0, &[0; SECTOR]).await;
            if !matches!(refused, Err(EngineError::SnapshotReadOnly { .. })) {
                return Err(Violation(format!("a write to a snapshot: {refused:?}")));
            }
        }
        let read = self.read_part(&volume, first, (blocks - first).min(most)).await?;
        let Ok(tags) = read else { return Ok(Err(Failed)) };
        self.world.model.lock().saw_snapshot(snapshot, first, &tags).map_err(Violation)?;
        Ok(Ok(()))
    }

    /// Blocks of a volume or snapshot, up to its end.
    async fn read_part(&self, volume: &Volume, first: u64, blocks: u64) -> Step<Vec<u32>> {
        let start = first * BLOCK as u64;
        let len = (volume.size_bytes() - start).min(blocks * BLOCK as u64);
        let mut bytes = vec![0; len as usize];
        let outcome = volume.read(start, &mut bytes).await;
        if !self.allow(outcome, "a read of a snapshot")? {
            return Ok(Err(Failed));
        }
        add(&self.world.tally.blocks, blocks);
        tags_of(&bytes).map(Ok).map_err(Violation)
    }

    /// Reads all of a snapshot, and notes that a volume has begun with that.
    async fn begins_with(&mut self, volume: usize, snapshot: usize) -> Step<()> {
        let handle = self.handle(snapshot)?;
        let read = self.read_part(&handle, 0, handle.size_bytes().div_ceil(BLOCK as u64)).await?;
        let Ok(tags) = read else { return Ok(Err(Failed)) };
        let mut model = self.world.model.lock();
        model.saw_snapshot(snapshot, 0, &tags).map_err(Violation)?;
        model.holds(volume, &tags);
        Ok(Ok(()))
    }

    async fn clone_snapshot(&mut self, snapshot: usize) -> Step<()> {
        let name = clone_name(self.random.next_u64());
        let event = self.event();
        let (index, of) = {
            let mut model = self.world.model.lock();
            let of = model.snapshots[snapshot].name.clone();
            (model.begin_clone(&name, snapshot, event), of)
        };
        let outcome = self.world.pool.clone_snapshot_async(&of, &name).await;
        let event = self.event();
        let mut found = Vec::new();
        if let Ok(clone) = &outcome {
            self.world.model.lock().end_create(index, event);
            add(&self.world.tally.clones, 1);
            // Sometimes before its snapshot was ever read.
            let blocks = self.random.below(32);
            let Ok(tags) = self.read_part(clone, 0, blocks).await? else { return Ok(Err(Failed)) };
            found = tags;
        }
        let read = self.begins_with(index, snapshot).await?;
        if read.is_ok() {
            let mut model = self.world.model.lock();
            for (block, found) in (0..).zip(found.chunks(SECTORS)) {
                model.saw(index, block, found).map_err(Violation)?;
            }
        }
        let changed = self.changed(outcome.map(|_| ()), "making a clone")?;
        Ok(read.and(changed))
    }

    async fn roll_back(&mut self, snapshot: usize) -> Step<()> {
        let event = self.event();
        let (of, old, new) = {
            let mut model = self.world.model.lock();
            let of = model.snapshots[snapshot].name.clone();
            let old = model.find(&of.volume).expect("it is kept");
            (of, old, model.begin_roll_back(old, snapshot, event))
        };
        let before = self.world.pool.volume(&of.volume);
        let before = before.map_err(|error| Violation(error.to_string()))?;
        let outcome = self.world.pool.roll_back_async(&of).await;
        let event = self.event();
        // Before others see that it is done: they may write then.
        let read = self.begins_with(new, snapshot).await?;
        if outcome.is_ok() {
            self.world.model.lock().end_create(new, event);
            add(&self.world.tally.roll_backs, 1);
            let refused = before.write(0, &[0; SECTOR]).await;
            if !matches!(refused, Err(EngineError::VolumeRolledBack { .. })) {
                let name = &self.world.model.lock().volumes[old].name;
                return Err(Violation(format!("a handle to {name} of before: {refused:?}")));
            }
        }
        let changed = self.changed(outcome.map(|_| ()), "going back to a snapshot")?;
        Ok(read.and(changed))
    }

    /// Some operations on a clone, or another size for it.
    async fn work_on_clone(&mut self, index: usize) -> Step<()> {
        let (name, sectors) = {
            let model = self.world.model.lock();
            (model.volumes[index].name.clone(), model.sectors(index))
        };
        if self.random.chance(1, 4) {
            let sectors = LEAST_SECTORS + self.random.below(2 * 288 * SECTORS as u64);
            // Otherwise nobody knows which size it has.
            return Ok(if self.resize(index, sectors).await? { Ok(()) } else { Err(Failed) });
        }
        let volume = self.world.pool.volume(&name);
        let volume = volume.map_err(|error| Violation(error.to_string()))?;
        self.work(&volume, index, 0..sectors / SECTORS as u64, 4).await?;
        Ok(Ok(()))
    }

    /// Deletes a clone; if it has snapshots, these too, which must be asked for.
    async fn delete_clone(&mut self, index: usize) -> Step<()> {
        let pool = self.world.pool.clone();
        let (name, has_snapshots) = {
            let model = self.world.model.lock();
            let name = model.volumes[index].name.clone();
            let has_snapshots = !model.snapshots_of(&name).is_empty();
            (name, has_snapshots)
        };
        if has_snapshots {
            let refused = pool.delete_volume_async(&name).await;
            let is_refused = matches!(refused, Err(EngineError::HasSnapshots { .. }));
            if !is_refused && !self.world.may_fail {
                return Err(Violation(format!(
                    "deleting {name}, which has snapshots: {refused:?}"
                )));
            }
        }
        let event = self.event();
        self.world.model.lock().begin_delete(index, event);
        let outcome = match has_snapshots {
            true => pool.delete_volume_and_snapshots_async(&name).await,
            false => pool.delete_volume_async(&name).await,
        };
        let event = self.event();
        if outcome.is_ok() {
            self.world.model.lock().end_delete(index, event);
        }
        self.changed(outcome, "deleting a clone")
    }

    /// A checkpoint or a garbage collection.
    async fn tidy(&mut self) -> Step<()> {
        let pool = &self.world.pool;
        let outcome = match self.random.chance(1, 2) {
            true => pool.checkpoint_async().await,
            false => pool.collect_garbage_async().await,
        };
        Ok(if self.allow(outcome, "tidying")? { Ok(()) } else { Err(Failed) })
    }
}
