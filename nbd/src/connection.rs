//! One client, from its greeting to its end.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    config::ServerConfig,
    error::ConnectionError,
    export::Catalog,
    handshake::negotiate,
    shutdown::ShutdownSignal,
    transmission::{Ending, transmit},
};

/// Serves one client over any byte stream: negotiates, then serves the export that it chose.
///
/// A shutdown ends a negotiation at once, and transmission when all requests under way are done.
/// Must be called within a tokio runtime.
pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    catalog: &dyn Catalog,
    config: &ServerConfig,
    mut shutdown: ShutdownSignal,
) -> Result<Ending, ConnectionError> {
    config.check()?;
    let negotiated = tokio::select! {
        biased;
        _ = shutdown.begun() => return Ok(Ending::Shutdown),
        negotiated = negotiate(&mut stream, catalog, config) => negotiated?,
    };
    let Some(session) = negotiated else { return Ok(Ending::ClientLeft) };
    tracing::info!(
        export = session.name,
        size_bytes = session.rules.size_bytes,
        style = ?session.rules.style,
        "serving"
    );
    Ok(transmit(stream, session, config, shutdown).await?)
}
