//! The superblock: what the pool is and where its regions are. It stands twice, at fixed places,
//! and changes only when the pool grows; the copy with the higher sequence is newer.

use std::sync::Arc;

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, Device, Durability,
    header::{self, HEADER_BYTES, Header, HeaderError, Identity, Kind},
    request, salvage,
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{
    config::{INDEX_MEMORY_BYTES, MAX_THRESHOLD},
    error::{EngineError, MetadataError, NewerFeature, Result},
    layout::{Layout, SUPERBLOCK_A, SUPERBLOCK_B},
    repair::Repair,
};

/// The layout version that this program writes.
pub(crate) const VERSION: u16 = 2;

/// Feature bits that this program knows. Unknown incompatible ones forbid opening, unknown
/// read-compatible ones forbid writing; others may be ignored.
const KNOWN_INCOMPATIBLE: u64 = 0;
const KNOWN_READ_COMPATIBLE: u64 = 0;

/// Longest path of a separate NVRAM log, in bytes.
pub(crate) const MAX_PATH_BYTES: usize = 1024;

const FLAG_NVRAM_INTERNAL: u32 = 1;
const FLAG_SYNC_ALWAYS: u32 = 2;
const FLAG_NVRAM_MAPPED: u32 = 4;

/// The body, after the common header. 1,224 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Body {
    incompatible: U64,
    read_compatible: U64,
    compatible: U64,
    uuid: [u8; 16],
    nvram_nonce: [U64; 2],
    size_bytes: U64,
    segment_bytes: U64,
    checkpoint_slot_bytes: U64,
    nvram_offset: U64,
    nvram_bytes: U64,
    segment_table_offset: U64,
    segment_table_pages: U64,
    data_start: U64,
    index_memory_bytes: U64,
    threshold: U32,
    flags: U32,
    /// Devices in the pool and this one's number: room for pools across several.
    device_count: U16,
    device_number: U16,
    nvram_path_bytes: U32,
    reserved: [u8; 56],
    nvram_path: [u8; MAX_PATH_BYTES],
}
const _: () = assert!(size_of::<Body>() == 1224);
const _: () = assert!(HEADER_BYTES + size_of::<Body>() <= BLOCK_BYTES);

/// What changes in a superblock when the pool grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision {
    /// Counts the changes, from 1.
    pub(crate) sequence: u64,
    /// The pool's size.
    pub(crate) size_bytes: u64,
}

/// A pool's fixed properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The short identity that every structure carries.
    pub(crate) pool: u64,
    pub(crate) uuid: [u8; 16],
    /// Unguessable, so that guest data can never pass for a log record.
    pub(crate) nvram_nonce: [u64; 2],
    pub(crate) layout: Layout,
    pub(crate) index_memory_bytes: u64,
    pub(crate) threshold: u32,
    pub(crate) sync_always: bool,
    /// Where the NVRAM log is when it is not in the pool.
    pub(crate) nvram_path: Vec<u8>,
    /// Whether what is there is mapped.
    pub(crate) nvram_mapped: bool,
    /// Bits that this program may not write with; kept for the error.
    pub(crate) unknown_read_compatible: u64,
}

impl Superblock {
    fn encode(&self, revision: Revision, address: ByteOffset) -> AlignedBuffer {
        let layout = &self.layout;
        let mut nvram_path = [0; MAX_PATH_BYTES];
        nvram_path[..self.nvram_path.len()].copy_from_slice(&self.nvram_path);
        let mut flags = 0;
        flags |= if layout.nvram_internal { FLAG_NVRAM_INTERNAL } else { 0 };
        flags |= if self.sync_always { FLAG_SYNC_ALWAYS } else { 0 };
        flags |= if self.nvram_mapped { FLAG_NVRAM_MAPPED } else { 0 };
        let body = Body {
            incompatible: U64::new(0),
            read_compatible: U64::new(0),
            compatible: U64::new(0),
            uuid: self.uuid,
            nvram_nonce: self.nvram_nonce.map(U64::new),
            size_bytes: U64::new(revision.size_bytes),
            segment_bytes: U64::new(layout.segment_bytes),
            checkpoint_slot_bytes: U64::new(layout.checkpoint_slot_bytes),
            nvram_offset: U64::new(layout.nvram_offset.0),
            nvram_bytes: U64::new(layout.nvram_bytes),
            segment_table_offset: U64::new(layout.segment_table_offset.0),
            segment_table_pages: U64::new(layout.segment_table_pages),
            data_start: U64::new(layout.data_start.0),
            index_memory_bytes: U64::new(self.index_memory_bytes),
            threshold: U32::new(self.threshold),
            flags: U32::new(flags),
            device_count: U16::new(1),
            device_number: U16::new(0),
            nvram_path_bytes: U32::new(self.nvram_path.len() as u32),
            reserved: [0; 56],
            nvram_path,
        };
        let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
        block[HEADER_BYTES..][..size_of::<Body>()].copy_from_slice(body.as_bytes());
        header::seal(&mut block, &identity(self.pool, address), revision.sequence);
        block
    }

