//! Who may connect to a server, and how.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::interval::Interval;

#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArguments {
    /// The server's certificate for TLS, in PEM form, followed by those between it and its
    /// authority.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key that belongs to the certificate, in PEM form, not encrypted.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Who has to use TLS [default: required with --tls-cert, else off].
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) tls: Option<TlsChoice>,
    /// Accept certificates of clients that were issued by these authorities, in PEM form.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Whether clients under TLS need a certificate [default: required].
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) tls_client_cert: Option<ClientCertificateChoice>,
    /// Let only clients use this volume and its snapshots whose certificate has one of these names
    /// (CN or DNS); may be repeated. For others it does not exist. Volumes without a list are open
    /// to all who may connect.
    #[arg(long, value_name = "VOLUME=NAME[,NAME...]", value_parser = parse_allow)]
    pub(crate) allow: Vec<Allow>,
    /// Listen without required TLS on addresses that other machines can reach.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// The mode of unix sockets [default: 0600, or 0660 with --socket-group].
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub(crate) socket_mode: Option<u32>,
    /// The group of unix sockets, by name or number.
    #[arg(long, value_name = "GROUP")]
    pub(crate) socket_group: Option<String>,
    /// How long a client may take to choose an export, TLS included.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(crate) handshake_timeout: Interval,
    /// How many clients, on each address, may be choosing an export; one more ends the oldest.
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) max_half_open: u32,
}

/// Who has to use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsChoice {
    /// Nobody can.
    Off,
    /// Clients that ask for it.
    Optional,
    /// All clients, on unix sockets, too.
    Required,
}

/// What clients have to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClientCertificateChoice {
    /// A client without a certificate may use volumes that have no list.
    Optional,
    /// A client without a certificate is turned away.
    Required,
}

/// Who may use a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allow {
    pub(crate) volume: String,
    pub(crate) clients: Vec<String>,
}

fn parse_allow(given: &str) -> Result<Allow, String> {
    let form = "write VOLUME=NAME[,NAME...], such as disk=alice,host.example";
    // The last '=', as in --create.
    let (volume, clients) = given.rsplit_once('=').ok_or(form)?;
    let clients: Vec<String> = clients.split(',').map(Into::into).collect();
    if volume.is_empty() || clients.iter().any(String::is_empty) {
        return Err(form.into());
    }
    if volume.contains('@') {
        return Err("a volume's list counts for its snapshots, too: name the volume".into());
    }
    Ok(Allow { volume: volume.into(), clients })
}

fn parse_mode(given: &str) -> Result<u32, String> {
    let form = "write up to four octal digits, such as 0660";
    let is_octal = (3..=4).contains(&given.len()) && given.bytes().all(|b| b.is_ascii_digit());
    let mode = is_octal.then(|| u32::from_str_radix(given, 8).ok()).flatten();
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| form.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_a_volume_and_clients() {
        let allow = parse_allow("a=b=alice,b.test").unwrap();
        assert_eq!(allow.volume, "a=b");
        assert_eq!(allow.clients, ["alice", "b.test"]);
        for wrong in ["", "disk", "disk=", "=alice", "disk=alice,", "disk@monday=alice"] {
            parse_allow(wrong).unwrap_err();
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0660"), Ok(0o660));
        assert_eq!(parse_mode("600"), Ok(0o600));
        for wrong in ["", "0", "66", "0680", "1777", "+660", "00660", "rw-"] {
            parse_mode(wrong).unwrap_err();
        }
    }
}
