//! One client, from its greeting to its end.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    config::Limits,
    error::{ConnectionError, HandshakeError, TransmissionError},
    export::Catalog,
    handshake::{Negotiated, Protection, greet, negotiate},
    identity::ClientIdentity,
    session::Session,
    shutdown::ShutdownSignal,
    tls::{Encrypted, TlsMode},
    transmission::{Ending, transmit},
};

/// Serves one client over any byte stream: negotiates, then serves the export that it chose.
///
/// A shutdown ends a negotiation at once, and transmission when all requests under way are done.
/// Must be called within a tokio runtime.
pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    catalog: &dyn Catalog,
    limits: &Limits,
    mut shutdown: ShutdownSignal,
) -> Result<Ending, ConnectionError> {
    match open(stream, catalog, limits, &mut shutdown).await? {
        Opening::Opened(opened) => Ok(opened.serve("a stream", limits, shutdown).await?),
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
    catalog: &dyn Catalog,
    limits: &Limits,
    shutdown: &mut ShutdownSignal,
) -> Result<Opening<S>, HandshakeError> {
    let timeout_ms = limits.config.handshake_timeout_ms;
    let in_time = tokio::time::timeout(
        Duration::from_millis(timeout_ms),
        open_without_limit(stream, catalog, limits),
    );
    tokio::select! {
        biased;
        _ = shutdown.begun() => Ok(Opening::Ended(Ending::Shutdown)),
        opening = in_time => opening.unwrap_or(Err(HandshakeError::Timeout { timeout_ms })),
    }
}

async fn open_without_limit<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    catalog: &dyn Catalog,
    limits: &Limits,
) -> Result<Opening<S>, HandshakeError> {
    let config = &limits.config;
    let flags = greet(&mut stream).await?;
    let protection = match limits.tls.as_ref().map(|tls| tls.mode()) {
        None => Protection::Unavailable,
        Some(TlsMode::Optional) => Protection::Offered,
        Some(TlsMode::Required) => Protection::Demanded,
    };
    let anonymous = ClientIdentity::anonymous();
    let negotiated = negotiate(&mut stream, flags, protection, &anonymous, catalog, config).await?;
    let (stream, negotiated, client) = match (negotiated, &limits.tls) {
        (Negotiated::StartTls, Some(tls)) => {
            let (stream, client) = tls.accept(stream).await.map_err(HandshakeError::Tls)?;
            let mut stream = Box::new(stream);
            let protection = Protection::InForce;
            let negotiated =
                negotiate(&mut *stream, flags, protection, &client, catalog, config).await?;
            (Stream::Encrypted(stream), negotiated, client)
        }
        (negotiated, _) => (Stream::Plain(stream), negotiated, anonymous),
    };
    let Negotiated::Session(session) = negotiated else {
        return Ok(Opening::Ended(Ending::ClientLeft));
    };
    Ok(Opening::Opened(Opened { stream, session, client }))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Opened<S> {
    /// Serves the export until the client leaves, breaks the protocol, or the server shuts down. The
    /// log says who `peer` is: at the level info it has a line for the beginning and one for the end.
    pub(crate) async fn serve(
        self,
        peer: &str,
        limits: &Limits,
        shutdown: ShutdownSignal,
    ) -> Result<Ending, TransmissionError> {
        let Self { stream, session, client } = self;
        let (export, started) = (session.name.clone(), Instant::now());
        tracing::info!(
            peer,
            export,
            size_bytes = session.rules.size_bytes,
            replies = session.rules.style.name(),
            tls = matches!(stream, Stream::Encrypted(_)),
            %client,
            "connected"
        );
        let ending = match stream {
            Stream::Plain(stream) => transmit(stream, session, limits, shutdown).await,
            Stream::Encrypted(stream) => transmit(stream, session, limits, shutdown).await,
        }?;
        let seconds = started.elapsed().as_secs();
        tracing::info!(peer, export, seconds, reason = %ending, "disconnected");
        Ok(ending)
    }
}
