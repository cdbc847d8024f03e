//! Requests: parsed, and checked in one place.

use zerocopy::FromBytes;

use crate::{
    error::{ErrorCode, TransmissionError},
    export::ZeroOptions,
    protocol::{
        self, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest, REQUEST_MAGIC, command_flag,
    },
    session::{HeaderStyle, Rules},
};

/// A request's header, whatever its style.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Header {
    /// The size of a header on the wire.
    pub(crate) fn wire_bytes(style: HeaderStyle) -> usize {
        match style {
            HeaderStyle::Simple | HeaderStyle::Structured => size_of::<CompactRequest>(),
            HeaderStyle::Extended => size_of::<ExtendedRequest>(),
        }
    }

    /// Parses the header at the start of `bytes`; `None` until there is enough of it.
    pub(crate) fn parse(
        bytes: &[u8],
        style: HeaderStyle,
    ) -> Result<Option<Self>, TransmissionError> {
        let (found, expected, header) = match style {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                let Ok((raw, _)) = CompactRequest::ref_from_prefix(bytes) else { return Ok(None) };
                let header = Self {
                    flags: raw.flags.get(),
                    command: raw.command.get(),
                    cookie: raw.cookie.get(),
                    offset: raw.offset.get(),
                    len: raw.len.get().into(),
                };
                (raw.magic.get(), REQUEST_MAGIC, header)
            }
            HeaderStyle::Extended => {
                let Ok((raw, _)) = ExtendedRequest::ref_from_prefix(bytes) else { return Ok(None) };
                let header = Self {
                    flags: raw.flags.get(),
                    command: raw.command.get(),
                    cookie: raw.cookie.get(),
                    offset: raw.offset.get(),
                    len: raw.len.get(),
                };
                (raw.magic.get(), EXTENDED_REQUEST_MAGIC, header)
            }
        };
        if found != expected {
            return Err(TransmissionError::BadMagic { found, expected });
        }
        Ok(Some(header))
    }

    /// How many bytes of payload follow the header, whether or not the request is a valid one.
    ///
    /// A write has payload even if an extended header does not say so, as the protocol wants it
    /// to: qemu's client (10.0 for one) leaves the flag out.
    pub(crate) fn payload_bytes(&self, style: HeaderStyle) -> u64 {
        let is_flagged =
            style == HeaderStyle::Extended && self.flags & command_flag::PAYLOAD_LEN != 0;
        if self.command == protocol::command::WRITE || is_flagged { self.len } else { 0 }
    }
}

/// A request that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read { offset: u64, len: u32, dont_fragment: bool },
    Write { offset: u64, len: u32, fua: bool },
    Disconnect,
    Flush,
    Trim { offset: u64, len: u64, fua: bool },
    Prefetch { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, options: ZeroOptions },
    BlockStatus { offset: u64, len: u64, one_extent: bool },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("unknown command {command}")]
    UnknownCommand { command: u16 },
    #[error("flags {flags:#06x} do not go with command {command}")]
    WrongFlags { flags: u16, command: u16 },
    #[error("a flush takes neither offset nor length")]
    FlushRange,
    #[error("the length is zero")]
    Empty,
    #[error("the export is read-only")]
    ReadOnly,
    #[error("offset and length must be multiples of {minimum}")]
    Unaligned { minimum: u32 },
    #[error("the payload is limited to {maximum} bytes")]
    WriteTooLong { maximum: u32 },
    #[error("a read is limited to {maximum} bytes")]
    ReadTooLong { maximum: u32 },
    #[error("the request passes the end of the export ({size_bytes} bytes)")]
    OutOfRange { size_bytes: u64, writes: bool },
    #[error("no metadata context was selected for this export")]
    NoContext,
    #[error("the server is being shut down")]
    Shutdown,
}

