//! What `serve` was told about who may connect, checked and loaded.

use std::{net::IpAddr, sync::Arc};

use nix::unistd::Group;
use siltstone_nbd::{AllowLists, ClientCa, Listen, SocketPermissions, Tls, TlsFiles, TlsMode};

use crate::{
    args::access::{AccessArguments, ClientCertificateChoice, TlsChoice},
    errors::CliError,
};

/// The mode of unix sockets, unless told otherwise.
const PRIVATE_MODE: u32 = 0o600;
/// The same where they have a group: it is there to be let in.
const GROUP_MODE: u32 = 0o660;

/// Who may connect, and to what.
pub(crate) struct Access {
    /// The certificates; [`Tls::reload`] loads them again.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Who may use which volume; [`AllowLists::replace`] changes it.
    pub(crate) allowed: Arc<AllowLists>,
    pub(crate) sockets: SocketPermissions,
}

/// Why a server cannot be set up as it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    /// Others could read along.
    #[error(
        "{address} can be reached by other machines, and clients there need no TLS: give --tls-cert \
         and --tls-key (see 'Encryption and access' in the README), listen on 127.0.0.1 or a unix \
         socket, or add --insecure if the network is trusted"
    )]
    Plaintext {
        /// The address.
        address: Listen,
    },
    /// An option needs another one.
    #[error("{option} needs {needed}")]
    Incomplete {
        /// What was given.
        option: &'static str,
        /// What was not.
        needed: &'static str,
    },
    /// There is no such group.
    #[error("there is no group '{name}': name one that 'getent group' shows, or give its number")]
    NoGroup {
        /// Its name.
        name: String,
    },
    /// The system does not say whether there is.
    #[error("cannot look up group '{name}': {source}")]
    Group {
        /// Its name.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Access {
    /// Checks what does not depend on files, then loads those.
    pub(crate) fn new(arguments: &AccessArguments, listen: &[Listen]) -> Result<Self, CliError> {
        let sockets = socket_permissions(arguments, listen)?;
        let tls = tls_files(arguments)?;
        refuse_plaintext(arguments, tls.as_ref().map(|(mode, _)| *mode), listen)?;
        let tls = tls.map(|(mode, files)| Tls::load(mode, files)).transpose()?;
        Ok(Self { tls: tls.map(Arc::new), allowed: Arc::new(allow_lists(arguments)), sockets })
    }

    /// Loads the certificates again, and takes the lists from new arguments. Whether there is TLS, and
    /// where its files are, stays.
    pub(crate) fn reload(&self, arguments: &AccessArguments) -> Result<(), CliError> {
        tls_files(arguments)?;
        if let Some(tls) = &self.tls {
            tls.reload()?;
        }
        self.allowed.replace(&allow_lists(arguments));
        Ok(())
    }

    /// Fails if other machines can reach one of these addresses without TLS, and should not.
    pub(crate) fn refuse_plaintext(
        &self,
        arguments: &AccessArguments,
        listen: &[Listen],
    ) -> Result<(), AccessError> {
        refuse_plaintext(arguments, self.tls.as_ref().map(|tls| tls.mode()), listen)
    }

    /// Whether clients get nowhere without TLS.
    pub(crate) fn needs_tls(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode() == TlsMode::Required)
    }
}

/// The lists that were given.
fn allow_lists(arguments: &AccessArguments) -> AllowLists {
    AllowLists::new(arguments.allow.iter().flat_map(|allow| {
        allow.clients.iter().map(|client| (allow.volume.clone(), client.clone()))
    }))
}

