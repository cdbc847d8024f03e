//! Reading back the live records of a log that was just opened.

use std::{collections::VecDeque, sync::Arc};

use siltstone_device::{BLOCK_BYTES, ByteOffset, Device, Sequence};

pub use crate::recovery::TornTail;
use crate::{
    LogDamage, LogIdentity, OpenError, Region,
    record::{RecordView, decode},
    recovery::{Recovered, cause_in},
    ring::RecordExtent,
    scan::RegionReader,
};

/// The changes that the log still holds, record by record, oldest first.
///
/// Memory is bounded by a few reads and the largest record. Replay must be finished before the
/// log is trimmed: what was trimmed may be overwritten.
///
/// A caller of `append` that gave up waiting may have tried again: then a change is in two
/// records, with the same sequence number and contents.
pub struct Replay {
    reader: RegionReader,
    region: Region,
    identity: LogIdentity,
    /// Live records that hold changes newer than `trimmed`, with their numbers.
    records: VecDeque<(u64, RecordExtent)>,
    trimmed: Sequence,
    /// The newest whole record's number.
    newest: u64,
    /// Where the record after it is or should be, and what is wrong with it if there was one.
    next: (ByteOffset, LogDamage),
    torn_tail: Option<TornTail>,
}

impl Replay {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        region: Region,
        identity: LogIdentity,
        recovered: &Recovered,
    ) -> Self {
        let numbered = (recovered.oldest_live..).zip(recovered.records.iter().copied());
        let trimmed = recovered.trimmed;
        Self {
            reader: RegionReader::new(device, region),
            region,
            identity,
            records: numbered.filter(|(_, record)| record.last_sequence > trimmed).collect(),
            trimmed,
            newest: recovered.oldest_live + recovered.records.len() as u64 - 1,
            next: recovered.next.clone(),
            torn_tail: recovered.torn_tail,
        }
    }

    /// How many records are left to read.
    #[must_use]
    pub fn records_left(&self) -> usize {
        self.records.len()
    }

    /// The log has forgotten changes up to here, for they were durable elsewhere. Whoever does not
    /// find them elsewhere has lost acknowledged data.
    #[must_use]
    pub fn trimmed_up_to(&self) -> Sequence {
        self.trimmed
    }

    /// The record that power loss tore, if there is one. It was never acknowledged, unless the
    /// medium damaged it later.
    #[must_use]
    pub fn torn_tail(&self) -> Option<TornTail> {
        self.torn_tail
    }

    /// What is wrong with the record after the newest whole one, if record `durable` is known to
    /// have been durable and is none of those found. Its changes may have been trimmed, or be in
    /// segments: that is for the caller to know.
    #[must_use]
    pub fn lost_record(&self, durable: u64) -> Option<OpenError> {
        let (offset, damage) = self.next.clone();
        let record = self.newest + 1;
        (durable >= record).then_some(OpenError::Damaged { record, offset, damage })
    }

    /// The next record. It may still hold changes up to [`trimmed_up_to`](Self::trimmed_up_to).
    ///
    /// # Errors
    /// If the device fails, or the record has changed since the log was opened. The record is
    /// then still the next one.
    pub async fn next_record(&mut self) -> Result<Option<RecordView<'_>>, OpenError> {
        let Some((record, extent)) = self.records.front().copied() else {
            return Ok(None);
        };
        let block = BLOCK_BYTES as u64;
        let (start, len_bytes) = (extent.start * block, extent.len_blocks * block);
        let offset = self.region.offset.plus(start);
        self.reader.view(start, len_bytes).await?;
        let damage = cause_in(offset, len_bytes, self.reader.unreadable());
        let damage = damage.unwrap_or(LogDamage::NotWhole);
        let bytes = self.reader.view(start, len_bytes).await?;
        let view = match decode(bytes, &self.identity, offset) {
            Ok(view) if view.label().number == record => view,
            _ => return Err(OpenError::Damaged { record, offset, damage }),
        };
        self.records.pop_front();
        Ok(Some(view))
    }
}
