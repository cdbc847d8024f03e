//! `siltstone serve`.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, Tuning, VolumeInfo};
use siltstone_nbd::{Drained, Limits, Listen, Server, ServerConfig, ServerError};
use tokio::sync::oneshot;

use crate::{
    access::Access,
    args::{DEFAULT_LISTEN, NewVolume, ServeArguments, pool::CompressionArguments},
    client_commands,
    connected::ConnectedVolumes,
    control::server::ControlServer,
    errors::CliError,
    export_adapter::PoolCatalog,
    interrupt::ServerSignals,
    log::Log,
    monitor::{Monitor, Watched, traffic::VolumeTraffic},
    open, open_files,
    output::print,
    plural::count,
    reload::Reload,
    scrub::BackgroundScrub,
    service_manager,
    size::{Size, human},
    volume,
};

/// How long clients may take to have their requests answered at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn run(arguments: &ServeArguments, log: &Log) -> Result<(), CliError> {
    let started = SystemTime::now();
    let passed = service_manager::passed_sockets()?;
    // Before anybody can know of this server, so that no signal is missed.
    let signals = ServerSignals::catch()?;
    let access = Access::new(&arguments.access, &arguments.listen)?;
    let path = &arguments.pool.path;
    service_manager::starting(&path.to_string_lossy());
    open_files::allow_connections(most_connections(arguments, passed.len()));
    let new_pool = create_pool_if_missing(arguments)?;
    let pool = Arc::new(open_pool(arguments)?);
    create_missing(&pool, &arguments.create)?;
    let scrub =
        arguments.scrub.map(|rate| BackgroundScrub::start(&pool, rate.0, arguments.scrub_every.0));
    let scrub = scrub.transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(system("start threads"))?;
    let connected = Arc::default();
    // Commands that only look at a pool that is open for reading share it without a server.
    let control = match arguments.read_only {
        true => None,
        false => ControlServer::start(&pool, &connected, &arguments.pool)?,
    };
    let traffic = arguments.metrics.map(|_| Arc::<VolumeTraffic>::default());
    let allowed = Arc::clone(&access.allowed);
    let catalog =
        PoolCatalog::new(Arc::clone(&pool), Arc::clone(&connected), allowed, traffic.clone());
    let serving = Serving {
        pool: &pool,
        catalog: Arc::new(catalog),
        connected,
        traffic,
        arguments,
        access: &access,
        signals,
        log,
        started,
    };
    let served = runtime.block_on(serving.serve(passed, control.as_ref(), new_pool));
    drop(serving);
    drop(runtime);
    if let Some(control) = control {
        // Who was never served is not waited for.
        control.wait(*served.as_ref().unwrap_or(&Instant::now()));
    }
    drop(scrub);
    let closed = close(pool, path);
    // Why it was not served matters more.
    served.map(drop).and(closed)
}

fn close(pool: Arc<Pool>, path: &Path) -> Result<(), CliError> {
    let Some(pool) = Arc::into_inner(pool) else {
        tracing::warn!("the pool is left as it is, and recovers when it is opened");
        return Ok(());
    };
    let started = Instant::now();
    pool.close()?;
    let milliseconds = started.elapsed().as_millis() as u64;
    tracing::info!(pool = %path.display(), milliseconds, "closed the pool");
    Ok(())
}

/// A pool that was made to be served: its file is removed if it is not.
struct NewPool(Option<PathBuf>);

impl NewPool {
    /// It is served.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for NewPool {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Why it is not served matters more than a failure to clean up.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn create_pool_if_missing(arguments: &ServeArguments) -> Result<NewPool, CliError> {
    let path = &arguments.pool.path;
    let (Some(size), Ok(false)) = (arguments.size, path.try_exists()) else {
        return Ok(NewPool(None));
    };
    let options = CreateOptions { size_bytes: Some(size.0), ..CreateOptions::default() };
    open::create(path, &options)?;
    tracing::info!(pool = %path.display(), size = human(size.0), "created the pool");
    Ok(NewPool(Some(path.clone())))
}