impl Refusal {
    /// What the client is told.
    pub(crate) fn code(self) -> ErrorCode {
        match self {
            Self::ReadOnly => ErrorCode::NotPermitted,
            Self::ReadTooLong { .. } => ErrorCode::Overflow,
            Self::OutOfRange { writes: true, .. } => ErrorCode::NoSpace,
            Self::Shutdown => ErrorCode::Shutdown,
            Self::UnknownCommand { .. }
            | Self::WrongFlags { .. }
            | Self::FlushRange
            | Self::Empty
            | Self::Unaligned { .. }
            | Self::WriteTooLong { .. }
            | Self::OutOfRange { writes: false, .. }
            | Self::NoContext => ErrorCode::Invalid,
        }
    }
}

/// Decides whether a request is allowed. Every refusal that does not come from the storage (or
/// from a shutdown) stands here.
pub(crate) fn validate(header: &Header, rules: &Rules) -> Result<Command, Refusal> {
    use protocol::command as c;
    let Header { flags, command, offset, len, .. } = *header;
    let extended = rules.style == HeaderStyle::Extended;

    let known_flags = command_flag::FUA
        | match command {
            // The client leaves, whatever else it says.
            c::DISC => return Ok(Command::Disconnect),
            c::READ if rules.style != HeaderStyle::Simple => command_flag::DF,
            c::WRITE if extended => command_flag::PAYLOAD_LEN,
            c::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            c::BLOCK_STATUS => command_flag::REQ_ONE,
            c::READ | c::WRITE | c::FLUSH | c::TRIM | c::CACHE => 0,
            _ => return Err(Refusal::UnknownCommand { command }),
        };
    if flags & !known_flags != 0 {
        return Err(Refusal::WrongFlags { flags, command });
    }
    let has = |flag| flags & flag != 0;
    let fua = has(command_flag::FUA);

    if command == c::FLUSH {
        let has_range = offset != 0 || len != 0;
        return if has_range { Err(Refusal::FlushRange) } else { Ok(Command::Flush) };
    }
    if command == c::BLOCK_STATUS && !rules.base_allocation {
        return Err(Refusal::NoContext);
    }
    let changes = matches!(command, c::WRITE | c::TRIM | c::WRITE_ZEROES);
    if changes && rules.read_only {
        return Err(Refusal::ReadOnly);
    }
    if len == 0 {
        return Err(Refusal::Empty);
    }
    let minimum = rules.block_sizes.minimum();
    if (offset | len) & u64::from(minimum - 1) != 0 {
        return Err(Refusal::Unaligned { minimum });
    }
    let maximum = rules.block_sizes.maximum();
    let payload_len = u32::try_from(len).ok().filter(|len| *len <= maximum);
    match command {
        c::READ if payload_len.is_none() => return Err(Refusal::ReadTooLong { maximum }),
        c::WRITE if payload_len.is_none() => return Err(Refusal::WriteTooLong { maximum }),
        _ => {}
    }
    if offset.checked_add(len).is_none_or(|end| end > rules.size_bytes) {
        let writes = matches!(command, c::WRITE | c::WRITE_ZEROES);
        return Err(Refusal::OutOfRange { size_bytes: rules.size_bytes, writes });
    }
    Ok(match (command, payload_len) {
        (c::READ, Some(len)) => Command::Read { offset, len, dont_fragment: has(command_flag::DF) },
        (c::WRITE, Some(len)) => Command::Write { offset, len, fua },
        (c::TRIM, _) => Command::Trim { offset, len, fua },
        (c::CACHE, _) => Command::Prefetch { offset, len },
        (c::WRITE_ZEROES, _) => Command::WriteZeroes {
            offset,
            len,
            options: ZeroOptions {
                no_hole: has(command_flag::NO_HOLE),
                fast: has(command_flag::FAST_ZERO),
                fua,
            },
        },
        (c::BLOCK_STATUS, _) => {
            Command::BlockStatus { offset, len, one_extent: has(command_flag::REQ_ONE) }
        }
        _ => return Err(Refusal::UnknownCommand { command }),
    })
}

#[cfg(test)]
mod tests;
