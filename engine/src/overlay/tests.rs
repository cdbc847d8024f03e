use std::time::Instant;

use proptest::prelude::*;
use siltstone_cursor::View;
use siltstone_device::AlignedBuffer;

use super::*;
use crate::{catalog::VolumeRecord, compression::Compression};

fn volume() -> Arc<VolumeCore> {
    let compression = Compression::default();
    let record = VolumeRecord { id: 1, layer: LayerId(1), size_bytes: 1 << 30, compression };
    Arc::new(VolumeCore::new("v", &record, vec![View::live(LayerId(1))], Sequence(0)))
}

fn change(volume: &Arc<VolumeCore>, sequence: u64, address: u64, len: u32) -> Arc<Change> {
    let body = if sequence.is_multiple_of(3) {
        ChangeBody::Zero
    } else {
        let mut data = AlignedBuffer::zeroed(len as usize * BLOCK_BYTES);
        for (at, block) in data.chunks_mut(BLOCK_BYTES).enumerate() {
            block[..8].copy_from_slice(&(sequence << 32 | (address + at as u64)).to_le_bytes());
        }
        ChangeBody::Data(StagedData::received(data))
    };
    Arc::new(Change {
        volume: Arc::clone(volume),
        address: BlockAddress(address),
        len_blocks: len,
        sequence: Sequence(sequence),
        body,
        staged_bytes: 0,
        space_bytes: 0,
        admitted_at: Instant::now(),
    })
}

proptest! {
    /// A read sees, for every block, the newest change that is still there.
    #[test]
    fn reads_see_the_newest_change(
        steps in prop::collection::vec((0u64..40, 1u32..12, any::<bool>()), 1..60),
    ) {
        let volume = volume();
        let overlay = Overlay::default();
        let mut live: Vec<Arc<Change>> = Vec::new();
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        for (sequence, (address, len, publish)) in (1u64..).zip(steps) {
            let change = change(&volume, sequence, address, len);
            overlay.insert(&change);
            for block in address..address + u64::from(len) {
                model.insert(block, sequence);
            }
            live.push(change);
            if publish {
                let oldest = live.remove(0);
                overlay.remove(&oldest);
                model.retain(|_, owner| *owner != oldest.sequence.0);
            }
            let mut runs = Vec::new();
            overlay.read(BlockAddress(3), 37, &mut runs);
            let mut seen = BTreeMap::new();
            let mut end = 3;
            for run in &runs {
                prop_assert!(run.address.0 >= end);
                end = run.address.0 + u64::from(run.len_blocks);
                let mut data = vec![0xff; run.len_blocks as usize * BLOCK_BYTES];
                prop_assert_eq!(run.copy_to(&mut data), Ok(()));
                for block in run.address.0..end {
                    seen.insert(block, run.change.sequence.0);
                    let at = (block - run.address.0) as usize * BLOCK_BYTES;
                    let stamp = run.change.sequence.0 << 32 | block;
                    let expected = if run.is_hole() { 0 } else { stamp };
                    prop_assert_eq!(&data[at..at + 8], &expected.to_le_bytes());
                }
            }
            prop_assert!(end <= 40);
            let expected: BTreeMap<u64, u64> =
                model.range(3..40).map(|(&block, &owner)| (block, owner)).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}

/// A write of part of a block must not undo a write of the whole block that came in between.
#[test]
fn a_change_in_between_supersedes_a_merge() {
    let volume = volume();
    let overlay = Overlay::default();
    let merge = pollster::block_on(overlay.begin_merge(BlockAddress(5)));
    overlay.insert(&change(&volume, 1, 6, 1));
    assert!(!merge.is_superseded());
    overlay.insert(&change(&volume, 2, 4, 2));
    assert!(merge.is_superseded());
    merge.restart();
    assert!(!merge.is_superseded());
    drop(merge);
    let again = pollster::block_on(overlay.begin_merge(BlockAddress(5)));
    assert!(!again.is_superseded());
}
