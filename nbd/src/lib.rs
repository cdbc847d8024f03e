//! The NBD protocol and a server for it, without storage logic.
//!
//! Storage is known through two small traits in [`export`]: a [`Catalog`] lists and opens
//! [`Export`]s; an export reads, writes, trims, zeroes, flushes and tells what is allocated.
//! [`memory_export`] implements them in memory, for tests and as an example.
//!
//! [`Server::bind`] listens on TCP and unix sockets. The life of a connection:
//!
//! 1. [`server`](Server) accepts it, within the limits of [`ServerConfig`], and gives it a task.
//! 2. `connection` ([`serve_stream`], over any byte stream) runs the two phases.
//! 3. `handshake` negotiates: greeting, options (`options` parses them), the choice of an export.
//!    What was settled is a `session`.
//! 4. `transmission` serves the export: it takes requests from `input`, has `request` parse and
//!    validate them (every refusal stands in one function), `execute`s them concurrently (those
//!    that have to wait `apart`), has `reply` encode the `outcomes` in whatever order they come,
//!    and sends them from `output`.
//!
//! [`protocol`] is the wire: constants and layouts. Everything that a client sends is bounded
//! before memory is allocated for it; a client that breaks the protocol loses its connection, with
//! the reason in the log; one that is slow makes only itself wait; one that is idle holds no
//! buffer; one that is busy lets others have the thread after some requests.
//!
//! The server runs on the tokio runtime that it is bound in: a few event loops, one task for each
//! connection.
//!
//! Spoken: fixed newstyle; simple, structured and extended replies; `base:allocation`; FUA,
//! TRIM, WRITE_ZEROES with NO_HOLE and FAST_ZERO, CACHE, multi-conn. Not spoken: TLS, oldstyle,
//! resize.

#![forbid(unsafe_code)]

pub mod error;
pub mod export;
pub mod memory_export;
pub mod protocol;

mod apart;
mod config;
mod connection;
mod execute;
mod handshake;
mod input;
mod listen;
mod options;
mod outcomes;
mod output;
mod reply;
mod request;
mod server;
mod session;
mod shutdown;
mod transmission;

pub use config::ServerConfig;
pub use connection::serve_stream;
pub use error::{
    ConfigError, ConnectionError, ErrorCode, ExportError, HandshakeError, ParseListenError,
    ServerError, TransmissionError,
};
pub use export::{
    BlockSizes, BoxFuture, Catalog, Export, Payload, ReadBytes, ReadData, StatusExtent, ZeroOptions,
};
pub use listen::Listen;
pub use server::{Drained, Server};
pub use shutdown::{Shutdown, ShutdownSignal};
pub use transmission::{Ending, INLINE_MAX_BYTES};
