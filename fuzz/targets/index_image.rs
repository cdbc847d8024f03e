#![no_main]
use siltstone_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| siltstone_engine::fuzzing::index_image(bytes));
