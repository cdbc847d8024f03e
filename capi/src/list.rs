//! What a pool has at one moment: its volumes or its snapshots, by name.

use std::ffi::{CString, c_char, c_int};

use crate::{
    border::{Failure, call, call_for, put, shared},
    pool::SiltstonePool,
};

/// Names and sizes, as they were when the list was made.
pub struct SiltstoneList(Vec<Entry>);

struct Entry {
    name: CString,
    size_bytes: u64,
    created_unix_s: u64,
}

impl Entry {
    fn new(name: String, size_bytes: u64, created_unix_s: u64) -> Self {
        // Names have no control characters, so nothing is lost here.
        Self { name: CString::new(name).unwrap_or_default(), size_bytes, created_unix_s }
    }
}

/// # Safety
/// `pool` is null or an open pool; `list` is null or valid for a write.
unsafe fn make_list(
    pool: *mut SiltstonePool,
    list: *mut *mut SiltstoneList,
    entries: impl FnOnce(&SiltstonePool) -> Vec<Entry>,
) -> Result<(), Failure> {
    // SAFETY: as the caller promises.
    unsafe {
        put(list, "list", std::ptr::null_mut())?;
        let entries = entries(shared(pool, "pool")?);
        put(list, "list", Box::into_raw(Box::new(SiltstoneList(entries))))
    }
}

/// Lists the pool's volumes.
///
/// # Safety
/// `pool` is null or an open pool; `list` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_volume_list(
    pool: *mut SiltstonePool,
    list: *mut *mut SiltstoneList,
) -> c_int {
    call(|| {
        let volumes = |pool: &SiltstonePool| {
            let volumes = pool.0.volumes().into_iter();
            volumes.map(|volume| Entry::new(volume.name, volume.size_bytes, 0)).collect()
        };
        // SAFETY: as the caller promises.
        unsafe { make_list(pool, list, volumes) }
    })
}

/// Lists the pool's snapshots; their names are like `VOLUME@SNAPSHOT`.
///
/// # Safety
/// As [`siltstone_volume_list`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_snapshot_list(
    pool: *mut SiltstonePool,
    list: *mut *mut SiltstoneList,
) -> c_int {
    call(|| {
        let snapshots = |pool: &SiltstonePool| {
            let entry = |of: siltstone_engine::SnapshotInfo| {
                let name = format!("{}@{}", of.volume, of.snapshot);
                Entry::new(name, of.size_bytes, of.created_unix_s)
            };
            pool.0.snapshots().into_iter().map(entry).collect()
        };
        // SAFETY: as the caller promises.
        unsafe { make_list(pool, list, snapshots) }
    })
}

/// How long the list is; 0 for a null pointer.
///
/// # Safety
/// `list` is null or a list that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_list_count(list: *const SiltstoneList) -> usize {
    // SAFETY: as the caller promises.
    call_for(0, || unsafe { list.as_ref() }.map_or(0, |list| list.0.len()))
}

/// The name of an entry, valid as long as the list; null behind the end.
///
/// # Safety
/// As [`siltstone_list_count`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_list_name(
    list: *const SiltstoneList,
    index: usize,
) -> *const c_char {
    // SAFETY: as the caller promises.
    let entry = unsafe { entry(list, index) };
    entry.map_or(std::ptr::null(), |entry| entry.name.as_ptr())
}

/// The size of an entry, in bytes; 0 behind the end.
///
/// # Safety
/// As [`siltstone_list_count`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_list_size_bytes(
    list: *const SiltstoneList,
    index: usize,
) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { entry(list, index) }.map_or(0, |entry| entry.size_bytes)
}

/// When a snapshot was taken, in seconds since 1970; 0 for volumes and behind the end.
///
/// # Safety
/// As [`siltstone_list_count`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_list_created_unix_s(
    list: *const SiltstoneList,
    index: usize,
) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { entry(list, index) }.map_or(0, |entry| entry.created_unix_s)
}

/// # Safety
/// As [`siltstone_list_count`]; the entry is used only as long as the list is there.
unsafe fn entry<'a>(list: *const SiltstoneList, index: usize) -> Option<&'a Entry> {
    // SAFETY: as the caller promises.
    unsafe { list.as_ref() }.and_then(|list| list.0.get(index))
}

/// Frees a list.
///
/// # Safety
/// `list` is null, which does nothing, or a list that was not freed before and that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_list_free(list: *mut SiltstoneList) {
    call_for((), || {
        if !list.is_null() {
            // SAFETY: as the caller promises, it is a box that was given away.
            drop(unsafe { Box::from_raw(list) });
        }
    });
}
