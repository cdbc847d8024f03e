//! Which blocks share a frame: neighbours in their volume.
//!
//! A frame is decoded as a whole, so a block should share one with what is likely to be read with
//! it. What was written as a stream is read as one, and compresses best in large frames. Blocks
//! that were written here and there have nothing to do with each other: together they would take
//! more room than alone, since each compresses best with codes of its own, and a read of one would
//! decode all (docs/decisions/0018).

use siltstone_device::{BlockAddress, LayerId};

use crate::config::FRAME_BLOCKS;

/// How far the blocks of a frame lie apart at most, in blocks: a stream of which every other block
/// is a duplicate is a stream.
const MAX_SPAN_BLOCKS: u64 = 2 * FRAME_BLOCKS as u64;

/// The blocks of a frame to which others may still come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbours {
    layer: LayerId,
    first: BlockAddress,
    count: usize,
}

impl Neighbours {
    /// A frame with its first block.
    pub(crate) fn begin(layer: LayerId, first: BlockAddress) -> Self {
        Self { layer, first, count: 1 }
    }

    /// Takes a block in, if it belongs there.
    pub(crate) fn take(&mut self, layer: LayerId, address: BlockAddress) -> bool {
        let end = self.first.plus(MAX_SPAN_BLOCKS);
        let belongs = self.count < FRAME_BLOCKS
            && self.layer == layer
            && (self.first..end).contains(&address);
        self.count += usize::from(belongs);
        belongs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many blocks each frame gets.
    fn cut(addresses: &[u64]) -> Vec<usize> {
        let mut frames: Vec<Neighbours> = Vec::new();
        for &address in addresses {
            let (layer, address) = (LayerId(1), BlockAddress(address));
            if !frames.last_mut().is_some_and(|frame| frame.take(layer, address)) {
                frames.push(Neighbours::begin(layer, address));
            }
        }
        frames.iter().map(|frame| frame.count).collect()
    }

    #[test]
    fn streams_fill_frames_and_scattered_blocks_have_their_own() {
        assert_eq!(cut(&(100..120).collect::<Vec<_>>()), [8, 8, 4]);
        assert_eq!(cut(&[5, 900, 7, 901, 40]), [1, 1, 1, 1, 1]);
        assert_eq!(cut(&[10, 11, 500, 501, 502, 20]), [2, 3, 1]);
    }

    #[test]
    fn a_stream_with_duplicates_in_it_stays_a_stream() {
        assert_eq!(cut(&(0..32).step_by(2).collect::<Vec<_>>()), [8, 8]);
        assert_eq!(cut(&[3, 18, 19]), [2, 1]);
    }

    #[test]
    fn blocks_of_two_volumes_share_no_frame() {
        let mut frame = Neighbours::begin(LayerId(1), BlockAddress(4));
        assert!(!frame.take(LayerId(2), BlockAddress(5)));
        assert!(frame.take(LayerId(1), BlockAddress(5)));
    }
}