/// The files that TLS needs, unless there is none.
fn tls_files(arguments: &AccessArguments) -> Result<Option<(TlsMode, TlsFiles)>, AccessError> {
    let AccessArguments { tls_cert, tls_key, tls, tls_client_ca, tls_client_cert, .. } = arguments;
    let needs = |option, needed| Err(AccessError::Incomplete { option, needed });
    if tls_client_ca.is_none() {
        if !arguments.allow.is_empty() {
            return needs("--allow", "--tls-client-ca, which says whose certificates count");
        }
        if tls_client_cert.is_some() {
            return needs("--tls-client-cert", "--tls-client-ca");
        }
    }
    let mode = match tls {
        Some(TlsChoice::Off) if !arguments.allow.is_empty() => {
            return needs("--allow", "TLS, which --tls off forbids");
        }
        Some(TlsChoice::Off) => return Ok(None),
        Some(TlsChoice::Optional) => TlsMode::Optional,
        Some(TlsChoice::Required) => TlsMode::Required,
        None if tls_cert.is_some() || tls_key.is_some() => TlsMode::Required,
        None if tls_client_ca.is_some() => {
            return needs("--tls-client-ca", "--tls-cert and --tls-key");
        }
        None => return Ok(None),
    };
    let (certificate, key) = match (tls_cert, tls_key) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        (Some(_), None) => return needs("--tls-cert", "--tls-key"),
        (None, Some(_)) => return needs("--tls-key", "--tls-cert"),
        (None, None) => return needs("--tls", "--tls-cert and --tls-key"),
    };
    let client_ca = tls_client_ca.as_ref().map(|certificates| ClientCa {
        certificates: certificates.clone(),
        is_required: *tls_client_cert != Some(ClientCertificateChoice::Optional),
    });
    Ok(Some((mode, TlsFiles { certificate, key, client_ca })))
}

/// What could be read on the way is served to this machine alone, unless that is wanted.
fn refuse_plaintext(
    arguments: &AccessArguments,
    tls: Option<TlsMode>,
    listen: &[Listen],
) -> Result<(), AccessError> {
    if arguments.insecure || tls == Some(TlsMode::Required) {
        return Ok(());
    }
    match listen.iter().find(|address| is_reachable(address)) {
        Some(address) => Err(AccessError::Plaintext { address: address.clone() }),
        None => Ok(()),
    }
}

/// Whether other machines can connect.
fn is_reachable(address: &Listen) -> bool {
    match address {
        Listen::Tcp(address) => match address.ip().to_canonical() {
            IpAddr::V4(ip) => !ip.is_loopback(),
            IpAddr::V6(ip) => !ip.is_loopback(),
        },
        Listen::Unix(_) => false,
    }
}

fn socket_permissions(
    arguments: &AccessArguments,
    listen: &[Listen],
) -> Result<SocketPermissions, AccessError> {
    let has_socket = listen.iter().any(|address| matches!(address, Listen::Unix(_)));
    let needed = "a unix socket to listen on (--listen unix:PATH)";
    for (option, is_given) in [
        ("--socket-mode", arguments.socket_mode.is_some()),
        ("--socket-group", arguments.socket_group.is_some()),
    ] {
        if is_given && !has_socket {
            return Err(AccessError::Incomplete { option, needed });
        }
    }
    let group = arguments.socket_group.as_deref().map(group_number).transpose()?;
    let default = if group.is_some() { GROUP_MODE } else { PRIVATE_MODE };
    Ok(SocketPermissions { mode: arguments.socket_mode.unwrap_or(default), group })
}

fn group_number(name: &str) -> Result<u32, AccessError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        // A number, if nobody has it for a name.
        Ok(None) => name.parse().map_err(|_| AccessError::NoGroup { name: name.into() }),
        Err(error) => Err(AccessError::Group { name: name.into(), source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_unix_sockets_are_out_of_reach() {
        for (address, reachable) in [
            ("127.0.0.1:1", false),
            ("127.8.8.8:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("unix:/run/s", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("192.0.2.1:1", true),
            ("[::ffff:192.0.2.1]:1", true),
        ] {
            assert_eq!(is_reachable(&address.parse().unwrap()), reachable, "{address}");
        }
    }
}
