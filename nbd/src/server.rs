//! The server: listens, accepts within its limits, serves each client in a task, shuts down.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinHandle, JoinSet},
    time::Instant,
};

use crate::{
    config::ServerConfig,
    connection::serve_stream,
    error::ServerError,
    export::Catalog,
    listen::{Client, Listen, Listener},
    shutdown::{Shutdown, ShutdownSignal},
};

/// How long to wait after a failed accept (usually: out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A running server. Dropping it ends every connection at once; [`Server::shutdown`] is gentle.
pub struct Server {
    addresses: Vec<Listen>,
    shutdown: Shutdown,
    permits: Arc<Semaphore>,
    max_connections: usize,
    acceptors: Vec<JoinHandle<Drained>>,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections that finished what was under way.
    pub finished: usize,
    /// Connections that were cut off when the time was up.
    pub cut_off: usize,
}

impl Server {
    /// Listens on every address and serves the catalog's exports in tasks of the current runtime.
    pub async fn bind(
        listen: &[Listen],
        catalog: Arc<dyn Catalog>,
        config: ServerConfig,
    ) -> Result<Self, ServerError> {
        config.check()?;
        if listen.is_empty() {
            return Err(ServerError::NoAddress);
        }
        let shutdown = Shutdown::new();
        let permits = Arc::new(Semaphore::new(config.max_connections));
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in listen {
            let (listener, bound) = Listener::bind(address).await?;
            tracing::info!(address = %bound, "listening");
            listeners.push(listener);
            addresses.push(bound);
        }
        let acceptors = listeners
            .into_iter()
            .map(|listener| {
                let acceptor = Acceptor {
                    catalog: catalog.clone(),
                    config,
                    signal: shutdown.signal(),
                    permits: permits.clone(),
                    connections: JoinSet::new(),
                };
                tokio::spawn(acceptor.run(listener))
            })
            .collect();
        let max_connections = config.max_connections;
        Ok(Self { addresses, shutdown, permits, max_connections, acceptors })
    }

    /// Where it listens, with the ports that the system chose; in the order given to
    /// [`Server::bind`].
    #[must_use]
    pub fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// How many clients are connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.max_connections.saturating_sub(self.permits.available_permits())
    }

    /// Accepts no more, lets every connection finish and answer what is under way, and closes.
    /// What is not done within `timeout` is cut off.
    pub async fn shutdown(mut self, timeout: Duration) -> Drained {
        self.shutdown.begin(Instant::now() + timeout);
        let mut total = Drained::default();
        for acceptor in &mut self.acceptors {
            match acceptor.await {
                Ok(drained) => {
                    total.finished += drained.finished;
                    total.cut_off += drained.cut_off;
                }
                Err(error) => tracing::error!(%error, "an acceptor failed"),
            }
        }
        total
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // With its acceptor, every connection's task is dropped.
        self.acceptors.iter().for_each(JoinHandle::abort);
    }
}

/// Accepts on one socket.
struct Acceptor {
    catalog: Arc<dyn Catalog>,
    config: ServerConfig,
    signal: ShutdownSignal,
    permits: Arc<Semaphore>,
    connections: JoinSet<()>,
}

impl Acceptor {
    async fn run(mut self, listener: Listener) -> Drained {
        let mut signal = self.signal.clone();
        let mut begun = std::pin::pin!(signal.begun());
        let deadline = loop {
            tokio::select! {
                biased;
                deadline = &mut begun => break deadline,
                Some(ended) = self.connections.join_next() => report(&ended),
                accepted = listener.accept() => match accepted {
                    Ok((Client::Tcp(stream), peer)) => self.serve(stream, peer),
                    Ok((Client::Unix(stream), peer)) => self.serve(stream, peer),
                    Err(error) => {
                        tracing::error!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
            }
        };
        drop(listener);
        self.drain(deadline).await
    }

    fn serve<S>(&mut self, stream: S, peer: String)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            let max_connections = self.config.max_connections;
            tracing::warn!(peer, max_connections, "connection refused: too many connections");
            return;
        };
        let client = serve_client(
            stream,
            peer,
            self.catalog.clone(),
            self.config,
            self.signal.clone(),
            permit,
        );
        self.connections.spawn(client);
    }

    async fn drain(mut self, deadline: Instant) -> Drained {
        let mut drained = Drained::default();
        while let Ok(Some(ended)) =
            tokio::time::timeout_at(deadline, self.connections.join_next()).await
        {
            report(&ended);
            drained.finished += 1;
        }
        drained.cut_off = self.connections.len();
        if drained.cut_off > 0 {
            tracing::warn!(connections = drained.cut_off, "cut off: the time for shutdown is up");
        }
        self.connections.shutdown().await;
        drained
    }
}

async fn serve_client<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: String,
    catalog: Arc<dyn Catalog>,
    config: ServerConfig,
    signal: ShutdownSignal,
    _permit: OwnedSemaphorePermit,
) {
    tracing::debug!(peer, "connected");
    match serve_stream(stream, &*catalog, &config, signal).await {
        Ok(ending) => tracing::debug!(peer, ?ending, "disconnected"),
        Err(error) => tracing::warn!(peer, %error, "connection closed"),
    }
}

/// A panic of one connection is reported, and harms no other.
fn report(ended: &Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}
