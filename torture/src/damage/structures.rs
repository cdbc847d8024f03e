//! What every byte of a pool's image belongs to, found by the page on the format alone
//! (`docs/format.md`): so a reader of that page, not the engine, says what is damaged.

use siltstone_device::{
    BLOCK_BYTES,
    header::{HEADER_BYTES, Header, Identity, Kind as HeaderKind, verify},
    sim::SimDevice,
};
use zerocopy::FromBytes;

const BLOCK: u64 = BLOCK_BYTES as u64;
const KIB: u64 = 1 << 10;
const SUPERBLOCKS: [u64; 2] = [0, 512 * KIB];
const MARKS: [u64; 2] = [256 * KIB, 768 * KIB];
const CHECKPOINTS: u64 = 1024 * KIB;
/// The superblock's body.
const BODY: usize = HEADER_BYTES;
const LOG_HEAD_END: u64 = 104;
const UNIT_HEAD_END: usize = 104;
const FRAME_HEADER_BYTES: u64 = 48;
/// What a checkpoint record's body says of the index's image.
const IMAGE: usize = 64;
const IMAGE_END: usize = IMAGE + 48;

/// What a byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Either copy of the superblock.
    Superblock,
    /// The newest durability mark.
    MarkNewest,
    /// The one before it.
    MarkOlder,
    /// A copy of the newest checkpoint record.
    CheckpointNewest,
    /// A copy of the one before it.
    CheckpointOlder,
    /// Header, head and descriptors of a log record that is replayed.
    LogRecordLive,
    /// The same of one that is not.
    LogRecordStale,
    /// Data, and the zeros before it, of a log record that is replayed.
    LogDataLive,
    /// The same of one that is not.
    LogDataStale,
    /// A copy of the newest version of a page of the segment table.
    TableNewest,
    /// A copy of another version.
    TableOlder,
    /// The summary of a write unit whose changes are in patches.
    SummaryCovered,
    /// The summary of a later one.
    SummaryUncovered,
    /// The header of a frame in a unit whose changes are in patches.
    FrameHeaderCovered,
    /// The same in a later one.
    FrameHeaderUncovered,
    /// The stored bytes of a frame in a unit whose changes are in patches.
    FrameContentsCovered,
    /// The same in a later one.
    FrameContentsUncovered,
    /// A leaf page of a patch that the manifest names.
    PatchLeaf,
    /// A fence page of one.
    PatchFence,
    /// A page of a patch that it does not name.
    PatchStale,
    /// A chunk of the index's image.
    IndexImage,
    /// What follows a structure, to the end of its block.
    Padding,
    /// Blocks without any structure.
    Unused,
}

/// The most that damage of one place may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Nothing: it stands twice, can be done without, or is not looked at.
    Nothing,
    /// The blocks that it leads to.
    Blocks,
    /// The opening: what was durable stands nowhere else.
    Pool,
}

impl Cost {
    /// What it is called.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Nothing => "nothing is lost",
            Self::Blocks => "some blocks cannot be read",
            Self::Pool => "the pool cannot be opened",
        }
    }
}

impl Kind {
    /// What it is called.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Superblock => "superblock, either copy",
            Self::MarkNewest => "durability mark, newest",
            Self::MarkOlder => "durability mark, older",
            Self::CheckpointNewest => "checkpoint record, newest",
            Self::CheckpointOlder => "checkpoint record, older",
            Self::LogRecordLive => "log record, live",
            Self::LogRecordStale => "log record, stale",
            Self::LogDataLive => "log data, live",
            Self::LogDataStale => "log data, stale",
            Self::TableNewest => "segment table page, newest",
            Self::TableOlder => "segment table page, older",
            Self::SummaryCovered => "summary, in patches",
            Self::SummaryUncovered => "summary, not in patches",
            Self::FrameHeaderCovered => "frame header, in patches",
            Self::FrameHeaderUncovered => "frame header, not in patches",
            Self::FrameContentsCovered => "frame contents, in patches",
            Self::FrameContentsUncovered => "frame contents, not in patches",
            Self::PatchLeaf => "patch leaf page",
            Self::PatchFence => "patch fence page",
            Self::PatchStale => "patch page, stale",
            Self::IndexImage => "index image",
            Self::Padding => "padding",
            Self::Unused => "unused",
        }
    }

    /// The most that damage of it may cost.
    #[must_use]
    pub fn most_cost(self) -> Cost {
        match self {
            Self::LogRecordLive
            | Self::LogDataLive
            | Self::SummaryUncovered
            | Self::FrameHeaderUncovered
            | Self::FrameContentsUncovered => Cost::Pool,
            Self::FrameHeaderCovered
            | Self::FrameContentsCovered
            | Self::PatchLeaf
            | Self::PatchFence => Cost::Blocks,
            _ => Cost::Nothing,
        }
    }

    /// Of so many bytes one is damaged: all of metadata, few of what is alike or not looked at.
    pub(super) fn stride(self) -> u64 {
        match self {
            Self::FrameContentsCovered | Self::FrameContentsUncovered => 61,
            Self::LogDataLive | Self::LogDataStale => 61,
            // Nobody looks at them: what could go wrong is that somebody does.
            Self::PatchStale => 17,
            Self::Padding => 127,
            Self::Unused => 16_411,
            _ => 1,
        }
    }

    pub(super) fn is_frame(self) -> bool {
        use Kind::{
            FrameContentsCovered, FrameContentsUncovered, FrameHeaderCovered, FrameHeaderUncovered,
        };
        matches!(
            self,
            FrameHeaderCovered
                | FrameHeaderUncovered
                | FrameContentsCovered
                | FrameContentsUncovered
        )
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// A frame: its segment, and where in it.
pub(super) type FramePlace = (u32, u32);

/// A stretch of the image that is one thing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) kind: Kind,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The frame that it is part of.
    pub(super) frame: Option<FramePlace>,
}

