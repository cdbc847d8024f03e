//! Fingerprints: what a block is known by.

use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use siltstone_device::BLOCK_BYTES;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The BLAKE3 hash of a block's plain contents.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Fingerprint([u8; 32]);

/// The first 128 bits of a [`Fingerprint`]: what summaries hold and links are verified against.
///
/// Its bits are used by position, and no bit for two purposes that must be independent (see
/// [`crate::index`]): the low bits of [`low`](Self::low) sample and tag, its high bits choose the
/// shard, and [`high`](Self::high) chooses the bucket.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct ShortFingerprint([u8; 16]);

const _: () = assert!(size_of::<Fingerprint>() == 32 && align_of::<Fingerprint>() == 1);
const _: () = assert!(size_of::<ShortFingerprint>() == 16 && align_of::<ShortFingerprint>() == 1);

/// The fingerprint of one block. [`fingerprint_blocks`](crate::fingerprint_blocks) gives the same
/// for many at twice the speed.
#[must_use]
pub fn fingerprint(block: &[u8; BLOCK_BYTES]) -> Fingerprint {
    Fingerprint(*blake3::hash(block).as_bytes())
}

/// Whether a block is all zero, so that it becomes a hole and is neither hashed nor stored.
#[must_use]
pub fn is_zero(block: &[u8; BLOCK_BYTES]) -> bool {
    // Nearly every block with data shows it in its first words; the rest is folded in stretches
    // that the compiler turns into vector instructions, leaving at the first that is not zero.
    const STRETCH_BYTES: usize = 256;
    block[..8] == [0; 8]
        && block.as_chunks::<STRETCH_BYTES>().0.iter().all(|stretch| {
            stretch.as_chunks::<8>().0.iter().fold(0, |all, word| all | u64::from_le_bytes(*word))
                == 0
        })
}

impl Fingerprint {
    /// A fingerprint from its bytes; every value is the fingerprint of some block.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash's bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 128 bits.
    #[must_use]
    pub fn short(&self) -> ShortFingerprint {
        let [short, _] = self.0.as_chunks::<16>().0 else { unreachable!("32 is twice 16") };
        ShortFingerprint(*short)
    }
}

impl ShortFingerprint {
    /// A short fingerprint from its bytes; every value is the fingerprint of some block.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Bits 0 to 63.
    #[must_use]
    pub fn low(&self) -> u64 {
        u128::from_le_bytes(self.0) as u64
    }

    /// Bits 64 to 127.
    #[must_use]
    pub fn high(&self) -> u64 {
        (u128::from_le_bytes(self.0) >> 64) as u64
    }
}

impl Hash for ShortFingerprint {
    /// Hands over 64 bits that are random already: one word for [`FingerprintHasher`] to keep.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.high());
    }
}

macro_rules! hexadecimal {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

hexadecimal!(Fingerprint);
hexadecimal!(ShortFingerprint);

/// Hashes a [`ShortFingerprint`] by taking it as it is: BLAKE3 has mixed it better than any table
/// would. For keys that clients do not choose freely otherwise, it is the wrong hasher.
#[derive(Default)]
pub struct FingerprintHasher(u64);

impl Hasher for FingerprintHasher {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("a short fingerprint hashes itself as one u64");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Builds [`FingerprintHasher`]s: the third parameter of a `HashMap` keyed by fingerprints.
pub type FingerprintHash = BuildHasherDefault<FingerprintHasher>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_blake3_and_its_short_form_the_first_16_bytes() {
        let block = [0x5a; BLOCK_BYTES];
        let whole = fingerprint(&block);
        assert_eq!(whole.bytes(), blake3::hash(&block).as_bytes());
        assert_eq!(whole.short().bytes(), &whole.bytes()[..16]);
        assert_eq!(whole.to_string(), blake3::hash(&block).to_hex().to_string());
    }

    #[test]
    fn the_words_of_a_short_fingerprint_are_little_endian() {
        let bytes: [u8; 16] = std::array::from_fn(|i| i as u8);
        let short = ShortFingerprint::from_bytes(bytes);
        assert_eq!(short.low(), 0x0706_0504_0302_0100);
        assert_eq!(short.high(), 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(short.to_string(), "000102030405060708090a0b0c0d0e0f");
    }

    #[test]
    fn a_single_set_bit_anywhere_makes_a_block_not_zero() {
        let mut block = [0; BLOCK_BYTES];
        assert!(is_zero(&block));
        for byte in 0..BLOCK_BYTES {
            block[byte] = 1 << (byte % 8);
            assert!(!is_zero(&block), "byte {byte}");
            block[byte] = 0;
        }
    }
}
