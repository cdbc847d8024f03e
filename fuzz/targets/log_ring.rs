#![no_main]
//! A ring of records, each valid by itself, that no log wrote in this order.

use std::sync::Arc;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use pollster::block_on;
use siltstone_device::{
    BLOCK_BYTES, BlockAddress, BufferPool, ByteOffset, Device, LayerId, Sequence, sim::SimDevice,
};
use siltstone_fuzz::record::{HEAD_END, seal};
use siltstone_nvram::{
    Change, ChangeBody, Log, LogIdentity, Region,
    record::{RecordLabel, encode},
};

const IDENTITY: LogIdentity = LogIdentity { first: 0xfeed, second: 0xbeef };
const BLOCKS: u64 = 24;
const REGION: Region =
    Region { offset: ByteOffset(8 << 12), len_bytes: BLOCKS * BLOCK_BYTES as u64 };
const DATA: [u8; 3 * BLOCK_BYTES] = [7; 3 * BLOCK_BYTES];

/// A number that is mostly small.
fn number(input: &mut Unstructured<'_>) -> Result<u64> {
    let small = u64::from(input.arbitrary::<u8>()?);
    Ok(if small == 255 { input.arbitrary()? } else { small % 32 })
}

fn address(input: &mut Unstructured<'_>) -> Result<ByteOffset> {
    let block = input.int_in_range(0..=BLOCKS - 1)?;
    Ok(REGION.offset.plus(block * BLOCK_BYTES as u64))
}

/// Writes one record somewhere into the ring, perhaps torn.
fn put(device: &SimDevice, input: &mut Unstructured<'_>) -> Result<()> {
    let at = address(input)?;
    let oldest_live = number(input)?.max(1);
    let label = RecordLabel {
        number: oldest_live.saturating_add(number(input)?),
        address: at,
        trimmed: Sequence(number(input)?),
        oldest_live,
        oldest_live_address: address(input)?,
    };
    let mut sequence = label.trimmed.0.saturating_add(number(input)?);
    let mut changes = Vec::new();
    for _ in 0..input.int_in_range(0..=5)? {
        let len_blocks = input.int_in_range(1..=3)?;
        let body = match input.ratio(1, 2)? {
            true => ChangeBody::Data(&DATA[..len_blocks as usize * BLOCK_BYTES]),
            false => ChangeBody::Zero,
        };
        let block = BlockAddress(number(input)?.min(1 << 48));
        changes.push(Change {
            layer: LayerId(1),
            address: block,
            len_blocks,
            sequence: Sequence(sequence),
            body,
        });
        sequence = sequence.saturating_add(number(input)?);
    }
    let mut bytes = encode(&BufferPool::new(0), &IDENTITY, &label, &changes).to_vec();
    for _ in 0..input.int_in_range(0..=2)? {
        let at = input.int_in_range(32..=HEAD_END + 64)?;
        bytes[at] = input.arbitrary()?;
    }
    seal(&mut bytes, &IDENTITY, at);
    let room = (REGION.offset.0 + REGION.len_bytes - at.0) as usize;
    let whole = bytes.len().min(room);
    let kept = if input.ratio(1, 4)? { input.int_in_range(1..=whole / 512)? * 512 } else { whole };
    device.corrupt(at.0, &bytes[..kept]);
    Ok(())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    let device = SimDevice::new(64 * BLOCK_BYTES as u64);
    while !input.is_empty() && put(&device, &mut input).is_ok() {}
    let shared: Arc<dyn Device> = device;
    let Ok((log, mut replay)) = block_on(Log::open(shared.clone(), REGION, IDENTITY)) else {
        return;
    };
    let mut last = replay.trimmed_up_to();
    while let Ok(Some(record)) = block_on(replay.next_record()) {
        assert!(record.changes().count() <= 1 << 16);
        last = last.max(record.last_sequence());
    }
    drop(replay);
    // What was found stands, and the log goes on behind it.
    let Some(sequence) = last.0.checked_add(1).map(Sequence) else { return };
    let change = Change {
        layer: LayerId(1),
        address: BlockAddress(0),
        len_blocks: 1,
        sequence,
        body: ChangeBody::Zero,
    };
    if block_on(log.append(&[change])).is_ok() {
        drop(log);
        let (_, mut replay) =
            block_on(Log::open(shared, REGION, IDENTITY)).expect("it was open before");
        let mut found = false;
        while let Some(record) = block_on(replay.next_record()).expect("it was whole before") {
            found |= record.last_sequence() == sequence;
        }
        assert!(found, "an acknowledged record is gone");
    }
});
