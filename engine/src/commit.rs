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
//! "Durable" is a prefix of the total order: in segments under a completed flush, or in the log.
//! The log keeps a record until a checkpoint covers its changes.

use std::sync::OnceLock;

use siltstone_device::Sequence;
use siltstone_nvram::{Change as LogChange, ChangeBody as LogBody, LogError, record_bytes_for};

use crate::{
    admission::Unpublished,
    core::Core,
    error::{EngineError, Result},
    overlay::ChangeBody,
    stats::{Stage, add},
};

impl Core {
    /// Returns when everything admitted before the call is durable.
    pub(crate) async fn flush(&self) -> Result<()> {
        let timer = self.stats.time(Stage::Commit);
        self.health.check()?;
        let target = self.admission.admitted();
        self.commit.commit(target, || self.commit_round()).await?;
        self.marks.note_durable();
        add(&self.stats.counters.flushes, 1);
        drop(timer);
        Ok(())
    }

    async fn commit_round(&self) -> Result<Sequence> {
        let outcome = self.try_commit_round().await;
        if let Err(error) = &outcome {
            self.fail(error.clone());
        }
        outcome
    }

    async fn try_commit_round(&self) -> Result<Sequence> {
        self.health.check()?;
        let durable = self.commit.durable();
        let unpublished = self.admission.unpublished_after(durable);
        let target = unpublished.admitted;
        let flush_needed = unpublished.published > durable;
        let count = unpublished.changes.len();
        let record_bytes = record_bytes_for(count, unpublished.data_bytes as u64);
        let by_log = unpublished.data_bytes <= self.tuning.log_commit_bytes
            && record_bytes <= self.log.max_record_bytes();
        if count == 0 || by_log {
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
        self.drain_to(target).await?;
        self.flush_device().await?;
        Ok(target)
    }

    async fn append(&self, unpublished: &Unpublished) -> Result<()> {
        if unpublished.changes.is_empty() {
            return Ok(());
        }
        let changes: Vec<LogChange<'_>> = unpublished
            .changes
            .iter()
            .map(|change| LogChange {
                layer: change.layer(),
                address: change.address,
                len_blocks: change.len_blocks,
                sequence: change.sequence,
                body: match &change.body {
                    ChangeBody::Data(data) => LogBody::Data(data.bytes()),
                    ChangeBody::Zero => LogBody::Zero,
                },
            })
            .collect();
        let altered = OnceLock::new();
        let is_received = |at: usize, logged: &[u8]| {
            let change = &unpublished.changes[at];
            let ChangeBody::Data(data) = &change.body else { return true };
            let checked = data.check(logged);
            checked.map_err(|block| altered.get_or_init(|| (change, block))).is_ok()
        };
        let appended = self.log.append_checked(&changes, is_received).await;
        if let Some((change, block)) = altered.into_inner() {
            return Err(self.staging_fault(&change.volume, change.address_of(block)));
        }
        appended?;
        add(&self.stats.counters.log_commits, 1);
        add(&self.stats.counters.log_data_bytes, unpublished.data_bytes as u64);
        if self.log.used_bytes() > self.log.capacity_bytes() / 2 {
            self.checkpointing.request();
        }
        Ok(())
    }
}
