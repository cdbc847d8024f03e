//! Determinate randomness for this crate's tests.

use crate::fingerprint::ShortFingerprint;

/// A splitmix64 generator.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A fingerprint as random as a hash.
    pub(crate) fn fingerprint(&mut self) -> ShortFingerprint {
        let wide = u128::from(self.next()) << 64 | u128::from(self.next());
        ShortFingerprint::from_bytes(wide.to_le_bytes())
    }

    pub(crate) fn fingerprints(&mut self, count: usize) -> Vec<ShortFingerprint> {
        (0..count).map(|_| self.fingerprint()).collect()
    }
}
