//! Clients of a pool that note in a model what they do.

use std::{ops::Range, sync::Mutex};

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{EngineError, Pool, Volume, VolumeOptions};

use super::{
    content::{BLOCK, Block, SECTOR, SECTORS, bytes_of},
    model::Model,
};

/// What a client works with.
pub struct Client<'a> {
    pub device: &'a SimDevice,
    pub pool: &'a Pool,
    pub model: &'a Mutex<Model>,
    pub random: SeededRandom,
}

/// Tags below this are shared by all clients and make duplicates.
const COMMON_TAGS: u64 = 96;

impl Client<'_> {
    /// Content for blocks: often a run that has been written before.
    fn contents(&mut self, blocks: u64) -> Vec<Block> {
        let kind = self.random.below(8);
        let first = self.random.below(COMMON_TAGS) as u32;
        let unique = self.random.next_u64() as u32 | 0x8000_0000;
        (0..blocks as u32)
            .map(|at| match kind {
                0..=3 => [1 + (first + at) % COMMON_TAGS as u32; SECTORS],
                4 => [1 + first; SECTORS],
                5 if at % 3 == 1 => [0; SECTORS],
                _ => std::array::from_fn(|sector| unique.wrapping_add(at * 8 + sector as u32)),
            })
            .collect()
    }

    /// Some operations of one client that has the blocks of a volume to itself.
    pub fn work(
        &mut self,
        volume: &Volume,
        index: usize,
        blocks: Range<u64>,
        operations: u32,
    ) -> Result<(), EngineError> {
        for _ in 0..operations {
            let first = blocks.start + self.random.below(blocks.end - blocks.start);
            let most = (blocks.end - first).min(16);
            let len = 1 + self.random.below(most);
            match self.random.below(20) {
                0..=8 => {
                    let contents = self.contents(len);
                    self.write(volume, index, first, &contents)?;
                }
                9..=11 => self.write_part(volume, index, first)?,
                12 => {
                    let zeros = vec![[0; SECTORS]; len as usize];
                    self.change(index, first, &zeros, || {
                        volume.discard(first * BLOCK as u64, len * BLOCK as u64)
                    })?;
                }
                13 => self.write_zeroes(volume, index, first, len)?,
                14..=17 => self.flush(volume)?,
                18 => self.read(volume, index, first, len)?,
                _ if self.random.chance(1, 4) => self.pool.checkpoint()?,
                _ => std::thread::sleep(std::time::Duration::from_micros(self.random.below(1500))),
            }
        }
        Ok(())
    }

    /// Whole blocks anywhere, with others who do the same: no order is known.
    pub fn work_shared(
        &mut self,
        volume: &Volume,
        index: usize,
        blocks: Range<u64>,
        operations: u32,
    ) -> Result<(), EngineError> {
        for _ in 0..operations {
            let first = blocks.start + self.random.below(blocks.end - blocks.start);
            let len = 1 + self.random.below((blocks.end - first).min(8));
            if self.random.chance(1, 4) {
                self.flush(volume)?;
            } else {
                let contents = self.contents(len);
                self.write(volume, index, first, &contents)?;
            }
        }
        Ok(())
    }

    fn change(
        &self,
        index: usize,
        first: u64,
        contents: &[Block],
        action: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let blocks: Vec<_> = (first..).zip(contents.iter().copied()).collect();
        let event = self.device.history_len();
        let operation = self.model.lock().unwrap().begin(index, event, &blocks);
        action()?;
        self.model.lock().unwrap().done(&operation);
        Ok(())
    }

    fn write(
        &self,
        volume: &Volume,
        index: usize,
        first: u64,
        contents: &[Block],
    ) -> Result<(), EngineError> {
        self.change(index, first, contents, || {
            volume.write_at(first * BLOCK as u64, &bytes_of(contents.as_flattened()))
        })
    }

    /// Some sectors of a block, perhaps reaching into the next.
    fn write_part(&mut self, volume: &Volume, index: usize, block: u64) -> Result<(), EngineError> {
        let first = self.random.below(SECTORS as u64) as usize;
        let len = 1 + self.random.below((SECTORS - first) as u64) as usize;
        let mut content = self.model.lock().unwrap().visible(index, block);
        let tags = &mut content[first..first + len];
        tags.fill_with(|| 1 + self.random.next_u64() as u32 % 1000);
        let bytes = bytes_of(tags);
        self.change(index, block, &[content], || {
            volume.write_at(block * BLOCK as u64 + (first * SECTOR) as u64, &bytes)
        })
    }

    fn write_zeroes(
        &mut self,
        volume: &Volume,
        index: usize,
        first: u64,
        len: u64,
    ) -> Result<(), EngineError> {
        let head = self.random.below(SECTORS as u64) as usize;
        let mut contents: Vec<Block> = {
            let model = self.model.lock().unwrap();
            (first..first + len).map(|block| model.visible(index, block)).collect()
        };
        let tags = contents.as_flattened_mut();
        let end = tags.len() - self.random.below(SECTORS as u64) as usize;
        if head >= end {
            return Ok(());
        }
        tags[head..end].fill(0);
        let start = first * BLOCK as u64 + (head * SECTOR) as u64;
        self.change(index, first, &contents, || {
            volume.write_zeroes(start, ((end - head) * SECTOR) as u64)
        })
    }

    pub fn flush(&self, volume: &Volume) -> Result<(), EngineError> {
        let begun = self.model.lock().unwrap().begin_flush();
        volume.flush()?;
        let event = self.device.history_len();
        self.model.lock().unwrap().end_flush(begun, event);
        Ok(())
    }

    /// The client's own blocks read as it left them.
    fn read(&self, volume: &Volume, index: usize, first: u64, len: u64) -> Result<(), EngineError> {
        let mut bytes = vec![0; len as usize * BLOCK];
        volume.read_at(first * BLOCK as u64, &mut bytes)?;
        let model = self.model.lock().unwrap();
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK)) {
            let expected = model.visible(index, block);
            assert!(bytes == bytes_of(&expected), "block {block} is not {expected:?}");
        }
        Ok(())
    }

    pub fn create(&self, name: &str, sectors: u64) -> Result<(Volume, usize), EngineError> {
        let event = self.device.history_len();
        let index = self.model.lock().unwrap().begin_create(name, sectors, event);
        let options = VolumeOptions::new(sectors * SECTOR as u64);
        let volume = self.pool.create_volume(name, &options)?;
        let event = self.device.history_len();
        self.model.lock().unwrap().end_create(index, event);
        Ok((volume, index))
    }

    pub fn delete(&self, index: usize) -> Result<(), EngineError> {
        let event = self.device.history_len();
        let name = {
            let mut model = self.model.lock().unwrap();
            model.begin_delete(index, event);
            model.volumes[index].name.clone()
        };
        self.pool.delete_volume(&name)?;
        let event = self.device.history_len();
        self.model.lock().unwrap().end_delete(index, event);
        Ok(())
    }

    pub fn resize(&self, index: usize, sectors: u64) -> Result<(), EngineError> {
        let event = self.device.history_len();
        let (operation, name) = {
            let mut model = self.model.lock().unwrap();
            let operation = model.begin_resize(index, sectors, event);
            (operation, model.volumes[index].name.clone())
        };
        self.pool.resize_volume(&name, sectors * SECTOR as u64)?;
        let event = self.device.history_len();
        self.model.lock().unwrap().end_resize(&operation, event);
        Ok(())
    }

    /// A volume that comes, grows, shrinks, and perhaps goes, alone in this client's hands.
    pub fn administer(&mut self, name: &str, operations: u32) -> Result<(), EngineError> {
        let (volume, index) = self.create(name, 64 * SECTORS as u64)?;
        for _ in 0..operations {
            let blocks = self.model.lock().unwrap().sectors(index) / SECTORS as u64;
            self.work(&volume, index, 0..blocks, 4)?;
            if self.random.chance(1, 2) {
                let sectors = 8 + self.random.below(700);
                self.resize(index, sectors)?;
            }
        }
        if self.random.chance(1, 2) {
            drop(volume);
            self.delete(index)?;
        }
        Ok(())
    }
}
