//! The header that every metadata structure on disk begins with.
//!
//! It says what the structure is (magic, kind, version), whose it is (pool), where it belongs
//! (its own address), how new it is (sequence), and whether it is whole (length, CRC-32 over
//! everything with the checksum field taken as zero). A valid structure in the wrong place, of
//! another pool, or of an older generation is therefore told apart from a damaged one.
//! Frames, of which there are millions, have a denser header of their own (engine).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::DeviceError;

/// The first four bytes of every structure.
pub const MAGIC: [u8; 4] = *b"SLTS";

/// What a structure is. The discriminants are on-disk values and never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// A superblock (engine).
    Superblock = 1,
    /// A checkpoint record (nvram).
    Checkpoint = 2,
    /// A record of the NVRAM log.
    LogRecord = 3,
    /// The header and summary of a write unit (engine).
    WriteUnit = 4,
    /// A leaf page of a patch (cursor).
    PatchLeaf = 5,
    /// A fence page of a patch (cursor).
    PatchFence = 6,
    /// A page of the segment table (engine).
    SegmentTable = 7,
    /// A durability mark (nvram).
    DurabilityMark = 8,
    /// A chunk of a stored image of the dedup index (engine).
    IndexImage = 9,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Checkpoint => "checkpoint record",
            Self::LogRecord => "NVRAM log record",
            Self::WriteUnit => "write unit",
            Self::PatchLeaf => "patch leaf page",
            Self::PatchFence => "patch fence page",
            Self::SegmentTable => "segment table page",
            Self::DurabilityMark => "durability mark",
            Self::IndexImage => "chunk of the index's image",
        })
    }
}

/// The common header, 40 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// A [`Kind`].
    pub kind: U16,
    /// The version of this kind's layout.
    pub version: U16,
    /// CRC-32 (IEEE) of `length_bytes` bytes from the header's start, this field taken as zero.
    pub checksum: U32,
    /// Bytes that the structure takes, header included.
    pub length_bytes: U32,
    /// The pool's random identity.
    pub pool: U64,
    /// Where the structure belongs: its offset on its device, in bytes.
    pub address_bytes: U64,
    /// Generation: what it counts depends on the kind; newer is larger.
    pub sequence: U64,
}

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 40;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const CHECKSUM_FIELD: std::ops::Range<usize> = 8..12;

/// What a reader expects of a structure, and a writer says of it.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// What it is.
    pub kind: Kind,
    /// The layout's version.
    pub version: u16,
    /// Whose it is.
    pub pool: u64,
    /// Where it belongs, in bytes from the start of its device.
    pub address_bytes: u64,
}

impl Identity {
    /// What is wrong with a structure that the device does not give.
    #[must_use]
    pub fn unreadable(&self, cause: &DeviceError) -> HeaderError {
        let Self { kind, address_bytes, .. } = *self;
        HeaderError::Unreadable { kind, address_bytes, cause: Box::new(cause.clone()) }
    }
}

/// Why bytes are not the structure that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The device does not give what is there.
    #[error("{kind} at byte {address_bytes} cannot be read: {cause}")]
    Unreadable {
        /// What was expected.
        kind: Kind,
        /// Where.
        address_bytes: u64,
        /// Why.
        cause: Box<DeviceError>,
    },
    /// Nothing recognisable is there.
    #[error("{kind} at byte {address_bytes}: no valid magic number")]
    Magic {
        /// What was expected.
        kind: Kind,
        /// Where.
        address_bytes: u64,
    },
    /// The recorded length cannot be true.
    #[error("{kind} at byte {address_bytes}: length {length_bytes} is impossible")]
    Length {
        /// What was expected.
        kind: Kind,
        /// Where.
        address_bytes: u64,
        /// The length found.
        length_bytes: u32,
    },
    /// The contents do not match their checksum.
    #[error("{kind} at byte {address_bytes}: checksum mismatch")]
    Checksum {
        /// What was expected.
        kind: Kind,
        /// Where.
        address_bytes: u64,
    },
    /// A valid structure of another kind.
    #[error("{kind} at byte {address_bytes}: found a structure of kind {found} instead")]
    WrongKind {
        /// What was expected.
        kind: Kind,
        /// Where.
        address_bytes: u64,
        /// What was found.
        found: u16,
    },
    /// A valid structure that belongs to another pool.
    #[error("{kind} at byte {address_bytes}: belongs to another pool ({found:016x})")]
    WrongPool {
        /// What was expected.
        kind: Kind,
        /// Where.
        address_bytes: u64,
        /// The pool found.
        found: u64,
    },
    /// A valid structure that belongs elsewhere: a misdirected write.
    #[error("{kind} at byte {address_bytes}: belongs at byte {found}")]
    WrongAddress {
        /// What was expected.
        kind: Kind,
        /// Where.
        address_bytes: u64,
        /// The address found in it.
        found: u64,
    },
    /// A valid structure in a layout that this program does not know.
    #[error(
        "{kind} at byte {address_bytes}: version {found} is newer than this program knows ({known}); use a newer siltstone"
    )]
    Version {
        /// What was expected.
        kind: Kind,
        /// Where.
        address_bytes: u64,
        /// The version found.
        found: u16,
        /// The newest version known.
        known: u16,
    },
}

