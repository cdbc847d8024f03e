//! Making durable what an import has written, without making it wait.

use std::{
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread::{self, Scope},
    time::{Duration, Instant},
};

use siltstone_engine::{EngineError, Volume};

use crate::errors::CliError;

/// How long after one flush the next begins: what an interruption costs.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// A thread that flushes a volume every now and then. It ends when this is dropped.
pub(super) struct Flusher {
    requests: Sender<u64>,
    answers: Receiver<Result<u64, EngineError>>,
    is_flushing: bool,
    next: Instant,
}

impl Flusher {
    /// Starts the thread.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        volume: &'scope Volume,
    ) -> Result<Self, CliError> {
        let (requests, to_flush) = channel::<u64>();
        let (done, answers) = channel();
        let flush = move || {
            for at in to_flush {
                if done.send(volume.flush().map(|()| at)).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("import-flusher".into());
        let started = thread.spawn_scoped(scope, flush);
        started.map_err(|source| CliError::System { action: "start a thread", source })?;
        Ok(Self { requests, answers, is_flushing: false, next: Instant::now() + FLUSH_EVERY })
    }

    /// Tells up to where the image is durable, if that is news. What is before `at` was written before
    /// this call.
    pub(super) fn durable(&mut self, at: u64) -> Result<Option<u64>, CliError> {
        if self.is_flushing {
            let durable = match self.answers.try_recv() {
                Ok(flushed) => flushed?,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(None),
            };
            self.is_flushing = false;
            self.next = Instant::now() + FLUSH_EVERY;
            return Ok(Some(durable));
        }
        if Instant::now() >= self.next {
            // A thread that has panicked is noticed when all of them are joined.
            self.is_flushing = self.requests.send(at).is_ok();
        }
        Ok(None)
    }
}
