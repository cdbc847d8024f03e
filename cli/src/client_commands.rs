//! NBD addresses of volumes, and commands that use them, ready to be pasted into a shell.

use std::fmt::Write;

use siltstone_nbd::Listen;

/// The NBD URI of a volume.
pub(crate) fn uri(address: &Listen, volume: &str) -> String {
    let volume = percent_encoded(volume.as_bytes());
    match address {
        Listen::Tcp(address) => format!("nbd://{}/{volume}", reachable(*address)),
        Listen::Unix(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let path = percent_encoded(path.as_os_str().as_encoded_bytes());
            format!("nbd+unix:///{volume}?socket={path}")
        }
    }
}

/// Commands that a client of this volume may want.
pub(crate) fn commands(address: &Listen, volume: &str) -> Vec<String> {
    let uri = quoted(&uri(address, volume));
    let name = quoted(volume);
    let attach = match address {
        Listen::Tcp(address) => {
            let address = reachable(*address);
            format!("nbd-client -N {name} {} {} /dev/nbd0", address.ip(), address.port())
        }
        Listen::Unix(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!("nbd-client -unix {} -N {name} /dev/nbd0", quoted(&path.to_string_lossy()))
        }
    };
    vec![
        format!("nbdinfo {uri}"),
        format!("qemu-img convert -n -O raw disk.raw {uri}"),
        format!("mkdir -p mnt && nbdfuse mnt/disk.raw {uri}"),
        attach,
    ]
}

/// An address that clients on this machine can connect to.
fn reachable(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => write!(out, "%{byte:02X}").expect("strings take everything"),
        }
    }
    out
}

/// `text` as one word of a shell command.
fn quoted(text: &str) -> String {
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/' | ':' | '%' | ',');
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_encoded() {
        let unix = Listen::Unix("/run/a b.sock".into());
        assert_eq!(uri(&unix, "my disk?"), "nbd+unix:///my%20disk%3F?socket=/run/a%20b.sock");
        let any: Listen = "0.0.0.0:10809".parse().unwrap();
        assert_eq!(uri(&any, "disk"), "nbd://127.0.0.1:10809/disk");
        let any: Listen = "[::]:10809".parse().unwrap();
        assert_eq!(uri(&any, "größe"), "nbd://[::1]:10809/gr%C3%B6%C3%9Fe");
    }

    #[test]
    fn words_survive_the_shell() {
        for (text, word) in [
            ("disk", "disk"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("nbd+unix:///disk?socket=/s", "'nbd+unix:///disk?socket=/s'"),
        ] {
            assert_eq!(quoted(text), word);
        }
    }
}
