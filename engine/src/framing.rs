//! Which blocks share a frame: neighbours in their volume.
//!
//! A frame is decoded as a whole, so a block should share one with what is likely to be read with
//! it. What was written as a stream is read as one, and compresses best in large frames. Blocks
//! that were written here and there have nothing to do with each other: together they would take
//! more room than alone, since each compresses best with codes of its own, and a read of one would
//! decode all (docs/decisions/0018).

use std::ops::Range;

use siltstone_device::{BlockAddress, LayerId};

use crate::{compression::Framing, config::FRAME_BLOCKS};

/// How far the blocks of a frame lie apart at most, in blocks: a stream of which every other block
/// is a duplicate is a stream.
const MAX_SPAN_BLOCKS: u64 = 2 * FRAME_BLOCKS as u64;

/// A block to be stored: whose it is, and what frames it is to be in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Framed {
    pub(crate) layer: LayerId,
    pub(crate) address: BlockAddress,
    pub(crate) framing: Framing,
}

impl Framed {
    /// Whether a block may be in the frame that this one begins.
    fn leads(&self, block: &Self) -> bool {
        let end = self.address.plus(MAX_SPAN_BLOCKS);
        self.layer == block.layer
            && self.framing == block.framing
            && (self.address..end).contains(&block.address)
    }
}

/// Cuts blocks, in their order, into frames: neighbours of one framing.
pub(crate) fn cut(blocks: impl Iterator<Item = Framed>) -> Vec<Range<usize>> {
    let mut frames: Vec<Range<usize>> = Vec::with_capacity(blocks.size_hint().0);
    let mut first: Option<Framed> = None;
    for (at, block) in blocks.enumerate() {
        match (frames.last_mut(), first) {
            (Some(frame), Some(first))
                if frame.len() < first.framing.blocks && first.leads(&block) =>
            {
                frame.end = at + 1;
            }
            _ => {
                first = Some(block);
                frames.push(at..at + 1);
            }
        }
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(layer: u32, address: u64) -> Framed {
        let framing = Framing { level: 1, blocks: FRAME_BLOCKS };
        Framed { layer: LayerId(layer), address: BlockAddress(address), framing }
    }

    /// How many blocks each frame gets.
    fn lengths(blocks: impl Iterator<Item = Framed>) -> Vec<usize> {
        cut(blocks).iter().map(ExactSizeIterator::len).collect()
    }

    fn of_one_volume(addresses: &[u64]) -> Vec<usize> {
        lengths(addresses.iter().map(|&address| block(1, address)))
    }

    #[test]
    fn streams_fill_frames_and_scattered_blocks_have_their_own() {
        assert_eq!(of_one_volume(&(100..120).collect::<Vec<_>>()), [8, 8, 4]);
        assert_eq!(of_one_volume(&[5, 900, 7, 901, 40]), [1, 1, 1, 1, 1]);
        assert_eq!(of_one_volume(&[10, 11, 500, 501, 502, 20]), [2, 3, 1]);
    }

    #[test]
    fn a_stream_with_duplicates_in_it_stays_a_stream() {
        assert_eq!(of_one_volume(&(0..32).step_by(2).collect::<Vec<_>>()), [8, 8]);
        assert_eq!(of_one_volume(&[3, 18, 19]), [2, 1]);
    }

    #[test]
    fn frames_are_no_longer_than_their_framing_says() {
        let framing = Framing { level: 1, blocks: 2 };
        let blocks = (10..15).map(|address| Framed { framing, ..block(1, address) });
        assert_eq!(lengths(blocks), [2, 2, 1]);
    }

    #[test]
    fn blocks_of_two_volumes_or_levels_share_no_frame() {
        let framing = Framing { level: 3, blocks: FRAME_BLOCKS };
        let other_level = Framed { framing, ..block(1, 6) };
        let blocks = [block(1, 4), block(1, 5), block(2, 5), block(1, 5), other_level];
        assert_eq!(lengths(blocks.into_iter()), [2, 1, 1, 1]);
    }
}
