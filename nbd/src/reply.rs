//! Replies, encoded in the three styles: simple, structured, extended.

use std::{ops::Range, sync::Arc};

use zerocopy::IntoBytes;

use crate::{
    error::{ErrorCode, ExportError},
    export::{ReadBytes, ReadData, StatusExtent},
    handshake::BASE_ALLOCATION_ID,
    output::{Body, Head, Output, Piece},
    protocol::{
        EXTENDED_REPLY_MAGIC, ErrorPayload, ExtendedChunk, Extent, ExtentsHeader, HolePayload,
        REPLY_FLAG_DONE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply, StructuredChunk,
        WideExtent, chunk, extent_flag,
    },
    request::Refusal,
    session::HeaderStyle,
};

/// Holes shorter than this are sent as data: a chunk of their own would cost more.
const MIN_HOLE_BYTES: u32 = 512;

/// How a request ended.
pub(crate) enum Outcome {
    Done,
    Data { data: ReadData, len: u32, dont_fragment: bool },
    Extents { extents: Vec<StatusExtent>, len: u64, max_extents: usize },
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("the storage does not support the operation")]
    Unsupported,
    #[error("the storage gave {given} bytes of memory or data instead of {expected}")]
    WrongLength { given: usize, expected: usize },
    #[error("the storage gave holes or extents that make no sense")]
    WrongExtents,
    #[error("the storage panicked")]
    Panicked,
}

impl Failure {
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Export(error) => error.code(),
            // The protocol reserves ENOTSUP for fast zeroing.
            Self::Unsupported => ErrorCode::Invalid,
            Self::WrongLength { .. } | Self::WrongExtents | Self::Panicked => ErrorCode::Io,
        }
    }

    fn public_message(&self) -> String {
        match self {
            Self::Export(error) => error.public_message().to_owned(),
            other => other.to_string(),
        }
    }
}

/// Encodes the replies to one request.
pub(crate) struct Encoder<'a> {
    pub(crate) style: HeaderStyle,
    pub(crate) cookie: u64,
    /// The request's offset.
    pub(crate) offset: u64,
    /// The bytes that the request was charged for.
    pub(crate) charge: usize,
    pub(crate) output: &'a mut Output,
}

