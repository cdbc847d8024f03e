//! Opening, creating and growing files: what is refused, and how it is said.

#![allow(clippy::unwrap_used, reason = "tests say by panicking what went wrong")]

use std::{fs, path::Path, sync::Arc};

use pollster::block_on;
use siltstone_device::{
    AlignedBuffer, ByteOffset, Device, DeviceError, Durability,
    file::{self, Access, FileDevice, FileOptions, IoEngine},
    mapped,
    request::{discard, flush, read, write},
};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(path: &Path, access: Access) -> Result<Arc<FileDevice>, DeviceError> {
    file::open(path, &FileOptions { access, ..FileOptions::default() })
}

#[test]
fn a_created_file_is_sparse_and_has_its_size() {
    use std::os::unix::fs::MetadataExt;
    let directory = directory();
    let path = directory.path().join("pool");
    let size_bytes = 1 << 40;
    let device = open(&path, Access::Create { size_bytes }).unwrap();
    assert_eq!(device.size_bytes(), size_bytes);
    assert_eq!(device.path(), path);
    assert!(!device.is_block_device());
    assert_eq!(fs::metadata(&path).unwrap().blocks(), 0);
}

#[test]
fn an_existing_file_is_never_created_over() {
    let directory = directory();
    let path = directory.path().join("precious");
    fs::write(&path, [7; 8192]).unwrap();
    for access in [Access::Create { size_bytes: 4096 }, Access::Create { size_bytes: 1 << 20 }] {
        let error = open(&path, access).unwrap_err();
        assert!(matches!(error, DeviceError::AlreadyExists { .. }), "{error}");
        let error = mapped::open(&path, access).unwrap_err();
        assert!(matches!(error, DeviceError::AlreadyExists { .. }), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), [7; 8192]);
}

#[test]
fn what_cannot_be_a_device_is_refused() {
    let directory = directory();
    let missing = directory.path().join("missing");
    let error = open(&missing, Access::Open).unwrap_err();
    assert!(matches!(error, DeviceError::Open { .. }), "{error}");
    for path in [directory.path(), Path::new("/dev/null")] {
        let error = open(path, Access::Open).unwrap_err();
        assert!(matches!(error, DeviceError::NotADevice { .. }), "{error}");
    }
    for size_bytes in [0, 100, 4097, u64::MAX - 4095] {
        let error = open(&missing, Access::Create { size_bytes }).unwrap_err();
        assert!(matches!(error, DeviceError::InvalidSize { .. }), "{error}");
        assert!(!missing.exists());
    }
}

#[test]
fn a_size_is_rounded_down_to_whole_blocks() {
    let directory = directory();
    let path = directory.path().join("odd");
    fs::write(&path, [1; 10_000]).unwrap();
    assert_eq!(open(&path, Access::Open).unwrap().size_bytes(), 8192);
    assert_eq!(mapped::open(&path, Access::Open).unwrap().size_bytes(), 8192);
}

#[test]
fn a_file_grows_and_never_shrinks() {
    let directory = directory();
    let path = directory.path().join("pool");
    let device = open(&path, Access::Create { size_bytes: 8192 }).unwrap();
    let end = ByteOffset(8192);
    assert!(block_on(read(&*device, end, AlignedBuffer::zeroed(4096))).is_err());
    device.grow_to(16384).unwrap();
    assert_eq!(device.size_bytes(), 16384);
    block_on(write(&*device, end, AlignedBuffer::zeroed(4096), Durability::Flush)).unwrap();
    device.grow_to(8192).unwrap();
    assert_eq!((device.size_bytes(), fs::metadata(&path).unwrap().len()), (16384, 16384));
    let error = device.grow_to(16385).unwrap_err();
    assert!(matches!(error, DeviceError::InvalidSize { .. }), "{error}");
    // Somebody else may grow it too.
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(device.size_bytes(), 16384);
    assert_eq!(device.refresh_size().unwrap(), 1 << 20);
    assert_eq!(device.size_bytes(), 1 << 20);
}

/// A file that shrank behind the device's back is an error to the reader, not a hang or zeros.
#[test]
fn reading_past_a_truncated_end_is_an_error() {
    let directory = directory();
    for engine in [IoEngine::Uring, IoEngine::Threads] {
        let path = directory.path().join(format!("{engine:?}"));
        let access = Access::Create { size_bytes: 1 << 20 };
        let options = FileOptions { access, engine, ..FileOptions::default() };
        let device = file::open(&path, &options).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
        for (offset, len) in [(16384, 4096), (4096, 8192)] {
            let buffer = AlignedBuffer::zeroed(len);
            let error = block_on(read(&*device, ByteOffset(offset), buffer)).unwrap_err();
            let DeviceError::Io { offset_bytes, source, .. } = error else { panic!("{error}") };
            assert_eq!(offset_bytes, offset);
            assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof);
        }
    }
}

