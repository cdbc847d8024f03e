//! Where metrics are served: `HOST:PORT`, or a port of this machine alone.

use std::net::{Ipv4Addr, SocketAddr};

use siltstone_nbd::Listen;

/// `9100` and `:9100` are on loopback: who wants the network to see it has to say so.
pub(crate) fn parse(given: &str) -> Result<SocketAddr, String> {
    let port = given.strip_prefix(':').unwrap_or(given);
    if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
        let port = port.parse().map_err(|_| format!("{port} is not a port"))?;
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    match given.parse() {
        Ok(Listen::Tcp(address)) => Ok(address),
        Ok(Listen::Unix(_)) => Err("metrics are served over TCP: write HOST:PORT".into()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_host_it_is_this_machine() {
        for given in ["9100", ":9100", "127.0.0.1:9100"] {
            assert_eq!(parse(given), Ok(([127, 0, 0, 1], 9100).into()), "{given}");
        }
        assert_eq!(parse("0.0.0.0:0"), Ok(([0, 0, 0, 0], 0).into()));
        for given in ["", ":", "70000", "unix:/run/metrics", "nowhere", "host:port"] {
            assert!(parse(given).is_err(), "{given}");
        }
    }
}
