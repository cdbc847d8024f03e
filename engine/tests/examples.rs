//! The examples do what they say.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

use siltstone_engine::{OpenOptions, Pool};

#[allow(dead_code)] // Its `main` is for who runs it by hand.
#[path = "../examples/custom_device.rs"]
mod custom_device;
#[allow(dead_code)]
#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn an_embedded_pool_holds_what_was_written_after_it_was_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    assert_eq!(&embed::embed(&path).unwrap(), b"hello");
    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    let mut back = [0; 7];
    pool.volume("disk").unwrap().read_at(8191, &mut back).unwrap();
    assert_eq!(&back, b"\0hello\0");
}

#[test]
fn a_custom_device_carries_a_pool_and_sees_duplicates_once() {
    let device = custom_device::CountingRam::new(256 << 20);
    let [first, second] = custom_device::write_twice(&device).unwrap();
    assert!(first >= 1 << 20, "noise does not compress: {first} bytes");
    assert!(second < 1 << 19, "duplicates are not stored: {second} bytes");
    assert!(device.requests() > 0);
    // And what is on it is a pool for whoever opens it next.
    let pool = Pool::open_on(device, None, &OpenOptions::default()).unwrap();
    assert_eq!(pool.volumes().len(), 2);
    let report = pool.check(&mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}
