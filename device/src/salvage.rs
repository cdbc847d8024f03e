//! Reading as much as a damaged medium gives.
//!
//! A read of many blocks fails as a whole when the medium gives one of them not. What is read here
//! is asked for once more, block by block, when it fails: an error that passes costs nothing, and a
//! bad block costs itself alone. Who reads a structure treats a block that is not given as one
//! that holds something else: the structure is damaged ([`Identity::unreadable`]), and whatever
//! makes damage good makes this good.
//!
//! [`Identity::unreadable`]: crate::header::Identity::unreadable

use std::{future::Future, ops::Range};

use crate::{AlignedBuffer, BLOCK_BYTES, ByteOffset, Device, DeviceError, request};

/// Blocks, one after the other, that the device does not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Where the first begins.
    pub offset: ByteOffset,
    /// How many bytes they are.
    pub len_bytes: u64,
    /// Why the first is not given.
    pub cause: DeviceError,
}

impl Unreadable {
    /// Whether any byte of a range is among them.
    #[must_use]
    pub fn touches(&self, offset: ByteOffset, len_bytes: u64) -> bool {
        self.offset.0 < offset.0 + len_bytes && offset.0 < self.offset.0 + self.len_bytes
    }
}

/// What a device gave of a range.
#[derive(Debug)]
pub struct Salvaged {
    offset: ByteOffset,
    bytes: AlignedBuffer,
    unreadable: Vec<Unreadable>,
}

impl Salvaged {
    /// All of the range, with zeros for what was not given.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What was not given, in order.
    #[must_use]
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// A part of the range, counted from its start, if all of it was given.
    ///
    /// # Errors
    /// Why some of it was not.
    ///
    /// # Panics
    /// If the part passes the end of the range.
    pub fn part(&self, part: Range<usize>) -> Result<&[u8], &DeviceError> {
        let (start, len_bytes) = (self.offset.plus(part.start as u64), part.len() as u64);
        match self.unreadable.iter().find(|blocks| blocks.touches(start, len_bytes)) {
            Some(blocks) => Err(&blocks.cause),
            None => Ok(&self.bytes[part]),
        }
    }

    /// All of the range, if all of it was given.
    ///
    /// # Errors
    /// Why some of it was not.
    pub fn whole(&self) -> Result<&[u8], &DeviceError> {
        self.part(0..self.bytes.len())
    }
}

/// Starts to read `buffer.len()` bytes at `offset`; resolves to what can be read of them.
///
/// # Errors
/// [`DeviceError::Closed`], and nothing else.
pub fn read(
    device: &dyn Device,
    offset: ByteOffset,
    buffer: AlignedBuffer,
) -> impl Future<Output = Result<Salvaged, DeviceError>> + Send {
    let len_bytes = buffer.len();
    let pending = request::read(device, offset, buffer);
    async move { after(device, offset, len_bytes, pending.await).await }
}

/// What can be read of `len_bytes` at `offset`, of which all were asked for with this outcome.
///
/// # Errors
/// [`DeviceError::Closed`], and nothing else.
pub async fn after(
    device: &dyn Device,
    offset: ByteOffset,
    len_bytes: usize,
    outcome: Result<AlignedBuffer, DeviceError>,
) -> Result<Salvaged, DeviceError> {
    match outcome {
        Ok(bytes) => return Ok(Salvaged { offset, bytes, unreadable: Vec::new() }),
        Err(error @ DeviceError::Closed { .. }) => return Err(error),
        Err(_) => {}
    }
    let mut bytes = AlignedBuffer::zeroed(len_bytes);
    let mut unreadable: Vec<Unreadable> = Vec::new();
    let block_bytes = BLOCK_BYTES as u64;
    for (at, block) in (0..).step_by(BLOCK_BYTES).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        let address = offset.plus(at);
        match request::read(device, address, AlignedBuffer::zeroed(BLOCK_BYTES)).await {
            Ok(found) => block.copy_from_slice(&found),
            Err(error @ DeviceError::Closed { .. }) => return Err(error),
            Err(cause) => match unreadable.last_mut() {
                Some(last) if last.offset.plus(last.len_bytes) == address => {
                    last.len_bytes += block_bytes;
                }
                _ => unreadable.push(Unreadable { offset: address, len_bytes: block_bytes, cause }),
            },
        }
    }
    Ok(Salvaged { offset, bytes, unreadable })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pollster::block_on;

    use super::*;
    use crate::{
        Operation,
        sim::{Cause, Fault, SimDevice, Times},
    };

    const BLOCKS: u64 = 16;

    fn device() -> Arc<SimDevice> {
        let device = SimDevice::new(BLOCKS * BLOCK_BYTES as u64);
        for block in 0..BLOCKS {
            device.corrupt(block * BLOCK_BYTES as u64, &[block as u8 + 1; BLOCK_BYTES]);
        }
        device
    }

    fn fail(device: &SimDevice, blocks: Range<u64>, times: Times, cause: Cause) {
        let range_bytes = blocks.start * BLOCK_BYTES as u64..blocks.end * BLOCK_BYTES as u64;
        device.inject(Fault { operation: Operation::Read, range_bytes, times, cause });
    }

    fn read_all(device: &SimDevice) -> Salvaged {
        let buffer = AlignedBuffer::zeroed(12 * BLOCK_BYTES);
        block_on(read(device, ByteOffset(2 * BLOCK_BYTES as u64), buffer)).unwrap()
    }

    #[test]
    fn a_bad_block_costs_itself_alone() {
        for cause in [Cause::Errno(libc::EIO), Cause::Short { sectors: 0 }] {
            let device = device();
            for blocks in [0..1, 2..3, 5..7, 13..15] {
                fail(&device, blocks, Times::Always, cause);
            }
            let salvaged = read_all(&device);
            let places = salvaged.unreadable().iter().map(|it| (it.offset.0, it.len_bytes));
            assert_eq!(places.collect::<Vec<_>>(), [(8192, 4096), (20480, 8192), (53248, 4096)]);
            for (block, bytes) in (2..).zip(salvaged.bytes().chunks(BLOCK_BYTES)) {
                let is_bad = [2, 5, 6, 13].contains(&block);
                assert!(bytes.iter().all(|&byte| byte == if is_bad { 0 } else { block + 1 }));
                let start = usize::from(block - 2) * BLOCK_BYTES;
                let part = salvaged.part(start..start + BLOCK_BYTES);
                assert_eq!(part.ok(), (!is_bad).then_some(bytes), "{cause:?}, block {block}");
            }
            assert!(salvaged.part(BLOCK_BYTES - 1..BLOCK_BYTES + 1).is_err());
            assert!(salvaged.part(BLOCK_BYTES..3 * BLOCK_BYTES).is_ok());
            assert!(salvaged.whole().is_err());
        }
    }

    #[test]
    fn an_error_that_passes_costs_nothing() {
        let device = device();
        fail(&device, 0..BLOCKS, Times::Count(1), Cause::Errno(libc::EIO));
        let salvaged = read_all(&device);
        assert!(salvaged.unreadable().is_empty());
        assert_eq!(salvaged.whole().unwrap(), device.peek(8192, 12 * BLOCK_BYTES));
    }

    #[test]
    fn a_device_that_was_closed_gives_nothing() {
        let device = device();
        device.cut_power();
        let buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
        let error = block_on(read(&*device, ByteOffset(0), buffer)).unwrap_err();
        assert!(matches!(error, DeviceError::Closed { .. }), "{error}");
    }
}
