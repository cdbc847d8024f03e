//! Frames coded in one of the ways, and decoded again.

use siltstone_benches::data::BLOCK_BYTES;
use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DDict, DParameter, FrameFormat, InBuffer, OutBuffer, ResetDirective,
};

use crate::way::{Codec, Cut, FRAME_BLOCKS, Way};

/// Bytes in a full frame.
pub(crate) const FRAME_BYTES: usize = FRAME_BLOCKS * BLOCK_BYTES;
/// As in the engine: what is compressed must be smaller by one part in this many.
const MIN_SAVING: usize = 16;
/// Before several pieces stands where each of them ends, counted from the first one's start.
const END_BYTES: usize = 2;

/// Codes frames.
pub(crate) struct Encoder {
    cut: Cut,
    codec: Codec,
    context: CCtx<'static>,
    out: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(way: &Way, dictionary: &[u8]) -> Self {
        let mut context = CCtx::create();
        if let Codec::Zstd(tuning) = &way.codec {
            for parameter in tuning.parameters() {
                context.set_parameter(parameter).expect("parameters are valid");
            }
            if let Cut::Prefixes(blocks) = way.cut {
                let limit = CParameter::MaxBlockSize((blocks * BLOCK_BYTES) as u32);
                context.set_parameter(limit).expect("zstd's blocks can be that small");
            }
            // zstd makes it ready with the parameters above when the first frame comes.
            context.load_dictionary(dictionary).expect("the dictionary is valid");
        }
        Self { cut: way.cut, codec: way.codec, context, out: vec![0; 3 * FRAME_BYTES] }
    }

    /// Memory of the context, its copy of the dictionary included.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.context.sizeof()
    }

    /// What a frame is stored as; `None`: as it is.
    pub(crate) fn encode(&mut self, plain: &[u8]) -> Option<&[u8]> {
        let piece_bytes = self.cut.blocks() * BLOCK_BYTES;
        let pieces = plain.len().div_ceil(piece_bytes);
        let table_bytes = if pieces == 1 { 0 } else { pieces * END_BYTES };
        let mut len = table_bytes;
        if let Cut::Prefixes(_) = self.cut {
            len += self.context.compress2(&mut self.out[len..], plain).expect("it fits");
            for (index, end) in block_ends(&self.out[table_bytes..len]).into_iter().enumerate() {
                self.put_end(index, pieces, end);
            }
        } else {
            for (index, piece) in plain.chunks(piece_bytes).enumerate() {
                let is_after = index > 0 && matches!(self.cut, Cut::AfterFirst(_));
                let prefix = if is_after { &plain[..piece_bytes] } else { &[] };
                len += self.compress(len, piece, prefix);
                self.put_end(index, pieces, len - table_bytes);
            }
        }
        (len <= plain.len() - plain.len() / MIN_SAVING).then(|| &self.out[..len])
    }

    /// A piece that does not get smaller stands as it is.
    fn compress(&mut self, at: usize, plain: &[u8], prefix: &[u8]) -> usize {
        let out = &mut self.out[at..];
        let len = match self.codec {
            Codec::Lz4 => lz4_flex::block::compress_into(plain, out).expect("it fits"),
            Codec::Zstd(tuning) if !prefix.is_empty() => {
                let len = self.context.compress_using_dict(out, plain, prefix, tuning.level);
                len.expect("it fits")
            }
            Codec::Zstd(_) => self.context.compress2(out, plain).expect("it fits"),
        };
        if len < plain.len() {
            return len;
        }
        out[..plain.len()].copy_from_slice(plain);
        plain.len()
    }

    fn put_end(&mut self, index: usize, pieces: usize, end: usize) {
        if pieces > 1 {
            // A frame whose pieces end beyond is stored as it is.
            let end = u16::try_from(end).unwrap_or(u16::MAX);
            self.out[index * END_BYTES..][..END_BYTES].copy_from_slice(&end.to_le_bytes());
        }
    }
}

