//! Reading a record back: what its first sector says, and whether all of it is whole.

use siltstone_device::{
    BLOCK_BYTES, BlockAddress, ByteOffset, LayerId, Sequence,
    header::{self, Header, HeaderError, Kind, MAGIC},
};
use zerocopy::FromBytes;

use super::{
    BLOCK, Change, ChangeBody, Descriptor, Head, KIND_DATA, KIND_ZERO, LogIdentity,
    MAX_RECORD_BYTES, MAX_RECORD_NUMBER, RecordLabel, head_checksum, header_identity,
    record_bytes_for,
};

/// Why bytes are not a record of this log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The common header does not fit.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The record contradicts itself though its checksum matches: no program of ours wrote it.
    #[error("log record at byte {address_bytes}: {flaw}")]
    Malformed {
        /// Where.
        address_bytes: u64,
        /// What is wrong.
        flaw: RecordFlaw,
    },
}

/// How a record contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFlaw {
    /// The second nonce is another log's.
    #[error("belongs to another log")]
    ForeignLog,
    /// The head does not match its own checksum.
    #[error("head checksum mismatch")]
    HeadChecksum,
    /// Not whole blocks, longer than any record, or not what counts and sizes add up to.
    #[error("impossible length")]
    Length,
    /// More changes than the record has room for.
    #[error("impossible number of changes")]
    ChangeCount,
    /// Numbered 0, beyond all counting, or older than the oldest live record that it names.
    #[error("impossible record number")]
    Number,
    /// A change of no known kind.
    #[error("change of unknown kind")]
    ChangeKind,
    /// A change of no block, or past the last address.
    #[error("change of an impossible range")]
    ChangeRange,
    /// Sequence numbers that do not ascend or are not within the head's.
    #[error("changes out of order")]
    Order,
}

/// What the first sector of a record says; its body may still be torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) label: RecordLabel,
    pub(crate) last_sequence: Sequence,
    pub(crate) len_bytes: u64,
}

/// A whole record.
#[derive(Clone, Copy)]
pub struct RecordView<'a> {
    label: RecordLabel,
    first_sequence: Sequence,
    last_sequence: Sequence,
    descriptors: &'a [Descriptor],
    data: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// What the record says of itself.
    #[must_use]
    pub fn label(&self) -> RecordLabel {
        self.label
    }

    /// The first change's sequence number; in a record without changes, where the log was trimmed.
    #[must_use]
    pub fn first_sequence(&self) -> Sequence {
        self.first_sequence
    }

    /// The last change's sequence number; in a record without changes, where the log was trimmed.
    #[must_use]
    pub fn last_sequence(&self) -> Sequence {
        self.last_sequence
    }

    /// How many changes it holds.
    #[must_use]
    pub fn change_count(&self) -> usize {
        self.descriptors.len()
    }

    /// The changes, in ascending order of sequence numbers.
    pub fn changes(&self) -> impl Iterator<Item = Change<'a>> + use<'a> {
        let mut data = self.data;
        self.descriptors.iter().map(move |descriptor| {
            let body = if descriptor.kind == KIND_DATA {
                let (blocks, rest) =
                    data.split_at(descriptor.len_blocks.get() as usize * BLOCK_BYTES);
                data = rest;
                ChangeBody::Data(blocks)
            } else {
                ChangeBody::Zero
            };
            Change {
                layer: LayerId(descriptor.layer.get()),
                address: BlockAddress(descriptor.address.get()),
                len_blocks: descriptor.len_blocks.get(),
                sequence: Sequence(descriptor.sequence.get()),
                body,
            }
        })
    }
}

impl std::fmt::Debug for RecordView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record {} of {} changes", self.label.number, self.change_count())
    }
}

/// Splits the two fixed parts off, if they fit.
pub(super) fn fixed_parts(bytes: &[u8]) -> Option<(Header, Head, &[u8])> {
    let (header, rest) = Header::read_from_prefix(bytes).ok()?;
    let (head, rest) = Head::read_from_prefix(rest).ok()?;
    Some((header, head, rest))
}

