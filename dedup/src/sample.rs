//! Which fingerprints the index keeps when it cannot keep all.
//!
//! A sample of `n` bits keeps the fingerprints whose low `n` bits are zero: 1 in 2^n. Whether a
//! fingerprint is in the sample follows from the fingerprint alone, so that the first copy of a
//! block and every later one agree (a *consistent* sample), and the sample of `n + 1` bits is
//! half of the sample of `n` bits, so that thinning needs only what is already there.

use crate::bucket::TAG_BITS;
use crate::fingerprint::ShortFingerprint;

/// The thinnest sample is 1 in 2^16 fingerprints: thinner ones would leave a tag too few bits of
/// its own. An index that is full even then replaces entries.
pub const MAX_SAMPLE_BITS: u8 = 16;

const _: () = assert!(
    MAX_SAMPLE_BITS as u32 + 10 <= TAG_BITS,
    "entries are sampled by their tag, and 10 bits of it still tell them apart"
);

/// Whether the sample of `sample_bits` holds a fingerprint, given its low bits (all of them, or
/// those in an entry's tag).
pub(crate) fn holds(low_bits: u64, sample_bits: u8) -> bool {
    debug_assert!(sample_bits <= MAX_SAMPLE_BITS);
    low_bits & ((1 << sample_bits) - 1) == 0
}

/// Whether a sample of `sample_bits` holds this fingerprint.
#[must_use]
pub fn is_sampled(fingerprint: &ShortFingerprint, sample_bits: u8) -> bool {
    assert!(sample_bits <= MAX_SAMPLE_BITS, "no index keeps so thin a sample");
    holds(fingerprint.low(), sample_bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn a_sample_halves_with_each_bit_and_holds_every_thinner_one() {
        let fingerprints = Random(1).fingerprints(1 << 16);
        let mut before: Vec<_> = fingerprints.iter().collect();
        assert!(before.iter().all(|fingerprint| is_sampled(fingerprint, 0)));
        for bits in 1..=6 {
            let sample: Vec<_> =
                fingerprints.iter().filter(|fingerprint| is_sampled(fingerprint, bits)).collect();
            assert!(sample.iter().all(|fingerprint| is_sampled(fingerprint, bits - 1)));
            let share = sample.len() as f64 / before.len() as f64;
            assert!((0.4..0.6).contains(&share), "{bits} bits keep {share} of {}", bits - 1);
            before = sample;
        }
    }
}
