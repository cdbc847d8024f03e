//! What volumes may contain after any history of writes, discards, flushes, resizes, deletes,
//! failures and power cuts.
//!
//! Every change of a block makes a version of the whole block. A version counts from when its
//! operation began, and is *certain* from when a flush was acknowledged that began after the
//! operation was done. After a cut a block may hold any version that had begun, except those that
//! were done before a certain one began. Moments are events of the simulated device, so that one
//! history can be judged at every cut; what happened at the same event is ordered by ticks.
//!
//! Without a cut a block reads as the last operation left it; where operations have failed, as any
//! of them or of what was there before.

use std::collections::BTreeMap;

use siltstone_engine::Pool;

use crate::{
    content::{BLOCK, Block, SECTOR, SECTORS, ZERO, tags_of},
    report,
};

#[derive(Clone, Debug)]
struct Version {
    content: Block,
    begun_event: usize,
    begun: u64,
    /// The tick at which it was done; `u64::MAX` before that, and for ever if it failed.
    done: u64,
    /// The event from which on it is certain; `usize::MAX` if never.
    certain: usize,
}

/// When a change of the catalog may be and when it must be seen.
#[derive(Clone, Copy, Debug)]
struct Span {
    begun: usize,
    done: usize,
}

const BASE: Span = Span { begun: 0, done: 0 };

/// What may be in one volume.
#[derive(Clone, Debug)]
pub struct VolumeModel {
    /// Its name.
    pub name: String,
    created: Span,
    deleted: Option<Span>,
    /// Sizes in sectors, oldest first.
    sizes: Vec<(u64, Span)>,
    /// Blocks that may be other than zero.
    blocks: BTreeMap<u64, Vec<Version>>,
    /// What each block reads as now: one content, or several that are possible.
    visible: BTreeMap<u64, Vec<Block>>,
    /// Only its presence and size are checked.
    pub opaque: bool,
    /// From this block on several clients write, and what is visible is not known.
    pub shared_from: u64,
}

/// Versions that an operation makes: volume, and block with the version's number.
pub struct Operation {
    volume: usize,
    versions: Vec<(u64, usize)>,
}

/// What may be in a pool.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Its volumes, those that are gone among them.
    pub volumes: Vec<VolumeModel>,
    /// Sizes of the pool, each with the event at which it was acknowledged.
    pool_sizes: Vec<(usize, u64)>,
    tick: u64,
}

impl Model {
    fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// The pool has this size, which it keeps or exceeds from this event on.
    pub fn note_pool_size(&mut self, event: usize, size_bytes: u64) {
        self.pool_sizes.push((event, size_bytes));
    }

    /// The least size of the pool after a cut at an event.
    #[must_use]
    pub fn least_pool_size(&self, event: usize) -> u64 {
        let known = self.pool_sizes.iter().filter(|(since, _)| *since <= event);
        known.map(|&(_, size_bytes)| size_bytes).max().unwrap_or(0)
    }

