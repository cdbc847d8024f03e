//! Several blocks' fingerprints at once (hot path, fenced in this file).
//!
//! BLAKE3 cuts a 4 KiB block into four chunks of 1 KiB, hashes each, and joins the four in a tree
//! of three parents. One block therefore fills four SIMD lanes for the chunks and at most two for
//! the parents, where AVX-512 has sixteen. Here the same node of up to sixteen blocks goes through
//! the lanes together: first chunk 0 of all, then chunks 1, 2 and 3, then all lower parents, then
//! all roots.
//!
//! The lanes are reached through [`blake3::platform`], which is public for other implementers but
//! hidden from the documentation. Two things guard against its changing under us: the version is
//! pinned to patch releases, so that a change of signature cannot arrive unseen, and the tests
//! below compare with [`blake3::hash`] for every batch size, so that a change of meaning fails.

use blake3::IncrementCounter;
use blake3::platform::Platform;
use siltstone_device::BLOCK_BYTES;

use crate::fingerprint::{Fingerprint, fingerprint};

/// Most blocks that go through the lanes together: what AVX-512 has.
const LANES: usize = 16;
/// Fewest blocks that do. Four would, but the four chunks of one block fill as many lanes as well; and for
/// four inputs, BLAKE3's code for AVX-512 reads up to 48 bytes behind the first one's end (and ignores
/// them), where there may be no memory. Of a block's own chunks, the second follows the first.
const MIN_LANES: usize = 8;

const CHUNK_BYTES: usize = blake3::CHUNK_LEN;
const CHUNKS: usize = BLOCK_BYTES / CHUNK_BYTES;
const _: () = assert!(CHUNKS == 4, "the tree below has two levels of parents");

const HASH_BYTES: usize = blake3::OUT_LEN;
const PARENT_BYTES: usize = 2 * HASH_BYTES;

// The constants of the BLAKE3 specification, sections 2.2 and 2.3: the initial value is SHA-256's.
const INITIAL_VALUE: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a, //
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;

/// The fingerprints of all blocks, in order: the same as [`fingerprint`] of each. Allocates
/// nothing.
///
/// # Panics
/// If `out` is not as long as `blocks`.
pub fn fingerprint_blocks(blocks: &[&[u8; BLOCK_BYTES]], out: &mut [Fingerprint]) {
    assert_eq!(blocks.len(), out.len(), "one fingerprint a block");
    let platform = Platform::detect();
    for (blocks, out) in blocks.chunks(LANES).zip(out.chunks_mut(LANES)) {
        // The lanes take 16 or 8 inputs at a time; what is left goes one by one.
        let together = blocks.len() - blocks.len() % MIN_LANES;
        if together > 0 {
            fingerprint_lanes(platform, &blocks[..together], &mut out[..together]);
        }
        for (block, out) in blocks[together..].iter().zip(&mut out[together..]) {
            *out = fingerprint(block);
        }
    }
}

/// [`fingerprint_blocks`] for 1 to [`LANES`] blocks.
fn fingerprint_lanes(platform: Platform, blocks: &[&[u8; BLOCK_BYTES]], out: &mut [Fingerprint]) {
    let count = blocks.len();
    assert!((1..=LANES).contains(&count) && out.len() == count);

    // leaves[block] = the hashes of its chunks, that is, its two lower parents' inputs.
    let mut leaves = [[[0; HASH_BYTES]; CHUNKS]; LANES];
    let mut chunks = [&blocks[0].as_chunks::<CHUNK_BYTES>().0[0]; LANES];
    let mut hashes = [0; LANES * HASH_BYTES];
    for chunk in 0..CHUNKS {
        for (input, block) in chunks.iter_mut().zip(blocks) {
            *input = &block.as_chunks::<CHUNK_BYTES>().0[chunk];
        }
        platform.hash_many(
            &chunks[..count],
            &INITIAL_VALUE,
            chunk as u64,
            // Every lane holds the same chunk of its own block.
            IncrementCounter::No,
            0,
            CHUNK_START,
            CHUNK_END,
            &mut hashes[..count * HASH_BYTES],
        );
        for (leaves, hash) in leaves.iter_mut().zip(&hashes.as_chunks::<HASH_BYTES>().0[..count]) {
            leaves[chunk] = *hash;
        }
    }

    // Both lower parents of block 0, of block 1, and so on: their hashes lie as the roots' inputs.
    let leaves = leaves[..count].as_flattened().as_flattened();
    let mut parents = [0; LANES * PARENT_BYTES];
    hash_parents(platform, leaves, PARENT, &mut parents[..count * PARENT_BYTES]);
    let mut roots = [0; LANES * HASH_BYTES];
    let roots = &mut roots[..count * HASH_BYTES];
    hash_parents(platform, &parents[..count * PARENT_BYTES], PARENT | ROOT, roots);
    for (out, root) in out.iter_mut().zip(roots.as_chunks::<HASH_BYTES>().0) {
        *out = Fingerprint::from_bytes(*root);
    }
}