    /// Reads one copy. The pool's identity is not known yet, so the header's own is believed;
    /// the checksum covers it.
    fn decode(
        block: &[u8],
        address: ByteOffset,
    ) -> std::result::Result<(Self, Revision), SuperblockError> {
        let claimed = Header::read_from_prefix(block).map_or(0, |(header, _)| header.pool.get());
        let header = header::verify(block, &identity(claimed, address))?;
        if header.version.get() < VERSION {
            return Err(SuperblockError::Body("version", header.version.get().into()));
        }
        let body = block
            .get(HEADER_BYTES..header.length_bytes.get() as usize)
            .and_then(|body| Body::ref_from_prefix(body).ok());
        let Some((body, _)) = body else {
            return Err(SuperblockError::Body("length", u64::from(header.length_bytes.get())));
        };
        let unknown = body.incompatible.get() & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            return Err(SuperblockError::Newer(NewerFeature::Incompatible(unknown)));
        }
        let flags = body.flags.get();
        let layout = Layout {
            segment_bytes: body.segment_bytes.get(),
            checkpoint_slot_bytes: body.checkpoint_slot_bytes.get(),
            nvram_offset: ByteOffset(body.nvram_offset.get()),
            nvram_bytes: body.nvram_bytes.get(),
            nvram_internal: flags & FLAG_NVRAM_INTERNAL != 0,
            segment_table_offset: ByteOffset(body.segment_table_offset.get()),
            segment_table_pages: body.segment_table_pages.get(),
            data_start: ByteOffset(body.data_start.get()),
        };
        let size_bytes = body.size_bytes.get();
        if !layout.is_consistent(size_bytes) {
            return Err(SuperblockError::Body("layout", layout.data_start.0));
        }
        let path_bytes = body.nvram_path_bytes.get() as usize;
        let Some(nvram_path) = body.nvram_path.get(..path_bytes) else {
            return Err(SuperblockError::Body("NVRAM path length", path_bytes as u64));
        };
        let threshold = body.threshold.get();
        if !(1..=MAX_THRESHOLD).contains(&threshold) {
            return Err(SuperblockError::Body("threshold", threshold.into()));
        }
        let index_memory_bytes = body.index_memory_bytes.get();
        if !INDEX_MEMORY_BYTES.contains(&index_memory_bytes) {
            return Err(SuperblockError::Body("index memory", index_memory_bytes));
        }
        let superblock = Self {
            pool: claimed,
            uuid: body.uuid,
            nvram_nonce: body.nvram_nonce.map(U64::get),
            layout,
            index_memory_bytes,
            threshold,
            sync_always: flags & FLAG_SYNC_ALWAYS != 0,
            nvram_path: nvram_path.to_vec(),
            nvram_mapped: flags & FLAG_NVRAM_MAPPED != 0,
            unknown_read_compatible: body.read_compatible.get() & !KNOWN_READ_COMPATIBLE,
        };
        Ok((superblock, Revision { sequence: header.sequence.get(), size_bytes }))
    }

    /// Writes both copies durably, the second first, so that one is always whole. If that fails, or
    /// the power goes, the next opening finds this revision or the one before.
    pub(crate) async fn store(&self, revision: Revision, device: &dyn Device) -> Result<()> {
        for address in [SUPERBLOCK_B, SUPERBLOCK_A] {
            let block = self.encode(revision, address);
            request::write(device, address, block, Durability::Immediate).await?;
        }
        Ok(())
    }

    /// Reads the newer whole copy.
    ///
    /// A copy that needs a newer program is never passed over for the other one, which would be
    /// older: it is an error.
    pub(crate) async fn load(device: &dyn Device) -> Result<FoundSuperblock> {
        let mut found: Vec<((Self, Revision), ByteOffset, Vec<u8>)> = Vec::new();
        let mut problems: Vec<(SuperblockError, ByteOffset)> = Vec::new();
        for address in [SUPERBLOCK_A, SUPERBLOCK_B] {
            if device.size_bytes() < address.0 + BLOCK_BYTES as u64 {
                let kind = Kind::Superblock;
                let missing = HeaderError::Magic { kind, address_bytes: address.0 };
                problems.push((missing.into(), address));
                continue;
            }
            let read = salvage::read(device, address, AlignedBuffer::zeroed(BLOCK_BYTES)).await?;
            let decoded = match read.whole() {
                Ok(block) => Self::decode(block, address),
                Err(cause) => Err(identity(0, address).unreadable(cause).into()),
            };
            match decoded {
                Ok(decoded) => found.push((decoded, address, read.bytes().to_vec())),
                Err(SuperblockError::Newer(what)) => {
                    return Err(EngineError::NewerVersion { what });
                }
                Err(problem) => problems.push((problem, address)),
            }
        }
        // Of two of the same sequence the second: it was written first.
        let newest = found.iter().max_by_key(|((_, revision), ..)| revision.sequence);
        let Some((counts, _, block)) = newest else {
            return Err(SuperblockError::explain(problems.into_iter().map(|(p, _)| p).collect()));
        };
        let (superblock, revision) = counts;
        let stale = found.iter().find(|(other, ..)| other != counts).map(|(other, at, _)| {
            let (other, found) = (other.0.pool, other.1.sequence);
            (
                *at,
                format!(
                    "superblock at {at} is another one (number {found} of pool {other:016x}) than \
                     the one that counts (number {} of pool {:016x})",
                    revision.sequence, superblock.pool
                ),
            )
        });
        let reason = |(problem, at): (SuperblockError, ByteOffset)| match problem {
            SuperblockError::Body(..) => (at, format!("superblock at {at}: {problem}")),
            _ => (at, problem.to_string()),
        };
        let damaged = problems.into_iter().map(reason).next();
        let spare = stale.or(damaged).map(|(offset, reason)| Repair::Superblock { offset, reason });
        let (superblock, revision) = (superblock.clone(), *revision);
        Ok(FoundSuperblock { superblock, revision, block: block.clone(), spare })
    }
}

