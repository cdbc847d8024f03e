//! What `check` and `scrub` find: problems of the medium, and what volumes lose by them.

use serde::{Serialize, Serializer, ser::SerializeStruct};
use siltstone_cursor::MapError;
use siltstone_device::{DeviceError, Place, SegmentId};

use crate::error::{FrameError, MetadataError};

/// Problems, and lost ranges, that are listed unless more are asked for; the rest is counted.
pub const LIST_LIMIT: usize = 10_000;

/// Something wrong on the medium.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    /// A page of the map is damaged.
    #[error("the map is damaged: {0}")]
    Map(MapError),
    /// A write unit's summary is damaged or missing. Its blocks are readable without it: those
    /// that are not are listed as lost.
    #[error("{segment}, byte {offset_bytes}: no whole write unit where one must be: {reason}")]
    Unit {
        /// The segment.
        segment: SegmentId,
        /// Where in it.
        offset_bytes: u64,
        /// What is wrong.
        reason: MetadataError,
    },
    /// The device does not give a part of a segment.
    #[error("{segment}, byte {offset_bytes}: {len_bytes} bytes cannot be read: {source}")]
    Read {
        /// The segment.
        segment: SegmentId,
        /// Where in it.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
        /// Why.
        source: DeviceError,
    },
    /// A frame is damaged.
    #[error("{0}")]
    Frame(FrameError),
    /// A block does not have the fingerprint that its summary says.
    #[error("{place}: the block's contents do not match its fingerprint")]
    Fingerprint {
        /// The block.
        place: Place,
    },
    /// A chunk of the index's stored image is damaged. Nothing is lost by it: an opening takes longer.
    #[error("{segment}, byte {offset_bytes}: part of the index's image is not usable: {reason}")]
    IndexImage {
        /// The segment.
        segment: SegmentId,
        /// Where in it.
        offset_bytes: u64,
        /// What is wrong.
        reason: MetadataError,
    },
    /// The index's stored image ends too early. Nothing is lost by it: an opening takes longer.
    #[error("the index's image has {found} chunks that fit together, and should have {expected}")]
    IndexImageEnd {
        /// The chunks that there are.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// The segment table disagrees with what a segment holds or what refers to it.
    #[error("{segment}: the segment table says {field} = {recorded}, but {found} was found")]
    Table {
        /// The segment.
        segment: SegmentId,
        /// What is wrong.
        field: &'static str,
        /// What the table says.
        recorded: u64,
        /// What was found.
        found: u64,
    },
    /// The table says impossible things about how much of segments is used.
    #[error(
        "what the pool's space is used for sums to {sum_bytes} bytes, and its size is {size_bytes}"
    )]
    Space {
        /// The sum.
        sum_bytes: u64,
        /// The size.
        size_bytes: u64,
    },
}

impl Problem {
    /// What kind of problem it is, for programs.
    fn kind(&self) -> &'static str {
        match self {
            Self::Map(_) => "map",
            Self::Unit { .. } => "unit",
            Self::Read { .. } => "read",
            Self::Frame(_) => "frame",
            Self::Fingerprint { .. } => "fingerprint",
            Self::IndexImage { .. } | Self::IndexImageEnd { .. } => "index_image",
            Self::Table { .. } => "table",
            Self::Space { .. } => "space",
        }
    }

    /// Where it is: the segment, and the offset in it.
    fn location(&self) -> (Option<SegmentId>, Option<u64>) {
        let at = |place: Place| (Some(place.segment()), Some(place.frame_offset_bytes().into()));
        match self {
            Self::Map(_) | Self::Space { .. } | Self::IndexImageEnd { .. } => (None, None),
            Self::Unit { segment, offset_bytes, .. }
            | Self::Read { segment, offset_bytes, .. }
            | Self::IndexImage { segment, offset_bytes, .. } => {
                (Some(*segment), Some(*offset_bytes))
            }
            Self::Frame(error) => at(error.place()),
            Self::Fingerprint { place } => at(*place),
            Self::Table { segment, .. } => (Some(*segment), None),
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (segment, offset_bytes) = self.location();
        let mut fields = serializer.serialize_struct("Problem", 4)?;
        fields.serialize_field("kind", self.kind())?;
        fields.serialize_field("segment", &segment.map(|segment| segment.0))?;
        fields.serialize_field("offset_bytes", &offset_bytes)?;
        fields.serialize_field("message", &self.to_string())?;
        fields.end()
    }
}

