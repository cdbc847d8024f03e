//! NBD addresses of volumes, and commands that use them, ready to be pasted into a shell.

use std::fmt::Write;

use siltstone_nbd::Listen;

/// What the commands for TLS leave open.
pub(crate) const TLS_DIRECTORY_NOTE: &str = "(pki: a directory with ca-cert.pem, and \
    client-cert.pem and client-key.pem for clients that need them)\n";

/// The NBD URI of a volume.
fn uri(address: &Listen, volume: &str, tls: bool) -> String {
    let volume = percent_encoded(volume.as_bytes());
    let scheme = if tls { "nbds" } else { "nbd" };
    let mut uri = match address {
        Listen::Tcp(address) => format!("{scheme}://{}/{volume}", reachable(*address)),
        Listen::Unix(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let path = percent_encoded(path.as_os_str().as_encoded_bytes());
            format!("{scheme}+unix:///{volume}?socket={path}")
        }
    };
    if tls {
        uri.push(if uri.contains('?') { '&' } else { '?' });
        uri += "tls-certificates=pki";
    }
    uri
}

/// Commands that a client of this volume may want.
pub(crate) fn commands(address: &Listen, volume: &str, tls: bool) -> Vec<String> {
    let uri = quoted(&uri(address, volume, tls));
    let mut commands = vec![format!("nbdinfo {uri}")];
    commands.push(match tls {
        // qemu-img takes the certificates otherwise than in the URI.
        true => format!("nbdcopy disk.raw {uri}"),
        false => format!("qemu-img convert -n -O raw disk.raw {uri}"),
    });
    commands.push(format!("mkdir -p mnt && nbdfuse mnt/disk.raw {uri}"));
    if !tls {
        commands.push(attach(address, volume));
    }
    commands
}

/// The command that makes a block device of the volume.
fn attach(address: &Listen, volume: &str) -> String {
    let name = quoted(volume);
    match address {
        Listen::Tcp(address) => {
            let address = reachable(*address);
            format!("nbd-client -N {name} {} {} /dev/nbd0", address.ip(), address.port())
        }
        Listen::Unix(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!("nbd-client -unix {} -N {name} /dev/nbd0", quoted(&path.to_string_lossy()))
        }
    }
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
        assert_eq!(
            uri(&unix, "my disk?", false),
            "nbd+unix:///my%20disk%3F?socket=/run/a%20b.sock"
        );
        assert_eq!(
            uri(&unix, "d", true),
            "nbds+unix:///d?socket=/run/a%20b.sock&tls-certificates=pki"
        );
        let any: Listen = "0.0.0.0:10809".parse().unwrap();
        assert_eq!(uri(&any, "d", true), "nbds://127.0.0.1:10809/d?tls-certificates=pki");
        assert_eq!(uri(&any, "disk", false), "nbd://127.0.0.1:10809/disk");
        let any: Listen = "[::]:10809".parse().unwrap();
        assert_eq!(uri(&any, "größe", false), "nbd://[::1]:10809/gr%C3%B6%C3%9Fe");
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
