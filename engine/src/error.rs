//! What the engine can fail with, in sentences that an operator can act on.

use std::sync::Arc;

use siltstone_cursor::MapError;
use siltstone_dedup::IndexError;
use siltstone_device::{
    BlockAddress, DeviceError, Place, SegmentId, Sequence, Unreadable,
    header::HeaderError,
    size::{exact, human},
};
use siltstone_nvram::{CheckpointError, CopyError, LogError, MarkError, OpenError};

use crate::repair::unit_place;

/// An engine operation's failure. Cheap to clone: one failure may concern many waiters.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The device refused an operation.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The map could not answer.
    #[error("the map: {0}")]
    Map(#[from] MapError),
    /// The NVRAM log could not be read or written.
    #[error("the NVRAM log: {0}")]
    Log(#[from] LogError),
    /// The checkpoint record could not be read or written.
    #[error("the checkpoint record: {0}")]
    CheckpointRecord(#[from] CheckpointError),

    /// The durability mark could not be read or written.
    #[error(transparent)]
    Mark(#[from] MarkError),

    /// The NVRAM log could not be opened.
    #[error(transparent)]
    OpenLog(#[from] OpenError),
    /// The dedup index could not be made.
    #[error(transparent)]
    Index(#[from] IndexError),

    /// A pool is there already.
    #[error("the device holds a siltstone pool already; 'create --force' would overwrite it")]
    PoolExists,
    /// Something is there already.
    #[error("the device is not empty; if what it holds may go, use 'create --force'")]
    NotEmpty,
    /// No superblock is there.
    #[error("this is not a siltstone pool: neither superblock is valid ({first}; {second})")]
    NotAPool {
        /// What is wrong with the first copy.
        first: Arc<HeaderError>,
        /// What is wrong with the second copy.
        second: Arc<HeaderError>,
    },
    /// The pool needs a newer program.
    #[error("the pool needs a newer siltstone: {what}")]
    NewerVersion {
        /// What this program does not know.
        what: NewerFeature,
    },
    /// The device is smaller than the pool on it.
    #[error(
        "the pool is truncated: it is {} long but its device has only {}; restore the missing part \
         before opening it",
        exact(*.expected_bytes), exact(*.actual_bytes)
    )]
    Truncated {
        /// What the superblock says.
        expected_bytes: u64,
        /// What the device has.
        actual_bytes: u64,
    },
    /// A metadata structure is damaged beyond its redundancy.
    #[error("metadata is damaged: {0}")]
    Metadata(#[from] MetadataError),
    /// The device is too small for a pool.
    #[error(
        "a pool needs at least {}, not {}; choose a larger size",
        exact(*.needed_bytes), exact(*.size_bytes)
    )]
    TooSmall {
        /// What was asked.
        size_bytes: u64,
        /// The least that works.
        needed_bytes: u64,
    },
    /// A pool was to become smaller.
    #[error(
        "the pool has {} and cannot shrink to {}; if it must be smaller, copy its volumes to a new one",
        exact(*.current_bytes), exact(*.size_bytes)
    )]
    CannotShrink {
        /// The size asked for.
        size_bytes: u64,
        /// The size it has.
        current_bytes: u64,
    },
    /// A pool was to become larger than it can.
    #[error(
        "the pool cannot grow to {}: it was made to grow to {} at most; copy its volumes to a pool \
         that is made larger",
        exact(*.size_bytes), exact(*.max_bytes)
    )]
    GrowsTooFar {
        /// The size asked for.
        size_bytes: u64,
        /// The largest that is possible.
        max_bytes: u64,
    },
    /// A creation option is outside its range.
    #[error("{option} of {value} is not possible: it must be {allowed}")]
    InvalidOption {
        /// Which option.
        option: &'static str,
        /// The value given.
        value: u64,
        /// What it must be.
        allowed: &'static str,
    },

    /// No volume has that name.
    #[error("there is no volume named '{volume}' in this pool; 'siltstone volume list' shows them")]
    NoSuchVolume {
        /// The name asked for.
        volume: String,
    },
    /// A volume has that name already.
    #[error("a volume named '{volume}' exists already; choose another name or delete it first")]
    VolumeExists {
        /// The name.
        volume: String,
    },
    /// The name cannot be used.
    #[error(
        "'{name}' cannot name a volume or snapshot: use 1 to 255 bytes without control characters, '/' or '@'"
    )]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The size cannot be used.
    #[error(
        "volume '{volume}' cannot have {}: the size must be a multiple of 512 bytes, at least 512 and \
         at most 1 EiB",
        exact(*.size_bytes)
    )]
    InvalidSize {
        /// The volume.
        volume: String,
        /// The size.
        size_bytes: u64,
    },
    /// The compression levels cannot be used.
    #[error(
        "compression levels {busy}..{idle} are not possible: both must be from -7 to 19, and the \
         second not below the first"
    )]
    InvalidLevels {
        /// When much is waiting.
        busy: i8,
        /// When there is time.
        idle: i8,
    },
    /// No snapshot has that name.
    #[error("there is no snapshot '{snapshot}' in this pool; 'siltstone snapshot list' shows them")]
    NoSuchSnapshot {
        /// The name asked for, its volume's included.
        snapshot: String,
    },
    /// A snapshot has that name already.
    #[error("a snapshot '{snapshot}' exists already; choose another name or delete it first")]
    SnapshotExists {
        /// The name, its volume's included.
        snapshot: String,
    },
    /// A list of snapshots has one of them twice.
    #[error("'{snapshot}' is named twice; name each snapshot once")]
    NamedTwice {
        /// The snapshot, its volume's name included.
        snapshot: String,
    },
    /// The name is not a snapshot's.
    #[error("'{name}' does not name a snapshot: write VOLUME@SNAPSHOT")]
    NotASnapshot {
        /// The name.
        name: String,
    },
    /// A volume that is to be deleted has snapshots.
    #[error(
        "volume '{volume}' has snapshots ({snapshots}); delete them first, or the volume together \
         with them by 'siltstone volume delete --snapshots'"
    )]
    HasSnapshots {
        /// The volume.
        volume: String,
        /// How many.
        snapshots: usize,
    },
    /// Snapshots never change.
    #[error("'{snapshot}' is a snapshot and cannot be changed; clone it to write to its contents")]
    SnapshotReadOnly {
        /// The snapshot, its volume's name included.
        snapshot: String,
    },
    /// A clone of a clone of a clone, and so on for too long.
    #[error(
        "volume '{volume}' would read through more than {generations} generations of clones; \
         copy it with export and import instead"
    )]
    TooManyAncestors {
        /// The new volume.
        volume: String,
        /// How many there may be.
        generations: usize,
    },
    /// The catalog of volumes and snapshots is full.
    #[error(
        "the pool's catalog is full at {volumes} volumes and {snapshots} snapshots; delete some first"
    )]
    CatalogFull {
        /// How many volumes there are.
        volumes: usize,
        /// How many snapshots.
        snapshots: usize,
    },
    /// Numbers of volumes are never used twice, and there are no more.
    #[error("the pool has used up its numbers for volumes; move the volumes to a new pool")]
    IdsExhausted,
    /// The volume or snapshot was deleted while it was in use.
    #[error("volume '{volume}' was deleted")]
    VolumeDeleted {
        /// The volume.
        volume: String,
    },
    /// The volume was rolled back while it was in use: what was read of it before is not what it
    /// holds now.
    #[error("volume '{volume}' was rolled back to a snapshot; open it again")]
    VolumeRolledBack {
        /// The volume.
        volume: String,
    },
    /// A range passes the end of its volume.
    #[error(
        "{len_bytes} bytes at byte {offset_bytes} pass the end of volume '{volume}' \
         ({size_bytes} bytes)"
    )]
    OutOfRange {
        /// The volume.
        volume: String,
        /// Where the range starts.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },

    /// The pool has no room for a write.
    #[error(
        "the pool is full: the write may need {} and {} are free; trim or delete volumes, or grow \
         the pool",
        human(*.needed_bytes), human(*.free_bytes)
    )]
    NoSpace {
        /// What was needed.
        needed_bytes: u64,
        /// What there was.
        free_bytes: u64,
    },
    /// The pool was opened for reading only.
    #[error("the pool is open for reading only")]
    ReadOnly,
    /// The pool has stopped accepting changes after a failure.
    #[error(
        "the pool accepts no more changes since an earlier failure: {cause}; it can still be read; mend \
         the cause, then open the pool again"
    )]
    Failed {
        /// The first failure.
        cause: Arc<EngineError>,
    },
    /// A thread of the pool has met a broken invariant.
    #[error("the pool's thread '{thread}' panicked; what is durable is safe, please report this")]
    Panicked {
        /// The thread.
        thread: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for the pool: {source}")]
    Thread {
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// The pool is shutting down.
    #[error("the pool is closing")]
    Closing,
    /// The pool was abandoned.
    #[error("the pool was abandoned")]
    Abandoned,

    /// A block is not what was received from its client, before it was stored.
    #[error(
        "memory fault: volume '{volume}', {address} changed in memory after it was received; it \
         was not stored, nor is anything else from now on; test the machine's memory, then open \
         the pool again"
    )]
    StagingDamaged {
        /// The volume.
        volume: String,
        /// The block.
        address: BlockAddress,
    },
    /// A block's stored data is damaged.
    #[error("volume '{volume}', {address}: {source}")]
    BlockDamaged {
        /// The volume.
        volume: String,
        /// The block.
        address: BlockAddress,
        /// What is wrong where.
        source: FrameError,
    },
}