    /// The number of the volume of this name that exists.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        self.volumes.iter().position(|volume| volume.name == name && volume.deleted.is_none())
    }

    /// An operation begins that will make these blocks look like that.
    pub fn begin(&mut self, volume: usize, event: usize, blocks: &[(u64, Block)]) -> Operation {
        let begun = self.next_tick();
        let model = &mut self.volumes[volume];
        let mut versions = Vec::new();
        for &(block, content) in blocks {
            let list = model.blocks.entry(block).or_insert_with(|| vec![base(ZERO)]);
            versions.push((block, list.len()));
            let (done, certain) = (u64::MAX, usize::MAX);
            list.push(Version { content, begun_event: event, begun, done, certain });
            model.visible.entry(block).or_insert_with(|| vec![ZERO]).push(content);
        }
        Operation { volume, versions }
    }

    /// An operation was acknowledged.
    pub fn done(&mut self, operation: &Operation) {
        let done = self.next_tick();
        let volume = &mut self.volumes[operation.volume];
        for (block, version) in &operation.versions {
            let list = volume.blocks.get_mut(block).expect("it began with this block");
            list[*version].done = done;
            volume.visible.insert(*block, vec![list[*version].content]);
        }
    }

    /// The tick at which a flush begins.
    pub fn begin_flush(&mut self) -> u64 {
        self.next_tick()
    }

    /// A flush that began at tick `begun` was acknowledged before `event`.
    pub fn end_flush(&mut self, begun: u64, event: usize) {
        let lists = self.volumes.iter_mut().flat_map(|volume| volume.blocks.values_mut());
        for version in lists.flatten() {
            if version.done < begun {
                version.certain = version.certain.min(event);
            }
        }
    }

    /// What a block reads as, unless that is not known.
    #[must_use]
    pub fn visible(&self, volume: usize, block: u64) -> Option<Block> {
        match self.volumes[volume].visible.get(&block).map(Vec::as_slice) {
            None => Some(ZERO),
            Some([content]) => Some(*content),
            Some(_) => None,
        }
    }

    /// A block was read: whether it may read so. From now on it must.
    pub fn saw(&mut self, volume: usize, block: u64, found: &[u32]) -> Result<(), String> {
        let model = &mut self.volumes[volume];
        if block >= model.shared_from {
            return Ok(());
        }
        let zero = vec![ZERO];
        let possible = model.visible.get(&block).unwrap_or(&zero);
        let same = possible.iter().find(|content| *found == content[..found.len()]);
        match same.copied() {
            Some(content) => {
                model.visible.insert(block, vec![content]);
                Ok(())
            }
            None => {
                let expected: Vec<_> =
                    possible.iter().map(|content| report::contents(content)).collect();
                let wrong = report::wrong_block(block, &report::contents(found), &expected);
                Err(format!("a read of volume {}: {wrong}", model.name))
            }
        }
    }

    /// A volume begins to be made.
    pub fn begin_create(&mut self, name: &str, sectors: u64, event: usize) -> usize {
        let created = Span { begun: event, done: usize::MAX };
        self.volumes.push(VolumeModel {
            name: name.into(),
            created,
            deleted: None,
            sizes: vec![(sectors, BASE)],
            blocks: BTreeMap::new(),
            visible: BTreeMap::new(),
            opaque: false,
            shared_from: u64::MAX,
        });
        self.volumes.len() - 1
    }

    /// The volume was made.
    pub fn end_create(&mut self, volume: usize, event: usize) {
        self.volumes[volume].created.done = event;
    }

    /// A volume begins to be deleted.
    pub fn begin_delete(&mut self, volume: usize, event: usize) {
        self.volumes[volume].deleted = Some(Span { begun: event, done: usize::MAX });
    }

    /// The volume was deleted.
    pub fn end_delete(&mut self, volume: usize, event: usize) {
        if let Some(deleted) = &mut self.volumes[volume].deleted {
            deleted.done = event;
        }
    }

    /// A volume's size in sectors.
    #[must_use]
    pub fn sectors(&self, volume: usize) -> u64 {
        self.volumes[volume].sizes.last().map_or(0, |(sectors, _)| *sectors)
    }

    /// A resize begins; what it cuts off becomes zeros. `None` if it cuts a block of which nobody
    /// knows what it holds.
    pub fn begin_resize(&mut self, volume: usize, sectors: u64, event: usize) -> Option<Operation> {
        let old = self.sectors(volume);
        let mut cut = Vec::new();
        for block in sectors / SECTORS as u64..old.div_ceil(SECTORS as u64) {
            let mut content = self.visible(volume, block)?;
            let keep = sectors.saturating_sub(block * SECTORS as u64).min(SECTORS as u64) as usize;
            content[keep..].fill(0);
            cut.push((block, content));
        }
        let operation = self.begin(volume, event, if sectors < old { &cut } else { &[] });
        self.volumes[volume].sizes.push((sectors, Span { begun: event, done: usize::MAX }));
        Some(operation)
    }

    /// The resize is done, and durable.
    pub fn end_resize(&mut self, operation: &Operation, event: usize) {
        self.done(operation);
        let volume = &mut self.volumes[operation.volume];
        for (block, version) in &operation.versions {
            let list = volume.blocks.get_mut(block).expect("it began with this block");
            list[*version].certain = event;
        }
        if let Some((_, span)) = volume.sizes.last_mut() {
            span.done = event;
        }
    }

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
        let found = pool.volumes();
        let mut blocks = 0;
        for model in &self.volumes {
            let gone = model.deleted.is_some_and(|deleted| deleted.begun < event);
            if model.created.done <= event && !gone && !found.iter().any(|v| v.name == model.name) {
                return Err(format!("volume {} is missing", model.name));
            }
        }
        for info in found {
            let mut reasons = Vec::new();
            for model in self.volumes.iter().filter(|model| model.name == info.name) {
                let gone = model.deleted.is_some_and(|deleted| deleted.done <= event);
                let began = model.created.done == 0 || model.created.begun < event;
                if gone || !began {
                    reasons.push("it cannot exist".into());
                    continue;
                }
                match model.check(pool, info.size_bytes, event, damage.as_deref_mut()).await {
                    Ok(compared) => {
                        blocks += compared;
                        reasons.clear();
                        break;
                    }
                    Err(reason) => reasons.push(reason),
                }
            }
            if !reasons.is_empty() {
                return Err(format!("volume {}: {}", info.name, reasons.join("; or ")));
            }
        }
        Ok(blocks)
    }

    /// Whether every volume reads as its operations left it.
    pub async fn check_visible(&mut self, pool: &Pool) -> Result<(), String> {
        for volume in 0..self.volumes.len() {
            let model = &self.volumes[volume];
            if model.deleted.is_some() || model.opaque || model.created.done == usize::MAX {
                continue;
            }
            let tags = read_tags(pool, &model.name).await?;
            for (block, found) in (0..).zip(tags.chunks(SECTORS)) {
                self.saw(volume, block, found)?;
            }
        }
        Ok(())
    }

    /// What a pool holds, as the certain beginning of another history.
    pub async fn of(pool: &Pool, opaque: &[&str]) -> Result<Self, String> {
        let mut model = Self::default();
        model.note_pool_size(0, pool.size_bytes());
        for info in pool.volumes() {
            let volume = model.begin_create(&info.name, info.size_bytes / SECTOR as u64, 0);
            model.end_create(volume, 0);
            let model = &mut model.volumes[volume];
            if opaque.contains(&info.name.as_str()) {
                model.opaque = true;
                continue;
            }
            let tags = read_tags(pool, &info.name).await?;
            for (block, tags) in (0..).zip(tags.chunks(SECTORS)) {
                let mut content = ZERO;
                content[..tags.len()].copy_from_slice(tags);
                model.blocks.insert(block, vec![base(content)]);
                model.visible.insert(block, vec![content]);
            }
        }
        Ok(model)
    }
}