/// The superblock that counts.
pub(crate) struct FoundSuperblock {
    pub(crate) superblock: Superblock,
    pub(crate) revision: Revision,
    /// Its copy as it was read.
    block: Vec<u8>,
    /// What is wrong with the other copy.
    pub(crate) spare: Option<Repair>,
}

impl FoundSuperblock {
    /// Writes the copy that does not count anew, byte for byte what the other one says. The pool
    /// has been opened with that: it is whole in more than its checksum.
    ///
    /// # Errors
    /// If the device fails; the good copy is as it was.
    pub(crate) async fn restore(&self, device: &dyn Device) -> Result<()> {
        let Some(Repair::Superblock { offset, .. }) = self.spare else { return Ok(()) };
        let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
        block.copy_from_slice(&self.block);
        let identity = identity(self.superblock.pool, offset);
        header::seal(&mut block, &identity, self.revision.sequence);
        request::write(device, offset, block, Durability::Immediate).await?;
        tracing::warn!(%offset, "a superblock copy was restored");
        Ok(())
    }
}

/// Why one copy cannot be used.
#[derive(Debug, thiserror::Error)]
enum SuperblockError {
    #[error(transparent)]
    Header(HeaderError),
    #[error(transparent)]
    Newer(NewerFeature),
    #[error("{0} is {1}")]
    Body(&'static str, u64),
}

impl From<HeaderError> for SuperblockError {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Version { found, known, .. } => {
                Self::Newer(NewerFeature::Superblock { found, known })
            }
            error => Self::Header(error),
        }
    }
}

