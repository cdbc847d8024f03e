//! Volumes: creating, opening, resizing and deleting them.

use std::ffi::{c_char, c_int};

use siltstone_engine::{Volume, VolumeOptions};

use crate::{
    border::{call, call_for, put, shared, text},
    pool::SiltstonePool,
};

/// An open volume, or snapshot.
pub struct SiltstoneVolume(pub(crate) Volume);

/// Creates an empty volume; durable when it returns.
///
/// # Safety
/// `pool` is null or an open pool; `name` is null or text that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_volume_create(
    pool: *mut SiltstonePool,
    name: *const c_char,
    size_bytes: u64,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (pool, name) = unsafe { (shared(pool, "pool")?, text(name, "name")?) };
        pool.0.create_volume(name, &VolumeOptions::new(size_bytes))?;
        Ok(())
    })
}

/// Opens a volume, or a snapshot by a name like `VOLUME@SNAPSHOT`.
///
/// # Safety
/// As [`siltstone_volume_create`]; `volume` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_volume_open(
    pool: *mut SiltstonePool,
    name: *const c_char,
    volume: *mut *mut SiltstoneVolume,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (pool, name) = unsafe {
            put(volume, "volume", std::ptr::null_mut())?;
            (shared(pool, "pool")?, text(name, "name")?)
        };
        let opened = Box::new(SiltstoneVolume(pool.0.volume(name)?));
        // SAFETY: as the caller promises.
        unsafe { put(volume, "volume", Box::into_raw(opened)) }
    })
}

/// Closes a volume. Flushes nothing: what was written is still the pool's to finish.
///
/// # Safety
/// `volume` is null, which does nothing, or from [`siltstone_volume_open`], not closed before, and not used by
/// any other call at this time or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_volume_close(volume: *mut SiltstoneVolume) {
    call_for((), || {
        if !volume.is_null() {
            // SAFETY: as the caller promises, it is a box that was given away and that nobody else uses.
            drop(unsafe { Box::from_raw(volume) });
        }
    });
}

/// The volume's size at this moment; 0 for a null pointer.
///
/// # Safety
/// `volume` is null or an open volume.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_volume_size_bytes(volume: *const SiltstoneVolume) -> u64 {
    // SAFETY: as the caller promises.
    call_for(0, || unsafe { volume.as_ref() }.map_or(0, |volume| volume.0.size_bytes()))
}

/// Changes a volume's size; what lies past a smaller one is discarded.
///
/// # Safety
/// As [`siltstone_volume_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_volume_resize(
    pool: *mut SiltstonePool,
    name: *const c_char,
    size_bytes: u64,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (pool, name) = unsafe { (shared(pool, "pool")?, text(name, "name")?) };
        Ok(pool.0.resize_volume(name, size_bytes)?)
    })
}

/// Deletes a volume that has no snapshots, and everything in it. Open handles to it fail from then on.
///
/// # Safety
/// As [`siltstone_volume_create`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_volume_delete(
    pool: *mut SiltstonePool,
    name: *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (pool, name) = unsafe { (shared(pool, "pool")?, text(name, "name")?) };
        Ok(pool.0.delete_volume(name)?)
    })
}
