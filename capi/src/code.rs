//! What functions return. The numbers are part of the interface: none is ever used for something else.

use std::ffi::{c_char, c_int};

use siltstone_engine::ErrorKind;

use crate::border::Failure;

/// Done.
pub const SILTSTONE_OK: c_int = 0;
/// Another failure: the system gives no memory or thread, or an invariant of the pool is broken.
pub const SILTSTONE_OTHER: c_int = 1;
/// The call is wrong: a null pointer, text that is not UTF-8, a structure without its size, an unknown flag.
pub const SILTSTONE_USAGE: c_int = 2;
/// Not a pool, or its metadata is damaged or incomplete.
pub const SILTSTONE_BAD_POOL: c_int = 3;
/// The pool needs a newer library.
pub const SILTSTONE_NEWER_VERSION: c_int = 4;
/// Another process has the pool.
pub const SILTSTONE_IN_USE: c_int = 5;
/// A name, size, range or option that cannot be, or not in the present state.
pub const SILTSTONE_REFUSED: c_int = 6;
/// The pool is full, or what is under it.
pub const SILTSTONE_NO_SPACE: c_int = 7;
/// The device failed.
pub const SILTSTONE_DEVICE: c_int = 8;
/// Stored data is damaged.
pub const SILTSTONE_DAMAGED: c_int = 9;
/// The file or device cannot be opened: it does not exist, or permission is missing.
pub const SILTSTONE_FILE: c_int = 10;
/// No volume or snapshot has that name.
pub const SILTSTONE_NOT_FOUND: c_int = 11;
/// Something is there already: a volume, a snapshot, a file, a pool.
pub const SILTSTONE_EXISTS: c_int = 12;
/// The pool is open for reading only, or the volume is a snapshot.
pub const SILTSTONE_READ_ONLY: c_int = 13;
/// The volume was deleted or rolled back since it was opened.
pub const SILTSTONE_STALE: c_int = 14;
/// The pool was closed.
pub const SILTSTONE_CLOSED: c_int = 15;
/// The library has met a broken invariant of its own. Close the pool and report it; what was flushed is safe.
pub const SILTSTONE_PANIC: c_int = 16;

/// The codes from 1 on are those of the program's exit statuses as far as these go.
pub(crate) fn of_kind(kind: ErrorKind) -> c_int {
    match kind {
        ErrorKind::BadPool => SILTSTONE_BAD_POOL,
        ErrorKind::NewerVersion => SILTSTONE_NEWER_VERSION,
        ErrorKind::InUse => SILTSTONE_IN_USE,
        ErrorKind::NotFound => SILTSTONE_NOT_FOUND,
        ErrorKind::Exists => SILTSTONE_EXISTS,
        ErrorKind::ReadOnly => SILTSTONE_READ_ONLY,
        ErrorKind::Stale => SILTSTONE_STALE,
        ErrorKind::Refused => SILTSTONE_REFUSED,
        ErrorKind::NoSpace => SILTSTONE_NO_SPACE,
        ErrorKind::Device => SILTSTONE_DEVICE,
        ErrorKind::Damaged => SILTSTONE_DAMAGED,
        ErrorKind::Closed => SILTSTONE_CLOSED,
        ErrorKind::File => SILTSTONE_FILE,
        ErrorKind::Other => SILTSTONE_OTHER,
    }
}

pub(crate) fn of_failure(failure: &Failure) -> c_int {
    match failure {
        Failure::Engine(error) => of_kind(error.kind()),
        Failure::Null(_)
        | Failure::NotText(_)
        | Failure::StructBytes { .. }
        | Failure::Flags(_) => SILTSTONE_USAGE,
        Failure::Panic(_) => SILTSTONE_PANIC,
    }
}

/// A few words for a code: constant text.
#[unsafe(no_mangle)]
pub extern "C" fn siltstone_code_text(code: c_int) -> *const c_char {
    let text = match code {
        SILTSTONE_OK => c"done",
        SILTSTONE_OTHER => c"another failure",
        SILTSTONE_USAGE => c"the call is wrong",
        SILTSTONE_BAD_POOL => c"not a pool, or its metadata is damaged",
        SILTSTONE_NEWER_VERSION => c"the pool needs a newer library",
        SILTSTONE_IN_USE => c"another process has the pool",
        SILTSTONE_REFUSED => c"the name, size, range or option is not possible",
        SILTSTONE_NO_SPACE => c"no space",
        SILTSTONE_DEVICE => c"the device failed",
        SILTSTONE_DAMAGED => c"stored data is damaged",
        SILTSTONE_FILE => c"the file or device cannot be opened",
        SILTSTONE_NOT_FOUND => c"no such volume or snapshot",
        SILTSTONE_EXISTS => c"it exists already",
        SILTSTONE_READ_ONLY => c"read-only",
        SILTSTONE_STALE => c"the volume was deleted or rolled back",
        SILTSTONE_CLOSED => c"the pool was closed",
        SILTSTONE_PANIC => c"the library has met a broken invariant of its own",
        _ => c"unknown code",
    };
    text.as_ptr()
}

/// The library's version, as in "0.1.0": constant text.
#[unsafe(no_mangle)]
pub extern "C" fn siltstone_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