impl SuperblockError {
    /// What to tell the operator when no copy could be used: a copy that is whole says more.
    fn explain(problems: Vec<Self>) -> EngineError {
        let mut headers = Vec::new();
        for problem in problems {
            match problem {
                Self::Newer(what) => return EngineError::NewerVersion { what },
                Self::Header(error @ HeaderError::Unreadable { .. }) => {
                    return MetadataError::Header(error).into();
                }
                Self::Body(field, value) => {
                    let structure = "superblock";
                    return MetadataError::Inconsistent { structure, field, value }.into();
                }
                Self::Header(error) => headers.push(Arc::new(error)),
            }
        }
        let missing =
            Arc::new(HeaderError::Magic { kind: Kind::Superblock, address_bytes: SUPERBLOCK_B.0 });
        let first = headers.first().unwrap_or(&missing).clone();
        let second = headers.get(1).unwrap_or(&missing).clone();
        EngineError::NotAPool { first, second }
    }
}

fn identity(pool: u64, address: ByteOffset) -> Identity {
    Identity { kind: Kind::Superblock, version: VERSION, pool, address_bytes: address.0 }
}

#[cfg(test)]
mod tests {
    use siltstone_device::{SeededRandom, sim::SimDevice};

    use super::*;
    use crate::config::CreateOptions;

    const REVISION: Revision = Revision { sequence: 1, size_bytes: 1 << 30 };

    fn superblock() -> Superblock {
        Superblock {
            pool: 0x1234,
            uuid: [7; 16],
            nvram_nonce: [1, 2],
            layout: Layout::new(1 << 30, &CreateOptions::default()).unwrap(),
            index_memory_bytes: 1 << 20,
            threshold: 2,
            sync_always: true,
            nvram_path: b"/some/where".to_vec(),
            nvram_mapped: true,
            unknown_read_compatible: 0,
        }
    }

    #[test]
    fn a_superblock_survives_encoding() {
        let superblock = superblock();
        let block = superblock.encode(REVISION, SUPERBLOCK_B);
        assert_eq!(Superblock::decode(&block, SUPERBLOCK_B).unwrap(), (superblock, REVISION));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let block = superblock().encode(REVISION, SUPERBLOCK_A);
        for at in 0..block.len() {
            let mut damaged = block.to_vec();
            damaged[at] ^= 0x10;
            assert!(Superblock::decode(&damaged, SUPERBLOCK_A).is_err(), "byte {at}");
        }
    }

    #[test]
    fn settings_that_no_pool_is_made_with_are_refused() {
        for index_memory_bytes in [0, (64 << 10) - 1, (1 << 40) + 1, u64::MAX] {
            let block =
                Superblock { index_memory_bytes, ..superblock() }.encode(REVISION, SUPERBLOCK_A);
            let error = Superblock::decode(&block, SUPERBLOCK_A).unwrap_err();
            assert!(matches!(error, SuperblockError::Body("index memory", _)), "{error:?}");
        }
        for threshold in [0, 1025, u32::MAX] {
            let block = Superblock { threshold, ..superblock() }.encode(REVISION, SUPERBLOCK_A);
            let error = Superblock::decode(&block, SUPERBLOCK_A).unwrap_err();
            assert!(matches!(error, SuperblockError::Body("threshold", _)), "{error:?}");
        }
    }

    #[test]
    fn unknown_incompatible_features_ask_for_a_newer_program() {
        let mut block = superblock().encode(REVISION, SUPERBLOCK_A);
        block[HEADER_BYTES] = 0x80;
        header::seal(&mut block, &identity(0x1234, SUPERBLOCK_A), 1);
        let error =
            SuperblockError::explain(vec![Superblock::decode(&block, SUPERBLOCK_A).unwrap_err()]);
        assert!(matches!(error, EngineError::NewerVersion { .. }), "{error}");
    }

    fn stored() -> Arc<SimDevice> {
        let device = SimDevice::new(1 << 20);
        pollster::block_on(superblock().store(REVISION, &*device)).unwrap();
        device
    }

    fn load(device: &Arc<SimDevice>) -> Result<FoundSuperblock> {
        pollster::block_on(Superblock::load(&**device))
    }

