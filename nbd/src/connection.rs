//! One client, from its greeting to its end.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    config::Limits,
    error::{ConnectionError, HandshakeError, TransmissionError},
    export::Catalog,
    handshake::{Client, Negotiated, Protection, greet, negotiate},
    identity::ClientIdentity,
    session::Session,
    shutdown::ShutdownSignal,
    tls::{Encrypted, TlsMode},
    transmission::{Ending, transmit},
};

/// Who a client is that is not at a socket of the server's.
const A_STREAM: &str = "a stream";

/// Serves one client over any byte stream: negotiates, then serves the export that it chose.
///
/// A shutdown ends a negotiation at once, and transmission when all requests under way are done. Of a
/// stream, the log tells at the level debug that it is served: whoever made it knows what for.
/// Must be called within a tokio runtime.
pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    catalog: &dyn Catalog,
    limits: &Limits,
    mut shutdown: ShutdownSignal,
) -> Result<Ending, ConnectionError> {
    match open(stream, A_STREAM, catalog, limits, &mut shutdown).await? {
        Opening::Opened(opened) => Ok(opened.serve(None, limits, shutdown).await?),
        Opening::Ended(ending) => Ok(ending),
    }
}

/// How a negotiation ended.
pub(crate) enum Opening<S> {
    /// An export is to be served.
    Opened(Opened<S>),
    /// None is.
    Ended(Ending),
}

/// A connection whose client has chosen an export.
pub(crate) struct Opened<S> {
    stream: Stream<S>,
    session: Session,
    client: ClientIdentity,
}

enum Stream<S> {
    Plain(S),
    /// On the heap, so that connections in plaintext need no room for it.
    Encrypted(Box<Encrypted<S>>),
}

/// Negotiates, at first in plaintext. TLS and all that comes after it must come in time, too.
pub(crate) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: &str,
    catalog: &dyn Catalog,
    limits: &Limits,
    shutdown: &mut ShutdownSignal,
) -> Result<Opening<S>, HandshakeError> {
    let timeout_ms = limits.config.handshake_timeout_ms;
    let in_time = tokio::time::timeout(
        Duration::from_millis(timeout_ms),
        open_without_limit(stream, peer, catalog, limits),
    );
    tokio::select! {
        biased;
        _ = shutdown.begun() => Ok(Opening::Ended(Ending::Shutdown)),
        opening = in_time => opening.unwrap_or(Err(HandshakeError::Timeout { timeout_ms })),
    }
}

async fn open_without_limit<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    peer: &str,
    catalog: &dyn Catalog,
    limits: &Limits,
) -> Result<Opening<S>, HandshakeError> {
    let flags = greet(&mut stream).await?;
    let protection = match limits.tls.as_ref().map(|tls| tls.mode()) {
        None => Protection::Unavailable,
        Some(TlsMode::Optional) => Protection::Offered,
        Some(TlsMode::Required) => Protection::Demanded,
    };
    let client = Client { peer, identity: ClientIdentity::anonymous() };
    let negotiated = negotiate(&mut stream, flags, protection, &client, catalog, limits).await?;
    let (stream, negotiated, client) = match (negotiated, &limits.tls) {
        (Negotiated::StartTls, Some(tls)) => {
            let (stream, identity) = tls.accept(stream).await.map_err(HandshakeError::Tls)?;
            let client = Client { peer, identity };
            let mut stream = Box::new(stream);
            let protection = Protection::InForce;
            let negotiated =
                negotiate(&mut *stream, flags, protection, &client, catalog, limits).await?;
            (Stream::Encrypted(stream), negotiated, client)
        }
        (negotiated, _) => (Stream::Plain(stream), negotiated, client),
    };
    let Negotiated::Session(session) = negotiated else {
        return Ok(Opening::Ended(Ending::ClientLeft));
    };
    Ok(Opening::Opened(Opened { stream, session, client: client.identity }))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Opened<S> {
    /// Serves the export until the client leaves, breaks the protocol, or the server shuts down. The
    /// log says who `peer` is, unless it is a stream of the caller's: at the level info it has a line for the
    /// beginning and one for the end.
    pub(crate) async fn serve(
        self,
        peer: Option<&str>,
        limits: &Limits,
        shutdown: ShutdownSignal,
    ) -> Result<Ending, TransmissionError> {
        let Self { stream, session, client } = self;
        let (export, started) = (session.name.clone(), Instant::now());
        let (size_bytes, replies) = (session.rules.size_bytes, session.rules.style.name());
        let tls = matches!(stream, Stream::Encrypted(_));
        match peer {
            Some(peer) => {
                tracing::info!(peer, export, size_bytes, replies, tls, %client, "connected");
            }
            None => tracing::debug!(export, size_bytes, replies, tls, %client, "serving a stream"),
        }
        let ending = match stream {
            Stream::Plain(stream) => transmit(stream, session, limits, shutdown).await,
            Stream::Encrypted(stream) => transmit(stream, session, limits, shutdown).await,
        }?;
        let seconds = started.elapsed().as_secs();
        match peer {
            Some(peer) => {
                tracing::info!(peer, export, seconds, reason = %ending, "disconnected");
            }
            None => tracing::debug!(export, seconds, reason = %ending, "a stream has ended"),
        }
        Ok(ending)
    }
}
