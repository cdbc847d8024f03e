//! The newest part of the map, in memory: a table for each epoch.
//!
//! Epochs only grow while a pool is used, so nearly always there is one table; each snapshot that is
//! followed by changes before the next checkpoint adds one. Recovery may publish into several.

use siltstone_device::Sequence;

use crate::{epoch::Epoch, epoch_table::EpochTable, extent::Extent};

/// Tables of different epochs.
#[derive(Default)]
pub(crate) struct Memtable {
    /// Newest first; none is empty.
    tables: Vec<EpochTable>,
}

impl Memtable {
    /// Entries in all tables.
    pub(crate) fn len(&self) -> usize {
        self.tables.iter().map(EpochTable::len).sum()
    }

    /// The tables, newest first.
    #[inline]
    pub(crate) fn tables(&self) -> &[EpochTable] {
        &self.tables
    }

    /// The table of an epoch.
    pub(crate) fn table(&self, epoch: Epoch) -> Option<&EpochTable> {
        self.tables.iter().find(|table| table.epoch() == epoch)
    }

    /// Inserts an extent, except where a later change of its epoch is there already.
    pub(crate) fn insert(&mut self, extent: Extent, sequence: Sequence) {
        let at = self.tables.iter().position(|table| table.epoch() <= extent.epoch);
        let at = at.unwrap_or(self.tables.len());
        if self.tables.get(at).is_none_or(|table| table.epoch() != extent.epoch) {
            self.tables.insert(at, EpochTable::new(extent.epoch));
        }
        self.tables[at].insert(extent, sequence);
    }
}

#[cfg(test)]
mod tests {
    use siltstone_device::{BlockAddress, LayerId};

    use super::*;
    use crate::extent::Target;

    #[test]
    fn each_epoch_has_its_table_and_the_newest_comes_first() {
        let mut table = Memtable::default();
        for epoch in [3, 5, 3, 1, 4] {
            let extent = Extent {
                layer: LayerId(1),
                epoch: Epoch(epoch),
                address: BlockAddress(u64::from(epoch)),
                len_blocks: 1,
                target: Target::Hole,
            };
            table.insert(extent, Sequence(1));
        }
        let epochs: Vec<_> = table.tables().iter().map(|table| table.epoch().0).collect();
        assert_eq!(epochs, [5, 4, 3, 1]);
        assert_eq!(table.len(), 4);
        assert!(table.table(Epoch(4)).is_some() && table.table(Epoch(2)).is_none());
    }
}
