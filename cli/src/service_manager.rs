//! What a server and the service manager that started it (systemd, or one that speaks alike) tell
//! each other: sockets that are open already, readiness, reloads, the end, signs of life.
//!
//! All of it is in environment variables and a datagram socket that they name; without them,
//! nothing of this does anything.

use std::{io, os::fd::OwnedFd, time::Duration};

use sd_notify::NotifyState;

use crate::errors::CliError;

/// The sockets that the service manager has opened for this process. To be called once, before
/// anything else can get their numbers.
pub(crate) fn passed_sockets() -> Result<Vec<OwnedFd>, CliError> {
    let sockets = sd_listen_fds::get().map_err(|error| CliError::System {
        action: "take the service manager's sockets (LISTEN_PID, LISTEN_FDS)",
        source: io::Error::other(error),
    })?;
    Ok(sockets.into_iter().map(|(_, socket)| socket.into_std()).collect())
}

/// The server opens its pool.
pub(crate) fn starting(pool: &str) {
    tell(&[NotifyState::Status(&format!("Opening {pool}"))]);
}

/// Clients can connect, or a reload has ended.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The server stops, and finishes what is under way.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("Finishing what is under way")]);
}

/// Gives signs of life for as long as it is polled, if the service manager wants some: that the
/// tasks of clients get their turn.
pub(crate) async fn watchdog() {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut turns = tokio::time::interval((timeout / 2).max(Duration::from_millis(1)));
    loop {
        turns.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told how the server is");
    }
}
