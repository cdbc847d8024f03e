//! What the tests of the whole engine share.
#![allow(dead_code, unreachable_pub)] // each test uses its part
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

pub mod clients;
pub mod content;
pub mod model;
pub mod pools;
pub mod watchdog;