fn check_head(identity: &LogIdentity, header: &Header, head: &Head) -> Result<(), RecordFlaw> {
    if head.second_nonce.get() != identity.second {
        return Err(RecordFlaw::ForeignLog);
    }
    let (address, number) = (header.address_bytes.get(), header.sequence.get());
    let len_bytes = u64::from(header.length_bytes.get());
    if head.head_checksum.get()
        != head_checksum(header.pool.get(), address, number, len_bytes, *head)
    {
        return Err(RecordFlaw::HeadChecksum);
    }
    if len_bytes == 0 || !len_bytes.is_multiple_of(BLOCK) || len_bytes > MAX_RECORD_BYTES {
        return Err(RecordFlaw::Length);
    }
    if head.oldest_live.get() == 0 || head.oldest_live.get() > number || number > MAX_RECORD_NUMBER
    {
        return Err(RecordFlaw::Number);
    }
    Ok(())
}

fn label(header: &Header, head: &Head) -> RecordLabel {
    RecordLabel {
        number: header.sequence.get(),
        address: ByteOffset(header.address_bytes.get()),
        trimmed: Sequence(head.trimmed.get()),
        oldest_live: head.oldest_live.get(),
        oldest_live_address: ByteOffset(head.oldest_live_address.get()),
    }
}

/// The head of the record of this log that begins at `address`, if one does: a look at no more than
/// its first 104 bytes. The body is yet to be checked, and so is the version, which is under the
/// record's checksum alone.
pub(crate) fn peek(
    bytes: &[u8],
    identity: &LogIdentity,
    address: ByteOffset,
) -> Option<RecordHead> {
    let (header, head, _) = fixed_parts(bytes)?;
    let ours = header.magic == MAGIC
        && header.kind.get() == Kind::LogRecord as u16
        && header.pool.get() == identity.first
        && header.address_bytes.get() == address.0;
    if !ours || check_head(identity, &header, &head).is_err() {
        return None;
    }
    Some(RecordHead {
        label: label(&header, &head),
        last_sequence: Sequence(head.last_sequence.get()),
        len_bytes: u64::from(header.length_bytes.get()),
    })
}

/// The record that `bytes`, read at `address`, begin with.
///
/// # Errors
/// If they are not a whole record of this log that belongs there.
pub fn decode<'a>(
    bytes: &'a [u8],
    identity: &LogIdentity,
    address: ByteOffset,
) -> Result<RecordView<'a>, RecordError> {
    let header = header::verify(bytes, &header_identity(identity, address))?;
    let malformed = |flaw| RecordError::Malformed { address_bytes: address.0, flaw };
    let len_bytes = header.length_bytes.get() as usize;
    let Some((_, head, rest)) = fixed_parts(&bytes[..len_bytes]) else {
        return Err(malformed(RecordFlaw::Length));
    };
    check_head(identity, &header, &head).map_err(malformed)?;

    let change_count = head.change_count.get() as usize;
    let Ok((descriptors, _)) = <[Descriptor]>::ref_from_prefix_with_elems(rest, change_count)
    else {
        return Err(malformed(RecordFlaw::ChangeCount));
    };
    let payload_bytes = u64::from(head.payload_bytes.get());
    if record_bytes_for(change_count, payload_bytes) != len_bytes as u64 {
        return Err(malformed(RecordFlaw::Length));
    }
    check_changes(descriptors, &head).map_err(malformed)?;
    Ok(RecordView {
        label: label(&header, &head),
        first_sequence: Sequence(head.first_sequence.get()),
        last_sequence: Sequence(head.last_sequence.get()),
        descriptors,
        data: &bytes[len_bytes - payload_bytes as usize..len_bytes],
    })
}

fn check_changes(descriptors: &[Descriptor], head: &Head) -> Result<(), RecordFlaw> {
    let (first, last) = (head.first_sequence.get(), head.last_sequence.get());
    let mut data_blocks = 0;
    let mut previous = first;
    for descriptor in descriptors {
        let len_blocks = u64::from(descriptor.len_blocks.get());
        if len_blocks == 0 || descriptor.address.get().checked_add(len_blocks).is_none() {
            return Err(RecordFlaw::ChangeRange);
        }
        match descriptor.kind {
            KIND_DATA => data_blocks += len_blocks,
            KIND_ZERO => {}
            _ => return Err(RecordFlaw::ChangeKind),
        }
        if descriptor.sequence.get() < previous {
            return Err(RecordFlaw::Order);
        }
        previous = descriptor.sequence.get();
    }
    let expected_first = descriptors.first().map_or(head.trimmed.get(), |d| d.sequence.get());
    if expected_first != first || (!descriptors.is_empty() && previous != last) || last < first {
        return Err(RecordFlaw::Order);
    }
    if data_blocks * BLOCK != u64::from(head.payload_bytes.get()) {
        return Err(RecordFlaw::Length);
    }
    Ok(())
}
