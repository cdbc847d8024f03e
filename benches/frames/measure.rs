//! What a way of framing costs on a corpus, in a thread's processor time.

use rustix::time::{ClockId, clock_gettime};
use siltstone_benches::data::BLOCK_BYTES;
use siltstone_device::{SeededRandom, units::PLACE_GRAIN_BYTES};
use zstd::{
    dict,
    zstd_safe::{CCtx, DDict},
};

use crate::{
    codec::{Decoder, Encoder, FRAME_BYTES},
    way::{FRAME_BLOCKS, Way},
};

/// The engine's header of a frame.
const HEADER_BYTES: usize = 48;
const DICTIONARY_MAGIC_BYTES: usize = 4;
/// What dictionaries are made from, at most.
const TRAINING_BYTES: usize = 16 << 20;
/// Frames are decoded to memory that is in no cache.
const OUT_BYTES: usize = 64 << 20;
const SEED: u64 = 7;

/// A dictionary, and what it took to make it.
pub(crate) struct Dictionary {
    bytes: Vec<u8>,
    pub(crate) training_seconds: f64,
}

impl Dictionary {
    /// Makes one of so many bytes from blocks spread evenly over `training`; none for 0.
    pub(crate) fn train(training: &[u8], len: usize) -> std::io::Result<Self> {
        if len == 0 {
            return Ok(Self { bytes: Vec::new(), training_seconds: 0.0 });
        }
        let step = training.len().div_ceil(TRAINING_BYTES).max(1);
        let blocks: Vec<_> = training.as_chunks::<BLOCK_BYTES>().0.iter().step_by(step).collect();
        let started = thread_seconds();
        let bytes = dict::from_samples(&blocks, len)?;
        Ok(Self { bytes, training_seconds: thread_seconds() - started })
    }

    /// As the way wants it.
    pub(crate) fn for_way(&self, way: &Way) -> &[u8] {
        // Without its magic a dictionary is nothing but contents.
        if way.only_contents { &self.bytes[DICTIONARY_MAGIC_BYTES..] } else { &self.bytes }
    }
}

/// What one turn has measured.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    /// With headers and padding.
    pub(crate) stored_bytes: u64,
    pub(crate) encode_ns: f64,
    pub(crate) random_ns: f64,
    pub(crate) sequential_ns: f64,
}

/// A way, ready to be measured again and again.
pub(crate) struct Subject<'a> {
    encoder: Encoder,
    decoder: Decoder<'a>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(way: &Way, dictionary: &[u8], prepared: Option<&'a DDict<'static>>) -> Self {
        Self { encoder: Encoder::new(way, dictionary), decoder: Decoder::new(way, prepared) }
    }

    /// Memory that a thread which compresses needs beyond what it needs without a dictionary.
    pub(crate) fn encoder_bytes(&self) -> usize {
        self.encoder.memory_bytes().saturating_sub(CCtx::create().sizeof())
    }

    /// Codes and decodes all frames of `test`, and checks what comes back.
    pub(crate) fn measure(&mut self, test: &[u8], out: &mut Out) -> Turn {
        let frames = test.as_chunks::<FRAME_BYTES>().0;
        let blocks = (frames.len() * FRAME_BLOCKS) as f64;
        let mut stored = Vec::with_capacity(test.len());
        let mut ends = Vec::with_capacity(frames.len());

        let started = thread_seconds();
        for frame in frames {
            stored.extend_from_slice(self.encoder.encode(frame).unwrap_or(frame));
            ends.push(stored.len());
        }
        let encode_ns = (thread_seconds() - started) * 1e9 / blocks;

        let frame_at = |index: usize| {
            let start = if index == 0 { 0 } else { ends[index - 1] };
            &stored[start..ends[index]]
        };
        let order = random_order(frames.len() * FRAME_BLOCKS);
        let started = thread_seconds();
        for &block in &order {
            let (frame, index) =
                (frame_at(block as usize / FRAME_BLOCKS), block as usize % FRAME_BLOCKS);
            let plain = out.next();
            if frame.len() < FRAME_BYTES {
                self.decoder.decode_block(frame, index, plain);
            } else {
                let range = index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES;
                plain[range.clone()].copy_from_slice(&frame[range]);
            }
            std::hint::black_box(plain);
        }
        let random_ns = (thread_seconds() - started) * 1e9 / blocks;

        let started = thread_seconds();
        for index in 0..frames.len() {
            let (frame, plain) = (frame_at(index), out.next());
            if frame.len() < FRAME_BYTES {
                self.decoder.decode_all(frame, plain);
            } else {
                plain.copy_from_slice(frame);
            }
            std::hint::black_box(plain);
        }
        let sequential_ns = (thread_seconds() - started) * 1e9 / blocks;

        self.verify(frames, &frame_at, out);
        let grain = PLACE_GRAIN_BYTES as usize;
        let sizes = (0..frames.len()).map(|index| frame_at(index).len() + HEADER_BYTES);
        let stored_bytes = sizes.map(|bytes| bytes.next_multiple_of(grain) as u64).sum();
        Turn { stored_bytes, encode_ns, random_ns, sequential_ns }
    }

    /// A figure for a codec that returns something else would be worth nothing.
    fn verify<'b>(
        &mut self,
        frames: &[[u8; FRAME_BYTES]],
        frame_at: &dyn Fn(usize) -> &'b [u8],
        out: &mut Out,
    ) {
        for (at, plain) in frames.iter().enumerate() {
            let stored = frame_at(at);
            if stored.len() == FRAME_BYTES {
                continue;
            }
            let index = at % FRAME_BLOCKS;
            let range = index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES;
            let decoded = out.next();
            self.decoder.decode_block(stored, index, decoded);
            assert!(decoded[range.clone()] == plain[range], "frame {at}, block {index}");
            self.decoder.decode_all(stored, decoded);
            assert!(decoded == plain, "frame {at}");
        }
    }
}

/// Room for frames that is used in turns.
pub(crate) struct Out {
    bytes: Vec<u8>,
    at: usize,
}

impl Out {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![1; OUT_BYTES], at: 0 }
    }

    fn next(&mut self) -> &mut [u8] {
        self.at = (self.at + FRAME_BYTES) % OUT_BYTES;
        &mut self.bytes[self.at..self.at + FRAME_BYTES]
    }
}

fn random_order(len: usize) -> Vec<u32> {
    let mut random = SeededRandom::new(SEED);
    let mut order: Vec<u32> = (0..len as u32).collect();
    for at in (1..len).rev() {
        order.swap(at, random.below(at as u64 + 1) as usize);
    }
    order
}

fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
