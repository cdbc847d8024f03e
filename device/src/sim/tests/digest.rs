//! Two runs of one seed can be told from two different ones.

use super::*;

/// The digest after some work, of which one step may be changed.
fn digest(work: impl FnOnce(&SimDevice)) -> u64 {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Flush);
    work(&device);
    block_on(discard(&*device, ByteOffset(BLOCK), BLOCK)).unwrap();
    block_on(flush(&*device)).unwrap();
    device.history_digest()
}

#[test]
fn equal_histories_have_equal_digests_and_reads_do_not_matter() {
    let usual = digest(|device| put(device, 2, 6, Durability::Flush));
    assert_eq!(usual, digest(|device| put(device, 2, 6, Durability::Flush)));
    let reading = |device: &SimDevice| {
        put(device, 2, 6, Durability::Flush);
        block_on(read(device, ByteOffset(0), AlignedBuffer::zeroed(BLOCK_BYTES))).unwrap();
    };
    assert_eq!(usual, digest(reading));
}

#[test]
fn every_difference_changes_the_digest() {
    let fail = |device: &SimDevice| {
        let (operation, times) = (Operation::Write, Times::Count(1));
        let cause = Cause::Errno(libc::EIO);
        device.inject(Fault { operation, range_bytes: 0..SIZE_BYTES, times, cause });
        let buffer = AlignedBuffer::from_bytes(&[6; BLOCK_BYTES]);
        block_on(write(device, ByteOffset(2 * BLOCK), buffer, Durability::Flush)).unwrap_err();
    };
    let lose = |device: &SimDevice| {
        let (operation, times) = (Operation::Write, Times::Count(1));
        device.inject(Fault { operation, range_bytes: 0..SIZE_BYTES, times, cause: Cause::Lost });
        put(device, 2, 6, Durability::Flush);
    };
    type Work<'a> = (&'a str, &'a dyn Fn(&SimDevice));
    let works: [Work<'_>; 10] = [
        ("as it is", &|device| put(device, 2, 6, Durability::Flush)),
        ("nothing", &|_| ()),
        ("other contents", &|device| put(device, 2, 7, Durability::Flush)),
        ("another place", &|device| put(device, 3, 6, Durability::Flush)),
        ("another durability", &|device| put(device, 2, 6, Durability::Immediate)),
        ("a failure", &fail),
        ("a loss", &lose),
        ("damage", &|device| device.corrupt(2 * BLOCK, &[6; BLOCK_BYTES])),
        ("one way about", &|device| {
            let (one, other) = (held_flush(device), held_write(device, 2, 6, Durability::Flush));
            device.medium.complete(one);
            device.medium.complete(other);
        }),
        ("the other way about", &|device| {
            let (one, other) = (held_flush(device), held_write(device, 2, 6, Durability::Flush));
            device.medium.complete(other);
            device.medium.complete(one);
        }),
    ];
    let mut seen = std::collections::HashMap::new();
    for (name, work) in works {
        if let Some(other) = seen.insert(digest(work), name) {
            panic!("{name} and {other} have the same digest");
        }
    }
}

#[test]
fn a_history_that_is_forgotten_leaves_no_trace_in_the_digest() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Flush);
    device.forget_history();
    assert_eq!(device.history_digest(), SimDevice::new(SIZE_BYTES).history_digest());
}