/// Writes the header of the structure that fills `bytes` and checksums the whole.
///
/// # Panics
/// If `bytes` is shorter than a header or longer than `u32::MAX`.
pub fn seal(bytes: &mut [u8], identity: &Identity, sequence: u64) {
    let length = u32::try_from(bytes.len()).expect("structures are far below 4 GiB");
    let header = Header {
        magic: MAGIC,
        kind: U16::new(identity.kind as u16),
        version: U16::new(identity.version),
        checksum: U32::ZERO,
        length_bytes: U32::new(length),
        pool: U64::new(identity.pool),
        address_bytes: U64::new(identity.address_bytes),
        sequence: U64::new(sequence),
    };
    bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    let checksum = crc32fast::hash(bytes);
    bytes[CHECKSUM_FIELD].copy_from_slice(&checksum.to_le_bytes());
}

/// Checks that `bytes` begin with the expected structure, whole; returns its header.
/// `bytes` may be longer than the structure. The structure's body is
/// `bytes[HEADER_BYTES..header.length_bytes]`.
///
/// # Errors
/// The first of: magic, length, checksum, kind, pool, address, version that does not fit.
pub fn verify(bytes: &[u8], identity: &Identity) -> Result<Header, HeaderError> {
    let Identity { kind, address_bytes, .. } = *identity;
    let magic = HeaderError::Magic { kind, address_bytes };
    let Ok((header, _)) = Header::read_from_prefix(bytes) else {
        return Err(magic);
    };
    if header.magic != MAGIC {
        return Err(magic);
    }
    let length_bytes = header.length_bytes.get();
    let length = length_bytes as usize;
    if length < HEADER_BYTES || length > bytes.len() {
        return Err(HeaderError::Length { kind, address_bytes, length_bytes });
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CHECKSUM_FIELD.start]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[CHECKSUM_FIELD.end..length]);
    if hasher.finalize() != header.checksum.get() {
        return Err(HeaderError::Checksum { kind, address_bytes });
    }
    if header.kind.get() != kind as u16 {
        return Err(HeaderError::WrongKind { kind, address_bytes, found: header.kind.get() });
    }
    if header.pool.get() != identity.pool {
        return Err(HeaderError::WrongPool { kind, address_bytes, found: header.pool.get() });
    }
    if header.address_bytes.get() != address_bytes {
        return Err(HeaderError::WrongAddress {
            kind,
            address_bytes,
            found: header.address_bytes.get(),
        });
    }
    if header.version.get() > identity.version {
        return Err(HeaderError::Version {
            kind,
            address_bytes,
            found: header.version.get(),
            known: identity.version,
        });
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity =
        Identity { kind: Kind::PatchLeaf, version: 1, pool: 77, address_bytes: 8192 };

    fn sealed() -> Vec<u8> {
        let mut bytes = vec![0xa5; 256];
        seal(&mut bytes, &IDENTITY, 9);
        bytes
    }

    #[test]
    fn a_sealed_structure_verifies() {
        let header = verify(&sealed(), &IDENTITY).unwrap();
        assert_eq!(header.sequence.get(), 9);
        assert_eq!(header.length_bytes.get(), 256);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let sealed = sealed();
        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&bytes, &IDENTITY).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_valid_structure_in_the_wrong_place_is_told_apart_from_damage() {
        let bytes = sealed();
        let elsewhere = Identity { address_bytes: 4096, ..IDENTITY };
        assert!(matches!(
            verify(&bytes, &elsewhere),
            Err(HeaderError::WrongAddress { found: 8192, .. })
        ));
        let other_pool = Identity { pool: 78, ..IDENTITY };
        assert!(matches!(verify(&bytes, &other_pool), Err(HeaderError::WrongPool { .. })));
        let other_kind = Identity { kind: Kind::PatchFence, ..IDENTITY };
        assert!(matches!(verify(&bytes, &other_kind), Err(HeaderError::WrongKind { .. })));
        let older = Identity { version: 0, ..IDENTITY };
        assert!(matches!(verify(&bytes, &older), Err(HeaderError::Version { found: 1, .. })));
    }

    #[test]
    fn short_input_is_an_error() {
        let bytes = sealed();
        for len in 0..bytes.len() {
            assert!(verify(&bytes[..len], &IDENTITY).is_err());
        }
    }
}
