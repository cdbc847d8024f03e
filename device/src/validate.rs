//! The one check that every request passes, whatever the medium: what an implementation of
//! [`Device::submit`](crate::Device::submit) does first.

use crate::{BLOCK_BYTES, DeviceError, Request};

/// Returns the request if there is something to do. Otherwise completes it: a request that is
/// unaligned or out of range fails, one of no bytes succeeds.
#[must_use]
pub fn admit(request: Request, size_bytes: u64) -> Option<Request> {
    if matches!(request, Request::Flush { .. }) {
        return Some(request);
    }
    let operation = request.operation();
    let (offset, len_bytes) = request.range();
    let offset_bytes = offset.0;
    let block = BLOCK_BYTES as u64;
    if !offset_bytes.is_multiple_of(block) || !len_bytes.is_multiple_of(block) {
        request.fail(DeviceError::Unaligned { operation, offset_bytes, len_bytes });
        return None;
    }
    if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > size_bytes) {
        let error = DeviceError::OutOfRange { operation, offset_bytes, len_bytes, size_bytes };
        request.fail(error);
        return None;
    }
    if len_bytes == 0 {
        request.complete(Ok(()));
        return None;
    }
    Some(request)
}

/// Those of `batch` that have something to do.
pub(crate) fn admit_all(batch: Vec<Request>, size_bytes: u64) -> Vec<Request> {
    batch.into_iter().filter_map(|request| admit(request, size_bytes)).collect()
}
