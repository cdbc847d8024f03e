#![no_main]
use siltstone_cursor::Manifest;
use siltstone_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    let _ = manifest.pages();
    let again = manifest.encode();
    assert_eq!(again.len(), bytes.len());
    assert_eq!(Manifest::decode(&again), Ok(manifest));
});
