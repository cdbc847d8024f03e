//! Admitting again what the NVRAM log holds and no unit does.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use siltstone_cursor::{MAX_BLOCKS, View};
use siltstone_device::{LayerId, Sequence};

use super::MAX_BATCH_BYTES;
use crate::{
    admission::Admittable,
    catalog::VolumeRecord,
    compression::Compression,
    config::MAX_VOLUME_BYTES,
    core::Core,
    error::{MetadataError, Result},
    overlay::ChangeBody,
    record::MAX_COUNT,
    recovery::RecoveredUnits,
    space::worst_case_bytes,
    staged_data::{BlockSums, StagedData},
    volume_core::VolumeCore,
};

/// Admits again what the log holds and no unit does. Returns up to where every change is found.
pub(super) async fn replay_log(
    core: &Core,
    replay: &mut siltstone_nvram::Replay,
    units: &RecoveredUnits,
) -> Result<Sequence> {
    let mut reached = units.sequence;
    let mut by_layer: BTreeMap<_, _> = {
        let volumes = core.volumes.read();
        let live = volumes.values().filter(|volume| !volume.is_snapshot());
        live.map(|volume| (volume.layer, Arc::clone(volume))).collect()
    };
    while let Some(record) = replay.next_record().await? {
        for change in record.changes() {
            check_range(&change)?;
            // An append that was tried again leaves a change in two records.
            if change.sequence <= reached {
                continue;
            }
            // A record is written when all before its changes is durable.
            if change.sequence > reached.next() {
                return Err(units.missing(reached, Sequence(change.sequence.0 - 1)));
            }
            reached = change.sequence;
            let volume = match by_layer.entry(change.layer) {
                Entry::Occupied(volume) => volume.into_mut(),
                Entry::Vacant(vacant) => vacant.insert(former(core, change.layer)?),
            };
            let body = match change.body {
                siltstone_nvram::ChangeBody::Data(data) => {
                    let mut memory = core.write_buffers.take(data.len());
                    let sums = BlockSums::of_copied(data, &mut memory);
                    ChangeBody::Data(StagedData::new(memory, sums))
                }
                siltstone_nvram::ChangeBody::Zero => ChangeBody::Zero,
            };
            let space_bytes = match &body {
                ChangeBody::Data(data) => worst_case_bytes(data.bytes().len()),
                ChangeBody::Zero => worst_case_bytes(0),
            };
            core.space.promise_regardless(space_bytes);
            let change_again = Admittable {
                volume: Arc::clone(volume),
                address: change.address,
                len_blocks: change.len_blocks,
                body,
                // Bounded by the ring; waiting here would be for threads that do not run yet.
                staged_bytes: 0,
                space_bytes,
                // The volume may have become smaller since; then zeros follow.
                end_bytes: 0,
            };
            let admitted = core.admission.admit(change_again, None, Some(change.sequence));
            assert!(
                admitted.is_ok(),
                "nobody shrinks, deletes or closes while the log is replayed"
            );
        }
    }
    let admitted = core.admission.admitted();
    core.commit.advance(admitted);
    core.epochs.write().begin_by(admitted.next());
    inherit(core, admitted);
    Ok(reached)
}

/// Stands for a volume that was deleted or rolled back after a change of it was logged. The change
/// takes its place in the order like any other, and what it leaves in the map nobody can read.
fn former(core: &Core, layer: LayerId) -> Result<Arc<VolumeCore>> {
    if !core.catalog.lock().is_former(layer) {
        let (structure, field) = ("NVRAM log record", "layer");
        return Err(MetadataError::Inconsistent { structure, field, value: layer.0.into() }.into());
    }
    let (size_bytes, compression) = (MAX_VOLUME_BYTES, Compression::default());
    let record = VolumeRecord { id: 0, layer, size_bytes, compression };
    let chain = vec![View::live(layer)];
    Ok(Arc::new(VolumeCore::new(&layer.to_string(), &record, chain, Sequence(0))))
}

/// Lets snapshots and clones see the changes that were admitted again: from the map, once these are
/// there, or, where no pipeline takes them there, from overlays of their own.
fn inherit(core: &Core, admitted: Sequence) {
    let volumes = core.volumes.read();
    if !core.read_only {
        volumes.values().for_each(|volume| volume.inherit_up_to(admitted));
        return;
    }
    // In order, so that of each block every overlay ends with the newest change that it may show;
    // a clone's own changes are all newer than those of its snapshot.
    let changes = core.admission.unpublished_after(Sequence(0)).changes;
    let epochs = core.epochs.read();
    for change in changes {
        let epoch = epochs.of(change.sequence);
        let seeing = volumes.values().filter(|volume| volume.sees(change.layer(), epoch));
        seeing.for_each(|volume| volume.overlay.insert(&change));
    }
    volumes.values().for_each(|volume| volume.note_inherited());
}

/// Refuses a change that no volume is large enough for: no program of ours logged it.
fn check_range(change: &siltstone_nvram::Change<'_>) -> Result<()> {
    let wrong = |field, value| {
        Err(MetadataError::Inconsistent { structure: "NVRAM log record", field, value }.into())
    };
    let end = change.address.0.checked_add(change.len_blocks.into());
    if end.is_none_or(|end| end > MAX_BLOCKS) {
        return wrong("block address", change.address.0);
    }
    if change.sequence.0 >= MAX_COUNT {
        return wrong("sequence", change.sequence.0);
    }
    if let siltstone_nvram::ChangeBody::Data(data) = change.body
        && data.len() > MAX_BATCH_BYTES
    {
        return wrong("data length", data.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use siltstone_device::BlockAddress;

    #[test]
    fn a_logged_change_past_the_last_address_is_refused() {
        let change = |address, len_blocks| siltstone_nvram::Change {
            layer: LayerId(1),
            address: BlockAddress(address),
            len_blocks,
            sequence: Sequence(1),
            body: siltstone_nvram::ChangeBody::Zero,
        };
        check_range(&change(MAX_BLOCKS - 8, 8)).unwrap();
        for (address, len_blocks) in [(MAX_BLOCKS - 8, 9), (MAX_BLOCKS, 1), (u64::MAX, 1)] {
            check_range(&change(address, len_blocks)).unwrap_err();
        }
    }
}
