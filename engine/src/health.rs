//! Whether the pool still accepts changes.
//!
//! The first failure of a write, a flush or a checkpoint is final: from then on every change and
//! every flush fails with it (after a failed flush nothing that it covered may ever be reported as
//! durable), while reads of good data go on.

use std::sync::{Arc, OnceLock};

use event_listener::Event;
use siltstone_device::sync::atomic::{AtomicBool, Ordering};

use crate::error::{EngineError, Result};

/// Something that happens once.
#[derive(Debug, Default)]
pub(crate) struct Milestone {
    reached: AtomicBool,
    event: Event,
}

impl Milestone {
    /// It has happened.
    pub(crate) fn set(&self) {
        self.reached.store(true, Ordering::Release);
        self.event.notify(usize::MAX);
    }

    /// Whether it has happened.
    pub(crate) fn is_set(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// Waits until it has happened, which it certainly will.
    pub(crate) async fn reached(&self) {
        self.wait(|| Ok(())).await.expect("the wait gives up only if it is told to");
    }

    /// Waits until it has happened, or `give_up` says that it never will; [`wake`](Self::wake)
    /// has it asked again.
    pub(crate) async fn wait(&self, give_up: impl Fn() -> Result<()>) -> Result<()> {
        loop {
            let listener = self.event.listen();
            if self.is_set() {
                return Ok(());
            }
            give_up()?;
            listener.await;
        }
    }

    /// Lets those who wait ask whether to give up.
    pub(crate) fn wake(&self) {
        self.event.notify(usize::MAX);
    }
}

/// See the module's page. Thread-safe.
#[derive(Default)]
pub(crate) struct Health {
    failure: OnceLock<Arc<EngineError>>,
    closing: AtomicBool,
}

impl Health {
    /// Remembers the first failure.
    pub(crate) fn fail(&self, error: EngineError) {
        let cause = match error {
            EngineError::Failed { cause } => cause,
            error => Arc::new(error),
        };
        if self.failure.set(Arc::clone(&cause)).is_ok() {
            tracing::error!(error = %cause, "the pool accepts no more changes");
        }
    }

    /// The first failure, if there was one.
    pub(crate) fn failure(&self) -> Option<Arc<EngineError>> {
        self.failure.get().cloned()
    }

    /// Refuses new changes because the pool is being closed.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Whether the pipeline still works.
    pub(crate) fn check(&self) -> Result<()> {
        match self.failure() {
            Some(cause) => Err(EngineError::Failed { cause }),
            None => Ok(()),
        }
    }

    /// Whether clients may still change anything.
    pub(crate) fn check_open(&self) -> Result<()> {
        self.check()?;
        if self.closing.load(Ordering::Acquire) {
            return Err(EngineError::Closing);
        }
        Ok(())
    }
}

#[cfg(all(test, loom))]
mod models;
