//! Reading back the live records of a log that was just opened.

use std::{collections::VecDeque, sync::Arc};

use siltstone_device::{BLOCK_BYTES, ByteOffset, Device, Sequence};

pub use crate::recovery::TornTail;
use crate::{
    LogDamage, LogIdentity, OpenError, Region,
    record::{RecordView, decode},
    recovery::Recovered,
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
    /// The newest whole record's number, and where it ends.
    newest: (u64, ByteOffset),
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
        let newest = recovered.oldest_live + recovered.records.len() as u64 - 1;
        let end = recovered.records.back().map_or(0, |record| record.start + record.len_blocks);
        let newest = (newest, region.offset.plus(end * BLOCK_BYTES as u64));
        Self {
            reader: RegionReader::new(device, region),
            region,
            identity,
            records: numbered.filter(|(_, record)| record.last_sequence > trimmed).collect(),
            trimmed,
            newest,
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
        let (newest, end) = self.newest;
        if durable <= newest {
            return None;
        }
        let (offset, damage) = match self.torn_tail {
            Some(torn) => (torn.offset, LogDamage::NotWhole),
            None => (end, LogDamage::Missing),
        };
        Some(OpenError::Damaged { record: newest + 1, offset, damage })
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
        let bytes = self.reader.view(start, len_bytes).await?;
        let view = match decode(bytes, &self.identity, offset) {
            Ok(view) if view.label().number == record => view,
            _ => return Err(not_whole(record, offset)),
        };
        self.records.pop_front();
        Ok(Some(view))
    }
}

fn not_whole(record: u64, offset: ByteOffset) -> OpenError {
    OpenError::Damaged { record, offset, damage: LogDamage::NotWhole }
}
