//! The NBD protocol and a server for it, without storage logic.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("socket");
//! use std::{sync::Arc, time::Duration};
//!
//! use siltstone_nbd::{
//!     Listen, Server, ServerConfig,
//!     memory_export::{FixedCatalog, MemoryExport},
//! };
//!
//! let disk = MemoryExport::new("disk", 64 << 20);
//! let catalog = Arc::new(FixedCatalog::new(vec![Arc::new(disk)]));
//! let server = Server::bind(&[Listen::Unix(path)], catalog, ServerConfig::default()).await?;
//! // Clients come and go: nbdinfo 'nbd+unix:///disk?socket=PATH'
//! let drained = server.shutdown(Duration::from_secs(10)).await;
//! assert_eq!(drained.cut_off, 0);
//! # Ok(())
//! # }
//! ```
//! Storage is known through two small traits in [`export`]: a [`Catalog`] lists and opens
//! [`Export`]s; an export reads, writes, trims, zeroes, flushes and tells what is allocated.
//! [`memory_export`] implements them in memory, for tests; `examples/custom_export.rs` does it for two disks
//! of its own, in the fewest lines. The crate needs nothing else of this project: in `siltstone serve`, the
//! program makes exports of the engine's volumes.
//!
//! [`Server::bind`] listens on TCP and unix sockets. The life of a connection:
//!
//! 1. [`server`](Server) accepts it, within the limits of [`ServerConfig`], and gives it a task.
//!    Until it has chosen an export it is `half_open`, and may have to make room for others.
//! 2. `connection` ([`serve_stream`], over any byte stream) runs the two phases.
//! 3. `handshake` negotiates: greeting, options (`options` parses them), the choice of an export.
//!    It is left for `tls` if the client asks for that, and begins anew under it; the client may
//!    have an `identity` then, and a catalog may go by `allow` lists of such. What was settled is a
//!    `session`.
//! 4. `transmission` serves the export: it takes requests from `input`, has `request` parse and
//!    validate them (every refusal stands in one function), `execute`s them concurrently (those
//!    that have to wait `apart`), has `reply` encode the `outcomes` in whatever order they come,
//!    and sends them from `output`.
//!
//! [`protocol`] is the wire: constants and layouts. Everything that a client sends is bounded
//! before memory is allocated for it; a client that breaks the protocol loses its connection, with
//! the reason in the log; one that is slow makes only itself wait; one that is idle holds no
//! buffer; one that is busy lets others have the thread after some requests. The `memory` of payloads
//! is bounded for each connection and for all together.
//!
//! Who watches a server has it count the requests of an export in its `traffic`, with their `latency`.
//!
//! The server runs on the tokio runtime that it is bound in: a few event loops, one task for each
//! connection.
//!
//! Spoken: fixed newstyle; simple, structured and extended replies; `base:allocation`; FUA,
//! TRIM, WRITE_ZEROES with NO_HOLE and FAST_ZERO, CACHE, multi-conn; STARTTLS with TLS 1.2 and 1.3
//! ([`Tls`]). Not spoken: oldstyle, resize.

#![forbid(unsafe_code)]

pub mod error;
pub mod export;
pub mod memory_export;
pub mod protocol;

mod allow;
mod apart;
mod config;
mod connection;
mod execute;
mod half_open;
mod handshake;
mod identity;
mod input;
mod latency;
mod listen;
mod memory;
mod options;
mod outcomes;
mod output;
mod reply;
mod request;
mod server;
mod session;
mod shutdown;
mod tls;
mod traffic;
mod transmission;
mod turned_away;

pub use allow::AllowLists;
pub use config::{Limits, ServerConfig};
pub use connection::serve_stream;
pub use error::{
    ConfigError, ConnectionError, ErrorCode, ExportError, HandshakeError, ParseListenError,
    ServerError, SocketOwner, TlsError, TransmissionError,
};
pub use export::{
    BlockSizes, BoxFuture, Catalog, Export, Payload, ReadBytes, ReadData, StatusExtent, ZeroOptions,
};
pub use identity::ClientIdentity;
pub use latency::{Histogram, Latencies};
pub use listen::{Listen, SocketPermissions};
pub use server::{Connections, Drained, Server};
pub use shutdown::{Shutdown, ShutdownSignal};
pub use tls::{ClientCa, Tls, TlsFiles, TlsMode};
pub use traffic::{Operation, OperationTraffic, Traffic};
pub use transmission::{Ending, INLINE_MAX_BYTES};
