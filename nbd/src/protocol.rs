//! The wire: constants and big-endian layouts of the NBD protocol. No logic.
//!
//! Names follow the protocol's specification (NetworkBlockDevice/nbd, `doc/proto.md`, and its
//! `extension-ext-header` branch for extended headers) without the `NBD_` prefix.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

/// First word of the server's greeting: "NBDMAGIC".
pub const INIT_PASSWORD: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and the start of every option: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Starts a chunk of an extended reply.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The longest string (name, query, message) that the protocol allows.
pub const MAX_STRING_BYTES: usize = 4096;
/// Zeros after the reply to EXPORT_NAME, unless the client asked for none.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Handshake flags, from both sides.
pub mod handshake_flag {
    /// Options other than EXPORT_NAME work.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No padding after the reply to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options that a client may send during negotiation.
pub mod option {
    /// Choose an export and end the negotiation; cannot report an error.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Continue under TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Choose an export and end the negotiation.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts of an export.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use 64-bit request and reply headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options.
pub mod option_reply {
    /// Accepted, and the end of the reply.
    pub const ACK: u32 = 1;
    /// One export of the list.
    pub const SERVER: u32 = 2;
    /// One piece of information on an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is unknown.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// The option's contents make no sense.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// The option needs TLS.
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The option is too large.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    /// Extended headers are in force, or are needed.
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// What INFO and GO may be asked for.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's own name.
    pub const NAME: u16 = 1;
    /// A line for humans.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum request sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Changes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Forced unit access works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Reads need not be answered in pieces.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush covers what other connections wrote.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// WRITE_ZEROES can fail rather than be slow.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Requests.
pub mod command {
    /// Read bytes.
    pub const READ: u16 = 0;
    /// Write bytes.
    pub const WRITE: u16 = 1;
    /// The client leaves.
    pub const DISC: u16 = 2;
    /// Make completed writes durable.
    pub const FLUSH: u16 = 3;
    /// The range is no longer needed.
    pub const TRIM: u16 = 4;
    /// The range will soon be read.
    pub const CACHE: u16 = 5;
    /// Write zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// What is allocated in the range.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES: do not deallocate.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ: one content chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES: fail rather than be slow.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// Extended headers: a payload of the header's length follows.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Flag of a reply chunk: the last one of its reply.
pub const REPLY_FLAG_DONE: u16 = 1;

/// Types of reply chunks.
pub mod chunk {
    /// Nothing but the end of the reply.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents with 32-bit lengths.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents with 64-bit lengths.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The request failed.
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// The one metadata context that this server knows.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Matches every context of the `base` namespace when contexts are listed.
pub const BASE_WILDCARD: &str = "base:";

/// Flags of an extent in `base:allocation`.
pub mod extent_flag {
    /// Not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

macro_rules! wire {
    ($(#[$doc:meta])* $name:ident = $bytes:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $bytes && align_of::<$name>() == 1);
    };
}

wire! {
    /// What the server says first.
    Greeting = 18 {
        /// [`INIT_PASSWORD`].
        password: U64,
        /// [`OPTION_MAGIC`].
        magic: U64,
        /// [`handshake_flag`].
        flags: U16,
    }
}
wire! {
    /// Starts an option; `len` bytes follow.
    OptionHeader = 16 {
        /// [`OPTION_MAGIC`].
        magic: U64,
        /// [`option`].
        option: U32,
        /// Bytes that follow.
        len: U32,
    }
}
wire! {
    /// Starts a reply to an option; `len` bytes follow.
    OptionReplyHeader = 20 {
        /// [`OPTION_REPLY_MAGIC`].
        magic: U64,
        /// The option that is answered.
        option: U32,
        /// [`option_reply`].
        reply: U32,
        /// Bytes that follow.
        len: U32,
    }
}
wire! {
    /// The answer to EXPORT_NAME, before the padding.
    ExportNameReply = 10 {
        /// The export's size.
        size_bytes: U64,
        /// [`transmission_flag`].
        flags: U16,
    }
}
wire! {
    /// Size and flags, for INFO and GO.
    InfoExport = 12 {
        /// [`info::EXPORT`].
        kind: U16,
        /// The export's size.
        size_bytes: U64,
        /// [`transmission_flag`].
        flags: U16,
    }
}
wire! {
    /// Size constraints, for INFO and GO.
    InfoBlockSize = 14 {
        /// [`info::BLOCK_SIZE`].
        kind: U16,
        /// Every offset and length is a multiple of this.
        minimum: U32,
        /// Requests that are multiples of this are the efficient ones.
        preferred: U32,
        /// The largest payload.
        maximum: U32,
    }
}
wire! {
    /// A request with a 32-bit length.
    CompactRequest = 28 {
        /// [`REQUEST_MAGIC`].
        magic: U32,
        /// [`command_flag`].
        flags: U16,
        /// [`command`].
        command: U16,
        /// Chosen by the client, repeated in the reply.
        cookie: U64,
        /// Where.
        offset: U64,
        /// How much.
        len: U32,
    }
}
wire! {
    /// A request with a 64-bit length.
    ExtendedRequest = 32 {
        /// [`EXTENDED_REQUEST_MAGIC`].
        magic: U32,
        /// [`command_flag`].
        flags: U16,
        /// [`command`].
        command: U16,
        /// Chosen by the client, repeated in the reply.
        cookie: U64,
        /// Where.
        offset: U64,
        /// How much: of payload with [`command_flag::PAYLOAD_LEN`], else of the export.
        len: U64,
    }
}
wire! {
    /// A reply, followed by the data of a successful read.
    SimpleReply = 16 {
        /// [`SIMPLE_REPLY_MAGIC`].
        magic: U32,
        /// Zero, or an error.
        error: U32,
        /// The request's.
        cookie: U64,
    }
}
wire! {
    /// Starts a chunk of a structured reply.
    StructuredChunk = 20 {
        /// [`STRUCTURED_REPLY_MAGIC`].
        magic: U32,
        /// [`REPLY_FLAG_DONE`] or zero.
        flags: U16,
        /// [`chunk`].
        kind: U16,
        /// The request's.
        cookie: U64,
        /// Bytes that follow.
        len: U32,
    }
}
wire! {
    /// Starts a chunk of an extended reply.
    ExtendedChunk = 32 {
        /// [`EXTENDED_REPLY_MAGIC`].
        magic: U32,
        /// [`REPLY_FLAG_DONE`] or zero.
        flags: U16,
        /// [`chunk`].
        kind: U16,
        /// The request's.
        cookie: U64,
        /// The request's.
        offset: U64,
        /// Bytes that follow.
        len: U64,
    }
}
wire! {
    /// The payload of [`chunk::OFFSET_HOLE`].
    HolePayload = 12 {
        /// Where the hole starts.
        offset: U64,
        /// Its length.
        len: U32,
    }
}
wire! {
    /// Starts the payload of [`chunk::ERROR`]; the message follows.
    ErrorPayload = 6 {
        /// What went wrong.
        error: U32,
        /// Bytes of message that follow.
        message_len: U16,
    }
}
wire! {
    /// An extent of [`chunk::BLOCK_STATUS`], after the context's 32-bit identifier.
    Extent = 8 {
        /// Its length.
        len: U32,
        /// [`extent_flag`].
        flags: U32,
    }
}
wire! {
    /// Starts the payload of [`chunk::BLOCK_STATUS_EXT`].
    ExtentsHeader = 8 {
        /// The context's identifier.
        context: U32,
        /// How many extents follow.
        count: U32,
    }
}
wire! {
    /// An extent of [`chunk::BLOCK_STATUS_EXT`].
    WideExtent = 16 {
        /// Its length.
        len: U64,
        /// [`extent_flag`].
        flags: U64,
    }
}