fn open_pool(arguments: &ServeArguments) -> Result<Pool, CliError> {
    let path = &arguments.pool.path;
    let tuning = Tuning::default();
    let or = |size: Option<Size>, default| size.map_or(default, Size::memory_bytes);
    let tuning = Tuning {
        staging_bytes: or(arguments.staging, tuning.staging_bytes),
        frame_cache_bytes: or(arguments.frame_cache, tuning.frame_cache_bytes),
        page_cache_bytes: or(arguments.page_cache, tuning.page_cache_bytes),
        ..tuning
    };
    let read_only = arguments.read_only;
    let started = Instant::now();
    let pool = open::open_to_serve(&arguments.pool, &OpenOptions { read_only, tuning })?;
    tracing::info!(
        pool = %path.display(),
        version = env!("CARGO_PKG_VERSION"),
        size = human(pool.size_bytes()),
        volumes = pool.volumes().len(),
        read_only,
        milliseconds = started.elapsed().as_millis() as u64,
        "opened the pool"
    );
    match (pool.size_bytes(), arguments.size) {
        (size_bytes, Some(Size(given_bytes))) if given_bytes != size_bytes => {
            Err(CliError::PoolDiffers { path: path.clone(), size_bytes, given_bytes })
        }
        _ => Ok(pool),
    }
}

/// Creates the volumes that are not there.
pub(crate) fn create_missing(pool: &Pool, volumes: &[NewVolume]) -> Result<(), CliError> {
    volumes.iter().try_for_each(|new| create_if_missing(pool, new))
}

