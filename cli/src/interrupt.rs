//! Ctrl-C for commands that go on for long: they end in order, and say what they have done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::signal::unix::{Signal, SignalKind, signal};

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
        let failed = |action| move |source| CliError::System { action, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(failed("start threads"))?;
        let signals = {
            let _inside = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
        };
        let [interrupt, terminate, hangup] = signals;
        let catch = failed("catch signals");
        let mut signals =
            [interrupt.map_err(catch)?, terminate.map_err(catch)?, hangup.map_err(catch)?];
        let this = Self(Arc::default());
        let is_set = Arc::clone(&this.0);
        let watch = move || {
            runtime.block_on(next(&mut signals));
            is_set.store(true, Ordering::Relaxed);
            action();
            runtime.block_on(next(&mut signals));
            std::process::exit(ExitStatus::Interrupted as i32);
        };
        let thread = thread::Builder::new().name("signals".into()).spawn(watch);
        thread.map_err(failed("start threads"))?;
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

async fn next([interrupt, terminate, hangup]: &mut [Signal; 3]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
