//! What a pool holds, and where its bytes are.

use std::ffi::c_int;

use siltstone_engine::{Fullness, PoolStat, SpaceParts};

use crate::{
    border::{Versioned, call, check_flags, put_versioned, shared},
    pool::SiltstonePool,
};

/// Leave out what only a walk over the whole map tells: at once, whatever the pool's size.
pub const SILTSTONE_STAT_QUICK: u32 = 1;

/// There is room.
pub const SILTSTONE_FULLNESS_NORMAL: u32 = 0;
/// 80 % of the room is used; garbage does not count.
pub const SILTSTONE_FULLNESS_WARNING: u32 = 1;
/// 95 % of the room is used.
pub const SILTSTONE_FULLNESS_CRITICAL: u32 = 2;
/// Writes are refused.
pub const SILTSTONE_FULLNESS_FULL: u32 = 3;

/// Figures of one moment. From `stored_bytes` to `unusable_bytes` they sum to `size_bytes`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SiltstoneStatFigures {
    /// The size of this structure.
    pub struct_bytes: u32,
    /// One of `SILTSTONE_FULLNESS_...`.
    pub fullness: u32,
    /// The pool's size.
    pub size_bytes: u64,
    /// Data that volumes and snapshots refer to.
    pub stored_bytes: u64,
    /// What collection can get back; in a quick stat the least that it may be.
    pub garbage_bytes: u64,
    /// Left empty in segments in use.
    pub overhead_bytes: u64,
    /// Map, log, checkpoints, tables.
    pub metadata_bytes: u64,
    /// For trims, deletes and collection when the pool is full.
    pub reserved_bytes: u64,
    /// Promised to writes under way.
    pub pending_bytes: u64,
    /// What can be written, before any reduction.
    pub free_bytes: u64,
    /// Behind the last whole segment.
    pub unusable_bytes: u64,
    /// Hundredths of the room for data that are used; garbage does not count.
    pub used_percent: u64,
    /// The sum of the volumes' sizes. This and what follows is 0 in a quick stat.
    pub provisioned_bytes: u64,
    /// Bytes of volumes that are mapped to stored blocks.
    pub logical_bytes: u64,
    /// Bytes of distinct blocks that volumes refer to, uncompressed.
    pub unique_bytes: u64,
    /// Bytes of distinct blocks that only snapshots refer to, uncompressed.
    pub snapshot_bytes: u64,
    /// logical / unique.
    pub dedup_ratio: f64,
    /// (unique + snapshot) / stored.
    pub compression_ratio: f64,
}

// SAFETY: numbers in C's layout, the size first, without padding between or behind them.
unsafe impl Versioned for SiltstoneStatFigures {}

/// Counts what the pool holds. `flags` is 0 or [`SILTSTONE_STAT_QUICK`].
///
/// # Safety
/// `pool` is null or an open pool; `stat` is null or points to a structure of the size that it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_stat(
    pool: *mut SiltstonePool,
    flags: u32,
    stat: *mut SiltstoneStatFigures,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let pool = unsafe { shared(pool, "pool") }?;
        check_flags(flags, SILTSTONE_STAT_QUICK)?;
        let figures = || {
            let is_quick = flags & SILTSTONE_STAT_QUICK != 0;
            figures(&if is_quick { pool.0.quick_stat() } else { pool.0.stat() })
        };
        // SAFETY: as the caller promises.
        unsafe { put_versioned(stat, "stat", figures) }
    })
}

fn figures(stat: &PoolStat) -> SiltstoneStatFigures {
    let SpaceParts {
        stored_bytes,
        garbage_bytes,
        overhead_bytes,
        metadata_bytes,
        reserved_bytes,
        pending_bytes,
        free_bytes,
        unusable_bytes,
    } = stat.space;
    let mut figures = SiltstoneStatFigures {
        fullness: match stat.fullness {
            Fullness::Normal => SILTSTONE_FULLNESS_NORMAL,
            Fullness::Warning => SILTSTONE_FULLNESS_WARNING,
            Fullness::Critical => SILTSTONE_FULLNESS_CRITICAL,
            Fullness::Full => SILTSTONE_FULLNESS_FULL,
        },
        size_bytes: stat.size_bytes,
        stored_bytes,
        garbage_bytes,
        overhead_bytes,
        metadata_bytes,
        reserved_bytes,
        pending_bytes,
        free_bytes,
        unusable_bytes,
        used_percent: stat.used_percent,
        ..SiltstoneStatFigures::default()
    };
    if let Some(content) = stat.content {
        figures.provisioned_bytes = content.provisioned_bytes;
        figures.logical_bytes = content.logical_bytes;
        figures.unique_bytes = content.unique_bytes;
        figures.snapshot_bytes = content.snapshot_bytes;
        figures.dedup_ratio = content.dedup_ratio;
        figures.compression_ratio = content.compression_ratio;
    }
    figures
}
