//! What the tests of several files share.

use siltstone_device::{BLOCK_BYTES, BlockAddress, ByteOffset, LayerId, SeededRandom, Sequence};

use crate::{Change, ChangeBody, Log, LogError, LogIdentity, Region, Replay};

pub(crate) use pollster::block_on;

pub(crate) const IDENTITY: LogIdentity = LogIdentity { first: 0xfeed, second: 0xbeef };

pub(crate) fn region(offset: u64, blocks: u64) -> Region {
    Region { offset: ByteOffset(offset), len_bytes: blocks * BLOCK_BYTES as u64 }
}

/// A change that owns its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnedChange {
    pub(crate) layer: u32,
    pub(crate) address: u64,
    pub(crate) len_blocks: u32,
    pub(crate) sequence: u64,
    pub(crate) data: Option<Vec<u8>>,
}

impl OwnedChange {
    pub(crate) fn random(random: &mut SeededRandom, sequence: u64, max_blocks: u64) -> Self {
        let len_blocks = random.below(max_blocks) as u32 + 1;
        let data = random.chance(4, 5).then(|| {
            let mut data = vec![0; len_blocks as usize * BLOCK_BYTES];
            random.fill(&mut data);
            data
        });
        let layer = random.below(5) as u32;
        Self { layer, address: random.below(1 << 40), len_blocks, sequence, data }
    }

    pub(crate) fn borrow(&self) -> Change<'_> {
        Change {
            layer: LayerId(self.layer),
            address: BlockAddress(self.address),
            len_blocks: self.len_blocks,
            sequence: Sequence(self.sequence),
            body: self.data.as_deref().map_or(ChangeBody::Zero, ChangeBody::Data),
        }
    }

    fn from(change: &Change<'_>) -> Self {
        Self {
            layer: change.layer.0,
            address: change.address.0,
            len_blocks: change.len_blocks,
            sequence: change.sequence.0,
            data: match change.body {
                ChangeBody::Data(data) => Some(data.to_vec()),
                ChangeBody::Zero => None,
            },
        }
    }
}

pub(crate) fn append(log: &Log, changes: &[OwnedChange]) -> Result<(), LogError> {
    let changes: Vec<_> = changes.iter().map(OwnedChange::borrow).collect();
    block_on(log.append(&changes))
}

/// All that is replayed, record by record.
pub(crate) fn replay_all(mut replay: Replay) -> Vec<Vec<OwnedChange>> {
    let mut records = Vec::new();
    while let Some(record) = block_on(replay.next_record()).unwrap() {
        records.push(record.changes().map(|change| OwnedChange::from(&change)).collect());
    }
    records
}
