//! The bytes of an NBD client.

use siltstone_nbd::protocol::{
    BASE_ALLOCATION, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest, OPTION_MAGIC,
    OptionHeader, REQUEST_MAGIC, option,
};
use zerocopy::IntoBytes;

/// The name of the export that the target serves.
pub const EXPORT: &str = "memory";

/// What a client negotiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// All styles.
pub const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// An option.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let (magic, len) = (OPTION_MAGIC.into(), (data.len() as u32).into());
    let header = OptionHeader { magic, option: option.into(), len };
    [header.as_bytes(), data].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

/// The data of GO and INFO.
pub fn info_request(kinds: &[u16]) -> Vec<u8> {
    let mut data = string(EXPORT);
    data.extend_from_slice(&(kinds.len() as u16).to_be_bytes());
    kinds.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    data
}

/// The data of SET_META_CONTEXT and LIST_META_CONTEXT.
pub fn context_request() -> Vec<u8> {
    [&*string(EXPORT), &1u32.to_be_bytes(), &*string(BASE_ALLOCATION)].concat()
}

/// Everything up to the transmission phase.
pub fn negotiation(style: Style) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    match style {
        Style::Simple => {}
        Style::Structured => bytes.extend(option(option::STRUCTURED_REPLY, &[])),
        Style::Extended => bytes.extend(option(option::EXTENDED_HEADERS, &[])),
    }
    if style != Style::Simple {
        bytes.extend(option(option::SET_META_CONTEXT, &context_request()));
    }
    bytes.extend(option(option::GO, &info_request(&[3])));
    bytes
}

/// A request's header.
pub fn request(
    style: Style,
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    len: u64,
) -> Vec<u8> {
    let (flags, command, cookie) = (flags.into(), command.into(), cookie.into());
    let offset = offset.into();
    if style == Style::Extended {
        let magic = EXTENDED_REQUEST_MAGIC.into();
        let len = len.into();
        ExtendedRequest { magic, flags, command, cookie, offset, len }.as_bytes().to_vec()
    } else {
        let (magic, len) = (REQUEST_MAGIC.into(), (len as u32).into());
        CompactRequest { magic, flags, command, cookie, offset, len }.as_bytes().to_vec()
    }
}
