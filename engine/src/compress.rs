//! Compression of frames: zstd with contexts that are made once a thread, an early and cheap guess
//! at what will not compress, and plain storage when compression does not pay.

use siltstone_device::BLOCK_BYTES;
use zstd::zstd_safe::{CCtx, CParameter, DCtx};

/// A compressed frame must be smaller than its plain form by at least one part in this many.
const MIN_SAVING: usize = 16;

/// Bytes looked at in a frame by [`looks_incompressible`], and at most in each block of it.
const SAMPLE_BYTES: usize = 1024;
const MAX_BLOCK_SAMPLE_BYTES: usize = 512;

/// Compresses frames. One for each reducer: creating a context costs more than a frame.
pub(crate) struct Compressor {
    context: CCtx<'static>,
    level: i8,
}

impl Compressor {
    pub(crate) fn new() -> Self {
        let mut compressor = Self { context: CCtx::create(), level: 1 };
        compressor.set_level(1);
        // The frame's header has a length and checksums of its own.
        for parameter in [CParameter::ChecksumFlag(false), CParameter::DictIdFlag(false)] {
            let set = compressor.context.set_parameter(parameter);
            set.expect("a constant parameter is valid");
        }
        compressor
    }

    fn set_level(&mut self, level: i8) {
        let set = self.context.set_parameter(CParameter::CompressionLevel(level.into()));
        set.expect("levels are validated when a volume is created");
        self.level = level;
    }

    /// Compresses `plain` into `out`; `None` if that does not pay.
    pub(crate) fn compress(&mut self, plain: &[u8], level: i8, out: &mut [u8]) -> Option<usize> {
        if looks_incompressible(plain) {
            return None;
        }
        if level != self.level {
            self.set_level(level);
        }
        let limit = (plain.len() - plain.len() / MIN_SAVING).min(out.len());
        // With less room than it needs, zstd stops as soon as it notices.
        self.context.compress2(&mut out[..limit], plain).ok()
    }
}

/// Decompresses frames. One for each thread that reads.
pub(crate) struct Decompressor {
    context: DCtx<'static>,
}

impl Decompressor {
    pub(crate) fn new() -> Self {
        Self { context: DCtx::create() }
    }

    /// Decompresses `stored` to exactly fill `out`; `None` if it does not.
    pub(crate) fn decompress(&mut self, stored: &[u8], out: &mut [u8]) -> Option<()> {
        let written = self.context.decompress(out, stored).ok()?;
        (written == out.len()).then_some(())
    }

    /// Runs `work` with this thread's decompressor.
    pub(crate) fn with<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        thread_local! {
            static DECOMPRESSOR: std::cell::RefCell<Decompressor> =
                std::cell::RefCell::new(Decompressor::new());
        }
        DECOMPRESSOR.with_borrow_mut(work)
    }
}

/// Whether a frame's bytes are spread so evenly that no entropy coder can gain, judged by the
/// collision probability of a sample from each block. Encrypted and compressed data look like
/// this; so would data that repeats only at a distance, which costs ratio, never correctness.
fn looks_incompressible(plain: &[u8]) -> bool {
    // Several tables, for equal bytes in a row would wait for each other.
    let mut counts = [[0u16; 256]; 4];
    let mut sampled = 0u32;
    let blocks = plain.len().div_ceil(BLOCK_BYTES).max(1);
    let sample_bytes = (SAMPLE_BYTES / blocks).min(MAX_BLOCK_SAMPLE_BYTES);
    for block in plain.chunks(BLOCK_BYTES) {
        let start = block.len().saturating_sub(sample_bytes) / 2;
        let sample = &block[start..(start + sample_bytes).min(block.len())];
        let (fours, rest) = sample.as_chunks::<4>();
        for four in fours {
            for (counts, &byte) in counts.iter_mut().zip(four) {
                counts[usize::from(byte)] += 1;
            }
        }
        for &byte in rest {
            counts[0][usize::from(byte)] += 1;
        }
        sampled += sample.len() as u32;
    }
    // For uniform bytes the sum of squares is about n + n^2/256; text has several times that.
    let sum = |byte: usize| counts.iter().map(|counts| u32::from(counts[byte])).sum::<u32>();
    let squares: u64 = (0..256).map(|byte| u64::from(sum(byte)).pow(2)).sum();
    let n = u64::from(sampled);
    squares * 256 < n * 256 + n * n + n * n / 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn noise_is_recognised_early_and_text_is_not() {
        for blocks in 1..=8 {
            assert!(looks_incompressible(&noise(blocks * BLOCK_BYTES)), "{blocks} blocks");
        }
        let text: Vec<u8> = b"The quick brown fox. ".iter().copied().cycle().take(32768).collect();
        assert!(!looks_incompressible(&text));
        let packed_integers: Vec<u8> =
            (0..8192u32).flat_map(|i| (i * 7919).to_le_bytes()).collect();
        assert!(!looks_incompressible(&packed_integers));
    }

    #[test]
    fn compression_that_does_not_pay_is_refused() {
        let mut compressor = Compressor::new();
        let mut out = vec![0; 40_000];
        assert_eq!(compressor.compress(&noise(32768), 1, &mut out), None);
        // Half of each block is noise that the sample misses; the rest is just as hard.
        let mut hidden = noise(32768);
        for block in hidden.chunks_mut(BLOCK_BYTES) {
            block[1700..2300].fill(0);
        }
        let stored = compressor.compress(&hidden, 1, &mut out);
        assert!(stored.is_none_or(|stored| stored <= 32768 - 32768 / MIN_SAVING));
    }

    #[test]
    fn what_is_compressed_at_any_level_comes_back() {
        let mut compressor = Compressor::new();
        let plain: Vec<u8> = (0..32768u32).map(|i| (i / 100 % 251) as u8).collect();
        let mut out = vec![0; 40_000];
        for level in [-7, 1, 3, 19, 1] {
            let stored = compressor.compress(&plain, level, &mut out).unwrap();
            let mut back = vec![0; plain.len()];
            Decompressor::new().decompress(&out[..stored], &mut back).unwrap();
            assert_eq!(back, plain);
        }
    }
}
