//! Whether a pool looks like what it may look like.

use std::collections::{BTreeMap, BTreeSet};

use siltstone_engine::{EngineError, Pool, SnapshotName};

use super::{
    Change, Model, Sight, VolumeModel,
    snapshots::{Holds, SnapshotModel, blocks_of},
};
use crate::content::{BLOCK, SECTOR, SECTORS, tags_of};

/// What a look at a pool has shown of the changes of which it was open what became of them.
#[derive(Default)]
struct Seen {
    changes: BTreeMap<Change, bool>,
    /// When snapshots that were taken together can have been.
    moments: BTreeMap<Change, Vec<u64>>,
    compared: u64,
}

impl Model {
    /// Whether a pool may look like this after a cut when `event` was about to happen. Returns the
    /// number of blocks that were compared.
    ///
    /// With `damage`, a block may also refuse to be read: it is counted there.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check(
        &self,
        pool: &Pool,
        event: usize,
        mut damage: Option<&mut u64>,
    ) -> Result<u64, String> {
        let mut seen = Seen::default();
        let found = pool.volumes();
        for at in 0..self.volumes.len() {
            let model = &self.volumes[at];
            let is_certain = self.is_certain(model.made, event) && !self.may_be_gone(at, event);
            if is_certain && !found.iter().any(|v| v.name == model.name) {
                return Err(format!("volume {} is missing", model.name));
            }
        }
        for info in &found {
            let mut reasons = Vec::new();
            let mut fits = false;
            for model in self.volumes.iter().filter(|model| model.name == info.name) {
                if !self.may_be_there(model.made, model.gone, event) {
                    continue;
                }
                match model.check(pool, info.size_bytes, event, damage.as_deref_mut()).await {
                    Ok(compared) => {
                        seen.compared += compared;
                        fits = true;
                        break;
                    }
                    Err(reason) => reasons.push(reason),
                }
            }
            if !fits {
                let reason = match reasons.is_empty() {
                    true => "it cannot exist".into(),
                    false => reasons.join("; or "),
                };
                return Err(format!("volume {}: {reason}", info.name));
            }
        }
        let names: BTreeSet<_> = found.iter().map(|info| info.name.as_str()).collect();
        self.note_deletions(&names, event, &mut seen);
        self.check_snapshots(pool, event, damage, &mut seen).await?;
        Ok(seen.compared)
    }

    /// Whether, for all that is known, no volume of its name need be there after a cut.
    fn may_be_gone(&self, volume: usize, event: usize) -> bool {
        let Some(gone) = self.volumes[volume].gone else { return false };
        let successor = self.volumes.iter().position(|model| model.made == gone);
        self.is_possible(Some(gone), event)
            && successor.is_none_or(|successor| self.may_be_gone(successor, event))
    }

    /// What became of the deletions of volumes.
    fn note_deletions(&self, names: &BTreeSet<&str>, event: usize, seen: &mut Seen) {
        for model in &self.volumes {
            let Some(gone) = model.gone.filter(|gone| self.changes[*gone].is_open(event)) else {
                continue;
            };
            let is_replaced = self.volumes.iter().any(|other| other.made == gone);
            if !is_replaced && self.is_certain(model.made, event) {
                seen.changes.insert(gone, !names.contains(model.name.as_str()));
            }
        }
    }

    async fn check_snapshots(
        &self,
        pool: &Pool,
        event: usize,
        mut damage: Option<&mut u64>,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let found = pool.snapshots();
        let is_found = |model: &SnapshotModel| {
            let name = &model.name;
            let mut found = found.iter();
            found.find(|info| info.volume == name.volume && info.snapshot == name.snapshot)
        };
        for info in &found {
            let is_possible = |model: &&SnapshotModel| {
                model.name.volume == info.volume
                    && model.name.snapshot == info.snapshot
                    && self.may_be_there(model.made, model.gone, event)
            };
            if !self.snapshots.iter().any(|model| is_possible(&model)) {
                return Err(format!("snapshot {}@{} cannot exist", info.volume, info.snapshot));
            }
        }
        for model in &self.snapshots {
            if !self.may_be_there(model.made, model.gone, event) {
                continue;
            }
            let Some(info) = is_found(model) else {
                self.note_absent(model, event, seen)?;
                continue;
            };
            seen.note(self, model, model.made, true, event)?;
            if let Some(gone) = model.gone {
                seen.note(self, model, gone, false, event)?;
            }
            if info.size_bytes != model.sectors * SECTOR as u64 {
                let (size_bytes, sectors) = (info.size_bytes, model.sectors);
                return Err(format!(
                    "snapshot {} has {size_bytes} bytes, its volume had {sectors} sectors",
                    model.name
                ));
            }
            self.check_snapshot(pool, model, event, damage.as_deref_mut(), seen).await?;
        }
        Ok(())
    }

    fn note_absent(
        &self,
        model: &SnapshotModel,
        event: usize,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let may_be_gone = self.is_possible(model.gone, event);
        if self.is_certain(model.made, event) {
            return match model.gone.filter(|_| may_be_gone) {
                Some(gone) => seen.note(self, model, gone, true, event),
                None => Err(format!("snapshot {} is missing", model.name)),
            };
        }
        if may_be_gone { Ok(()) } else { seen.note(self, model, model.made, false, event) }
    }

    async fn check_snapshot(
        &self,
        pool: &Pool,
        model: &SnapshotModel,
        event: usize,
        damage: Option<&mut u64>,
        seen: &mut Seen,
    ) -> Result<(), String> {
        if matches!(model.holds, Holds::Opaque) {
            return Ok(());
        }
        for (first, tags) in read_parts(pool, &model.name.to_string(), damage).await? {
            seen.compared += (tags.len() / SECTORS) as u64;
            let Some(fitting) = self.fitting(model, first, &tags, Some(event))? else { continue };
            let moments = seen.moments.entry(model.made).or_insert_with(|| fitting.clone());
            moments.retain(|moment| fitting.contains(moment));
            if moments.is_empty() {
                let name = &model.name;
                return Err(format!("snapshot {name}: of another moment than those taken with it"));
            }
        }
        Ok(())
    }

    /// Whether every volume and snapshot reads as its operations left it.
    pub async fn check_visible(&mut self, pool: &Pool) -> Result<(), String> {
        for volume in 0..self.volumes.len() {
            if !self.is_usable(volume) {
                continue;
            }
            let name = &self.volumes[volume].name;
            let Some(tags) = read_served(pool, name).await? else { continue };
            for (block, found) in (0..).zip(tags.chunks(SECTORS)) {
                self.saw(volume, block, found)?;
            }
        }
        for at in 0..self.snapshots.len() {
            let snapshot = &self.snapshots[at];
            let is_there = snapshot.gone.is_none() && self.is_done(snapshot.made);
            if is_there && !matches!(snapshot.holds, Holds::Opaque) {
                let name = snapshot.name.to_string();
                let Some(tags) = read_served(pool, &name).await? else { continue };
                self.saw_snapshot(at, 0, &tags)?;
            }
        }
        Ok(())
    }

    /// What a pool holds, as the certain beginning of another history.
    pub async fn of(pool: &Pool, opaque: &[&str]) -> Result<Self, String> {
        let mut model = Self::default();
        model.note_pool_size(0, pool.size_bytes());
        for info in pool.volumes() {
            let sectors = info.size_bytes / SECTOR as u64;
            let volume = model.add_volume(&info.name, sectors, super::FROM_THE_BEGINNING);
            if opaque.contains(&info.name.as_str()) {
                model.volumes[volume].opaque = true;
                continue;
            }
            let tags = read_tags(pool, &info.name).await?;
            model.volumes[volume].hold(&blocks_of(&tags));
        }
        for info in pool.snapshots() {
            let name = SnapshotName::new(&info.volume, &info.snapshot);
            let name = name.map_err(|error| error.to_string())?;
            let holds = match opaque.contains(&info.volume.as_str()) {
                true => Holds::Opaque,
                false => Holds::Blocks(blocks_of(&read_tags(pool, &name.to_string()).await?)),
            };
            model.add_known_snapshot(name, info.size_bytes / SECTOR as u64, holds);
        }
        Ok(model)
    }
}