impl Encoder<'_> {
    /// Queues the reply; returns the failure that was reported, if any.
    pub(crate) fn encode(mut self, outcome: Outcome) -> Option<Failure> {
        let result = match outcome {
            Outcome::Done => {
                self.done();
                Ok(())
            }
            Outcome::Data { data, len, dont_fragment } => self.data(data, len, dont_fragment),
            Outcome::Extents { extents, len, max_extents } => {
                self.extents(&extents, len, max_extents)
            }
            Outcome::Failed(failure) => Err(failure),
        };
        // Nothing has been queued for a request that failed.
        let failure = result.err()?;
        self.failed(&failure);
        Some(failure)
    }

    fn done(&mut self) {
        let head = match self.style {
            HeaderStyle::Simple => self.simple_head(0),
            _ => self.chunk_head(chunk::NONE, REPLY_FLAG_DONE, 0),
        };
        self.push(head, Body::None, true);
    }

    fn failed(&mut self, failure: &Failure) {
        let error = failure.code().number();
        if self.style == HeaderStyle::Simple {
            self.push(self.simple_head(error), Body::None, true);
        } else {
            let message = failure.public_message().into_bytes();
            let payload = ErrorPayload {
                error: error.into(),
                message_len: u16::try_from(message.len()).expect("messages are short").into(),
            };
            let len = size_of::<ErrorPayload>() + message.len();
            let head = self.chunk_head(chunk::ERROR, REPLY_FLAG_DONE, len).with(&payload);
            self.push(head, Body::Owned(message), true);
        }
    }

    fn data(&mut self, data: ReadData, len: u32, dont_fragment: bool) -> Result<(), Failure> {
        let unfragmented = dont_fragment || self.style == HeaderStyle::Simple;
        match data {
            ReadData::Hole if unfragmented => {
                self.whole(Body::Owned(vec![0; len as usize]), len);
            }
            ReadData::Hole => self.hole(0..len, true),
            ReadData::Data { bytes, holes } => {
                let given = (*bytes).as_ref().len();
                if given != len as usize {
                    return Err(Failure::WrongLength { given, expected: len as usize });
                }
                if unfragmented || holes.is_empty() {
                    self.whole(Body::Whole(bytes), len);
                } else {
                    self.fragmented(bytes, &holes, len)?;
                }
            }
        }
        Ok(())
    }

    fn whole(&mut self, body: Body, len: u32) {
        let head = match self.style {
            HeaderStyle::Simple => self.simple_head(0),
            _ => self.data_head(0..len, true),
        };
        self.push(head, body, true);
    }

    fn fragmented(
        &mut self,
        bytes: ReadBytes,
        holes: &[Range<u32>],
        len: u32,
    ) -> Result<(), Failure> {
        let mut end = 0;
        for hole in holes {
            if hole.start < end || hole.is_empty() || hole.end > len {
                return Err(Failure::WrongExtents);
            }
            end = hole.end;
        }
        let bytes = Arc::new(bytes);
        let mut position = 0;
        for hole in holes.iter().filter(|hole| hole.len() >= MIN_HOLE_BYTES as usize) {
            self.part(&bytes, position..hole.start, false);
            self.hole(hole.clone(), hole.end == len);
            position = hole.end;
        }
        self.part(&bytes, position..len, true);
        Ok(())
    }

    fn part(&mut self, bytes: &Arc<ReadBytes>, range: Range<u32>, last: bool) {
        if !range.is_empty() {
            let head = self.data_head(range.clone(), last);
            let body = Body::Part(bytes.clone(), range.start as usize..range.end as usize);
            self.push(head, body, last);
        }
    }

    fn hole(&mut self, range: Range<u32>, last: bool) {
        let payload = HolePayload {
            offset: (self.offset + u64::from(range.start)).into(),
            len: (range.end - range.start).into(),
        };
        let flags = if last { REPLY_FLAG_DONE } else { 0 };
        let head = self.chunk_head(chunk::OFFSET_HOLE, flags, size_of::<HolePayload>());
        self.push(head.with(&payload), Body::None, last);
    }

    fn extents(
        &mut self,
        extents: &[StatusExtent],
        len: u64,
        max_extents: usize,
    ) -> Result<(), Failure> {
        let extents = normalize(extents, len, max_extents)?;
        let mut payload = Vec::new();
        let kind = if self.style == HeaderStyle::Extended {
            let count = u32::try_from(extents.len()).expect("max_extents is small");
            let header = ExtentsHeader { context: BASE_ALLOCATION_ID.into(), count: count.into() };
            payload.extend_from_slice(header.as_bytes());
            for (len, flags) in extents {
                let extent = WideExtent { len: len.into(), flags: u64::from(flags).into() };
                payload.extend_from_slice(extent.as_bytes());
            }
            chunk::BLOCK_STATUS_EXT
        } else {
            payload.extend_from_slice(&BASE_ALLOCATION_ID.to_be_bytes());
            for (len, flags) in extents {
                let len = u32::try_from(len).expect("a compact request's length has 32 bits");
                let extent = Extent { len: len.into(), flags: flags.into() };
                payload.extend_from_slice(extent.as_bytes());
            }
            chunk::BLOCK_STATUS
        };
        let head = self.chunk_head(kind, REPLY_FLAG_DONE, payload.len());
        self.push(head, Body::Owned(payload), true);
        Ok(())
    }

    fn data_head(&self, range: Range<u32>, last: bool) -> Head {
        let flags = if last { REPLY_FLAG_DONE } else { 0 };
        let offset = self.offset + u64::from(range.start);
        let len = size_of::<u64>() + range.len();
        self.chunk_head(chunk::OFFSET_DATA, flags, len).with(&offset.to_be_bytes())
    }

    fn simple_head(&self, error: u32) -> Head {
        Head::new(&SimpleReply {
            magic: SIMPLE_REPLY_MAGIC.into(),
            error: error.into(),
            cookie: self.cookie.into(),
        })
    }

    fn chunk_head(&self, kind: u16, flags: u16, len: usize) -> Head {
        if self.style == HeaderStyle::Extended {
            Head::new(&ExtendedChunk {
                magic: EXTENDED_REPLY_MAGIC.into(),
                flags: flags.into(),
                kind: kind.into(),
                cookie: self.cookie.into(),
                offset: self.offset.into(),
                len: (len as u64).into(),
            })
        } else {
            Head::new(&StructuredChunk {
                magic: STRUCTURED_REPLY_MAGIC.into(),
                flags: flags.into(),
                kind: kind.into(),
                cookie: self.cookie.into(),
                len: u32::try_from(len).expect("a chunk holds one payload").into(),
            })
        }
    }

    fn push(&mut self, head: Head, body: Body, last: bool) {
        self.output.push(Piece { head, body, completes: last.then_some(self.charge) });
    }
}

/// Extents as lengths and flags: neighbours of the same status joined, cut off at `len`.
fn normalize(
    extents: &[StatusExtent],
    len: u64,
    max_extents: usize,
) -> Result<Vec<(u64, u32)>, Failure> {
    let mut normal: Vec<(u64, u32)> = Vec::with_capacity(extents.len().min(max_extents));
    let mut rest = len;
    for extent in extents {
        if extent.len == 0 {
            return Err(Failure::WrongExtents);
        }
        let extent_len = extent.len.min(rest);
        if extent_len == 0 {
            break;
        }
        rest -= extent_len;
        let hole = if extent.hole { extent_flag::HOLE } else { 0 };
        let flags = hole | if extent.zero { extent_flag::ZERO } else { 0 };
        let is_full = normal.len() == max_extents;
        match normal.last_mut() {
            Some((last_len, last_flags)) if *last_flags == flags => *last_len += extent_len,
            _ if is_full => break,
            _ => normal.push((extent_len, flags)),
        }
    }
    if normal.is_empty() { Err(Failure::WrongExtents) } else { Ok(normal) }
}
