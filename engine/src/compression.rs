//! What a volume sets of how its data is compressed: between which levels, and how much of it together.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use siltstone_device::BLOCK_BYTES;

use crate::{config::FRAME_BLOCKS, effort::Effort, error::EngineError};

/// The zstd levels that there are.
const LEAST_LEVEL: i8 = -7;
const MOST_LEVEL: i8 = 19;

/// How a volume's data is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compression {
    /// How hard.
    pub levels: Levels,
    /// How much together.
    pub frame: FrameSize,
}

/// What becomes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Framing {
    pub(crate) level: i8,
    /// Most blocks in its frame.
    pub(crate) blocks: usize,
}

impl Compression {
    /// What an effort makes of a block.
    pub(crate) fn framing(self, effort: Effort) -> Framing {
        let level = match effort {
            Effort::Little => self.levels.busy,
            Effort::Great => self.levels.idle,
        };
        Framing { level, blocks: self.frame.blocks() }
    }
}

/// The zstd levels at which a volume's data is compressed: when there is much to do, and when there is
/// little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Levels {
    busy: i8,
    idle: i8,
}

impl Levels {
    /// These two, from -7 (fastest) to 19 (smallest).
    ///
    /// # Errors
    /// [`EngineError::InvalidLevels`] if there is no such level, or the second is the lower one.
    pub fn new(busy: i8, idle: i8) -> Result<Self, EngineError> {
        if (LEAST_LEVEL..=idle).contains(&busy) && idle <= MOST_LEVEL {
            Ok(Self { busy, idle })
        } else {
            Err(EngineError::InvalidLevels { busy, idle })
        }
    }

    /// When much is waiting.
    #[must_use]
    pub fn busy(self) -> i8 {
        self.busy
    }

    /// When there is time, and, if it is at least 3, when garbage collection moves something.
    #[must_use]
    pub fn idle(self) -> i8 {
        self.idle
    }
}

impl Default for Levels {
    /// 1 and 3.
    fn default() -> Self {
        Self { busy: 1, idle: 3 }
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self { busy, idle } if busy == idle => busy.to_string(),
            Self { busy, idle } => format!("{busy}..{idle}"),
        };
        f.pad(&text)
    }
}

/// Why a text gives no levels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is neither a level from {LEAST_LEVEL} to {MOST_LEVEL} nor two with .. between them, such as 1..3, of \
     which the first is the lower one"
)]
pub struct ParseLevelsError {
    text: String,
}

/// From a level, or two with `..` between them.
impl FromStr for Levels {
    type Err = ParseLevelsError;

    fn from_str(text: &str) -> Result<Self, ParseLevelsError> {
        let (busy, idle) = text.split_once("..").unwrap_or((text, text));
        let level = |text: &str| text.trim().parse::<i8>().ok();
        let levels = level(busy).zip(level(idle));
        levels
            .and_then(|(busy, idle)| Self::new(busy, idle).ok())
            .ok_or_else(|| ParseLevelsError { text: text.to_owned() })
    }
}

impl From<Levels> for String {
    fn from(levels: Levels) -> Self {
        levels.to_string()
    }
}

impl TryFrom<String> for Levels {
    type Error = ParseLevelsError;

    fn try_from(text: String) -> Result<Self, ParseLevelsError> {
        text.parse()
    }
}

/// Most blocks that share a frame: 1, 2, 4 or 8. A frame is read and decoded as a whole, so small ones make
/// random reads cheap, and large ones compress better (docs/decisions/0024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FrameSize {
    /// How often a full frame is halved.
    halvings: u8,
}

impl FrameSize {
    /// A full frame halved so many times, at most 3.
    pub(crate) fn halved(halvings: u8) -> Option<Self> {
        (FRAME_BLOCKS >> halvings.min(7) > 0).then_some(Self { halvings })
    }

    pub(crate) fn halvings(self) -> u8 {
        self.halvings
    }

    /// Blocks of a full frame.
    #[must_use]
    pub fn blocks(self) -> usize {
        FRAME_BLOCKS >> self.halvings
    }
}

impl Default for FrameSize {
    /// 32 KiB.
    fn default() -> Self {
        Self { halvings: 0 }
    }
}

impl fmt::Display for FrameSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}K", self.blocks() * BLOCK_BYTES / 1024))
    }
}

/// Why a text is no size of frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no size of a frame: it must be 4K, 8K, 16K or 32K")]
pub struct ParseFrameSizeError {
    text: String,
}

/// From `4K`, `8K`, `16K` or `32K`.
impl FromStr for FrameSize {
    type Err = ParseFrameSizeError;

    fn from_str(text: &str) -> Result<Self, ParseFrameSizeError> {
        let wanted = text.to_ascii_uppercase();
        let sizes = (0..).map_while(Self::halved);
        let mut found = sizes.filter(|size| size.to_string() == wanted);
        found.next().ok_or_else(|| ParseFrameSizeError { text: text.to_owned() })
    }
}

impl From<FrameSize> for String {
    fn from(size: FrameSize) -> Self {
        size.to_string()
    }
}

impl TryFrom<String> for FrameSize {
    type Error = ParseFrameSizeError;

    fn try_from(text: String) -> Result<Self, ParseFrameSizeError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_as_they_are_shown() {
        for (text, busy, idle) in
            [("1..3", 1, 3), ("1", 1, 1), ("-7..19", -7, 19), ("-3", -3, -3), ("-5..-1", -5, -1)]
        {
            let levels: Levels = text.parse().unwrap();
            assert_eq!((levels.busy(), levels.idle()), (busy, idle));
            assert_eq!(levels.to_string(), text);
        }
        for text in ["", "..", "1..", "..3", "3..1", "20", "-8..1", "1..20", "1...3", "1-3", "one"]
        {
            let error = text.parse::<Levels>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("'{text}' is neither a level")));
        }
    }

    #[test]
    fn sizes_are_read_as_they_are_shown() {
        for (text, blocks) in [("4K", 1), ("8K", 2), ("16K", 4), ("32K", 8)] {
            let size: FrameSize = text.parse().unwrap();
            assert_eq!((size.blocks(), size.to_string()), (blocks, text.into()));
            assert_eq!(FrameSize::halved(size.halvings()), Some(size));
        }
        assert_eq!("8k".parse(), FrameSize::halved(2).ok_or(()).map_err(|()| unreachable!()));
        for text in ["", "2K", "64K", "8", "8KiB", "3K"] {
            assert!(text.parse::<FrameSize>().is_err(), "{text}");
        }
        assert_eq!(FrameSize::halved(4), None);
        assert_eq!(FrameSize::halved(255), None);
    }

    #[test]
    fn who_asks_for_one_level_gets_one_treatment() {
        let fixed = Compression { levels: Levels::new(9, 9).unwrap(), ..Compression::default() };
        assert_eq!(fixed.framing(Effort::Great), fixed.framing(Effort::Little));
        let default = Compression::default();
        assert_eq!(default.framing(Effort::Great), Framing { level: 3, blocks: FRAME_BLOCKS });
        assert_eq!(default.framing(Effort::Little), Framing { level: 1, blocks: FRAME_BLOCKS });
    }
}
