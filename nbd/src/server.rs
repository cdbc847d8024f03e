//! The server: listens, accepts within its limits, serves each client in a task, shuts down.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::{JoinError, JoinHandle, JoinSet},
    time::Instant,
};

use crate::{
    config::{Limits, ServerConfig},
    connection::{Opening, open},
    error::{ConnectionError, ServerError},
    export::Catalog,
    half_open::{HalfOpen, Place},
    listen::{Listen, Listener, Socket, SocketPermissions},
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
    half_open: Arc<[Arc<HalfOpen>]>,
    acceptors: Vec<JoinHandle<Drained>>,
}

/// How many clients a server has, whatever becomes of it.
#[derive(Clone, Debug)]
pub struct Connections {
    permits: Arc<Semaphore>,
    limit: usize,
    half_open: Arc<[Arc<HalfOpen>]>,
}

impl Connections {
    /// How many there are.
    #[must_use]
    pub fn now(&self) -> usize {
        self.limit.saturating_sub(self.permits.available_permits())
    }

    /// How many there may be.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many others have not chosen an export yet, on all addresses.
    #[must_use]
    pub fn half_open(&self) -> usize {
        self.half_open.iter().map(|half_open| half_open.now()).sum()
    }

    /// How many of these were ended because too many others came after them.
    #[must_use]
    pub fn pushed_out(&self) -> u64 {
        self.half_open.iter().map(|half_open| half_open.pushed_out()).sum()
    }
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
    /// Listens on every address and serves the catalog's exports in tasks of the current runtime;
    /// without TLS, and on unix sockets for its own user alone.
    pub async fn bind(
        listen: &[Listen],
        catalog: Arc<dyn Catalog>,
        config: ServerConfig,
    ) -> Result<Self, ServerError> {
        Self::bind_with(listen, catalog, Limits::new(config)?, SocketPermissions::default()).await
    }

    /// The same with TLS, if `limits` have it, and for others on unix sockets.
    pub async fn bind_with(
        listen: &[Listen],
        catalog: Arc<dyn Catalog>,
        limits: Limits,
        permissions: SocketPermissions,
    ) -> Result<Self, ServerError> {
        Self::bind_beside(Vec::new(), listen, catalog, limits, permissions).await
    }

    /// The same, and serves on sockets that listen already: those that a service manager has opened
    /// and passed. They come first in [`Server::addresses`].
    pub async fn bind_beside(
        passed: Vec<OwnedFd>,
        listen: &[Listen],
        catalog: Arc<dyn Catalog>,
        limits: Limits,
        permissions: SocketPermissions,
    ) -> Result<Self, ServerError> {
        if passed.is_empty() && listen.is_empty() {
            return Err(ServerError::NoAddress);
        }
        let shutdown = Shutdown::new();
        let max_connections = limits.config.max_connections;
        let permits = Arc::new(Semaphore::new(max_connections));
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for socket in passed {
            let (listener, address) = Listener::adopt(socket)?;
            tracing::info!(%address, "listening on a socket of the service manager's");
            listeners.push(listener);
            addresses.push(address);
        }
        for address in listen {
            let (listener, bound) = Listener::bind(address, permissions).await?;
            tracing::info!(address = %bound, "listening");
            listeners.push(listener);
            addresses.push(bound);
        }
        let of_address = || HalfOpen::new(limits.config.max_half_open);
        let half_open: Arc<[_]> = listeners.iter().map(|_| of_address()).collect();
        let acceptors = listeners
            .into_iter()
            .zip(half_open.iter())
            .map(|(listener, half_open)| {
                let acceptor = Acceptor {
                    catalog: catalog.clone(),
                    limits: limits.clone(),
                    signal: shutdown.signal(),
                    permits: permits.clone(),
                    half_open: half_open.clone(),
                    connections: JoinSet::new(),
                };
                tokio::spawn(acceptor.run(listener))
            })
            .collect();
        Ok(Self { addresses, shutdown, permits, max_connections, half_open, acceptors })
    }

    /// Where it listens, with the ports that the system chose; in the order given to
    /// [`Server::bind`].
    #[must_use]
    pub fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// How many clients are connected that have chosen an export.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.watch_connections().now()
    }

    /// The same, for whoever watches the server.
    #[must_use]
    pub fn watch_connections(&self) -> Connections {
        let (permits, half_open) = (self.permits.clone(), self.half_open.clone());
        Connections { permits, limit: self.max_connections, half_open }
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
    limits: Limits,
    signal: ShutdownSignal,
    permits: Arc<Semaphore>,
    half_open: Arc<HalfOpen>,
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
                    Ok((Socket::Tcp(stream), peer)) => self.serve(stream, peer),
                    Ok((Socket::Unix(stream), peer)) => self.serve(stream, peer),
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
        if self.permits.available_permits() == 0 {
            return refuse(&peer, &self.limits);
        }
        let client = Client {
            peer,
            catalog: self.catalog.clone(),
            limits: self.limits.clone(),
            signal: self.signal.clone(),
            permits: self.permits.clone(),
        };
        self.connections.spawn(client.serve(stream, self.half_open.enter()));
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

/// What serving one client takes.
struct Client {
    peer: String,
    catalog: Arc<dyn Catalog>,
    limits: Limits,
    signal: ShutdownSignal,
    permits: Arc<Semaphore>,
}

impl Client {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S, place: Place) {
        let peer = &self.peer;
        tracing::debug!(peer, "accepted a connection");
        match self.open_and_serve(stream, place).await {
            Ok(()) => {}
            Err(ConnectionError::Handshake(error)) => {
                self.limits.turned_away.failed(peer, &error);
            }
            Err(ConnectionError::Transmission(error)) => {
                tracing::warn!(peer, %error, "connection closed");
            }
        }
    }

    /// Ends early when others need the place more.
    async fn open_and_serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        mut place: Place,
    ) -> Result<(), ConnectionError> {
        let (limits, mut signal) = (&self.limits, self.signal.clone());
        let opening = tokio::select! {
            biased;
            () = place.evicted() => {
                tracing::debug!(peer = self.peer, "ended to make room for another client");
                return Ok(());
            }
            opening = open(stream, &self.peer, &*self.catalog, limits, &mut signal) => opening?,
        };
        drop(place);
        let opened = match opening {
            Opening::Opened(opened) => opened,
            Opening::Ended(_) => return Ok(()),
        };
        let Ok(_permit) = self.permits.try_acquire() else {
            refuse(&self.peer, limits);
            return Ok(());
        };
        opened.serve(Some(&self.peer), limits, signal).await?;
        Ok(())
    }
}

fn refuse(peer: &str, limits: &Limits) {
    limits.turned_away.crowded_out(peer, limits.config.max_connections);
}

/// A panic of one connection is reported, and harms no other.
fn report(ended: &Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}
