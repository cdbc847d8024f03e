//! What the fuzz targets share.
//!
//! A target (`targets/*.rs`) is a program that libFuzzer drives: it takes bytes, and panics when a
//! promise is broken. `fuzz/run.sh SECONDS [TARGET...]` builds and runs them on the stable
//! toolchain; `src/bin/seeds.rs` makes the inputs that it starts from.
//!
//! | target | promise |
//! |---|---|
//! | `superblock`, `catalog`, `checkpoint`, `summary`, `frame`, `manifest`, `log_record`, `index_image` | hostile bytes, valid checksums or not, are decoded or refused; what decodes can be encoded again |
//! | `log_ring` | a log of hostile records opens or not, replays, and goes on |
//! | `map_pages` | a map of hostile pages answers or fails: lookups, cursors, verification, merges |
//! | `pool_image` | so does a whole pool: open, check, read, write, checkpoint, close |
//! | `nbd` | whatever a client sends, its connection ends, within the limits |
//! | `operations` | a pool does what a model does, across power cuts |
//!
//! - [`allocator`]: no allocation beyond a limit.
//! - [`pool`]: a small pool, and the structures in its image.
//! - [`record`]: records of the NVRAM log with hostile contents and valid checksums.
//! - [`client`]: the bytes of an NBD client.

pub mod allocator;
pub mod client;
pub mod pool;
pub mod record;
