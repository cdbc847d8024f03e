//! The server's limits.

use crate::error::ConfigError;

/// The server's limits. A connection that waits for its client takes some KiB; one with requests
/// under way takes up to `max_held_bytes` more, so the product with `max_connections` bounds the
/// server's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Connections at a time; more are refused.
    pub max_connections: usize,
    /// Requests of one connection that are under way (until their replies are sent); when there
    /// are as many, the server stops reading from that client.
    pub max_requests_in_flight: usize,
    /// Bytes of payload, in both directions, that one connection may hold in memory; when a
    /// request does not fit, the server stops reading from that client until it does.
    pub max_held_bytes: usize,
    /// The largest payload of one request (an export may allow less).
    pub max_payload_bytes: u32,
    /// How long a client may negotiate.
    pub handshake_timeout_ms: u64,
}

impl ServerConfig {
    /// The least that `max_payload_bytes` may be: what clients expect to get unfragmented.
    pub const MIN_PAYLOAD_BYTES: u32 = 65_536;

    /// Whether the limits can work together.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (limit, is_zero) in [
            ("max_connections", self.max_connections == 0),
            ("max_requests_in_flight", self.max_requests_in_flight == 0),
            ("handshake_timeout_ms", self.handshake_timeout_ms == 0),
        ] {
            if is_zero {
                return Err(ConfigError::Zero { limit });
            }
        }
        let Self { max_payload_bytes, max_held_bytes, .. } = *self;
        if max_payload_bytes < Self::MIN_PAYLOAD_BYTES
            || max_payload_bytes as usize > max_held_bytes
        {
            return Err(ConfigError::Payload { max_payload_bytes, max_held_bytes });
        }
        Ok(())
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_requests_in_flight: 256,
            max_held_bytes: 64 << 20,
            max_payload_bytes: 32 << 20,
            handshake_timeout_ms: 10_000,
        }
    }
}
