//! What can go wrong, and the one table from storage errors to the protocol's error numbers.

use std::{io, net::SocketAddr, path::PathBuf};

/// The error numbers of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    /// The export is read-only.
    NotPermitted = 1,
    /// The storage failed.
    Io = 5,
    /// The request makes no sense.
    Invalid = 22,
    /// The storage is full, or a write passes the end of the export.
    NoSpace = 28,
    /// The request is too large.
    Overflow = 75,
    /// A fast zeroing would be slow.
    NotSupported = 95,
    /// The server is being shut down, or the export was deleted.
    Shutdown = 108,
}

impl ErrorCode {
    /// Its number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }
}

/// Why an export could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The storage is full.
    #[error("no space is left")]
    NoSpace,
    /// The storage failed.
    #[error("the storage failed: {source}")]
    Io {
        /// How.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Changes are not allowed (any more).
    #[error("the export is read-only")]
    ReadOnly,
    /// The storage cannot make sense of the request.
    #[error("the request is invalid: {source}")]
    Invalid {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Zeroing would not be faster than a write.
    #[error("the operation is not supported")]
    NotSupported,
    /// The storage is being closed.
    #[error("the storage is being shut down")]
    ShuttingDown,
    /// The export is no more. The connection ends once what is under way is answered.
    #[error("the export was deleted")]
    Deleted,
}

impl ExportError {
    /// A failure of the storage.
    pub fn io(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Io { source: source.into() }
    }

    /// What the client is told.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoSpace => ErrorCode::NoSpace,
            Self::Io { .. } => ErrorCode::Io,
            Self::ReadOnly => ErrorCode::NotPermitted,
            Self::Invalid { .. } => ErrorCode::Invalid,
            Self::NotSupported => ErrorCode::NotSupported,
            Self::ShuttingDown | Self::Deleted => ErrorCode::Shutdown,
        }
    }

    /// The message for the client: no detail of the storage leaves the machine.
    pub(crate) fn public_message(&self) -> &'static str {
        match self {
            Self::NoSpace => "no space is left",
            Self::Io { .. } => "the storage failed; the server's log says how",
            Self::ReadOnly => "the export is read-only",
            Self::Invalid { .. } => "the storage refused the request",
            Self::NotSupported => "the operation is not supported",
            Self::ShuttingDown => "the storage is being shut down",
            Self::Deleted => "the export was deleted",
        }
    }
}

/// Block sizes that break the protocol's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockSizesError {
    /// See [`crate::BlockSizes::new`].
    #[error("minimum block size {minimum} is not a power of two up to 65536")]
    Minimum {
        /// What was given.
        minimum: u32,
    },
    /// See [`crate::BlockSizes::new`].
    #[error(
        "preferred block size {preferred} is not a power of two of at least 512 and of the \
         minimum, {minimum}"
    )]
    Preferred {
        /// What was given.
        preferred: u32,
        /// The minimum.
        minimum: u32,
    },
    /// See [`crate::BlockSizes::new`].
    #[error("maximum payload {maximum} is less than the preferred block size, {preferred}")]
    Maximum {
        /// What was given.
        maximum: u32,
        /// The preferred size.
        preferred: u32,
    },
}

/// A server configuration that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A limit of zero lets nothing through.
    #[error("{limit} must not be zero")]
    Zero {
        /// Its name in [`crate::ServerConfig`].
        limit: &'static str,
    },
    /// The largest payload must fit what a connection may hold.
    #[error(
        "max_payload_bytes ({max_payload_bytes}) must be at least 65536 and at most \
         max_held_bytes ({max_held_bytes})"
    )]
    Payload {
        /// The largest payload.
        max_payload_bytes: u32,
        /// What a connection may hold.
        max_held_bytes: usize,
    },
    /// All connections together must be allowed what one of them is.
    #[error(
        "max_held_bytes ({max_held_bytes}) must be at most max_held_total_bytes \
         ({max_held_total_bytes})"
    )]
    HeldTotal {
        /// What a connection may hold.
        max_held_bytes: usize,
        /// What all of them may.
        max_held_total_bytes: usize,
    },
}