#[test]
fn the_engine_is_what_was_asked_for() {
    let directory = directory();
    for (engine, name) in [(IoEngine::Uring, "io_uring"), (IoEngine::Threads, "threads")] {
        for direct in [true, false] {
            let path = directory.path().join(format!("{name}-{direct}"));
            let access = Access::Create { size_bytes: 1 << 20 };
            let options = FileOptions { access, engine, direct, queue_depth: 4 };
            let device = file::open(&path, &options).unwrap();
            assert_eq!(device.engine_name(), name);
            assert!(direct || !device.is_direct());
        }
    }
}

#[test]
fn those_who_only_read_share_and_cannot_write() {
    let directory = directory();
    for engine in [IoEngine::Uring, IoEngine::Threads] {
        let path = directory.path().join(format!("{engine:?}"));
        fs::write(&path, [3; 8192]).unwrap();
        let options = FileOptions { access: Access::Read, engine, ..FileOptions::default() };
        let first = file::open(&path, &options).unwrap();
        let second = file::open(&path, &options).unwrap();
        let error = open(&path, Access::Open).unwrap_err();
        assert!(matches!(error, DeviceError::Locked { .. }), "{error}");
        let data = AlignedBuffer::from_bytes(&[7; 4096]);
        block_on(write(&*first, ByteOffset(0), data, Durability::Flush)).unwrap_err();
        block_on(flush(&*first)).unwrap();
        drop(first);
        let data = block_on(read(&*second, ByteOffset(0), AlignedBuffer::zeroed(4096))).unwrap();
        assert_eq!(data[..], [3; 4096]);
        drop(second);
        let writer = open(&path, Access::Open).unwrap();
        let error = file::open(&path, &options).unwrap_err();
        assert!(matches!(error, DeviceError::Locked { .. }), "{error}");
        drop(writer);
        assert_eq!(fs::read(&path).unwrap(), [3; 8192]);
    }
    let mapped = mapped::open(&directory.path().join("Uring"), Access::Read).unwrap_err();
    assert!(matches!(mapped, DeviceError::Open { .. }), "{mapped}");
}

/// Needs a block device whose contents may be destroyed, so it runs only when told of one:
/// `SILTSTONE_TEST_BLOCK_DEVICE=/dev/loop0 cargo test -p siltstone-device -- --ignored block_device`
#[test]
#[ignore = "needs a block device"]
fn a_block_device_is_taken_whole_or_in_part() {
    let path = std::env::var_os("SILTSTONE_TEST_BLOCK_DEVICE").unwrap();
    let path = Path::new(&path);
    let whole_bytes = open(path, Access::Create { size_bytes: 0 }).unwrap().size_bytes();
    assert!(whole_bytes >= 1 << 20);
    let error = open(path, Access::Create { size_bytes: whole_bytes + 4096 }).unwrap_err();
    assert!(matches!(error, DeviceError::TooSmall { .. }), "{error}");
    for engine in [IoEngine::Uring, IoEngine::Threads] {
        let access = Access::Create { size_bytes: 1 << 20 };
        let options = FileOptions { access, engine, ..FileOptions::default() };
        let device = file::open(path, &options).unwrap();
        assert!(device.is_block_device() && device.is_direct());
        assert_eq!(device.size_bytes(), 1 << 20);
        assert!(matches!(device.grow_to(2 << 20).unwrap_err(), DeviceError::TooSmall { .. }));
        let second = open(path, Access::Open).unwrap_err();
        assert!(matches!(second, DeviceError::Locked { .. }), "{second}");
        let data = AlignedBuffer::from_bytes(&[7; 8192]);
        block_on(write(&*device, ByteOffset(0), data, Durability::Immediate)).unwrap();
        block_on(discard(&*device, ByteOffset(4096), 4096)).unwrap();
        block_on(flush(&*device)).unwrap();
        let buffer = AlignedBuffer::zeroed(8192);
        let data = block_on(read(&*device, ByteOffset(0), buffer)).unwrap();
        assert_eq!(data[..4096], [7; 4096]);
        assert!(data[4096..] == [7; 4096] || data[4096..] == [0; 4096]);
    }
}
