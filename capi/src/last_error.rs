//! The sentence that goes with the last failure of a thread.

use std::{
    cell::RefCell,
    ffi::{CString, c_char},
};

thread_local! {
    static SENTENCE: RefCell<CString> = RefCell::default();
}

/// Keeps a failure's sentence until the next failure in this thread.
pub(crate) fn keep(sentence: &str) {
    let bytes: Vec<u8> = sentence.bytes().filter(|&byte| byte != 0).collect();
    // None is left, so this cannot fail; if it did, no sentence would be better than a wrong one.
    let sentence = CString::new(bytes).unwrap_or_default();
    // A thread that ends while it fails has nobody left to tell.
    let _ = SENTENCE.try_with(|kept| kept.replace(sentence));
}

/// What was wrong with the last call that failed in this thread: a sentence, empty if none has failed. It is
/// valid until the next call that fails in this thread, or the thread's end.
#[unsafe(no_mangle)]
pub extern "C" fn siltstone_last_error() -> *const c_char {
    SENTENCE.try_with(|kept| kept.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