/// All stretches, in order, without gaps.
pub(super) struct Structures {
    stretches: Vec<Stretch>,
    data_start: u64,
}

impl Structures {
    /// Finds them in the image of a sound pool.
    ///
    /// # Panics
    /// If it is not one.
    pub(super) fn find(device: &SimDevice) -> Self {
        let mut finder = Finder::new(device);
        finder.marks();
        finder.log();
        finder.table();
        finder.segments();
        finder.finish()
    }

    /// Where segments begin.
    pub(super) fn data_start(&self) -> u64 {
        self.data_start
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stretch> {
        self.stretches.iter()
    }

    /// Those that a range touches.
    pub(super) fn touching(&self, start: u64, end: u64) -> &[Stretch] {
        let first = self.stretches.partition_point(|stretch| stretch.end <= start);
        let last = self.stretches.partition_point(|stretch| stretch.start < end);
        &self.stretches[first..last]
    }

    /// What a range is mostly about: the first thing in it that is more than padding.
    pub(super) fn kind_of(&self, start: u64, end: u64) -> Kind {
        let touching = self.touching(start, end).iter().map(|stretch| stretch.kind);
        touching
            .min_by_key(|kind| (*kind >= Kind::Padding, kind.stride() > 1))
            .unwrap_or(Kind::Unused)
    }

    /// The most that damage of a range may cost.
    pub(super) fn most_cost(&self, start: u64, end: u64) -> Cost {
        let touching = self.touching(start, end).iter();
        touching.map(|stretch| stretch.kind.most_cost()).max().unwrap_or(Cost::Nothing)
    }

    /// The frames of a range, if nothing else of meaning is in it.
    pub(super) fn only_frames(&self, start: u64, end: u64) -> Option<Vec<FramePlace>> {
        let touching = self.touching(start, end);
        let plain = |stretch: &Stretch| stretch.kind.is_frame() || stretch.kind >= Kind::Padding;
        touching
            .iter()
            .all(plain)
            .then(|| touching.iter().filter_map(|stretch| stretch.frame).collect())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes")).into()
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")).into()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A whole structure: its sequence, and its bytes.
struct Whole {
    sequence: u64,
    bytes: Vec<u8>,
}

impl Whole {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

struct Finder<'a> {
    device: &'a SimDevice,
    superblock: Vec<u8>,
    pool: u64,
    size_bytes: u64,
    /// The newest checkpoint's number and body.
    checkpoint: u64,
    body: Vec<u8>,
    found: Vec<Stretch>,
}

impl<'a> Finder<'a> {
    fn new(device: &'a SimDevice) -> Self {
        let superblock = device.peek(SUPERBLOCKS[0], BLOCK_BYTES);
        let pool = u64_at(&superblock, 16);
        let size_bytes = u64_at(&superblock, BODY + 56);
        let (checkpoint, body) = (0, Vec::new());
        let found = Vec::new();
        let mut this = Self { device, superblock, pool, size_bytes, checkpoint, body, found };
        for at in SUPERBLOCKS {
            let whole = this.whole(HeaderKind::Superblock, pool, at).expect("both are whole");
            this.add(Kind::Superblock, at, whole.len());
        }
        this.checkpoints();
        this
    }

    fn add(&mut self, kind: Kind, start: u64, len: u64) {
        self.add_framed(kind, start, len, None);
    }

    fn add_framed(&mut self, kind: Kind, start: u64, len: u64, frame: Option<FramePlace>) {
        self.found.push(Stretch { kind, start, end: start + len, frame });
    }

    /// The structure of that kind at `at`, if there is one.
    fn whole(&self, kind: HeaderKind, pool: u64, at: u64) -> Option<Whole> {
        let head = self.device.peek(at, HEADER_BYTES);
        let header = Header::read_from_bytes(&head).ok()?;
        let len = header.length_bytes.get() as usize;
        let is_it = header.kind.get() == kind as u16 && len as u64 <= self.size_bytes - at;
        let bytes = is_it.then(|| self.device.peek(at, len))?;
        let version = header.version.get();
        verify(&bytes, &Identity { kind, version, pool, address_bytes: at }).ok()?;
        Some(Whole { sequence: header.sequence.get(), bytes })
    }

    fn checkpoints(&mut self) {
        let slot_bytes = u64_at(&self.superblock, BODY + 72);
        let copies = (0..4).map(|copy| CHECKPOINTS + copy * slot_bytes);
        let whole = |at| self.whole(HeaderKind::Checkpoint, self.pool, at).map(|it| (at, it));
        let mut copies: Vec<_> = copies.filter_map(whole).collect();
        let newest = copies.iter().map(|(_, copy)| copy.sequence).max().expect("it has one");
        for (at, copy) in &copies {
            let is_newest = copy.sequence == newest;
            let kind = if is_newest { Kind::CheckpointNewest } else { Kind::CheckpointOlder };
            self.add(kind, *at, copy.len());
        }
        let at = copies.iter().position(|(_, copy)| copy.sequence == newest);
        let (_, copy) = copies.swap_remove(at.expect("it has one"));
        self.checkpoint = newest;
        self.body = copy.bytes[HEADER_BYTES..].to_vec();
    }

    fn marks(&mut self) {
        let whole = |at| self.whole(HeaderKind::DurabilityMark, self.pool, at).map(|it| (at, it));
        let marks: Vec<_> = MARKS.into_iter().filter_map(whole).collect();
        let newest = marks.iter().map(|(_, mark)| mark.sequence).max();
        for (at, mark) in marks {
            let is_newest = Some(mark.sequence) == newest;
            let kind = if is_newest { Kind::MarkNewest } else { Kind::MarkOlder };
            self.add(kind, at, mark.len());
        }
    }

    fn log(&mut self) {
        let start = u64_at(&self.superblock, BODY + 80);
        let end = start + u64_at(&self.superblock, BODY + 88);
        let nonce = u64_at(&self.superblock, BODY + 40);
        let mut records = Vec::new();
        let mut at = start;
        while at < end {
            let Some(record) = self.whole(HeaderKind::LogRecord, nonce, at) else {
                at += BLOCK;
                continue;
            };
            let len = record.len();
            records.push((at, record));
            at += len.next_multiple_of(BLOCK);
        }
        let newest = records.iter().max_by_key(|(_, record)| record.sequence);
        let oldest_live = newest.map_or(0, |(_, record)| u64_at(&record.bytes, HEADER_BYTES + 32));
        for (at, record) in records {
            let descriptors = u32_at(&record.bytes, HEADER_BYTES + 48);
            let head_end = LOG_HEAD_END + 32 * descriptors;
            let data_start = head_end.next_multiple_of(BLOCK);
            let is_live = record.sequence >= oldest_live;
            let (head, data) = match is_live {
                true => (Kind::LogRecordLive, Kind::LogDataLive),
                false => (Kind::LogRecordStale, Kind::LogDataStale),
            };
            self.add(head, at, head_end.min(record.len()));
            // The zeros between are under the record's checksum: of little interest, but live.
            if head_end < record.len() {
                self.add(data, at + head_end, data_start.min(record.len()) - head_end);
            }
            if data_start < record.len() {
                self.add(data, at + data_start, record.len() - data_start);
            }
        }
    }

    fn table(&mut self) {
        let start = u64_at(&self.superblock, BODY + 96);
        let pages = u64_at(&self.superblock, BODY + 104);
        for page in 0..pages {
            let slots = [2 * page, 2 * page + 1];
            let places = [0, 2 * pages].map(|copy| slots.map(|slot| start + (copy + slot) * BLOCK));
            let whole = |at| self.whole(HeaderKind::SegmentTable, self.pool, at).map(|it| (at, it));
            let found: Vec<_> = places.into_iter().flatten().filter_map(whole).collect();
            let versions = found.iter().map(|(_, page)| page.sequence);
            let newest = versions.filter(|version| *version <= self.checkpoint).max();
            for (at, page) in found {
                let is_newest = Some(page.sequence) == newest;
                let kind = if is_newest { Kind::TableNewest } else { Kind::TableOlder };
                self.add(kind, at, page.len());
            }
        }
    }

    /// The numbers of the patches in the newest checkpoint's manifest.
    fn patches(&self) -> Vec<u64> {
        let body = &self.body;
        let frontier_bytes = 16 * u32_at(body, 4);
        let unfinished_bytes = 16 * u32_at(body, IMAGE + 40);
        let epochs_bytes = 16 * u32_at(body, 48);
        let catalog_bytes = u32_at(body, 32);
        let before = unfinished_bytes + frontier_bytes + epochs_bytes + catalog_bytes;
        let manifest = IMAGE_END + before as usize;
        let count = u32_at(body, manifest + 12);
        let mut at = manifest + 40;
        let mut patches = Vec::new();
        for _ in 0..count {
            patches.push(u64_at(body, at));
            at += 96 + 12 * u32_at(body, at + 64) as usize + 20 * u32_at(body, at + 68) as usize;
        }
        patches
    }

    fn segments(&mut self) {
        let patches = self.patches();
        let covered = u64_at(&self.body, 16);
        let mut at = u64_at(&self.superblock, BODY + 112);
        while at < self.size_bytes {
            let leaf = self.whole(HeaderKind::PatchLeaf, self.pool, at);
            let leaf = leaf.map(|page| (Kind::PatchLeaf, page));
            let fence = || self.whole(HeaderKind::PatchFence, self.pool, at);
            let page = leaf.or_else(|| fence().map(|page| (Kind::PatchFence, page)));
            if let Some((kind, page)) = page {
                let is_live = patches.contains(&page.sequence);
                self.add(if is_live { kind } else { Kind::PatchStale }, at, page.len());
                at += BLOCK;
                continue;
            }
            let image = u64_at(&self.body, IMAGE);
            let chunk = self.whole(HeaderKind::IndexImage, self.pool, at);
            if let Some(chunk) = chunk.filter(|chunk| chunk.sequence == image) {
                self.add(Kind::IndexImage, at, chunk.len());
                // What stands behind it is of an older use of the segment.
                at += chunk.len().next_multiple_of(BLOCK);
                continue;
            }
            at += match self.whole(HeaderKind::WriteUnit, self.pool, at) {
                Some(unit) => self.unit(at, &unit.bytes, covered),
                None => BLOCK,
            };
        }
    }

    /// A write unit; returns its length.
    fn unit(&mut self, at: u64, summary: &[u8], covered: u64) -> u64 {
        let segment_bytes = u64_at(&self.superblock, BODY + 64);
        let segment_start = at - (at - u64_at(&self.superblock, BODY + 112)) % segment_bytes;
        let [entries, frames] = [40, 44].map(|field| u32_at(summary, HEADER_BYTES + field));
        let is_covered = u64_at(summary, HEADER_BYTES + 8) <= covered;
        let [kind, header, contents] = match is_covered {
            true => [Kind::SummaryCovered, Kind::FrameHeaderCovered, Kind::FrameContentsCovered],
            false => {
                [Kind::SummaryUncovered, Kind::FrameHeaderUncovered, Kind::FrameContentsUncovered]
            }
        };
        self.add(kind, at, summary.len() as u64);
        let segment = u32_at(summary, HEADER_BYTES + 32) as u32;
        for frame in 0..frames as usize {
            let place = UNIT_HEAD_END + 32 * entries as usize + 8 * frame;
            assert!(u16_at(summary, place + 4) > 0, "a frame has blocks");
            let start = at + 16 * u32_at(summary, place);
            let stored = u32_at(&self.device.peek(start, FRAME_HEADER_BYTES as usize), 16);
            let frame = Some((segment, (start - segment_start) as u32));
            self.add_framed(header, start, FRAME_HEADER_BYTES, frame);
            self.add_framed(contents, start + FRAME_HEADER_BYTES, stored, frame);
        }
        u32_at(summary, HEADER_BYTES + 36)
    }

    /// Puts them in order and fills the gaps: in a block that something is in with padding.
    fn finish(mut self) -> Structures {
        self.found.retain(|stretch| stretch.start < stretch.end);
        self.found.sort_by_key(|stretch| stretch.start);
        let mut all: Vec<Stretch> = Vec::new();
        let gap = |all: &mut Vec<Stretch>, start: u64, end: u64| {
            let used_end = if all.is_empty() { 0 } else { start.next_multiple_of(BLOCK).min(end) };
            for (kind, start, end) in [
                (Kind::Padding, start, used_end.max(start)),
                (Kind::Unused, used_end.max(start), end),
            ] {
                if start < end {
                    all.push(Stretch { kind, start, end, frame: None });
                }
            }
        };
        let mut at = 0;
        for stretch in self.found {
            assert!(stretch.start >= at, "{stretch:?} overlaps what ends at {at}");
            gap(&mut all, at, stretch.start);
            at = stretch.end;
            all.push(stretch);
        }
        gap(&mut all, at, self.size_bytes);
        let data_start = u64_at(&self.superblock, BODY + 112);
        Structures { stretches: all, data_start }
    }
}