    /// Whatever becomes of one copy: the other one counts, and writes it anew.
    #[test]
    fn a_damaged_or_stale_copy_is_reported_and_restored() {
        let whole = stored();
        assert!(load(&whole).unwrap().spare.is_none());
        let older = Revision { sequence: 0, ..REVISION };
        let impossible = Superblock { threshold: 0, ..superblock() };
        for (at, other) in [(SUPERBLOCK_A, SUPERBLOCK_B), (SUPERBLOCK_B, SUPERBLOCK_A)] {
            let mut flipped = superblock().encode(REVISION, at).to_vec();
            flipped[1000] ^= 1;
            let contents = [
                vec![0; BLOCK_BYTES],
                flipped,
                superblock().encode(REVISION, other).to_vec(),
                superblock().encode(older, at).to_vec(),
                impossible.encode(REVISION, at).to_vec(),
            ];
            for (number, bytes) in contents.iter().enumerate() {
                let device = whole.snapshot();
                device.corrupt(at.0, bytes);
                let found = load(&device).unwrap();
                assert_eq!(found.superblock, superblock(), "{number} at {at}");
                let named =
                    matches!(found.spare, Some(Repair::Superblock { offset, .. }) if offset == at);
                assert!(named, "{number} at {at}: {:?}", found.spare);
                pollster::block_on(found.restore(&*device)).unwrap();
                assert!(load(&device).unwrap().spare.is_none(), "{number} at {at}");
                for copy in [SUPERBLOCK_A, SUPERBLOCK_B] {
                    assert_eq!(
                        device.peek(copy.0, BLOCK_BYTES),
                        whole.peek(copy.0, BLOCK_BYTES),
                        "{number} at {at}"
                    );
                }
            }
        }
    }

    /// A pool that grows writes B, then A: a cut at any moment leaves the old size or the new one.
    #[test]
    fn a_cut_while_the_size_changes_leaves_one_of_the_two() {
        let device = stored();
        device.forget_history();
        let grown = Revision { sequence: 2, size_bytes: 2 << 30 };
        pollster::block_on(superblock().store(grown, &*device)).unwrap();
        let events = device.history_len();
        let mut seen = Vec::new();
        for (event, seed) in (0..=events).flat_map(|event| (0..20).map(move |seed| (event, seed))) {
            let cut = device.crash_at(event, &mut SeededRandom::new(seed));
            let found = load(&cut).unwrap();
            assert!([REVISION, grown].contains(&found.revision));
            if event == events {
                assert_eq!((found.revision, found.spare.is_some()), (grown, false));
            }
            pollster::block_on(found.restore(&*cut)).unwrap();
            let again = load(&cut).unwrap();
            assert_eq!((again.revision, again.spare.is_some()), (found.revision, false));
            seen.push(found.revision.sequence);
        }
        assert!(seen.contains(&1) && seen.contains(&2));
    }

    #[test]
    fn a_copy_that_cannot_be_read_is_reported_and_written_anew() {
        let whole = stored();
        for at in [SUPERBLOCK_A, SUPERBLOCK_B] {
            let device = whole.snapshot();
            device.fail_reads(at.0..at.0 + 1);
            let found = load(&device).unwrap();
            assert_eq!(found.superblock, superblock());
            let says = found.spare.as_ref().unwrap().to_string();
            let start = format!("superblock at {at} cannot be read: ");
            assert!(says.starts_with(&start), "{says}");
            device.corrupt(at.0, &[0; BLOCK_BYTES]);
            pollster::block_on(found.restore(&*device)).unwrap();
            assert_eq!(device.peek(at.0, BLOCK_BYTES), whole.peek(at.0, BLOCK_BYTES));
        }
        whole.fail_reads(0..1 << 20);
        let error = load(&whole).err().unwrap();
        assert!(error.to_string().contains("superblock at byte 0 cannot be read"), "{error}");
    }

    /// The other copy is older than what the newer program did.
    #[test]
    fn a_copy_that_needs_a_newer_program_is_not_passed_over() {
        for at in [SUPERBLOCK_A, SUPERBLOCK_B] {
            let mut newer = superblock().encode(REVISION, at);
            let version = Identity { version: VERSION + 1, ..identity(0x1234, at) };
            header::seal(&mut newer, &version, 2);
            let mut featured = superblock().encode(REVISION, at);
            featured[HEADER_BYTES] = 0x80;
            header::seal(&mut featured, &identity(0x1234, at), 2);
            for bytes in [newer, featured] {
                let device = stored();
                device.corrupt(at.0, &bytes);
                let error = load(&device).err().unwrap();
                assert!(matches!(error, EngineError::NewerVersion { .. }), "{error}");
            }
        }
    }
}
