//! What every call passes: pointers become references, failures codes, and panics stay on this side.

use std::{
    any::Any,
    ffi::{CStr, c_char, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
};

use siltstone_engine::EngineError;

use crate::{code, last_error};

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine says why.
    Engine(EngineError),
    /// This argument is a null pointer.
    Null(&'static str),
    /// This argument is not UTF-8.
    NotText(&'static str),
    /// This structure does not say its size, or one that this version of it does not have.
    StructBytes {
        /// The argument.
        argument: &'static str,
        /// The size that it says.
        found: usize,
        /// The size that this library has.
        known: usize,
    },
    /// Bits that are no flags of this call.
    Flags(u32),
    /// The message of a panic.
    Panic(String),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine(error) => error.fmt(f),
            Self::Null(argument) => write!(f, "the argument '{argument}' is a null pointer"),
            Self::NotText(argument) => write!(f, "the argument '{argument}' is not UTF-8"),
            Self::StructBytes { argument, found, known } => write!(
                f,
                "struct_bytes of '{argument}' is {found}: set it to the structure's sizeof, which this \
                 library knows up to {known}"
            ),
            Self::Flags(flags) => write!(f, "this call has no flags {flags:#x}"),
            Self::Panic(message) => {
                write!(f, "the library has met a broken invariant, please report this: {message}")
            }
        }
    }
}

/// Runs a call's work; keeps the sentence of its failure and returns the code.
pub(crate) fn call(work: impl FnOnce() -> Result<(), Failure>) -> c_int {
    // Whatever a panic leaves half done inside the engine, the engine's own locks and threads guard.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    match outcome.unwrap_or_else(|panic| Err(Failure::Panic(message_of(&*panic)))) {
        Ok(()) => code::SILTSTONE_OK,
        Err(failure) => {
            last_error::keep(&failure.to_string());
            code::of_failure(&failure)
        }
    }
}

/// Runs work that cannot fail but by a panic.
pub(crate) fn call_for<T>(otherwise: T, work: impl FnOnce() -> T) -> T {
    let mut result = otherwise;
    call(|| {
        result = work();
        Ok(())
    });
    result
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// A handle or structure that the caller has.
///
/// # Safety
/// `pointer` is null or points to a `T` that nobody changes or frees during the call.
pub(crate) unsafe fn shared<'a, T>(
    pointer: *const T,
    argument: &'static str,
) -> Result<&'a T, Failure> {
    // SAFETY: as the caller promises.
    unsafe { pointer.as_ref() }.ok_or(Failure::Null(argument))
}

/// Gives a result to the caller.
///
/// # Safety
/// `pointer` is null or valid for a write.
pub(crate) unsafe fn put<T>(
    pointer: *mut T,
    argument: &'static str,
    value: T,
) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::Null(argument));
    }
    // SAFETY: as the caller promises; it need not hold anything before.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Text of the caller's.
///
/// # Safety
/// `text` is null or ends with a zero byte, and nobody changes it during the call.
pub(crate) unsafe fn text<'a>(
    text: *const c_char,
    argument: &'static str,
) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::Null(argument));
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::NotText(argument))
}

/// A structure that both sides have, perhaps in different versions: plain numbers without padding, of which
/// the first is the structure's size in bytes as the caller has it. Later versions only get longer, and zero
/// is the default of every field.
///
/// # Safety
/// It is `repr(C)`, has no padding, begins with a `u32`, and any bytes are one.
pub(crate) unsafe trait Versioned: Copy + Default {}

/// How much of a structure caller and library both have.
///
/// # Safety
/// `structure` points to the size that begins one.
unsafe fn common_bytes<T: Versioned>(
    structure: *const T,
    argument: &'static str,
) -> Result<usize, Failure> {
    // SAFETY: as the caller promises.
    let found = unsafe { structure.cast::<u32>().read() } as usize;
    let known = size_of::<T>();
    if (size_of::<u32>()..=known).contains(&found) {
        Ok(found)
    } else {
        Err(Failure::StructBytes { argument, found, known })
    }
}

/// The options that the caller gives; the defaults without any, and for what an older caller does not know.
///
/// # Safety
/// `options` is null or points to as many bytes as the first field says.
pub(crate) unsafe fn options<T: Versioned>(
    options: *const T,
    argument: &'static str,
) -> Result<T, Failure> {
    let mut known = T::default();
    if !options.is_null() {
        // SAFETY: as the caller promises; both have so many bytes, any of which are a `T`.
        unsafe {
            let len_bytes = common_bytes(options, argument)?;
            let target = (&raw mut known).cast::<u8>();
            std::ptr::copy_nonoverlapping(options.cast::<u8>(), target, len_bytes);
        }
    }
    Ok(known)
}

/// Gives figures to the caller: as many as fit its version of the structure, whose size stays as it is.
///
/// # Safety
/// `target` is null or points to as many writable bytes as the first field says.
pub(crate) unsafe fn put_versioned<T: Versioned>(
    target: *mut T,
    argument: &'static str,
    value: impl FnOnce() -> T,
) -> Result<(), Failure> {
    if target.is_null() {
        return Err(Failure::Null(argument));
    }
    // SAFETY: as the caller promises; both have so many bytes.
    unsafe {
        let len_bytes = common_bytes(target, argument)?;
        let skip = size_of::<u32>();
        let value = value();
        let source = (&raw const value).cast::<u8>().add(skip);
        std::ptr::copy_nonoverlapping(source, target.cast::<u8>().add(skip), len_bytes - skip);
    }
    Ok(())
}

/// Checks that there are no flags but those of the call.
pub(crate) fn check_flags(flags: u32, known: u32) -> Result<(), Failure> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(Failure::Flags(unknown)),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;
    use crate::last_error::siltstone_last_error;

    #[test]
    fn a_panic_becomes_a_code_and_a_sentence() {
        assert_eq!(call(|| panic!("of {}", "a test")), code::SILTSTONE_PANIC);
        // SAFETY: the function returns text that ends with a zero byte.
        let sentence = unsafe { CStr::from_ptr(siltstone_last_error()) }.to_str().unwrap();
        assert!(sentence.ends_with("of a test"), "{sentence}");
    }
}