/// Why a range is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum LostCause {
    /// Its frames cannot be read.
    #[error("its frames are damaged")]
    Frame,
    /// It can be read, but does not hold what was written.
    #[error("its contents do not match their fingerprints")]
    Contents,
    /// A damaged page of the map hides where it is, and whether anything is there at all.
    #[error("the map is damaged there, so that nothing is known of it")]
    Map,
}

/// A part of a volume that cannot be read, or cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[error("lost: volume '{volume}', {len_bytes} bytes at byte {offset_bytes}: {cause}")]
pub struct LostRange {
    /// The volume, or the layer's number if no volume writes to it.
    pub volume: String,
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub len_bytes: u64,
    /// Why it is lost.
    pub cause: LostCause,
}

impl LostRange {
    /// Takes `next` in if it continues this range.
    fn join(&mut self, next: &Self) -> bool {
        let joins = self.volume == next.volume
            && self.cause == next.cause
            && self.offset_bytes + self.len_bytes == next.offset_bytes;
        if joins {
            self.len_bytes += next.len_bytes;
        }
        joins
    }
}

/// Problems and lost ranges, each listed up to a limit and counted beyond it.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// What is wrong on the medium.
    pub problems: Vec<Problem>,
    /// Problems beyond those listed.
    pub more_problems: u64,
    /// What volumes have lost by it, in order of volume and offset.
    pub lost: Vec<LostRange>,
    /// Ranges beyond those listed. They are counted as they are found, neighbours perhaps apart.
    pub more_lost: u64,
    /// Bytes of all lost ranges, listed or not.
    pub lost_bytes: u64,
    #[serde(skip)]
    list_limit: usize,
}

impl Default for Findings {
    fn default() -> Self {
        Self::new(LIST_LIMIT)
    }
}

impl Findings {
    /// Nothing found so far; lists up to `list_limit` of either kind.
    #[must_use]
    pub fn new(list_limit: usize) -> Self {
        Self {
            problems: Vec::new(),
            more_problems: 0,
            lost: Vec::new(),
            more_lost: 0,
            lost_bytes: 0,
            list_limit,
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problem_count() == 0 && self.lost_count() == 0
    }

    /// All problems, listed or not.
    #[must_use]
    pub fn problem_count(&self) -> u64 {
        self.problems.len() as u64 + self.more_problems
    }

    /// All lost ranges, listed or not.
    #[must_use]
    pub fn lost_count(&self) -> u64 {
        self.lost.len() as u64 + self.more_lost
    }

    pub(crate) fn report(&mut self, problem: Problem) {
        if self.problems.len() < self.list_limit {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }

    pub(crate) fn report_lost(&mut self, range: LostRange) {
        self.lost_bytes += range.len_bytes;
        if self.lost.last_mut().is_some_and(|last| last.join(&range)) {
            return;
        }
        if self.lost.len() < self.list_limit {
            self.lost.push(range);
        } else {
            self.more_lost += 1;
        }
    }

    /// Brings what was found by several walks over the map into order.
    pub(crate) fn sort(&mut self) {
        self.lost.sort();
        self.lost.dedup_by(|next, before| before.join(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(offset_bytes: u64) -> LostRange {
        LostRange { volume: "v".into(), offset_bytes, len_bytes: 4096, cause: LostCause::Frame }
    }

    #[test]
    fn neighbours_are_one_range_and_none_is_forgotten() {
        let mut findings = Findings::new(2);
        for offset in [8192, 12288, 0, 40960, 81920] {
            findings.report_lost(lost(offset));
        }
        findings.sort();
        assert_eq!((findings.lost.len(), findings.more_lost, findings.lost_bytes), (2, 2, 20480));
        assert_eq!((findings.lost[0].offset_bytes, findings.lost[1].len_bytes), (0, 8192));
        findings.report_lost(LostRange { offset_bytes: 16384, ..lost(0) });
        assert_eq!((findings.lost.len(), findings.lost[1].len_bytes), (2, 12288));
        assert!(!findings.is_sound());
    }
}
