//! What clients do to a pool, noted in a model.

mod keeper;

use std::{ops::Range, sync::Arc, time::Duration};

use parking_lot::Mutex;
use siltstone_device::{Runtime, SeededRandom, sim::SimDevice};
use siltstone_engine::{EngineError, Pool, Volume, VolumeOptions};

use crate::{
    content::{self, BLOCK, Block, SECTOR, SECTORS, bytes_of, tags_of},
    model::Model,
    tally::{Tally, add},
};

/// No pool grows beyond this.
const MAX_POOL_BYTES: u64 = 96 << 20;
/// So often a client looks whether a volume is there again.
const MOST_WAITS: u32 = 200;

/// A promise was broken.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// What clients work in. Cheap to clone.
#[derive(Clone)]
pub struct World {
    /// The device under the pool: its history is the clock by which the model tells time.
    pub device: Arc<SimDevice>,
    /// The pool.
    pub pool: Arc<Pool>,
    /// What may be in it.
    pub model: Arc<Mutex<Model>>,
    /// By which clients sleep.
    pub runtime: Arc<dyn Runtime>,
    /// What was survived.
    pub tally: Arc<Tally>,
    /// Whether the device may fail, and operations with it. A full pool may always refuse writes.
    pub may_fail: bool,
}

/// One client. Operations that fail where they may are noted, and work goes on.
pub struct Client {
    world: World,
    random: SeededRandom,
}

impl Client {
    /// A client who draws what it does from `random`.
    #[must_use]
    pub fn new(world: World, random: SeededRandom) -> Self {
        Self { world, random }
    }

    /// Whether an operation was done; an error that may not be is a violation.
    fn allow(&self, outcome: Result<(), EngineError>, what: &str) -> Result<bool, Violation> {
        add(&self.world.tally.operations, 1);
        match outcome {
            Ok(()) => Ok(true),
            Err(error) => {
                let is_full = matches!(error, EngineError::NoSpace { .. });
                if !is_full && !self.world.may_fail {
                    return Err(Violation(format!("{what} failed: {error}")));
                }
                add(&self.world.tally.refused, 1);
                add(&self.world.tally.refused_full, u64::from(is_full));
                Ok(false)
            }
        }
    }

    /// As [`allow`](Self::allow), of an operation on a volume, which may have gone back to a snapshot.
    fn allow_on(
        &self,
        index: usize,
        outcome: Result<(), EngineError>,
        what: &str,
    ) -> Result<bool, Violation> {
        let is_rolled_back = matches!(outcome, Err(EngineError::VolumeRolledBack { .. }));
        if is_rolled_back && self.world.model.lock().is_going(index) {
            add(&self.world.tally.refused, 1);
            return Ok(false);
        }
        self.allow(outcome, what)
    }

    /// The volume of this name, with its number in the model. Waits while it goes back to a
    /// snapshot; `None` if nobody knows what has become of it.
    async fn open(&mut self, name: &str) -> Result<Option<(Volume, usize)>, Violation> {
        for _ in 0..MOST_WAITS {
            let index = self.world.model.lock().find(name);
            if let Some(index) = index {
                let volume = self.world.pool.volume(name);
                let volume = volume.map_err(|error| Violation(error.to_string()))?;
                return Ok(Some((volume, index)));
            }
            self.sleep(500).await;
        }
        Ok(None)
    }

    /// Some operations of one client that has the blocks of a volume to itself.
    ///
    /// # Errors
    /// The promise that was found broken.
    pub async fn work(
        &mut self,
        volume: &Volume,
        index: usize,
        blocks: Range<u64>,
        operations: u32,
    ) -> Result<(), Violation> {
        let (mut volume, mut index) = (volume.clone(), index);
        for _ in 0..operations {
            if self.world.model.lock().is_going(index) {
                let Some(again) = self.open(volume.name()).await? else { return Ok(()) };
                (volume, index) = again;
            }
            let volume = &volume;
            let first = blocks.start + self.random.below(blocks.end - blocks.start);
            // Now and then a stream that fills segments.
            let longest = if self.random.chance(1, 12) { 64 } else { 16 };
            let most = (blocks.end - first).min(longest);
            let len = 1 + self.random.below(most);
            match self.random.below(20) {
                0..=8 => {
                    let contents = content::draw(&mut self.random, len);
                    self.write(volume, index, first, &contents).await?;
                }
                9..=11 => self.write_part(volume, index, first).await?,
                12 => {
                    let zeros = vec![[0; SECTORS]; len as usize];
                    let discard = volume.trim(first * BLOCK as u64, len * BLOCK as u64);
                    self.change(index, first, &zeros, "a discard", discard).await?;
                }
                13 => self.write_zeroes(volume, index, first, len).await?,
                14..=17 => self.flush(volume).await?,
                18 => {
                    self.read(volume, index, first, len).await?;
                }
                _ if self.random.chance(1, 4) => {
                    if self.random.chance(1, 4) {
                        self.grow().await?;
                    } else if self.random.chance(1, 3) {
                        let outcome = self.world.pool.collect_garbage_async().await;
                        self.allow(outcome, "a garbage collection")?;
                    } else if self.random.chance(1, 4) {
                        let outcome = self.world.pool.repair_async().await;
                        self.allow(outcome, "a repair")?;
                    } else {
                        let outcome = self.world.pool.checkpoint_async().await;
                        self.allow(outcome, "a checkpoint")?;
                    }
                }
                _ => self.sleep(1500).await,
            }
        }
        Ok(())
    }

