//! `siltstone serve --metrics`: what a server does, for programs and for people. It can be looked at, and
//! nothing can be changed.
//!
//! - `http` takes requests on a socket of its own, within bounds; `site` knows what is where.
//! - `metrics` is the page for Prometheus, in the format of `openmetrics`; `status` is the same as JSON;
//!   `page/` the dashboard, which is part of the program.
//! - `observation` is what both tell: the pool's figures at once, and with them what only a walk over the
//!   map tells (`content`), which is made when somebody looks, and seldom enough.
//! - `series` keeps the last quarter of an hour, a point a second; `events` the last lines of the log that
//!   matter; `traffic` what clients did with each volume.
//!
//! Everything here has a bound in memory, and when it is dropped nothing of it holds on to the pool.

pub(crate) mod address;
mod content;
pub(crate) mod events;
mod http;
mod metrics;
mod observation;
mod openmetrics;
mod series;
mod site;
mod status;
pub(crate) mod traffic;

use std::{net::SocketAddr, sync::Arc};

use siltstone_nbd::ServerError;
use tokio::{net::TcpListener, task::JoinHandle};

pub(crate) use self::observation::Watched;
use self::{content::ContentWalk, series::Sampler, site::Site};
use crate::errors::CliError;

/// Watches a server, and tells what it sees, until it is dropped.
pub(crate) struct Monitor {
    address: SocketAddr,
    serving: JoinHandle<()>,
    _sampler: Sampler,
    _content: ContentWalk,
}

impl Monitor {
    /// Listens on `address`. Must be called within a tokio runtime.
    pub(crate) async fn start(address: SocketAddr, watched: Watched) -> Result<Self, CliError> {
        let failed = |source| CliError::Server(ServerError::Tcp { address, source });
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let threads = |source| CliError::System { action: "start threads", source };
        let watched = Arc::new(watched);
        let sampler = Sampler::start(&watched).map_err(threads)?;
        let content = ContentWalk::start(&watched.pool).map_err(threads)?;
        let site = Site::new(watched, sampler.series(), content.results());
        tracing::info!(%address, "serving metrics");
        let serving = tokio::spawn(http::serve(listener, Arc::new(site)));
        Ok(Self { address, serving, _sampler: sampler, _content: content })
    }

    /// Where it listens, with the port that the system chose.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Its connections go with it.
        self.serving.abort();
    }
}
