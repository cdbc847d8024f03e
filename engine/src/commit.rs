//! Commit: making everything admitted so far durable.
//!
//! Concurrent flushes share one round of work. A round looks at one moment of the queue:
//!
//! | unpublished and not durable | published and not durable | work |
//! |---|---|---|
//! | nothing | nothing | none |
//! | little | nothing | one NVRAM log record, one device write |
//! | little | something | device flush, then a log record |
//! | nothing | something | device flush |
//! | much, or no room in the log | any | drain the pipeline to here, then device flush |
//!
//! A round of the second kind is begun, not led: the completion of its write begins the next one
//! (`nvram::group`). All others are led by one of those who wait.
//!
//! "Durable" is a prefix of the total order: in segments under a completed flush, or in the log.
//! The log keeps a record until a checkpoint covers its changes.

use std::sync::{Arc, OnceLock};

use siltstone_device::Sequence;
use siltstone_nvram::{Change as LogChange, ChangeBody as LogBody, LogError, record_bytes_for};

use crate::{
    admission::Unpublished,
    core::Core,
    error::{EngineError, Result},
    overlay::{Change, ChangeBody},
    staged_data::Altered,
    stats::{Stage, add},
};

impl Core {
    /// Returns when everything admitted before the call is durable.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<()> {
        let timer = self.stats.time(Stage::Commit);
        self.health.check()?;
        let _waiter = self.flush_waiters.flush();
        let target = self.admission.admitted();
        self.commit.commit(target, || self.begin_round(), || self.commit_round()).await?;
        self.marks.note_durable();
        add(&self.stats.counters.flushes, 1);
        drop(timer);
        Ok(())
    }

    /// Begins a round that needs a log record and nothing else, if this is one; whether it has. Its end
    /// begins the next one likewise.
    fn begin_round(self: &Arc<Self>) -> bool {
        self.try_begin_round().unwrap_or_else(|error| {
            // Whoever leads now finds that the pool has failed.
            self.fail(error);
            false
        })
    }

    fn try_begin_round(self: &Arc<Self>) -> Result<bool> {
        self.health.check()?;
        let durable = self.commit.durable();
        let unpublished = self.admission.unpublished_after(durable);
        let flush_needed = unpublished.published > durable;
        if unpublished.changes.is_empty() || flush_needed || !self.fits_log(&unpublished) {
            return Ok(false);
        }
        let (target, data_bytes) = (unpublished.admitted, unpublished.data_bytes);
        // Whoever closes the pool waits for the log's turn, which comes when this has let go of it.
        let core = Arc::downgrade(self);
        let then = move |logged: std::result::Result<(), LogError>| {
            if let Some(core) = core.upgrade() {
                core.end_round(logged.map_err(EngineError::from).map(|()| target), data_bytes);
            }
        };
        let check = DataCheck::of(&unpublished);
        let begun =
            self.log.begin(&log_changes(&unpublished), |at, data| check.passes(at, data), then);
        check.outcome(self)?;
        Ok(begun?)
    }

    fn end_round(self: &Arc<Self>, outcome: Result<Sequence>, data_bytes: usize) {
        match &outcome {
            Ok(_) => self.note_logged(data_bytes),
            Err(error) => self.fail(error.clone()),
        }
        self.commit.end_round(outcome, || self.begin_round());
    }

    async fn commit_round(self: &Arc<Self>) -> Result<Sequence> {
        let outcome = self.try_commit_round().await;
        if let Err(error) = &outcome {
            self.fail(error.clone());
        }
        outcome
    }

    async fn try_commit_round(self: &Arc<Self>) -> Result<Sequence> {
        self.health.check()?;
        let durable = self.commit.durable();
        let unpublished = self.admission.unpublished_after(durable);
        let target = unpublished.admitted;
        let flush_needed = unpublished.published > durable;
        if unpublished.changes.is_empty() || self.fits_log(&unpublished) {
            if flush_needed {
                self.flush_device().await?;
            }
            match self.append(&unpublished).await {
                Ok(()) => return Ok(target),
                // Nothing was written. A checkpoint makes room; this round goes on without.
                Err(EngineError::Log(LogError::Full { .. })) => {
                    self.checkpointing.request();
                }
                Err(error) => return Err(error),
            }
        }
        let drain = self.flush_waiters.drain();
        self.drain_to(target).await?;
        drop(drain);
        self.flush_device().await?;
        Ok(target)
    }

    fn fits_log(&self, unpublished: &Unpublished) -> bool {
        let data_bytes = unpublished.data_bytes;
        let record_bytes = record_bytes_for(unpublished.changes.len(), data_bytes as u64);
        data_bytes <= self.tuning.log_commit_bytes && record_bytes <= self.log.max_record_bytes()
    }

    async fn append(&self, unpublished: &Unpublished) -> Result<()> {
        if unpublished.changes.is_empty() {
            return Ok(());
        }
        let (changes, check) = (log_changes(unpublished), DataCheck::of(unpublished));
        let appended = self.log.append_checked(&changes, |at, data| check.passes(at, data)).await;
        check.outcome(self)?;
        appended?;
        self.note_logged(unpublished.data_bytes);
        Ok(())
    }

    fn note_logged(&self, data_bytes: usize) {
        add(&self.stats.counters.log_commits, 1);
        add(&self.stats.counters.log_data_bytes, data_bytes as u64);
        if self.is_log_filling() {
            self.checkpointing.request();
        }
    }

    /// Whether more than half of the log is in use: a checkpoint should make room, since a flush that finds none
    /// waits for the reducers.
    pub(crate) fn is_log_filling(&self) -> bool {
        self.log.used_bytes() > self.log.capacity_bytes() / 2
    }
}

fn log_changes(unpublished: &Unpublished) -> Vec<LogChange<'_>> {
    let changes = unpublished.changes.iter().map(|change| LogChange {
        layer: change.layer(),
        address: change.address,
        len_blocks: change.len_blocks,
        sequence: change.sequence,
        body: match &change.body {
            ChangeBody::Data(data) => LogBody::Data(data.bytes()),
            ChangeBody::Zero => LogBody::Zero,
        },
    });
    changes.collect()
}

/// Compares what stands in a log record with what was received.
struct DataCheck<'a> {
    changes: &'a [Arc<Change>],
    /// The first block that is not the same.
    altered: OnceLock<(&'a Change, Altered)>,
}

impl<'a> DataCheck<'a> {
    fn of(unpublished: &'a Unpublished) -> Self {
        Self { changes: &unpublished.changes, altered: OnceLock::new() }
    }

    /// Whether `logged` is the data of the change at a position.
    fn passes(&self, at: usize, logged: &[u8]) -> bool {
        let change = &self.changes[at];
        let ChangeBody::Data(data) = &change.body else { return true };
        let checked = data.check(logged);
        checked.map_err(|block| self.altered.get_or_init(|| (change, block))).is_ok()
    }

    /// Fails the pool if anything was not the same.
    fn outcome(self, core: &Core) -> Result<()> {
        match self.altered.into_inner() {
            Some((change, block)) => {
                Err(core.staging_fault(&change.volume, change.address_of(block)))
            }
            None => Ok(()),
        }
    }
}
