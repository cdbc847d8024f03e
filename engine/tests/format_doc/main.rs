//! What docs say is what the code does: every table of `docs/format.md` agrees with the struct that
//! it names, every struct on disk has a table, named limits have the values that are written down,
//! and a reader that knows nothing but the tables finds a block's bytes in a real pool.
//!
//! The layouts are private, so their source is read, not their type. Sizes there are asserted by
//! the compiler, and all fields are unaligned, so offsets follow from the fields' types.
//!
//! `cargo test -p siltstone-engine --test format_doc -- --nocapture can_be_made_again` prints
//! the example of the document, with identities of its own.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod agreement;
mod example;
mod pool;
mod reader;
mod tables;