/// Decodes what an [`Encoder`] of the same way has made.
pub(crate) struct Decoder<'a> {
    cut: Cut,
    codec: Codec,
    context: DCtx<'a>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(way: &Way, dictionary: Option<&'a DDict<'static>>) -> Self {
        let mut context = DCtx::create();
        if let Codec::Zstd(tuning) = &way.codec {
            let format = if tuning.is_bare { FrameFormat::Magicless } else { FrameFormat::One };
            for parameter in [DParameter::Format(format), DParameter::StableOutBuffer(true)] {
                context.set_parameter(parameter).expect("parameters are valid");
            }
            if let Some(dictionary) = dictionary {
                context.ref_ddict(dictionary).expect("no frame is being decoded");
            }
        }
        Self { cut: way.cut, codec: way.codec, context }
    }

    /// Decodes as much as block `index` needs to where the frame's blocks belong in `out`.
    pub(crate) fn decode_block(&mut self, stored: &[u8], index: usize, out: &mut [u8]) {
        let blocks = self.cut.blocks();
        let piece = index / blocks;
        match self.cut {
            Cut::Prefixes(_) => self.decode_prefix(stored, piece, out),
            Cut::Parts(_) => self.decode_part(stored, piece, out),
            Cut::AfterFirst(_) => {
                self.decode_part(stored, 0, out);
                if piece > 0 {
                    self.decode_part(stored, piece, out);
                }
            }
        }
    }

    /// Decodes the whole frame into `out`.
    pub(crate) fn decode_all(&mut self, stored: &[u8], out: &mut [u8]) {
        let pieces = out.len().div_ceil(self.cut.blocks() * BLOCK_BYTES);
        if let Cut::Prefixes(_) = self.cut {
            return self.decode_prefix(stored, pieces - 1, out);
        }
        for piece in 0..pieces {
            self.decode_part(stored, piece, out);
        }
    }

    fn decode_part(&mut self, stored: &[u8], piece: usize, out: &mut [u8]) {
        let piece_bytes = self.cut.blocks() * BLOCK_BYTES;
        let part = piece_of(stored, out.len().div_ceil(piece_bytes), piece);
        let (before, rest) = out.split_at_mut(piece * piece_bytes);
        let plain_bytes = piece_bytes.min(rest.len());
        let plain = &mut rest[..plain_bytes];
        if part.len() == plain.len() {
            return plain.copy_from_slice(part);
        }
        let len = match (self.codec, self.cut) {
            (Codec::Lz4, _) => lz4_flex::block::decompress_into(part, plain).ok(),
            (Codec::Zstd(_), Cut::AfterFirst(_)) if piece > 0 => {
                let prefix = &before[..piece_bytes];
                self.context.decompress_using_dict(plain, part, prefix).ok()
            }
            (Codec::Zstd(_), _) => self.context.decompress(plain, part).ok(),
        };
        assert_eq!(len, Some(plain_bytes), "what was coded can be decoded");
    }

    /// Decodes all pieces up to this one.
    fn decode_prefix(&mut self, stored: &[u8], piece: usize, out: &mut [u8]) {
        let pieces = out.len().div_ceil(self.cut.blocks() * BLOCK_BYTES);
        let start = piece_of(stored, pieces, 0);
        let end = start.len()
            + (0..piece).map(|at| piece_of(stored, pieces, at + 1).len()).sum::<usize>();
        let at = if pieces == 1 { 0 } else { pieces * END_BYTES };
        self.context.reset(ResetDirective::SessionOnly).expect("a session can always be reset");
        let mut input = InBuffer::around(&stored[at..at + end]);
        let wanted_bytes = ((piece + 1) * self.cut.blocks() * BLOCK_BYTES).min(out.len());
        let mut output = OutBuffer::around(out);
        while output.pos() < wanted_bytes {
            let before = (input.pos(), output.pos());
            let hint = self.context.decompress_stream(&mut output, &mut input);
            hint.expect("what was coded can be decoded");
            assert_ne!(before, (input.pos(), output.pos()), "zstd's blocks are whole");
        }
    }
}

/// The stored bytes of one of a frame's pieces.
fn piece_of(stored: &[u8], pieces: usize, index: usize) -> &[u8] {
    if pieces == 1 {
        return stored;
    }
    let (ends, bytes) = stored.split_at(pieces * END_BYTES);
    let end = |at: usize| usize::from(u16::from_le_bytes(ends.as_chunks().0[at]));
    let start = if index == 0 { 0 } else { end(index - 1) };
    &bytes[start..end(index)]
}

/// Where each of the blocks of a zstd frame ends. The frame has zstd's magic.
fn block_ends(stored: &[u8]) -> Vec<usize> {
    const MAGIC_BYTES: usize = 4;
    let descriptor = stored[MAGIC_BYTES];
    let is_single_segment = descriptor >> 5 & 1 == 1;
    let size_bytes = match descriptor >> 6 {
        0 => usize::from(is_single_segment),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let mut at = MAGIC_BYTES + 1 + usize::from(!is_single_segment) + size_bytes;
    let mut ends = Vec::with_capacity(FRAME_BLOCKS);
    loop {
        let header = u32::from_le_bytes([stored[at], stored[at + 1], stored[at + 2], 0]);
        let is_run = header >> 1 & 3 == 1;
        at += 3 + if is_run { 1 } else { (header >> 3) as usize };
        ends.push(at);
        if header & 1 == 1 {
            return ends;
        }
    }
}
