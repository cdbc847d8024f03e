//! `siltstone serve`.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use siltstone_engine::{CreateOptions, EngineError, OpenOptions, Pool, Tuning};
use siltstone_nbd::{Listen, Server, ServerConfig};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

use crate::{
    args::{NewVolume, ServeArguments, pool::CompressionArguments},
    client_commands,
    connected::ConnectedVolumes,
    control::server::ControlServer,
    errors::CliError,
    export_adapter::PoolCatalog,
    open, open_files,
    output::print,
    scrub::BackgroundScrub,
    size::{Size, human},
    volume,
};

/// How long clients may take to have their requests answered at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn run(arguments: &ServeArguments) -> Result<(), CliError> {
    open_files::allow_connections(arguments.max_connections);
    let new_pool = create_pool_if_missing(arguments)?;
    let pool = open_pool(arguments)?;
    for new in &arguments.create {
        create_if_missing(&pool, new)?;
    }
    let pool = Arc::new(pool);
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
    let deadline =
        runtime.block_on(serve(&pool, &connected, arguments, control.as_ref(), new_pool))?;
    drop(runtime);
    if let Some(control) = control {
        control.wait(deadline);
    }
    drop(scrub);
    match Arc::into_inner(pool) {
        Some(pool) => {
            pool.close()?;
            tracing::info!("closed the pool");
        }
        None => tracing::warn!("the pool is left as it is, and recovers when it is opened"),
    }
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
    let pool = open::open_to_serve(
        &arguments.pool,
        &OpenOptions { read_only: arguments.read_only, tuning },
    )?;
    match (pool.size_bytes(), arguments.size) {
        (size_bytes, Some(Size(given_bytes))) if given_bytes != size_bytes => {
            Err(CliError::PoolDiffers { path: path.clone(), size_bytes, given_bytes })
        }
        _ => Ok(pool),
    }
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

/// Serves until a signal says to stop; then lets clients finish. Returns until when commands may.
async fn serve(
    pool: &Arc<Pool>,
    connected: &Arc<ConnectedVolumes>,
    arguments: &ServeArguments,
    control: Option<&ControlServer>,
    new_pool: NewPool,
) -> Result<Instant, CliError> {
    // Before anybody can know of this server, so that no signal is missed.
    let catch = |kind| signal(kind).map_err(system("catch signals"));
    let mut terminate = catch(SignalKind::terminate())?;
    let mut interrupt = catch(SignalKind::interrupt())?;
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
    let config = ServerConfig {
        max_connections: arguments.max_connections as usize,
        ..ServerConfig::default()
    };
    let catalog = Arc::new(PoolCatalog::new(Arc::clone(pool), Arc::clone(connected)));
    let server = Server::bind(&arguments.listen, catalog, config).await?;
    new_pool.keep();
    print(&announcement(pool, server.addresses()))?;
    tokio::select! {
        () = next(&mut terminate, &mut interrupt) => {}
        () = input_ended => tracing::info!("standard input has ended"),
    }
    tracing::info!(connections = server.connections(), "stopping");
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    if let Some(control) = control {
        control.begin_stop();
    }
    tokio::select! {
        drained = server.shutdown(DRAIN_TIMEOUT) => {
            tracing::info!(?drained, "stopped serving");
            Ok(deadline)
        }
        () = next(&mut terminate, &mut interrupt) => {
            tracing::warn!("stopped without waiting");
            Ok(Instant::now())
        }
    }
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

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What is served where. The last line says that clients can connect.
fn announcement(pool: &Pool, addresses: &[Listen]) -> String {
    let mut text = String::new();
    for address in addresses {
        text += &format!("listening on {address}\n");
    }
    for volume in pool.volumes() {
        text += &format!("volume '{}', {}:\n", volume.name, human(volume.size_bytes));
        for address in addresses {
            for command in client_commands::commands(address, &volume.name) {
                text += &format!("    {command}\n");
            }
        }
    }
    text + "ready\n"
}

fn system(action: &'static str) -> impl Fn(std::io::Error) -> CliError {
    move |source| CliError::System { action, source }
}
