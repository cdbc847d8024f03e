//! Fingerprints, and finding the blocks that are stored already.
//!
//! This crate does no I/O and knows neither volumes nor frames. The engine brings a batch of blocks
//! (about 1 MiB, in the order of a stream) and asks which of them become links; when a summary
//! would help, the engine loads it.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use siltstone_dedup::{Index, UnitAddress, fingerprint, is_zero};
//!
//! let index = Index::new(1 << 20)?; // It never takes more than this mebibyte.
//! let stored = fingerprint(&[7; 4096]).short();
//! index.insert_batch(&[stored], UnitAddress::new(3));
//!
//! // Later, the same contents come again, and others.
//! let mut hints = Vec::new();
//! index.lookup_batch(&[stored, fingerprint(&[8; 4096]).short()], &mut hints);
//! assert_eq!(hints, [Some(UnitAddress::new(3)), None]);
//! assert!(is_zero(&[0; 4096])); // Never stored, and not looked up.
//! # Ok(())
//! # }
//! ```
//! # A batch's way
//! 1. [`is_zero`] takes out the holes; [`fingerprint_blocks`] hashes the rest, sixteen blocks in
//!    the SIMD lanes together.
//! 2. [`Neighbourhood::lookup_batch`]: what do the summaries loaded lately know?
//! 3. [`Index::lookup_batch`] for the blocks that they do not know: each hit names a write unit.
//!    The engine loads its summary and the next one in stored order into the neighbourhood, and
//!    asks that again.
//! 4. [`run::extend`] checks every candidate against its summary and extends runs in both
//!    directions.
//! 5. Still unknown blocks register, in the order of batches, in the [`InFlight`] table: is
//!    another batch storing the same block at this moment?
//! 6. [`run::plan`] applies the one threshold: long enough runs become links, the rest is stored.
//! 7. Once the batch's write units are published: [`Index::insert_batch`], then
//!    [`Neighbourhood::insert`], then [`InFlight::retire`].
//!
//! # Why an index entry points to a write unit and not to a block
//! Because whoever follows it wants more than the block. A duplicate rarely comes alone: in real
//! data nine tenths of the duplicate bytes are in runs of 8 blocks or more. A summary read costs
//! the same for one block as for the 256 of its unit, and brings full fingerprints of all of them:
//! the hit is verified, and its neighbours are found without the index. A unit's page number takes
//! 38 bits for a pebibyte, where a block's place takes 64; the other 26 bits of an 8-byte entry
//! are a tag, and eight entries share one cache line.
//!
//! # Why the sample stays consistent
//! Whether the index keeps a fingerprint depends on its low bits alone: all must be zero in as many
//! as the sample has bits ([`sample`]). The first copy of a block and a copy written a year later
//! agree on that without knowing of each other. When a shard fills up, it takes one bit more and
//! drops the entries that fail it, which their tags tell: half of them, evenly over all data,
//! recent or old. A run of duplicates is then found through any one member in the sample. Shards
//! thin one at a time, in about 0.1 ms each, so nothing ever waits for the whole index.
//!
//! # Nothing here is trusted, and nothing here is durable
//! The index is a cache of what summaries say. The engine stores its entries now and then ([`image`])
//! to have them back after a restart without reading all summaries. A hit can be wrong (26 bits are not 128, and a unit
//! may have been freed), a miss can be wrong (the sample, a race with a move): the one costs a
//! summary read, the other a block stored twice. Links are made from summaries only.
//!
//! # RAM for each TiB of distinct blocks
//! A TiB is 2^28 blocks; an entry is 8 bytes; a shard thins its sample at a load of 15/16.
//!
//! | index memory | sample | duplicates found | if every run points elsewhere |
//! |---|---|---|---|
//! | 2,185 MiB | exact | all | all |
//! | 546 MiB | 1 in 4 or 8 | 99.9 % | |
//! | 273 MiB | 1 in 8 or 16 | 99.5 % | |
//! | 137 MiB | 1 in 16 or 32 | 98.5 % | 89.6 % |
//! | 68 MiB | 1 in 32 or 64 | 96.1 % | |
//!
//! The shares are measured by `tests/sampled_dedup.rs`, on simulated streams with the run lengths
//! of real server images; it says what it assumes about where runs point.
//!
//! # Bounds
//! [`Index`]: its budget, asserted. [`Neighbourhood`]: a number of units, below 10 KiB each.
//! [`InFlight`]: the blocks of the batches in the pipeline. Locks are all leaves here, except that
//! the in-flight table's is taken before its gate's.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod bucket;
pub mod fingerprint;
pub mod gate;
pub mod image;
pub mod in_flight;
pub mod index;
pub mod multilane;
pub mod neighbourhood;
pub mod run;
pub mod sample;
mod shard;
#[cfg(test)]
mod testing;

pub use bucket::UnitAddress;
pub use fingerprint::{Fingerprint, ShortFingerprint, fingerprint, is_zero};
pub use gate::{GateClosed, OrderGate, Turn};
pub use image::{IndexShape, StoredEntry};
pub use in_flight::{InFlight, Registration};
pub use index::{Index, IndexError, IndexStats};
pub use multilane::fingerprint_blocks;
pub use neighbourhood::{Candidate, Neighbourhood};
pub use run::{Kind, Run, Summaries, Target};