/// Something in a pool that this program is too old for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NewerFeature {
    /// The superblock's layout.
    #[error("its superblock has version {found}, and this program knows up to {known}")]
    Superblock {
        /// The version found.
        found: u16,
        /// The newest version known.
        known: u16,
    },
    /// Feature bits without which it must not be read.
    #[error("it uses features {0:#x} that this program does not know")]
    Incompatible(u64),
    /// Feature bits without which it must not be written.
    #[error("it uses features {0:#x} with which this program can only read it")]
    ReadCompatible(u64),
}

/// A metadata structure that is damaged beyond its redundancy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// A structure's header is wrong.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A structure is whole but says something impossible.
    #[error("the {structure} is inconsistent: {field} is {value}")]
    Inconsistent {
        /// Which structure.
        structure: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// No checkpoint record was found in a pool that must have one.
    #[error("no whole checkpoint record exists{}", after_semicolon(damaged.as_ref()))]
    NoCheckpoint {
        /// What is wrong with a copy of one, if there was one.
        damaged: Option<CopyError>,
    },
    /// Changes that were durable are neither in a whole write unit nor in the log.
    #[error(
        "acknowledged data is missing: {}; the changes after {recovered} up to {durable} are not \
         in the NVRAM log either{}",
        unit_place(*unit, *place),
        cause_of(unreadable.as_deref())
    )]
    MissingUnit {
        /// The first write unit that is not whole.
        unit: u64,
        /// Its segment and where in it, if that is known.
        place: Option<(SegmentId, u64)>,
        /// Every change up to here was found.
        recovered: Sequence,
        /// Every change up to here was durable.
        durable: Sequence,
        /// Blocks that cannot be read, where it may be.
        unreadable: Option<Box<Unreadable>>,
    },
    /// The manifest of patches cannot be read.
    #[error("the patch manifest cannot be decoded: {0}")]
    Manifest(#[from] siltstone_cursor::ManifestError),
}

