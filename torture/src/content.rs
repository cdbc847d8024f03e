//! Blocks that say what they are: each 512-byte sector is made from a tag and can be told from it,
//! wherever it lies. Tag 0 is zeros; half of the others compress well, half not at all.

use siltstone_device::SeededRandom;

/// What a power cut does not divide, in bytes.
pub const SECTOR: usize = 512;
/// A block, in bytes.
pub const BLOCK: usize = 4096;
/// Sectors a block.
pub const SECTORS: usize = BLOCK / SECTOR;

/// A block as the tags of its sectors.
pub type Block = [u32; SECTORS];

/// A block of zeros.
pub const ZERO: Block = [0; SECTORS];

/// Tags up to this are shared by all clients and make duplicates.
const COMMON_TAGS: u64 = 96;

/// Content for blocks: often a run that has been written before.
pub fn draw(random: &mut SeededRandom, blocks: u64) -> Vec<Block> {
    let kind = random.below(8);
    let first = random.below(COMMON_TAGS) as u32;
    let unique = random.next_u64() as u32 | 0x8000_0000;
    (0..blocks as u32)
        .map(|at| match kind {
            0..=3 => [1 + (first + at) % COMMON_TAGS as u32; SECTORS],
            4 => [1 + first; SECTORS],
            5 if at % 3 == 1 => ZERO,
            _ => std::array::from_fn(|sector| unique.wrapping_add(at * 8 + sector as u32)),
        })
        .collect()
}

fn fill_sector(tag: u32, out: &mut [u8]) {
    if tag == 0 {
        out.fill(0);
        return;
    }
    let mut state = u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let fixed = state;
    for word in out.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = if tag.is_multiple_of(2) { fixed } else { state };
        word.copy_from_slice(&value.to_le_bytes());
    }
    out[..4].copy_from_slice(&tag.to_le_bytes());
}

/// The bytes of sectors with these tags.
pub fn bytes_of(tags: &[u32]) -> Vec<u8> {
    let mut out = vec![0; tags.len() * SECTOR];
    for (tag, sector) in tags.iter().zip(out.chunks_exact_mut(SECTOR)) {
        fill_sector(*tag, sector);
    }
    out
}

/// The tags of whole sectors; an error if one was never written by anybody.
pub fn tags_of(bytes: &[u8]) -> Result<Vec<u32>, String> {
    let mut expected = [0; SECTOR];
    let tag = |(number, sector): (usize, &[u8])| {
        let tag = u32::from_le_bytes([sector[0], sector[1], sector[2], sector[3]]);
        fill_sector(tag, &mut expected);
        let same = sector == expected;
        same.then_some(tag).ok_or_else(|| format!("sector {number} holds what nobody wrote"))
    };
    bytes.chunks_exact(SECTOR).enumerate().map(tag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_can_be_told_and_what_nobody_wrote_is_recognised() {
        let tags = [0, 1, 2, 3, 0x8000_0001, u32::MAX, 7, 8];
        let mut bytes = bytes_of(&tags);
        assert_eq!(tags_of(&bytes).unwrap(), tags);
        bytes[700] ^= 1;
        assert!(tags_of(&bytes).is_err());
    }
}
