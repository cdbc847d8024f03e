//! Snapshots: taking and deleting them, cloning them, going back to them. Their names are like
//! `VOLUME@SNAPSHOT`.

use std::{
    ffi::{c_char, c_int},
    slice,
};

use siltstone_engine::SnapshotName;

use crate::{
    border::{Failure, call, shared, text},
    pool::SiltstonePool,
};

/// # Safety
/// As [`text`].
unsafe fn snapshot_name(
    name: *const c_char,
    argument: &'static str,
) -> Result<SnapshotName, Failure> {
    // SAFETY: as the caller promises.
    Ok(unsafe { text(name, argument) }?.parse()?)
}

/// Takes snapshots of one moment: all of them, or none. Durable when it returns.
///
/// # Safety
/// `pool` is null or an open pool; `names` is null or points to `count` pointers, each null or text that ends
/// with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_snapshot_create(
    pool: *mut SiltstonePool,
    names: *const *const c_char,
    count: usize,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let pool = unsafe { shared(pool, "pool") }?;
        if names.is_null() {
            return Err(Failure::Null("names"));
        }
        // SAFETY: as the caller promises.
        let names = unsafe { slice::from_raw_parts(names, count) };
        // SAFETY: likewise.
        let names = names.iter().map(|&name| unsafe { snapshot_name(name, "names") });
        Ok(pool.0.create_snapshots(&names.collect::<Result<Vec<_>, _>>()?)?)
    })
}

/// Deletes a snapshot.
///
/// # Safety
/// `pool` is null or an open pool; `name` is null or text that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_snapshot_delete(
    pool: *mut SiltstonePool,
    name: *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (pool, name) = unsafe { (shared(pool, "pool")?, snapshot_name(name, "name")?) };
        Ok(pool.0.delete_snapshots(&[name])?)
    })
}

/// Creates a volume that holds what a snapshot does, and goes its own way from there.
///
/// # Safety
/// As [`siltstone_snapshot_delete`], for both texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_snapshot_clone(
    pool: *mut SiltstonePool,
    name: *const c_char,
    volume_name: *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (pool, name, volume_name) = unsafe {
            (shared(pool, "pool")?, snapshot_name(name, "name")?, text(volume_name, "volume_name")?)
        };
        pool.0.clone_snapshot(&name, volume_name)?;
        Ok(())
    })
}

/// Gives a volume the contents and the size that one of its snapshots has. Open handles to the volume fail
/// from then on.
///
/// # Safety
/// As [`siltstone_snapshot_delete`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_snapshot_roll_back(
    pool: *mut SiltstonePool,
    name: *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (pool, name) = unsafe { (shared(pool, "pool")?, snapshot_name(name, "name")?) };
        pool.0.roll_back(&name)?;
        Ok(())
    })
}
