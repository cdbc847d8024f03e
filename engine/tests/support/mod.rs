//! What the tests of the whole engine share; their contents, clients and model are torture's.
#![allow(dead_code, unused_imports, unreachable_pub)] // each test uses its part
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

pub mod pools;
pub mod samples;
pub mod watchdog;

pub use siltstone_torture::{content, model};
