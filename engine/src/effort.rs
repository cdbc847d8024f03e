//! Effort: how hard new data is compressed, and into frames of which size, by how much there is to do.
//!
//! The more work waits, the less of it a block is given. A batch behind which others wait is compressed
//! at the volume's first level into frames of 32 KiB: the most data a second at a good ratio. A batch
//! behind which nothing waits has the processors to itself. It is compressed at the second level, and into
//! frames of 8 KiB: a read of one block then decodes two and not eight, and reads a third as
//! much from the device. The higher level makes up for part of what small frames cost in space
//! (docs/decisions/0023).
//!
//! The backlog alone decides. Under a load that the greater effort cannot keep up with, it grows until batches
//! of the lesser one have brought it down again, so that just what the processors have to spare is spent.
//! What is overwritten often gets the lesser effort always: it will not be read much before it is garbage.
//! A frame's header says its level, and its own length how many blocks it holds: readers need not know any of
//! this.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{config::FRAME_BLOCKS, error::EngineError};

/// The zstd levels that there are.
const LEAST_LEVEL: i8 = -7;
const MOST_LEVEL: i8 = 19;
/// Blocks of a frame that was made with great effort.
const SMALL_FRAME_BLOCKS: usize = 2;

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Much is waiting.
    Little,
    /// There is time.
    Great,
}

impl Effort {
    /// For a batch behind which so many bytes wait, when the other reducers can take so many at once.
    pub(crate) fn by_load(behind_bytes: usize, others_bytes: usize) -> Self {
        if behind_bytes > others_bytes { Self::Little } else { Self::Great }
    }
}

/// What becomes of a volume's data for an effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Framing {
    pub(crate) level: i8,
    /// Most blocks in a frame.
    pub(crate) blocks: usize,
}

/// The zstd levels at which a volume's data is compressed: when there is much to do, and when there is
/// little. If both are the same, its data is treated the same always.
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

    /// When there is time.
    #[must_use]
    pub fn idle(self) -> i8 {
        self.idle
    }

    /// What an effort means for these levels.
    pub(crate) fn framing(self, effort: Effort) -> Framing {
        if effort == Effort::Little || self.busy == self.idle {
            Framing { level: self.busy, blocks: FRAME_BLOCKS }
        } else {
            Framing { level: self.idle, blocks: SMALL_FRAME_BLOCKS }
        }
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
    fn what_the_other_reducers_take_at_once_is_no_backlog() {
        for (behind_bytes, others_bytes, effort) in [
            (0, 0, Effort::Great),
            (1, 0, Effort::Little),
            (1 << 20, 1 << 20, Effort::Great),
            (2 << 20, 1 << 20, Effort::Little),
        ] {
            assert_eq!(Effort::by_load(behind_bytes, others_bytes), effort);
        }
    }

    #[test]
    fn who_asks_for_one_level_gets_one_treatment() {
        let fixed = Levels::new(9, 9).unwrap();
        assert_eq!(fixed.framing(Effort::Great), fixed.framing(Effort::Little));
        let framing = Levels::default().framing(Effort::Great);
        assert_eq!(framing, Framing { level: 3, blocks: SMALL_FRAME_BLOCKS });
    }
}