/// Why a negotiation ended without an export being served.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed, or the client left.
    #[error("the connection failed during negotiation: {0}")]
    Io(#[from] io::Error),
    /// The client took too long.
    #[error("the negotiation did not end within {timeout_ms} ms")]
    Timeout {
        /// The configured limit.
        timeout_ms: u64,
    },
    /// The client set flags that the server did not offer.
    #[error("the client set unknown flags: {flags:#010x}")]
    UnknownFlags {
        /// All of its flags.
        flags: u32,
    },
    /// An option did not start with its magic number.
    #[error("an option starts with {found:#018x} instead of its magic number")]
    BadMagic {
        /// What it starts with.
        found: u64,
    },
    /// An option is so long that it is not worth skipping.
    #[error("option {option} has {len_bytes} bytes, more than is worth skipping")]
    OptionTooLong {
        /// The option.
        option: u32,
        /// Its length.
        len_bytes: u32,
    },
    /// The client keeps negotiating.
    #[error("the client sent more than {limit} options")]
    TooManyOptions {
        /// The limit.
        limit: usize,
    },
    /// The client did not agree to options, and sent one.
    #[error("option {option} from a client that does not speak fixed newstyle")]
    NotFixedNewstyle {
        /// The option.
        option: u32,
    },
    /// EXPORT_NAME named no export, and cannot be answered with an error.
    #[error("the client asked for an export that does not exist: {name:?}")]
    UnknownExport {
        /// What it asked for.
        name: String,
    },
    /// EXPORT_NAME before TLS, where nothing is served without it; cannot be answered with an error.
    #[error("the client asked for export {name:?} without TLS, which this server needs")]
    ExportNameWithoutTls {
        /// What it asked for.
        name: String,
    },
    /// Something that came with STARTTLS, before TLS: whoever put it there, it is not acted on.
    #[error("the client sent plaintext behind STARTTLS")]
    PlaintextBehindStartTls,
    /// TLS did not come about.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    /// EXPORT_NAME after extended headers, which the protocol forbids.
    #[error("the client used EXPORT_NAME after it had negotiated extended headers")]
    ExportNameAfterExtendedHeaders,
}

/// Why a connection ended that was serving an export.
#[derive(Debug, thiserror::Error)]
pub enum TransmissionError {
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The client left in the middle of a request.
    #[error("the client left in the middle of a request")]
    Truncated,
    /// A request did not start with its magic number.
    #[error("a request starts with {found:#010x} instead of its magic number, {expected:#010x}")]
    BadMagic {
        /// What it starts with.
        found: u32,
        /// What it should start with.
        expected: u32,
    },
    /// A payload is so long that it is not worth skipping.
    #[error("a request carries {len_bytes} bytes of payload, more than is worth skipping")]
    PayloadTooLong {
        /// Its length.
        len_bytes: u64,
    },
    /// The client kept others waiting for memory.
    #[error("the client stalled with {held_bytes} bytes of memory that others wait for")]
    Stalled {
        /// What it held.
        held_bytes: usize,
    },
}

/// Why a connection ended other than by the client's or the server's wish.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Before an export was served.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// While an export was served.
    #[error(transparent)]
    Transmission(#[from] TransmissionError),
}

/// A process that listens on a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOwner {
    /// Its number.
    pub pid: i32,
    /// What it is called; empty if that cannot be known.
    pub name: String,
}

fn owner(listener: Option<&SocketOwner>) -> String {
    match listener {
        Some(SocketOwner { pid, name }) if name.is_empty() => format!("process {pid}"),
        Some(SocketOwner { pid, name }) => format!("process {pid} ({name})"),
        None => "another server".to_owned(),
    }
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The limits make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No address was given.
    #[error("there is no address to listen on")]
    NoAddress,
    /// A TCP address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A unix socket cannot be made.
    #[error("cannot listen on unix socket {path}: {source}")]
    Unix {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A unix socket cannot be opened to whom it should be.
    #[error("cannot set group and mode of unix socket {path}: {source}")]
    UnixPermissions {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A server answers on the unix socket.
    #[error(
        "{} is listening on unix socket {path} already; stop it or choose another path",
        owner(.listener.as_ref())
    )]
    UnixInUse {
        /// The socket's path.
        path: PathBuf,
        /// Who listens, if that can be known.
        listener: Option<SocketOwner>,
    },
    /// A socket that the service manager passed cannot be used.
    #[error("cannot use a socket that was passed by the service manager: {source}")]
    Passed {
        /// Why.
        source: io::Error,
    },
    /// What the service manager passed is no address for clients.
    #[error(
        "the service manager passed something other than a listening stream socket (TCP, or unix \
         with a path); see ListenStream= of its socket unit"
    )]
    PassedOther,
    /// Something else lies where the unix socket should be.
    #[error("{path} exists and is not a socket; remove it or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
}

/// Why a listening address could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum ParseListenError {
    /// `unix:` without a path.
    #[error("no path after \"unix:\"")]
    NoPath,
    /// Neither form.
    #[error("{given:?} is neither unix:PATH nor HOST:PORT")]
    Form {
        /// What was given.
        given: String,
    },
    /// The port is not a number up to 65535.
    #[error("{port:?} is not a port number")]
    Port {
        /// What stands for the port.
        port: String,
    },
    /// The host has no address.
    #[error("cannot find the address of host {host:?}: {source}")]
    Host {
        /// The host.
        host: String,
        /// Why.
        source: io::Error,
    },
}

/// Why TLS credentials could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is not a sound PEM file: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There should be a certificate.
    #[error("{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be used.
    #[error("a certificate in {path} cannot be used: {source}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There should be a private key.
    #[error(
        "{path} holds no private key in PEM form that is not encrypted (-----BEGIN PRIVATE KEY-----)"
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A private key cannot be used.
    #[error("the private key in {path} cannot be used: {source}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key is another certificate's.
    #[error("the private key in {key} does not belong to the first certificate in {certificate}")]
    KeyMismatch {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
    },
}
