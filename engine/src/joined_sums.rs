//! The CRC-32 of blocks together from those of each of them, without another look at the blocks.
//!
//! That of A followed by B is that of A, moved on by the length of B, plus that of B, for what CRC-32 adds at
//! the beginning and at the end cancels (M. Adler's `crc32_combine` in zlib). To move on by a bit is to multiply by x modulo the polynomial, a matrix
//! of 32 by 32 bits; squared fifteen times it moves on by a block. A plain frame of eight blocks is seven such steps
//! instead of 32 KiB to be summed.

use siltstone_device::BLOCK_BYTES;

/// CRC-32 (ISO-HDLC), lowest bit first.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// What each bit becomes: the columns of a matrix over GF(2).
type Matrix = [u32; 32];

const BY_A_BLOCK: Matrix = {
    let mut matrix = by_a_bit();
    let mut bits = 1;
    while bits < BLOCK_BYTES * 8 {
        matrix = squared(&matrix);
        bits *= 2;
    }
    assert!(bits == BLOCK_BYTES * 8);
    matrix
};

const fn by_a_bit() -> Matrix {
    let mut matrix = [POLYNOMIAL; 32];
    let mut bit = 1;
    while bit < 32 {
        matrix[bit] = 1 << (bit - 1);
        bit += 1;
    }
    matrix
}

const fn squared(matrix: &Matrix) -> Matrix {
    let mut square = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        square[bit] = times(matrix, matrix[bit]);
        bit += 1;
    }
    square
}

const fn times(matrix: &Matrix, vector: u32) -> u32 {
    let mut sum = 0;
    let mut bit = 0;
    while bit < 32 {
        // All ones if the bit is set.
        sum ^= matrix[bit] & (vector >> bit & 1).wrapping_neg();
        bit += 1;
    }
    sum
}

/// The CRC-32 of blocks one after the other, of which these are the CRC-32s.
///
/// # Panics
/// If there are none.
pub(crate) fn joined(sums: &[u32]) -> u32 {
    let join = |joined, &sum: &u32| times(&BY_A_BLOCK, joined) ^ sum;
    let (first, rest) = sums.split_first().expect("a frame has blocks");
    rest.iter().fold(*first, join)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siltstone_device::SeededRandom;

    use super::*;

    proptest! {
        #[test]
        fn joined_is_the_sum_of_all_blocks(blocks in 1..=8_usize, seed: u64, zeros in 0..=8_usize) {
            let mut data = vec![0; blocks * BLOCK_BYTES];
            SeededRandom::new(seed).fill(&mut data);
            data[..zeros.min(blocks) * BLOCK_BYTES].fill(0);
            let sums: Vec<u32> = data.chunks(BLOCK_BYTES).map(crc32fast::hash).collect();
            prop_assert_eq!(joined(&sums), crc32fast::hash(&data));
        }
    }
}
