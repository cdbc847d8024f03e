//! The unavoidable work alone: on the same cores and the same data, with no engine around it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use siltstone_dedup::{Fingerprint, fingerprint_blocks};
use zstd::zstd_safe::{CCtx, DCtx};

use super::overwrite::NewBlocks;
use crate::{
    data::BLOCK_BYTES,
    sample::{Sample, Stopwatch},
};

pub(crate) const PIECE_BYTES: usize = 1 << 20;
pub(crate) const FRAME_BYTES: usize = 32 << 10;
const LEVEL: i32 = 1;

/// What has to be done to data.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// It is known already: one copy and its fingerprints.
    Recognise,
    /// It is new: also compression in frames of 32 KiB, and a checksum of what comes of each.
    Store,
}

impl Work {
    /// What is compressed together, if anything is.
    fn frame_bytes(self) -> Option<usize> {
        match self {
            Self::Recognise => None,
            Self::Store => Some(FRAME_BYTES),
        }
    }
}

/// Does the work in pieces of 1 MiB, on as many threads as there are cores. Counts bytes.
pub(crate) fn run(data: &[u8], work: Work, cores: usize) -> Sample {
    let pieces: Vec<&[u8]> = data.chunks(PIECE_BYTES).collect();
    let next = AtomicUsize::new(0);
    // Memory that each thread has ready, as an engine would.
    let mut workers: Vec<Worker> = (0..cores).map(|_| Worker::new()).collect();
    workers.iter_mut().for_each(|worker| worker.process(pieces[0], work));
    let stopwatch = Stopwatch::start();
    std::thread::scope(|scope| {
        for worker in &mut workers {
            let (pieces, next) = (&pieces, &next);
            scope.spawn(move || {
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    worker.process(piece, work);
                }
            });
        }
    });
    stopwatch.stop(data.len() as u64)
}

/// Stores single blocks from all over the data, each a frame of its own, as clients of small writes make them: as
/// many as the data has, on as many threads as there are cores. Counts blocks.
pub(crate) fn run_blocks(data: &[u8], cores: usize) -> Sample {
    let pieces = data.len() / PIECE_BYTES;
    let blocks_a_piece = PIECE_BYTES / BLOCK_BYTES;
    let mut workers: Vec<Worker> = (0..cores).map(|_| Worker::new()).collect();
    workers.iter_mut().for_each(|worker| worker.process(&data[..PIECE_BYTES], Work::Store));
    let next = AtomicUsize::new(0);
    let stopwatch = Stopwatch::start();
    std::thread::scope(|scope| {
        for (number, worker) in workers.iter_mut().enumerate() {
            let next = &next;
            scope.spawn(move || {
                let mut blocks = NewBlocks::new(data, number, cores);
                while next.fetch_add(1, Ordering::Relaxed) < pieces {
                    for slot in worker.staging.as_chunks_mut::<BLOCK_BYTES>().0 {
                        slot.copy_from_slice(blocks.next(data.len() as u64).1);
                    }
                    worker.reduce(PIECE_BYTES, Some(BLOCK_BYTES));
                }
            });
        }
    });
    stopwatch.stop((pieces * blocks_a_piece) as u64)
}

/// Stores `data` over and over, in pieces of `piece_bytes`, until it is over; counts bytes as it goes.
pub(crate) fn run_until(
    data: &[u8],
    piece_bytes: usize,
    cores: usize,
    bytes: &AtomicU64,
    is_over: &AtomicBool,
) {
    let pieces: Vec<&[u8]> = data.chunks(piece_bytes).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut worker = Worker::new();
                while !is_over.load(Ordering::Relaxed) {
                    let piece = pieces[next.fetch_add(1, Ordering::Relaxed) % pieces.len()];
                    worker.process(piece, Work::Store);
                    bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
}

struct Worker {
    staging: Vec<u8>,
    fingerprints: Vec<Fingerprint>,
    context: CCtx<'static>,
    out: Vec<u8>,
}

impl Worker {
    fn new() -> Self {
        Self {
            staging: vec![0; PIECE_BYTES],
            fingerprints: vec![Fingerprint::from_bytes([0; 32]); PIECE_BYTES / BLOCK_BYTES],
            context: CCtx::create(),
            out: vec![0; 2 * FRAME_BYTES],
        }
    }

    fn process(&mut self, piece: &[u8], work: Work) {
        self.staging[..piece.len()].copy_from_slice(piece);
        self.reduce(piece.len(), work.frame_bytes());
    }

    /// What comes after the copy: fingerprints, and if it is new, frames and their checksums.
    fn reduce(&mut self, len_bytes: usize, frame_bytes: Option<usize>) {
        let staging = &self.staging[..len_bytes];
        let blocks: Vec<_> = staging.as_chunks::<BLOCK_BYTES>().0.iter().collect();
        fingerprint_blocks(&blocks, &mut self.fingerprints[..blocks.len()]);
        if let Some(frame_bytes) = frame_bytes {
            for frame in staging.chunks(frame_bytes) {
                let len = self.context.compress(&mut self.out[..], frame, LEVEL);
                let len = len.expect("the output has room");
                std::hint::black_box(crc32fast::hash(&self.out[..len]));
            }
        }
        std::hint::black_box(&self.fingerprints);
    }
}

/// Data in frames, each alone: compressed, or plain where that is not smaller.
pub(crate) struct Frames {
    frames: Vec<Vec<u8>>,
    /// Of each, plain; the last may have less.
    pub(crate) frame_bytes: usize,
    pub(crate) stored_bytes: u64,
    plain_bytes: u64,
}

impl Frames {
    /// In frames of 32 KiB at level 1, as a volume has them unless it is told otherwise.
    pub(crate) fn compress(data: &[u8]) -> Self {
        Self::compress_with(data, FRAME_BYTES, LEVEL)
    }

    /// In frames of `frame_bytes`, at most 32 KiB, at this level.
    pub(crate) fn compress_with(data: &[u8], frame_bytes: usize, level: i32) -> Self {
        let mut context = CCtx::create();
        let mut out = vec![0; 2 * FRAME_BYTES];
        let frames: Vec<Vec<u8>> = data
            .chunks(frame_bytes)
            .map(|frame| {
                let len = context.compress(&mut out[..], frame, level);
                let len = len.expect("the output has room");
                if len < frame.len() { out[..len].to_vec() } else { frame.to_vec() }
            })
            .collect();
        let stored_bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        Self { frames, frame_bytes, stored_bytes, plain_bytes: data.len() as u64 }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(Vec::as_slice)
    }

    /// Decompresses everything on as many threads as there are cores. Counts plain bytes.
    pub(crate) fn decompress(&self, cores: usize) -> Sample {
        let next = AtomicUsize::new(0);
        let stopwatch = Stopwatch::start();
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| {
                    let mut context = DCtx::create();
                    let mut out = vec![0; FRAME_BYTES];
                    // A few frames at a time, so that the counter is no bottleneck.
                    let batches: Vec<_> = self.frames.chunks(32).collect();
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        for frame in *batch {
                            // What does not decompress is plain.
                            if context.decompress(&mut out[..], frame).is_err() {
                                out[..frame.len()].copy_from_slice(frame);
                            }
                            std::hint::black_box(&out);
                        }
                    }
                });
            }
        });
        stopwatch.stop(self.plain_bytes)
    }
}