/// Hashes tree nodes of [`PARENT_BYTES`] each, at most two a lane.
fn hash_parents(platform: Platform, nodes: &[u8], flags: u8, out: &mut [u8]) {
    const NONE: &[u8; PARENT_BYTES] = &[0; PARENT_BYTES];
    let (nodes, rest) = nodes.as_chunks::<PARENT_BYTES>();
    assert!(rest.is_empty() && nodes.len() <= 2 * LANES);
    let mut inputs = [NONE; 2 * LANES];
    for (input, node) in inputs.iter_mut().zip(nodes) {
        *input = node;
    }
    let inputs = &inputs[..nodes.len()];
    platform.hash_many(inputs, &INITIAL_VALUE, 0, IncrementCounter::No, flags, 0, 0, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use proptest::prelude::*;
    use siltstone_device::AlignedBuffer;

    fn random_blocks(seed: u64, count: usize) -> Vec<[u8; BLOCK_BYTES]> {
        let mut random = Random(seed);
        let mut blocks = vec![[0; BLOCK_BYTES]; count];
        for word in blocks.as_flattened_mut().as_chunks_mut::<8>().0 {
            *word = random.next().to_le_bytes();
        }
        blocks
    }

    fn assert_same_as_one_at_a_time(blocks: &[[u8; BLOCK_BYTES]]) {
        let blocks: Vec<_> = blocks.iter().collect();
        let mut together = vec![Fingerprint::from_bytes([0xee; 32]); blocks.len()];
        fingerprint_blocks(&blocks, &mut together);
        let one_at_a_time: Vec<_> = blocks.iter().map(|block| fingerprint(block)).collect();
        assert_eq!(together, one_at_a_time);
    }

    /// Buffers of this size are mappings of their own, the later below the earlier: once that is dropped,
    /// nothing is mapped behind the later one.
    #[test]
    fn nothing_behind_a_block_is_read() {
        const BYTES: usize = 1 << 20;
        let behind = AlignedBuffer::zeroed(BYTES);
        let last = AlignedBuffer::zeroed(BYTES);
        drop(behind);
        let blocks = last.as_chunks::<BLOCK_BYTES>().0;
        let expected = fingerprint(&blocks[0]);
        for count in 1..=2 * LANES {
            for at in 0..count {
                let mut these = vec![&blocks[0]; count];
                these[at] = &blocks[blocks.len() - 1];
                let mut out = vec![Fingerprint::from_bytes([0; HASH_BYTES]); count];
                fingerprint_blocks(&these, &mut out);
                assert!(out.iter().all(|found| *found == expected));
            }
        }
    }

    #[test]
    fn every_batch_size_gives_the_fingerprints_of_the_single_blocks() {
        let blocks = random_blocks(1, 70);
        for count in 0..=blocks.len() {
            assert_same_as_one_at_a_time(&blocks[..count]);
        }
    }

    #[test]
    fn every_number_of_lanes_in_use_is_right_on_every_platform() {
        let blocks = random_blocks(2, LANES);
        let blocks: Vec<_> = blocks.iter().collect();
        for platform in [Platform::portable(), Platform::detect()] {
            for count in 1..=LANES {
                let mut out = vec![Fingerprint::from_bytes([0; 32]); count];
                fingerprint_lanes(platform, &blocks[..count], &mut out);
                for (block, out) in blocks.iter().zip(&out) {
                    assert_eq!(*out, fingerprint(block), "{platform:?}, {count} lanes");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_contents_give_the_fingerprints_of_the_single_blocks(
            seed: u64, count in 1..40_usize, fill: u8, filled in 0..40_usize,
        ) {
            let mut blocks = random_blocks(seed, count);
            blocks[filled % count] = [fill; BLOCK_BYTES];
            assert_same_as_one_at_a_time(&blocks);
        }
    }
}
