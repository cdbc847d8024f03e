//! The ways of framing that are compared.

use zstd::zstd_safe::{CParameter, DictAttachPref, FrameFormat, ParamSwitch};

/// Blocks in a full frame.
pub(crate) const FRAME_BLOCKS: usize = 8;

/// How a frame is cut, and what its pieces are coded with.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) name: String,
    pub(crate) cut: Cut,
    pub(crate) codec: Codec,
    /// Bytes of the dictionary that pieces are coded with; 0: none.
    pub(crate) dictionary_bytes: usize,
    /// Matches only from the dictionary, not its codes: each piece has codes of its own.
    pub(crate) only_contents: bool,
}

/// What of a frame must be decoded for a block of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Parts of so many blocks that decode alone; all blocks: the frame is one piece.
    Parts(usize),
    /// One stream that can be decoded up to each multiple of so many blocks.
    Prefixes(usize),
    /// Parts of so many blocks; all but the first need the first.
    AfterFirst(usize),
}

impl Cut {
    /// Blocks in each piece but perhaps the last.
    pub(crate) fn blocks(self) -> usize {
        match self {
            Self::Parts(blocks) | Self::Prefixes(blocks) | Self::AfterFirst(blocks) => blocks,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Lz4,
    Zstd(Tuning),
}

/// What zstd is asked for. `None` is what the level says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tuning {
    pub(crate) level: i32,
    pub(crate) window_log: Option<u32>,
    pub(crate) hash_log: Option<u32>,
    pub(crate) min_match: Option<u32>,
    pub(crate) attach: Option<DictAttachPref>,
    /// Huffman codes for literals also where the level would leave them out.
    pub(crate) code_literals: bool,
    /// No magic and no content size.
    pub(crate) is_bare: bool,
    /// The longest of zstd's own blocks. Short ones make do with the dictionary's codes.
    pub(crate) block_bytes: Option<u32>,
}

impl Tuning {
    pub(crate) const fn level(level: i32) -> Self {
        Self {
            level,
            window_log: None,
            hash_log: None,
            min_match: None,
            attach: None,
            code_literals: false,
            is_bare: false,
            block_bytes: None,
        }
    }

    pub(crate) fn parameters(&self) -> Vec<CParameter> {
        let mut out = vec![
            CParameter::CompressionLevel(self.level),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ];
        out.extend(self.window_log.map(CParameter::WindowLog));
        out.extend(self.hash_log.map(CParameter::HashLog));
        out.extend(self.min_match.map(CParameter::MinMatch));
        out.extend(self.block_bytes.map(CParameter::MaxBlockSize));
        out.extend(self.attach.map(CParameter::ForceAttachDict));
        if self.code_literals {
            out.push(CParameter::LiteralCompressionMode(ParamSwitch::Enable));
        }
        if self.is_bare {
            out.push(CParameter::ContentSizeFlag(false));
            out.push(CParameter::Format(FrameFormat::Magicless));
        }
        out
    }
}

fn way(name: impl Into<String>, cut: Cut, codec: Codec, dictionary_kib: usize) -> Way {
    let dictionary_bytes = dictionary_kib << 10;
    Way { name: name.into(), cut, codec, dictionary_bytes, only_contents: false }
}

/// What the others are compared with: the whole frame at level 1.
pub(crate) fn baseline() -> Way {
    way("whole, level 1", Cut::Parts(FRAME_BLOCKS), Codec::Zstd(Tuning::level(1)), 0)
}

/// Everything that is compared, the baseline among it.
pub(crate) fn all() -> Vec<Way> {
    let zstd = |level| Codec::Zstd(Tuning::level(level));
    let mut ways = vec![baseline()];
    for level in [-1, 3] {
        ways.push(way(format!("whole, level {level}"), Cut::Parts(FRAME_BLOCKS), zstd(level), 0));
    }
    ways.push(way("whole, dict 64", Cut::Parts(FRAME_BLOCKS), zstd(1), 64));
    for blocks in [1, 2, 4] {
        let name = format!("prefixes of {}", kib(blocks));
        ways.push(way(name, Cut::Prefixes(blocks), zstd(1), 0));
    }
    for (blocks, level) in [(1, 1), (1, 3), (1, 9), (1, -1), (2, 1), (2, 3), (4, 1)] {
        let name = format!("{}, level {level}", kib(blocks));
        ways.push(way(name, Cut::Parts(blocks), zstd(level), 0));
    }
    for blocks in [1, 2] {
        let name = format!("{} after the first", kib(blocks));
        ways.push(way(name, Cut::AfterFirst(blocks), zstd(1), 0));
    }
    for dictionary in [8, 16, 32, 64, 110] {
        ways.push(way(format!("4 KiB, dict {dictionary}"), Cut::Parts(1), zstd(1), dictionary));
    }
    for dictionary in [16, 64] {
        ways.push(way(format!("8 KiB, dict {dictionary}"), Cut::Parts(2), zstd(1), dictionary));
    }
    ways.extend(tuned());
    for (name, blocks) in [("4 KiB, LZ4", 1), ("whole, LZ4", FRAME_BLOCKS)] {
        ways.push(way(name, Cut::Parts(blocks), Codec::Lz4, 0));
    }
    ways
}

/// Parts of 4 KiB, and what of zstd's parameters matters to them.
fn tuned() -> Vec<Way> {
    let one = Tuning::level(1);
    let (four, five, six) = (Some(4), Some(5), Some(6));
    let alone = [
        ("min match 6", Tuning { min_match: six, ..one }),
        ("min match 7", Tuning { min_match: Some(7), ..one }),
        ("bare", Tuning { is_bare: true, ..one }),
    ];
    let harder = Tuning { hash_log: Some(15), min_match: five, ..one };
    let copy = Some(DictAttachPref::ForceCopy);
    let with_dictionary = [
        ("level 3", Tuning::level(3)),
        ("level 9", Tuning::level(9)),
        ("level -1", Tuning::level(-1)),
        ("level -1, literals coded", Tuning { code_literals: true, ..Tuning::level(-1) }),
        ("bare", Tuning { is_bare: true, ..one }),
        ("attached", Tuning { attach: Some(DictAttachPref::ForceAttach), ..one }),
        ("copied", Tuning { attach: copy, ..one }),
        ("window 17", Tuning { window_log: Some(17), ..one }),
        ("hash 14, min match 6", Tuning { hash_log: Some(14), min_match: six, ..one }),
        ("hash 15, min match 5", harder),
        ("hash 16, min match 4", Tuning { hash_log: Some(16), min_match: four, ..one }),
        ("blocks of 2 KiB", Tuning { block_bytes: Some(2048), ..one }),
    ];
    let mut ways = Vec::new();
    for (name, tuning) in alone {
        ways.push(way(format!("4 KiB, {name}"), Cut::Parts(1), Codec::Zstd(tuning), 0));
    }
    for (name, tuning) in with_dictionary {
        let name = format!("4 KiB, dict 64, {name}");
        ways.push(way(name, Cut::Parts(1), Codec::Zstd(tuning), 64));
    }
    let contents = way("4 KiB, dict 64, only its contents", Cut::Parts(1), Codec::Zstd(harder), 64);
    ways.push(Way { only_contents: true, ..contents });
    ways
}

fn kib(blocks: usize) -> String {
    format!("{} KiB", 4 * blocks)
}