fn base(content: Block) -> Version {
    Version { content, begun_event: 0, begun: 0, done: 0, certain: 0 }
}

async fn read_tags(pool: &Pool, name: &str) -> Result<Vec<u32>, String> {
    let volume = pool.volume(name).map_err(|error| error.to_string())?;
    let mut bytes = vec![0; volume.size_bytes() as usize];
    volume.read(0, &mut bytes).await.map_err(|error| format!("reading {name}: {error}"))?;
    tags_of(&bytes).map_err(|reason| format!("volume {name}: {reason}"))
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
            *sectors * SECTOR as u64 == size_bytes && (span.done == 0 || span.begun < event)
        }) {
            return Err(format!("it never had the size that it has, {size_bytes} bytes"));
        }
        if self.opaque {
            return Ok(0);
        }
        let tags = match (read_tags(pool, &self.name).await, damage) {
            (Ok(tags), _) => tags,
            (Err(reason), None) => return Err(reason),
            (Err(_), Some(damage)) => return self.check_damaged(pool, event, damage).await,
        };
        assert_eq!(tags.len() as u64 * SECTOR as u64, size_bytes, "{BLOCK}-byte blocks");
        let mut compared = 0;
        for (block, found) in (0..).zip(tags.chunks(SECTORS)) {
            self.check_block(block, found, event)?;
            compared += 1;
        }
        Ok(compared)
    }

    /// Compares block by block, and counts those that cannot be read.
    async fn check_damaged(
        &self,
        pool: &Pool,
        event: usize,
        damage: &mut u64,
    ) -> Result<u64, String> {
        let volume = pool.volume(&self.name).map_err(|error| error.to_string())?;
        let mut compared = 0;
        for start in (0..volume.size_bytes()).step_by(BLOCK) {
            let len = (volume.size_bytes() - start).min(BLOCK as u64) as usize;
            let mut bytes = vec![0; len];
            if volume.read(start, &mut bytes).await.is_err() {
                *damage += 1;
                continue;
            }
            self.check_block(start / BLOCK as u64, &tags_of(&bytes)?, event)?;
            compared += 1;
        }
        Ok(compared)
    }

    fn check_block(&self, block: u64, found: &[u32], event: usize) -> Result<(), String> {
        let zero = [base(ZERO)];
        let versions = self.blocks.get(&block).map_or(&zero[..], Vec::as_slice);
        let certain = versions.iter().filter(|version| version.certain <= event);
        let newest_certain = certain.map(|version| version.begun).max().unwrap_or(0);
        let allowed = versions.iter().filter(|version| {
            let begun = version.begun == 0 || version.begun_event < event;
            begun && version.done >= newest_certain
        });
        let same = |version: &Version| *found == version.content[..found.len()];
        if allowed.clone().any(same) {
            return Ok(());
        }
        let written = |version: &Version| match version.begun {
            0 => "there from the beginning".into(),
            _ => format!("written from event {} on", version.begun_event),
        };
        let expected = allowed.map(|v| format!("{}, {}", report::contents(&v.content), written(v)));
        let expected: Vec<_> = expected.collect();
        let which = match versions.iter().rfind(|version| same(version)) {
            None => "never written to it".into(),
            Some(v) if v.begun > 0 && v.begun_event >= event => {
                format!("{}, after the cut at event {event}", written(v))
            }
            Some(v) => format!("{}, and durably overwritten since", written(v)),
        };
        let found = format!("{}, {which}", report::contents(found));
        Err(report::wrong_block(block, &found, &expected))
    }
}
