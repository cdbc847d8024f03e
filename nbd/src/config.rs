//! The server's limits.

use std::sync::Arc;

use crate::{error::ConfigError, memory::Memory, tls::Tls, turned_away::TurnedAway};

/// The server's limits. A connection that waits for its client takes some KiB; one with requests
/// under way takes up to 80 KiB more, and all of them together up to `max_held_total_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Connections at a time that have chosen an export; more are refused.
    pub max_connections: usize,
    /// Connections at a time, on each address, that have not yet chosen an export; one more ends
    /// the oldest.
    pub max_half_open: usize,
    /// Requests of one connection that are under way (until their replies are sent); when there
    /// are as many, the server stops reading from that client.
    pub max_requests_in_flight: usize,
    /// Bytes of payload, in both directions, that one connection may hold in memory; when a
    /// request does not fit, the server stops reading from that client until it does.
    pub max_held_bytes: usize,
    /// Bytes of payload that all connections together may hold, besides 16 KiB each; requests for
    /// which there is no room wait for it in the order in which they came.
    pub max_held_total_bytes: usize,
    /// The largest payload of one request (an export may allow less).
    pub max_payload_bytes: u32,
    /// How long a client may negotiate, TLS included.
    pub handshake_timeout_ms: u64,
    /// A client that holds memory for which others wait loses its connection if nobody got any for
    /// so long, and it neither sent nor took an eighth of what it holds.
    pub stall_timeout_ms: u64,
}

impl ServerConfig {
    /// The least that `max_payload_bytes` may be: what clients expect to get unfragmented.
    pub const MIN_PAYLOAD_BYTES: u32 = 65_536;

    /// Whether the limits can work together.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (limit, is_zero) in [
            ("max_connections", self.max_connections == 0),
            ("max_half_open", self.max_half_open == 0),
            ("max_requests_in_flight", self.max_requests_in_flight == 0),
            ("handshake_timeout_ms", self.handshake_timeout_ms == 0),
            ("stall_timeout_ms", self.stall_timeout_ms == 0),
        ] {
            if is_zero {
                return Err(ConfigError::Zero { limit });
            }
        }
        let Self { max_payload_bytes, max_held_bytes, max_held_total_bytes, .. } = *self;
        if max_payload_bytes < Self::MIN_PAYLOAD_BYTES
            || max_payload_bytes as usize > max_held_bytes
        {
            return Err(ConfigError::Payload { max_payload_bytes, max_held_bytes });
        }
        if max_held_bytes > max_held_total_bytes {
            return Err(ConfigError::HeldTotal { max_held_bytes, max_held_total_bytes });
        }
        Ok(())
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_half_open: 256,
            max_requests_in_flight: 256,
            max_held_bytes: 64 << 20,
            max_held_total_bytes: 512 << 20,
            max_payload_bytes: 32 << 20,
            handshake_timeout_ms: 10_000,
            stall_timeout_ms: 10_000,
        }
    }
}

/// Limits that can work together, and what all connections that they hold for share.
#[derive(Clone)]
pub struct Limits {
    pub(crate) config: ServerConfig,
    pub(crate) memory: Arc<Memory>,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) turned_away: Arc<TurnedAway>,
}

impl Limits {
    /// The limits of one server.
    pub fn new(config: ServerConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let memory = Arc::new(Memory::new(config.max_held_total_bytes));
        Ok(Self { config, memory, tls: None, turned_away: Arc::default() })
    }

    /// The same limits for connections that may, or must, use TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: Arc<Tls>) -> Self {
        self.tls = Some(tls);
        self
    }
}
