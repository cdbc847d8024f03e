//! The wish to stop, and how those who serve learn of it.

use tokio::{sync::watch, time::Instant};

/// Tells every holder of its [`ShutdownSignal`]s to stop.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<Option<Instant>>);

/// Tells a connection when to stop.
#[derive(Clone, Debug)]
pub struct ShutdownSignal(watch::Receiver<Option<Instant>>);

impl Shutdown {
    /// Nothing stops yet.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// A signal for one who serves.
    #[must_use]
    pub fn signal(&self) -> ShutdownSignal {
        ShutdownSignal(self.0.subscribe())
    }

    /// Asks everyone to finish what is under way, until `deadline`. The first call counts.
    pub fn begin(&self, deadline: Instant) {
        self.0.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(deadline);
            }
            first
        });
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl ShutdownSignal {
    /// Waits for the shutdown to begin; resolves to its deadline. A [`Shutdown`] that is gone
    /// never begins.
    pub(crate) async fn begun(&mut self) -> Instant {
        match self.0.wait_for(Option::is_some).await.map(|deadline| *deadline) {
            Ok(Some(deadline)) => deadline,
            _ => std::future::pending().await,
        }
    }
}