    /// Whole blocks anywhere, with others who do the same: no order is known.
    ///
    /// # Errors
    /// The promise that was found broken.
    pub async fn work_shared(
        &mut self,
        volume: &Volume,
        index: usize,
        blocks: Range<u64>,
        operations: u32,
    ) -> Result<(), Violation> {
        let (mut volume, mut index) = (volume.clone(), index);
        for _ in 0..operations {
            if self.world.model.lock().is_going(index) {
                let Some(again) = self.open(volume.name()).await? else { return Ok(()) };
                (volume, index) = again;
            }
            let first = blocks.start + self.random.below(blocks.end - blocks.start);
            let len = 1 + self.random.below((blocks.end - first).min(8));
            if self.random.chance(1, 4) {
                self.flush(&volume).await?;
            } else {
                let contents = content::draw(&mut self.random, len);
                self.write(&volume, index, first, &contents).await?;
            }
        }
        Ok(())
    }

    /// Sleeps up to so many microseconds.
    pub async fn sleep(&mut self, most_us: u64) {
        let pause = Duration::from_micros(self.random.below(most_us));
        let runtime = &self.world.runtime;
        runtime.sleep_until(runtime.now() + pause).await;
    }

    /// Makes the pool larger: by less than a segment, by some, or by so many that its segment table
    /// takes more pages; now and then after somebody has made its device larger.
    async fn grow(&mut self) -> Result<(), Violation> {
        let world = &self.world;
        let before_bytes = world.pool.size_bytes();
        let most_blocks = 1 << (2 + self.random.below(12));
        let more_bytes = (1 + self.random.below(most_blocks)) * BLOCK as u64;
        // Bounds what a check of everything takes.
        let size_bytes = (before_bytes + more_bytes).min(MAX_POOL_BYTES);
        let is_given = self.random.chance(1, 2);
        if !is_given {
            world.device.set_size(size_bytes);
        }
        match world.pool.grow_async(is_given.then_some(size_bytes)).await {
            Ok(growth) => {
                let event = world.device.history_len();
                world.model.lock().note_pool_size(event, growth.size_bytes);
                add(&world.tally.grown, 1);
                self.allow(Ok(()), "growing the pool").map(|_| ())
            }
            // Another client was faster.
            Err(EngineError::CannotShrink { .. }) => Ok(()),
            Err(error) => self.allow(Err(error), "growing the pool").map(|_| ()),
        }
    }

    async fn change(
        &self,
        index: usize,
        first: u64,
        contents: &[Block],
        what: &str,
        action: impl Future<Output = Result<(), EngineError>>,
    ) -> Result<(), Violation> {
        let blocks: Vec<_> = (first..).zip(contents.iter().copied()).collect();
        let event = self.world.device.history_len();
        let operation = self.world.model.lock().begin(index, event, &blocks);
        if self.allow_on(index, action.await, what)? {
            self.world.model.lock().done(&operation);
        }
        Ok(())
    }

    async fn write(
        &self,
        volume: &Volume,
        index: usize,
        first: u64,
        contents: &[Block],
    ) -> Result<(), Violation> {
        let bytes = bytes_of(contents.as_flattened());
        let write = volume.write(first * BLOCK as u64, &bytes);
        self.change(index, first, contents, "a write", write).await
    }

    /// What blocks read as; read first if that is not known. `None` if they cannot be read.
    async fn known(
        &self,
        volume: &Volume,
        index: usize,
        first: u64,
        len: u64,
    ) -> Result<Option<Vec<Block>>, Violation> {
        let visible = || {
            let model = self.world.model.lock();
            (first..first + len).map(|block| model.visible(index, block)).collect()
        };
        if let Some(contents) = visible() {
            return Ok(Some(contents));
        }
        self.read(volume, index, first, len).await?;
        Ok(visible())
    }

    /// Some sectors of a block.
    async fn write_part(
        &mut self,
        volume: &Volume,
        index: usize,
        block: u64,
    ) -> Result<(), Violation> {
        let Some(mut contents) = self.known(volume, index, block, 1).await? else { return Ok(()) };
        let first = self.random.below(SECTORS as u64) as usize;
        let len = 1 + self.random.below((SECTORS - first) as u64) as usize;
        let tags = &mut contents[0][first..first + len];
        tags.fill_with(|| 1 + self.random.next_u64() as u32 % 1000);
        let bytes = bytes_of(tags);
        let write = volume.write(block * BLOCK as u64 + (first * SECTOR) as u64, &bytes);
        self.change(index, block, &contents, "a write of a part", write).await
    }