impl Seen {
    /// A snapshot has shown what became of a change.
    fn note(
        &mut self,
        model: &Model,
        snapshot: &SnapshotModel,
        change: Change,
        has_happened: bool,
        event: usize,
    ) -> Result<(), String> {
        if !model.changes[change].is_open(event) {
            return Ok(());
        }
        if *self.changes.entry(change).or_insert(has_happened) == has_happened {
            return Ok(());
        }
        let presence = if has_happened == (change == snapshot.made) { "there" } else { "missing" };
        let name = &snapshot.name;
        Err(format!("snapshot {name} is {presence}: a part of what was done together is seen"))
    }
}

/// All of a volume or snapshot; `None` if it is a snapshot, or a clone of one, whose contents were on
/// their way to the map when the pool failed.
async fn read_served(pool: &Pool, name: &str) -> Result<Option<Vec<u32>>, String> {
    let volume = pool.volume(name).map_err(|error| error.to_string())?;
    match volume.read(0, &mut [0; SECTOR]).await {
        Err(EngineError::Failed { .. }) => Ok(None),
        _ => read_tags(pool, name).await.map(Some),
    }
}

/// All that can be read of a volume or snapshot.
async fn read_tags(pool: &Pool, name: &str) -> Result<Vec<u32>, String> {
    let volume = pool.volume(name).map_err(|error| error.to_string())?;
    let mut bytes = vec![0; volume.size_bytes() as usize];
    volume.read(0, &mut bytes).await.map_err(|error| format!("reading {name}: {error}"))?;
    tags_of(&bytes).map_err(|reason| format!("volume {name}: {reason}"))
}

