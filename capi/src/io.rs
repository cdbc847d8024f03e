//! Reading and changing what a volume holds, and making it durable.

use std::{
    ffi::{c_int, c_void},
    ptr, slice,
};

use crate::{
    border::{Failure, call, shared},
    volume::SiltstoneVolume,
};

/// Reads `len_bytes` at `offset_bytes` into `out`.
///
/// # Safety
/// `volume` is null or an open volume; `out` is null or has room for so many bytes, which nobody else uses
/// during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_read(
    volume: *mut SiltstoneVolume,
    offset_bytes: u64,
    out: *mut c_void,
    len_bytes: usize,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let volume = unsafe { shared(volume, "volume") }?;
        if len_bytes == 0 {
            return Ok(volume.0.read_at(offset_bytes, &mut [])?);
        }
        if out.is_null() {
            return Err(Failure::Null("out"));
        }
        let out = out.cast::<u8>();
        // SAFETY: as the caller promises. It need not be initialised before, but a slice has to be.
        let out = unsafe {
            ptr::write_bytes(out, 0, len_bytes);
            slice::from_raw_parts_mut(out, len_bytes)
        };
        Ok(volume.0.read_at(offset_bytes, out)?)
    })
}

/// Writes `len_bytes` of `data` at `offset_bytes`.
///
/// # Safety
/// `volume` is null or an open volume; `data` is null or has so many bytes, which nobody changes during the
/// call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_write(
    volume: *mut SiltstoneVolume,
    offset_bytes: u64,
    data: *const c_void,
    len_bytes: usize,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let volume = unsafe { shared(volume, "volume") }?;
        if len_bytes == 0 {
            return Ok(volume.0.write_at(offset_bytes, &[])?);
        }
        if data.is_null() {
            return Err(Failure::Null("data"));
        }
        // SAFETY: as the caller promises.
        let data = unsafe { slice::from_raw_parts(data.cast::<u8>(), len_bytes) };
        Ok(volume.0.write_at(offset_bytes, data)?)
    })
}

/// Makes every write durable that completed before this call, to any volume of the pool.
///
/// # Safety
/// `volume` is null or an open volume.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_flush(volume: *mut SiltstoneVolume) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let volume = unsafe { shared(volume, "volume") }?;
        Ok(volume.0.flush()?)
    })
}

/// Gives the whole 4 KiB blocks in a range back; they read as zeros afterwards.
///
/// # Safety
/// As [`siltstone_flush`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_discard(
    volume: *mut SiltstoneVolume,
    offset_bytes: u64,
    len_bytes: u64,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let volume = unsafe { shared(volume, "volume") }?;
        Ok(volume.0.discard(offset_bytes, len_bytes)?)
    })
}

/// Makes a range read as zeros, as a hole where it covers whole blocks.
///
/// # Safety
/// As [`siltstone_flush`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siltstone_write_zeroes(
    volume: *mut SiltstoneVolume,
    offset_bytes: u64,
    len_bytes: u64,
) -> c_int {
    call(|| {
        // SAFETY: as the caller promises.
        let volume = unsafe { shared(volume, "volume") }?;
        Ok(volume.0.write_zeroes(offset_bytes, len_bytes)?)
    })
}
