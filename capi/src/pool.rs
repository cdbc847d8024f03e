//! Pools: making, opening, growing and closing them.

use std::{
    ffi::{OsStr, c_char, c_int},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use siltstone_engine::{CreateOptions, OpenOptions, Pool};

use crate::border::{Failure, Versioned, call, check_flags, options, put, shared};

/// An open pool.
pub struct SiltstonePool(pub(crate) Pool);

/// Make the pool even if the device holds something.
pub const SILTSTONE_CREATE_OVERWRITE: u32 = 1;
/// Recover in memory and refuse every change.
pub const SILTSTONE_OPEN_READ_ONLY: u32 = 1;

/// How a pool is made; zeros are defaults.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SiltstoneCreateOptions {
    /// The size of this structure.
    pub struct_bytes: u32,
    /// [`SILTSTONE_CREATE_OVERWRITE`].
    pub flags: u32,
    /// The pool's size; 0 takes all of a block device.
    pub size_bytes: u64,
    /// RAM that the dedup index may take.
    pub index_memory_bytes: u64,
}

/// How a process uses a pool; zeros are defaults.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SiltstoneOpenOptions {
    /// The size of this structure.
    pub struct_bytes: u32,
    /// [`SILTSTONE_OPEN_READ_ONLY`].
    pub flags: u32,
    /// Bytes that may wait for the device.
    pub staging_bytes: u64,
    /// Bytes of decoded frames kept for reads.
    pub frame_cache_bytes: u64,
    /// Bytes of map pages kept for lookups.
    pub page_cache_bytes: u64,
}

// SAFETY: numbers in C's layout, the size first, without padding between or behind them.
unsafe impl Versioned for SiltstoneCreateOptions {}
// SAFETY: likewise.
unsafe impl Versioned for SiltstoneOpenOptions {}

/// A path, which need not be UTF-8.
///
/// # Safety
/// As [`crate::border::text`].
unsafe fn path<'a>(path: *const c_char) -> Result<&'a Path, Failure> {
    if path.is_null() {
        return Err(Failure::Null("path"));
    }
    // SAFETY: as the caller promises.
    let bytes = unsafe { std::ffi::CStr::from_ptr(path) }.to_bytes();
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

/// Makes a pool in a new file or on a block device.
///
/// # Safety
/// `path` is null or text that ends with a zero byte; `options` is null or points to a structure of the size
/// that it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_create(
    path: *const c_char,
    options: *const SiltstoneCreateOptions,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (path, given) = unsafe { (self::path(path)?, self::options(options, "options")?) };
        check_flags(given.flags, SILTSTONE_CREATE_OVERWRITE)?;
        let mut create = CreateOptions {
            size_bytes: (given.size_bytes != 0).then_some(given.size_bytes),
            overwrite: given.flags & SILTSTONE_CREATE_OVERWRITE != 0,
            ..CreateOptions::default()
        };
        if given.index_memory_bytes != 0 {
            create.index_memory_bytes = given.index_memory_bytes;
        }
        Ok(Pool::create(path, &create)?)
    })
}

/// Opens a pool, and recovers it if it was not closed.
///
/// # Safety
/// As [`siltstone_create`]; `pool` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_open(
    path: *const c_char,
    options: *const SiltstoneOpenOptions,
    pool: *mut *mut SiltstonePool,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let (path, given) = unsafe {
            // Before there is something to give that could not be given.
            put(pool, "pool", std::ptr::null_mut())?;
            (self::path(path)?, self::options(options, "options")?)
        };
        check_flags(given.flags, SILTSTONE_OPEN_READ_ONLY)?;
        let mut open = OpenOptions {
            read_only: given.flags & SILTSTONE_OPEN_READ_ONLY != 0,
            ..OpenOptions::default()
        };
        let tuning = &mut open.tuning;
        for (given, bytes) in [
            (given.staging_bytes, &mut tuning.staging_bytes),
            (given.frame_cache_bytes, &mut tuning.frame_cache_bytes),
            (given.page_cache_bytes, &mut tuning.page_cache_bytes),
        ] {
            if given != 0 {
                *bytes = usize::try_from(given).unwrap_or(usize::MAX);
            }
        }
        let opened = Box::new(SiltstonePool(Pool::open(path, &open)?));
        // SAFETY: as the caller promises.
        unsafe { put(pool, "pool", Box::into_raw(opened)) }
    })
}

/// Finishes and makes durable what was written, and closes the pool. The handle is gone whatever is returned.
///
/// # Safety
/// `pool` is null, which does nothing, or from [`siltstone_open`], not closed before, and not used by any other
/// call at this time or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_close(pool: *mut SiltstonePool) -> c_int {
    call(|| {
        if pool.is_null() {
            return Ok(());
        }
        // SAFETY: as the caller promises, it is a box that was given away and that nobody else uses.
        let pool = unsafe { Box::from_raw(pool) };
        Ok(pool.0.close()?)
    })
}

/// Makes the pool larger while it is in use; 0 makes it as large as its device is.
///
/// # Safety
/// `pool` is null or an open pool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_grow(pool: *mut SiltstonePool, size_bytes: u64) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let pool = unsafe { shared(pool, "pool") }?;
        pool.0.grow((size_bytes != 0).then_some(size_bytes))?;
        Ok(())
    })
}