fn after_semicolon(error: Option<&CopyError>) -> String {
    error.map_or_else(String::new, |error| format!("; {error}"))
}

/// What to add to an error about something missing if some blocks cannot be read.
fn cause_of(unreadable: Option<&Unreadable>) -> String {
    unreadable.map_or_else(String::new, |Unreadable { offset, len_bytes, cause }| {
        format!("; {len_bytes} bytes at {offset} cannot be read: {cause}")
    })
}

/// Why a frame could not give a block.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FrameError {
    /// The device failed.
    #[error("{place}: {source}")]
    Device {
        /// The block's place.
        place: Place,
        /// The failure.
        source: DeviceError,
    },
    /// The frame's header or contents do not match their checksums.
    #[error("{place}: checksum mismatch")]
    Checksum {
        /// The block's place.
        place: Place,
    },
    /// A whole frame, but not the one that belongs there: a misdirected, lost or stale write.
    #[error(
        "{place}: the frame there belongs to segment {found_segment} at {found_offset_bytes}, \
         generation {found_generation} (expected {expected_generation})"
    )]
    Identity {
        /// The block's place.
        place: Place,
        /// The segment that the frame names.
        found_segment: u32,
        /// The offset that it names.
        found_offset_bytes: u32,
        /// The generation that it names.
        found_generation: u64,
        /// The generation expected.
        expected_generation: u64,
    },
    /// The header is whole but impossible, or uses something unknown.
    #[error("{place}: unreadable frame header ({field} is {value})")]
    Header {
        /// The block's place.
        place: Place,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The contents cannot be decompressed.
    #[error("{place}: the frame's contents cannot be decompressed")]
    Codec {
        /// The block's place.
        place: Place,
    },
    /// The place lies outside the pool.
    #[error("{place}: outside the pool")]
    OutOfPool {
        /// The block's place.
        place: Place,
    },
}

impl FrameError {
    /// The frame that the failure is about.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Device { place, .. }
            | Self::Checksum { place }
            | Self::Identity { place, .. }
            | Self::Header { place, .. }
            | Self::Codec { place }
            | Self::OutOfPool { place } => *place,
        }
    }
}

/// The engine's results.
pub type Result<T> = std::result::Result<T, EngineError>;
