//! What the benches share. The benches themselves:
//!
//! - `fingerprint`, `compress`, `index`, `log`, `map`: one stage each, by criterion.
//!   `cargo bench -p siltstone-benches --bench map`.
//! - `throughput`: a whole pool against what the machine can do, as ratios; all of it is in
//!   [`performance`], as `siltstone bench` does the same.
//!   `cargo bench -p siltstone-benches --bench throughput -- --help`.
//! - `nbd`: the NBD server against the library and against qemu-nbd.
//!   `cargo bench -p siltstone-benches --bench nbd -- --help`.
//! - `event_loops`: NBD transport alone, on epoll and on io_uring.
//!   `cargo bench -p siltstone-benches --bench event_loops -- --help`.
//! - `dedup_study`: what thresholds and index budgets keep and cost, as tables and plots.
//!   `cargo bench -p siltstone-benches --bench dedup_study -- --help`.
//! - `snapshots`: what taking, cloning and having a thousand of them costs.
//!   `cargo bench -p siltstone-benches --bench snapshots -- --help`.
//! - `frames`: ways of framing blocks, in bytes stored and in time to code and decode.
//!   `cargo bench -p siltstone-benches --bench frames -- --help`.
//! - `ageing`: what overwriting a pool many times does to it.
//!   `cargo bench -p siltstone-benches --bench ageing -- --help`.
//! - `soak`: a server for as long as you like, with clients that check it and an operator who does not
//!   leave it alone. `cargo bench -p siltstone-benches --bench soak -- --help`.
//!
//! All data is real but for `snapshots` and `soak`: [`data`] takes it from this system's own files. What is counted is a
//! [`sample`], or a `series` of windows; a [`report`] holds it against its limit, and [`plot`] draws. [`raw`] drives
//! a device alone, [`drive`] many operations at a time, [`cpu_time`] is what all of them take of the processors, and [`program`] is the `siltstone` that some run, with [`open_files`] for its clients.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod cpu_time;
pub mod data;
pub mod drive;
pub mod error;
pub mod open_files;
pub mod performance;
pub mod plot;
pub mod program;
pub mod raw;
pub mod report;
pub mod sample;
mod series;
