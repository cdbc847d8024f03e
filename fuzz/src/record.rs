//! Records of the NVRAM log with hostile contents and valid checksums.

use siltstone_device::{
    ByteOffset,
    header::{self, HEADER_BYTES, Identity, Kind},
};
use siltstone_nvram::{LogIdentity, record::RECORD_VERSION};
use zerocopy::{FromBytes, IntoBytes, little_endian::U64};

/// Where the second nonce and the head's checksum stand in a record.
const SECOND_NONCE: std::ops::Range<usize> = HEADER_BYTES..HEADER_BYTES + 8;
const HEAD_CHECKSUM: std::ops::Range<usize> = HEADER_BYTES + 56..HEADER_BYTES + 60;
/// Header and head.
pub const HEAD_END: usize = HEADER_BYTES + 64;

/// Makes the record in `bytes` valid as far as nonces and checksums go; the number is kept.
pub fn seal(bytes: &mut [u8], identity: &LogIdentity, address: ByteOffset) {
    let (old, _) = header::Header::read_from_prefix(&*bytes).expect("a record has a header");
    let number = old.sequence.get();
    bytes[SECOND_NONCE].copy_from_slice(&identity.second.to_le_bytes());
    bytes[HEAD_CHECKSUM].fill(0);
    let mut hasher = crc32fast::Hasher::new();
    let fields = [identity.first, address.0, number, bytes.len() as u64].map(U64::new);
    hasher.update(fields.as_bytes());
    hasher.update(&bytes[HEADER_BYTES..HEAD_END]);
    bytes[HEAD_CHECKSUM].copy_from_slice(&hasher.finalize().to_le_bytes());
    let common = Identity {
        kind: Kind::LogRecord,
        version: RECORD_VERSION,
        pool: identity.first,
        address_bytes: address.0,
    };
    header::seal(bytes, &common, number);
}