/// The same in parts that begin with some block: in one, or, if it cannot be read as a whole and
/// that is to be counted, block by block.
async fn read_parts(
    pool: &Pool,
    name: &str,
    damage: Option<&mut u64>,
) -> Result<Vec<(u64, Vec<u32>)>, String> {
    let damage = match (read_tags(pool, name).await, damage) {
        (Ok(tags), _) => return Ok(vec![(0, tags)]),
        (Err(reason), None) => return Err(reason),
        (Err(_), Some(damage)) => damage,
    };
    let volume = pool.volume(name).map_err(|error| error.to_string())?;
    let mut parts = Vec::new();
    for start in (0..volume.size_bytes()).step_by(BLOCK) {
        let len = (volume.size_bytes() - start).min(BLOCK as u64) as usize;
        let mut bytes = vec![0; len];
        if volume.read(start, &mut bytes).await.is_err() {
            *damage += 1;
            continue;
        }
        parts.push((start / BLOCK as u64, tags_of(&bytes)?));
    }
    Ok(parts)
}

impl VolumeModel {
    async fn check(
        &self,
        pool: &Pool,
        size_bytes: u64,
        event: usize,
        damage: Option<&mut u64>,
    ) -> Result<u64, String> {
        let certain = self.sizes.iter().rposition(|(_, span)| span.done <= event).unwrap_or(0);
        let mut sizes = self.sizes[certain..].iter();
        if !sizes.any(|(sectors, span)| {
            *sectors * SECTOR as u64 == size_bytes && span.is_possible(event)
        }) {
            return Err(format!("it never had the size that it has, {size_bytes} bytes"));
        }
        if self.opaque {
            return Ok(0);
        }
        let sight = Sight::after_cut(event);
        let mut compared = 0;
        for (first, tags) in read_parts(pool, &self.name, damage).await? {
            for (block, found) in (first..).zip(tags.chunks(SECTORS)) {
                let versions = self.blocks.get(&block);
                if !sight.may_see(versions, found) {
                    return Err(sight.explain(block, versions, found));
                }
                compared += 1;
            }
        }
        Ok(compared)
    }
}
