//! The server's end: takes commands, and carries each out in a thread of its own.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use siltstone_engine::Pool;

use super::{
    message::{Answer, Failure, Refusal, Request},
    packet::{Connection, ControlError},
    place::{Listener, PoolIdentity},
    remote::Remote,
};
use crate::{
    args::pool::{PoolArgument, PoolCommand},
    connected::ConnectedVolumes,
    errors::CliError,
    on_pool::Access,
    waiting::{self, Direction},
};

/// Commands at a time.
const MAX_COMMANDS: usize = 16;
/// How long a client may take to send its command.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may not read what it is sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a failed accept (usually: out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Takes commands for a pool that is being served. Dropping it takes no more, and ends those under
/// way at their next step.
#[derive(Debug)]
pub(crate) struct ControlServer {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    listener: Listener,
    identity: PoolIdentity,
    connected: Arc<ConnectedVolumes>,
    stopping: Arc<AtomicBool>,
    /// How many commands are under way.
    running: Mutex<usize>,
    one_less: Condvar,
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, usize> {
        // A number is whole whatever panicked.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ControlServer {
    /// Starts to take commands, unless none are wanted, or no place for the socket can be had and
    /// none was asked for: clients are served all the same.
    pub(crate) fn start(
        pool: &Arc<Pool>,
        connected: &Arc<ConnectedVolumes>,
        argument: &PoolArgument,
    ) -> Result<Option<Self>, CliError> {
        let listener = match Listener::bind(argument) {
            Ok(Some(listener)) => listener,
            Ok(None) => return Ok(None),
            Err(error) if argument.control.is_some() => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "commands will not reach the pool while it is served");
                return Ok(None);
            }
        };
        let system = |action| move |source| CliError::System { action, source };
        let identity = PoolIdentity::of(&argument.path).map_err(system("find the pool"))?;
        tracing::info!(path = %listener.path().display(), "taking commands");
        let shared = Arc::new(Shared {
            listener,
            identity,
            connected: Arc::clone(connected),
            stopping: Arc::default(),
            running: Mutex::new(0),
            one_less: Condvar::new(),
        });
        let (pool, for_acceptor) = (Arc::clone(pool), Arc::clone(&shared));
        let accept = move || accept(&for_acceptor, &pool);
        let acceptor = thread::Builder::new().name("control".into()).spawn(accept);
        let acceptor = Some(acceptor.map_err(system("start threads"))?);
        Ok(Some(Self { shared, acceptor }))
    }

    /// Takes no more commands, and asks those under way to end.
    pub(crate) fn begin_stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.listener.close();
    }

    /// Waits until no command is under way any more, and nothing here holds on to the pool, but
    /// not after `deadline`.
    pub(crate) fn wait(mut self, deadline: Instant) {
        self.end_acceptor();
        let timeout = deadline.saturating_duration_since(Instant::now());
        let running = self.shared.running();
        let under_way = |running: &mut usize| *running > 0;
        let waited = self.shared.one_less.wait_timeout_while(running, timeout, under_way);
        let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *running > 0 {
            tracing::warn!(commands = *running, "cut off: the time for shutdown is up");
        }
    }

    /// From then on no command begins.
    fn end_acceptor(&mut self) {
        self.begin_stop();
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
        {
            tracing::error!("the thread that takes commands has panicked; please report this");
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.end_acceptor();
    }
}

/// Counts as a command under way.
struct Running(Arc<Shared>);

impl Running {
    /// Counts one more, if there may be.
    fn one_more(shared: &Arc<Shared>, limit: usize) -> Option<Self> {
        let mut running = shared.running();
        let has_room = *running < limit;
        *running += usize::from(has_room);
        has_room.then(|| Self(Arc::clone(shared)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        self.0.one_less.notify_all();
    }
}

fn accept(shared: &Arc<Shared>, pool: &Arc<Pool>) {
    loop {
        let accepted = shared.listener.accept();
        if shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let connection = match accepted {
            Ok(connection) => Arc::new(connection),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection for commands");
                thread::sleep(ACCEPT_RETRY);
                continue;
            }
        };
        let Some(running) = Running::one_more(shared, MAX_COMMANDS) else {
            refuse(&connection, Refusal::Busy { limit: MAX_COMMANDS });
            continue;
        };
        let pool = Arc::clone(pool);
        let converse = move || {
            // In this order: nothing of the pool is held when the command counts as ended.
            let running = running;
            let ended = converse(&connection, pool, &running.0);
            if let Err(refusal) = ended {
                refuse(&connection, refusal);
            }
        };
        let thread = thread::Builder::new().name("command".into()).spawn(converse);
        if let Err(error) = thread {
            tracing::error!(%error, "cannot start a thread for a command");
        }
    }
}

/// Receives a command and carries it out.
fn converse(connection: &Arc<Connection>, pool: Arc<Pool>, shared: &Shared) -> Result<(), Refusal> {
    connection.set_send_timeout(SEND_TIMEOUT)?;
    let peer = connection.peer()?;
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let is_late = || Instant::now() >= deadline || shared.stopping.load(Ordering::Relaxed);
    if !waiting::until(&**connection, Direction::Read, is_late) {
        return Err(ControlError::Timeout.into());
    }
    // One who has just looked whether somebody is here.
    let Some(packet) = connection.receive()? else { return Ok(()) };
    let request = Request::decode(packet.bytes(), shared.identity)?;
    drop(packet);
    let command: PoolCommand = request.command;
    let (uid, pid) = (peer.uid.as_raw(), peer.pid.as_raw_nonzero());
    tracing::debug!(uid, pid, "'{command}' begins");
    let started = Instant::now();
    let (connection, connected) = (Arc::clone(connection), Arc::clone(&shared.connected));
    let mut session = Remote::new(connection, &command, connected, Arc::clone(&shared.stopping));
    let ended = command.operation().execute(&pool, &mut session);
    drop(pool);
    let milliseconds = started.elapsed().as_millis() as u64;
    let outcome = match &ended {
        Ok(()) => "has ended".into(),
        Err(error) => format!("has failed: {error}"),
    };
    // What has been looked through is worth knowing later, too.
    let is_scrub = matches!(command, PoolCommand::Scrub(_));
    if command.operation().access() == Access::Change || is_scrub {
        tracing::info!(uid, pid, milliseconds, "'{command}' {outcome}");
    } else {
        tracing::debug!(uid, pid, milliseconds, "'{command}' {outcome}");
    }
    session.end(&ended);
    Ok(())
}

/// Tells a client why its command is not carried out.
fn refuse(connection: &Connection, refusal: Refusal) {
    tracing::warn!(%refusal, "a command is refused");
    let failure = Some(Failure::from(&CliError::from(refusal)));
    // One who does not listen need not know.
    let _ = connection.send_if_room(&Answer::Ended { failure });
}
