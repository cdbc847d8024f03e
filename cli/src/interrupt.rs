//! Signals. Ctrl-C for commands that go on for long: they end in order, and say what they have done;
//! and what a server is told by signals. In both, a second wish for the end is granted at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

use crate::errors::{CliError, ExitStatus};

/// Whether the user wants the command to end.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on. The second one ends the process at once.
    pub(crate) fn catch() -> Result<Self, CliError> {
        Self::catch_and(|| {})
    }

    /// The same; the first one also does something.
    pub(crate) fn catch_and(action: impl FnOnce() + Send + 'static) -> Result<Self, CliError> {
        let (runtime, mut signals) = catch_all()?;
        let this = Self(Arc::default());
        let is_set = Arc::clone(&this.0);
        let watch = move || {
            runtime.block_on(next(&mut signals));
            is_set.store(true, Ordering::Relaxed);
            action();
            runtime.block_on(next(&mut signals));
            std::process::exit(ExitStatus::Interrupted as i32);
        };
        spawn(watch)?;
        Ok(this)
    }

    /// Whether there was a signal.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error if there was a signal.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        if self.is_set() { Err(CliError::Interrupted) } else { Ok(()) }
    }
}

/// What a server is told by signals.
#[derive(Clone, Default)]
pub(crate) struct ServerSignals {
    stop: Arc<Notify>,
    reload: Arc<Notify>,
}

impl ServerSignals {
    /// Catches SIGINT and SIGTERM from now on, of which the second ends the process at once whatever
    /// it does, and SIGHUP.
    pub(crate) fn catch() -> Result<Self, CliError> {
        let (runtime, mut signals) = catch_all()?;
        let this = Self::default();
        let told = this.clone();
        let watch = async move {
            let mut is_stopping = false;
            let [interrupt, terminate, hangup] = &mut signals;
            loop {
                tokio::select! {
                    _ = hangup.recv() => {
                        told.reload.notify_one();
                        continue;
                    }
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if is_stopping {
                    tracing::warn!("ended by a second signal; the pool recovers when it is opened");
                    std::process::exit(ExitStatus::Interrupted as i32);
                }
                is_stopping = true;
                told.stop.notify_one();
            }
        };
        spawn(move || runtime.block_on(watch))?;
        Ok(this)
    }

    /// Waits for the wish that the server stops; also for one that came before.
    pub(crate) async fn stop(&self) {
        self.stop.notified().await;
    }

    /// Waits for the wish that it reads its config again.
    pub(crate) async fn reload(&self) {
        self.reload.notified().await;
    }
}

/// Catches SIGINT, SIGTERM and SIGHUP; what they are received with.
fn catch_all() -> Result<(Runtime, [Signal; 3]), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(failed("start threads"))?;
    let [interrupt, terminate, hangup] = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
    };
    let catch = failed("catch signals");
    let signals = [interrupt.map_err(catch)?, terminate.map_err(catch)?, hangup.map_err(catch)?];
    Ok((runtime, signals))
}

fn spawn(watch: impl FnOnce() + Send + 'static) -> Result<(), CliError> {
    let thread = thread::Builder::new().name("signals".into()).spawn(watch);
    thread.map(drop).map_err(failed("start threads"))
}

fn failed(action: &'static str) -> impl Fn(std::io::Error) -> CliError + Copy {
    move |source| CliError::System { action, source }
}

async fn next([interrupt, terminate, hangup]: &mut [Signal; 3]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