    async fn write_zeroes(
        &mut self,
        volume: &Volume,
        index: usize,
        first: u64,
        len: u64,
    ) -> Result<(), Violation> {
        let head = self.random.below(SECTORS as u64) as usize;
        let tail = self.random.below(SECTORS as u64) as usize;
        let Some(mut contents) = self.known(volume, index, first, len).await? else {
            return Ok(());
        };
        let tags = contents.as_flattened_mut();
        let end = tags.len() - tail;
        if head >= end {
            return Ok(());
        }
        tags[head..end].fill(0);
        let start = first * BLOCK as u64 + (head * SECTOR) as u64;
        let zero = volume.zero(start, ((end - head) * SECTOR) as u64);
        self.change(index, first, &contents, "a write of zeros", zero).await
    }

    /// Flushes, and notes what is certain by that.
    ///
    /// # Errors
    /// If it fails where it may not.
    pub async fn flush(&self, volume: &Volume) -> Result<(), Violation> {
        let begun = self.world.model.lock().begin_flush();
        if self.allow(volume.commit().await, "a flush")? {
            let event = self.world.device.history_len();
            self.world.model.lock().end_flush(begun, event);
            add(&self.world.tally.flushes, 1);
        }
        Ok(())
    }

    /// The client's own blocks read as it left them.
    async fn read(
        &self,
        volume: &Volume,
        index: usize,
        first: u64,
        len: u64,
    ) -> Result<(), Violation> {
        let mut bytes = vec![0; len as usize * BLOCK];
        let outcome = volume.read(first * BLOCK as u64, &mut bytes).await;
        if !self.allow_on(index, outcome, "a read")? {
            return Ok(());
        }
        let tags = tags_of(&bytes).map_err(Violation)?;
        let mut model = self.world.model.lock();
        for (block, found) in (first..).zip(tags.chunks(SECTORS)) {
            model.saw(index, block, found).map_err(Violation)?;
        }
        add(&self.world.tally.blocks, len);
        Ok(())
    }

    async fn create(&self, name: &str, sectors: u64) -> Result<Option<(Volume, usize)>, Violation> {
        let world = &self.world;
        let event = world.device.history_len();
        let index = world.model.lock().begin_create(name, sectors, event);
        let options = VolumeOptions::new(sectors * SECTOR as u64);
        match world.pool.create_volume_async(name, &options).await {
            Ok(volume) => {
                world.model.lock().end_create(index, world.device.history_len());
                Ok(Some((volume, index)))
            }
            Err(error) => {
                self.allow(Err(error), "creating a volume")?;
                Ok(None)
            }
        }
    }

    async fn delete(&self, index: usize) -> Result<(), Violation> {
        let world = &self.world;
        let event = world.device.history_len();
        let name = {
            let mut model = world.model.lock();
            model.begin_delete(index, event);
            model.volumes[index].name.clone()
        };
        let outcome = world.pool.delete_volume_async(&name).await;
        if self.allow(outcome, "deleting a volume")? {
            world.model.lock().end_delete(index, world.device.history_len());
        }
        Ok(())
    }

    /// Whether it was done.
    async fn resize(&self, index: usize, sectors: u64) -> Result<bool, Violation> {
        let world = &self.world;
        let event = world.device.history_len();
        let (operation, name) = {
            let mut model = world.model.lock();
            let name = model.volumes[index].name.clone();
            match model.begin_resize(index, sectors, event) {
                Some(operation) => (operation, name),
                None => return Ok(true),
            }
        };
        let outcome = world.pool.resize_volume_async(&name, sectors * SECTOR as u64).await;
        let done = self.allow(outcome, "resizing a volume")?;
        if done {
            world.model.lock().end_resize(&operation, world.device.history_len());
        }
        Ok(done)
    }

    /// A volume that comes, grows, shrinks, and perhaps goes, alone in this client's hands.
    ///
    /// # Errors
    /// The promise that was found broken.
    pub async fn administer(&mut self, name: &str, operations: u32) -> Result<(), Violation> {
        let Some((volume, index)) = self.create(name, 64 * SECTORS as u64).await? else {
            return Ok(());
        };
        for _ in 0..operations {
            let blocks = self.world.model.lock().sectors(index) / SECTORS as u64;
            self.work(&volume, index, 0..blocks, 4).await?;
            if self.random.chance(1, 2) {
                let sectors = 8 + self.random.below(700);
                if !self.resize(index, sectors).await? {
                    // Which size it has now nobody knows.
                    return Ok(());
                }
            }
        }
        if self.random.chance(1, 2) {
            drop(volume);
            self.delete(index).await?;
        }
        Ok(())
    }
}
