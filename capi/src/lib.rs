//! The C interface: `include/siltstone.h`, and behind it the engine.
//!
//! For programs that are not written in Rust and have a pool inside them: appliances, bindings of other
//! languages. Who only needs block devices is better served by `siltstone serve`.
//!
//! The header is written by hand and says all that a C programmer has to know; this crate is what stands
//! behind it, one function for one, each a few lines around a method of [`siltstone_engine`]:
//!
//! ```c
//! siltstone_pool *pool = NULL;
//! siltstone_volume *disk = NULL;
//! siltstone_create_options options = {.struct_bytes = sizeof options, .size_bytes = 1 << 30};
//!
//! if (siltstone_create("pool.silt", &options) != SILTSTONE_OK
//!     || siltstone_open("pool.silt", NULL, &pool) != SILTSTONE_OK
//!     || siltstone_volume_create(pool, "disk", UINT64_C(10) << 30) != SILTSTONE_OK
//!     || siltstone_volume_open(pool, "disk", &disk) != SILTSTONE_OK
//!     || siltstone_write(disk, 8192, "hello", 5) != SILTSTONE_OK
//!     || siltstone_flush(disk) != SILTSTONE_OK)
//!     fprintf(stderr, "%s\n", siltstone_last_error());
//! siltstone_volume_close(disk);
//! siltstone_close(pool);
//! ```
//!
//! `examples/example.c` is a whole program. `cargo build --release -p siltstone-capi` makes
//! `libsiltstone.so` and `libsiltstone.a`; `install.sh` puts them where compilers and `pkg-config` find them.
//!
//! - [`code`]: what functions return, made of the engine's kinds of errors.
//! - [`last_error`]: the sentence that goes with it, for each thread.
//! - `border`: what every call passes: pointers become references, panics become codes.
//! - [`pool`], [`volume`], [`io`], [`snapshot`], [`list`], [`stat`]: the functions, by subject.
//!
//! # What holds at the border
//! - No panic crosses it: it becomes [`code::SILTSTONE_PANIC`].
//! - A null pointer where there must be none is refused; any other pointer is trusted.
//! - Structures begin with their size as the caller's header has it, so that they can become longer without
//!   a new interface; a field that a caller does not know has its default.
//! - Handles may be used from any threads at the same time. A pool's handle may be closed before its
//!   volumes': these fail from then on, and are to be closed all the same.
//!
//! The tests hold header and crate against each other: names, types, constants and layouts.

pub mod code;
pub mod io;
pub mod last_error;
pub mod list;
pub mod pool;
pub mod snapshot;
pub mod stat;
pub mod volume;

mod border;

/// The compiler does not see which threads a C program uses a handle from: it may be any, at the same time.
const _: () = {
    const fn may_be_used_from_any_thread<T: Send + Sync>() {}
    may_be_used_from_any_thread::<pool::SiltstonePool>();
    may_be_used_from_any_thread::<volume::SiltstoneVolume>();
    may_be_used_from_any_thread::<list::SiltstoneList>();
};
