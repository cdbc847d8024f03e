//! Measures fingerprinting: one block at a time against several blocks in the SIMD lanes together.
//!
//! `cargo run --release -p siltstone-dedup --example fingerprint`

use std::hint::black_box;
use std::time::Instant;

use siltstone_dedup::{Fingerprint, fingerprint, fingerprint_blocks, is_zero};

const BATCH_BLOCKS: usize = 256;
const BLOCK_BYTES: usize = 4096;

fn gigabytes_per_second(what: &str, mut pass: impl FnMut()) {
    // The best of several rounds: other work on the machine only ever slows one down.
    let best = (0..20)
        .map(|_| {
            let start = Instant::now();
            (0..64).for_each(|_| pass());
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    let bytes = (64 * BATCH_BLOCKS * BLOCK_BYTES) as f64;
    println!("{what:<40} {:6.2} GB/s", bytes / best / 1e9);
}

fn main() {
    let data: Vec<[u8; BLOCK_BYTES]> =
        (0..BATCH_BLOCKS).map(|i| std::array::from_fn(|j| (i * 31 + j * 7) as u8)).collect();
    let blocks: Vec<_> = data.iter().collect();
    let zeros = vec![[0; BLOCK_BYTES]; BATCH_BLOCKS];
    let mut out = vec![Fingerprint::from_bytes([0; 32]); BATCH_BLOCKS];

    gigabytes_per_second("fingerprint, one block at a time", || {
        for (block, out) in blocks.iter().zip(&mut out) {
            *out = fingerprint(black_box(block));
        }
    });
    gigabytes_per_second("fingerprint_blocks, 256 a batch", || {
        fingerprint_blocks(black_box(&blocks), &mut out);
    });
    gigabytes_per_second("is_zero, zero blocks", || {
        assert!(zeros.iter().all(|block| is_zero(black_box(block))));
    });
}