fn create_if_missing(pool: &Pool, new: &NewVolume) -> Result<(), CliError> {
    match pool.volume(&new.name) {
        Ok(volume) if volume.size_bytes() == new.size.0 => Ok(()),
        Ok(_) => Err(volume::differs(pool, &new.name)),
        Err(EngineError::NoSuchVolume { .. }) => {
            volume::create(pool, &new.name, new.size.0, CompressionArguments::default())?;
            tracing::info!(volume = new.name, size = human(new.size.0), "created a volume");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// A server at work.
struct Serving<'a> {
    pool: &'a Arc<Pool>,
    catalog: Arc<PoolCatalog>,
    connected: Arc<ConnectedVolumes>,
    /// What clients do, if somebody watches.
    traffic: Option<Arc<VolumeTraffic>>,
    arguments: &'a ServeArguments,
    access: &'a Access,
    signals: ServerSignals,
    log: &'a Log,
    started: SystemTime,
}

impl Serving<'_> {
    /// Serves until a signal says to stop; then lets clients finish. Returns until when commands may.
    async fn serve(
        &self,
        passed: Vec<OwnedFd>,
        control: Option<&ControlServer>,
        new_pool: NewPool,
    ) -> Result<Instant, CliError> {
        let (arguments, access) = (self.arguments, self.access);
        let input_ended = match arguments.stop_at_eof {
            true => Some(end_of_input()?),
            false => None,
        };
        let input_ended = async {
            match input_ended {
                Some(ended) => _ = ended.await,
                None => std::future::pending().await,
            }
        };
        self.catalog.serve_only(&arguments.export);
        let listen = match arguments.listen.as_slice() {
            [] if passed.is_empty() => vec![Listen::Tcp(DEFAULT_LISTEN)],
            listen => listen.to_vec(),
        };
        let catalog = Arc::clone(&self.catalog);
        let (limits, sockets) = (limits(arguments, access)?, access.sockets);
        let server = Server::bind_beside(passed, &listen, catalog, limits, sockets).await?;
        // Also what the service manager listens on.
        access.refuse_plaintext(&arguments.access, server.addresses())?;
        let monitor = self.monitor(&server).await?;
        new_pool.keep();
        self.warn_of_missing_volumes();
        let watched_at = monitor.as_ref().map(Monitor::address);
        print(&announcement(&self.catalog.volumes(), server.addresses(), access, watched_at))?;
        service_manager::ready(&self.status());
        let watchdog = tokio::spawn(service_manager::watchdog());
        let reload = async {
            let reload = Reload::new(arguments);
            loop {
                self.signals.reload().await;
                service_manager::reloading();
                reload.run(self.pool, &self.catalog, access, self.log);
                service_manager::ready(&self.status());
            }
        };
        tokio::select! {
            () = self.signals.stop() => {}
            () = input_ended => tracing::info!("standard input has ended"),
            never = reload => never,
        }
        service_manager::stopping();
        tracing::info!(connections = server.connections(), "stopping");
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        if let Some(control) = control {
            control.begin_stop();
        }
        let Drained { finished, cut_off } = server.shutdown(DRAIN_TIMEOUT).await;
        watchdog.abort();
        tracing::info!(finished, cut_off, "stopped serving");
        Ok(deadline)
    }

    /// A misspelled name would leave a volume open to everybody, or serve nothing.
    fn warn_of_missing_volumes(&self) {
        for volume in self.access.allowed.exports() {
            if self.pool.volume(&volume).is_err() {
                tracing::warn!(volume, "--allow is for a volume that does not exist (yet)");
            }
        }
        for name in &self.arguments.export {
            if self.pool.volume(name).is_err() {
                tracing::warn!(
                    name,
                    "--export is for a volume or snapshot that does not exist (yet)"
                );
            }
        }
    }

    /// Watches the server, if somebody wants to see what it does.
    async fn monitor(&self, server: &Server) -> Result<Option<Monitor>, CliError> {
        let Some(address) = self.arguments.metrics else { return Ok(None) };
        let watched = Watched {
            pool: Arc::clone(self.pool),
            pool_path: self.arguments.pool.path.clone(),
            connections: server.watch_connections(),
            connected: Arc::clone(&self.connected),
            traffic: self.traffic.clone().unwrap_or_default(),
            events: self.log.events().cloned().unwrap_or_default(),
            started: self.started,
        };
        Ok(Some(Monitor::start(address, watched).await?))
    }

    /// What service managers show of a server.
    fn status(&self) -> String {
        let volumes = count(self.catalog.volumes().len() as u64, "volume");
        format!("Serving {volumes} of {}", self.arguments.pool.path.display())
    }
}

/// The connections that there can be at a time.
fn most_connections(arguments: &ServeArguments, passed_sockets: usize) -> u64 {
    let sockets = (arguments.listen.len() + passed_sockets).max(1) as u64;
    let half_open = u64::from(arguments.access.max_half_open) * sockets;
    u64::from(arguments.max_connections) + half_open
}

fn limits(arguments: &ServeArguments, access: &Access) -> Result<Limits, CliError> {
    let timeout = arguments.access.handshake_timeout.0;
    let limits = Limits::new(ServerConfig {
        max_connections: arguments.max_connections as usize,
        max_half_open: arguments.access.max_half_open as usize,
        // Of years at most: parsing saw to that.
        handshake_timeout_ms: timeout.as_millis() as u64,
        ..ServerConfig::default()
    });
    let limits = limits.map_err(ServerError::from)?;
    Ok(match &access.tls {
        Some(tls) => limits.with_tls(Arc::clone(tls)),
        None => limits,
    })
}

/// Resolves when standard input ends. The thread that reads it is left behind when the server
/// stops for another reason.
fn end_of_input() -> Result<oneshot::Receiver<()>, CliError> {
    let (ended, end) = oneshot::channel();
    let watch = move || {
        // An input that cannot be read has ended, too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    };
    let thread = std::thread::Builder::new().name("stdin".into()).spawn(watch);
    thread.map_err(system("start threads"))?;
    Ok(end)
}

/// What is served where. The last line says that clients can connect.
fn announcement(
    volumes: &[VolumeInfo],
    addresses: &[Listen],
    access: &Access,
    watched_at: Option<SocketAddr>,
) -> String {
    let mut text = String::new();
    if let Some(address) = watched_at {
        text += &format!("to look at: http://{address}/, metrics: http://{address}/metrics\n");
    }
    for address in addresses {
        text += &format!("listening on {address}\n");
    }
    for volume in volumes {
        text += &format!("volume '{}', {}:\n", volume.name, human(volume.size_bytes));
        for address in addresses {
            for command in client_commands::commands(address, &volume.name, access.needs_tls()) {
                text += &format!("    {command}\n");
            }
        }
    }
    if access.needs_tls() {
        text += client_commands::TLS_DIRECTORY_NOTE;
    }
    text + "ready\n"
}

fn system(action: &'static str) -> impl Fn(std::io::Error) -> CliError {
    move |source| CliError::System { action, source }
}
