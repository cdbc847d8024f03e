//! What a negotiation settled: all that transmission needs to know.

use std::sync::Arc;

use crate::{
    config::ServerConfig,
    export::{BlockSizes, Export},
    protocol::transmission_flag as flag,
};

/// How headers look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderStyle {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

impl HeaderStyle {
    /// What a log calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Structured => "structured",
            Self::Extended => "extended",
        }
    }
}

/// An export, and how its client speaks.
pub(crate) struct Session {
    pub(crate) export: Arc<dyn Export>,
    pub(crate) name: String,
    pub(crate) rules: Rules,
}

/// What requests of a session must keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) block_sizes: BlockSizes,
    pub(crate) style: HeaderStyle,
    /// The client selected `base:allocation` for this export.
    pub(crate) base_allocation: bool,
}

impl Rules {
    pub(crate) fn new(
        export: &dyn Export,
        config: &ServerConfig,
        style: HeaderStyle,
        base_allocation: bool,
    ) -> Self {
        Self {
            size_bytes: export.size_bytes(),
            read_only: export.is_read_only(),
            block_sizes: export.block_sizes().limited_to(config.max_payload_bytes),
            style,
            base_allocation,
        }
    }

    /// The transmission flags that tell the client what it may do.
    pub(crate) fn flags(&self) -> u16 {
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::CAN_MULTI_CONN
            | flag::SEND_CACHE;
        if self.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        }
        if self.style != HeaderStyle::Simple {
            flags |= flag::SEND_DF;
        }
        flags
    }
}
