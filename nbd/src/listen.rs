//! Addresses to listen on, and the sockets behind them.

use std::{
    fmt, fs, io,
    net::{SocketAddr, ToSocketAddrs},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::net::{
    AddressFamily, SocketType,
    sockopt::{
        set_socket_send_buffer_size, socket_acceptconn, socket_domain, socket_peercred, socket_type,
    },
};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket};

use crate::error::{ParseListenError, ServerError, SocketOwner};

/// Connections that the kernel queues before they are accepted.
const BACKLOG: u32 = 1024;
/// What the kernel may hold of replies on a unix socket (TCP's adapts by itself): the larger, the
/// less often server and client wait for each other in large reads. The system's limit counts.
const UNIX_SEND_BUFFER_BYTES: usize = 1 << 20;
/// A unix socket's mode until it has its group.
const PRIVATE_MODE: u32 = 0o600;

/// Who may connect to a server's unix sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPermissions {
    /// Their mode; to connect means to write.
    pub mode: u32,
    /// The number of their group; the system's choice if there is none.
    pub group: Option<u32>,
}

impl Default for SocketPermissions {
    /// The server's own user alone.
    fn default() -> Self {
        Self { mode: PRIVATE_MODE, group: None }
    }
}

/// Where a server listens; written `unix:PATH` or `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// TCP; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Listen {
    type Err = ParseListenError;

    fn from_str(given: &str) -> Result<Self, ParseListenError> {
        if let Some(path) = given.strip_prefix("unix:") {
            return match path {
                "" => Err(ParseListenError::NoPath),
                path => Ok(Self::Unix(path.into())),
            };
        }
        if let Ok(address) = given.parse() {
            return Ok(Self::Tcp(address));
        }
        let form = || ParseListenError::Form { given: given.to_owned() };
        let (host, port) = given.rsplit_once(':').ok_or_else(form)?;
        if host.is_empty() || host.contains(':') {
            return Err(form());
        }
        let port: u16 =
            port.parse().map_err(|_| ParseListenError::Port { port: port.to_owned() })?;
        let unknown = |source| ParseListenError::Host { host: host.to_owned(), source };
        let address = (host, port)
            .to_socket_addrs()
            .and_then(|mut found| found.next().ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(unknown)?;
        Ok(Self::Tcp(address))
    }
}

/// A socket that listens.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// The socket, and its file, which goes with it if it is this server's own.
    Unix {
        listener: UnixListener,
        _file: Option<SocketFile>,
    },
}

impl Listener {
    /// Listens; also tells the address as it came out (the port that the system chose).
    pub(crate) async fn bind(
        listen: &Listen,
        permissions: SocketPermissions,
    ) -> Result<(Self, Listen), ServerError> {
        match listen {
            Listen::Tcp(address) => {
                let error = |source| ServerError::Tcp { address: *address, source };
                let listener = TcpListener::bind(address).await.map_err(error)?;
                let bound = listener.local_addr().map_err(error)?;
                Ok((Self::Tcp(listener), Listen::Tcp(bound)))
            }
            Listen::Unix(path) => {
                let (listener, file) = bind_unix(path, permissions)?;
                Ok((Self::Unix { listener, _file: Some(file) }, listen.clone()))
            }
        }
    }

    /// Takes over a socket on which somebody else has this process listen: a service manager. Its
    /// file, if it has one, is that one's.
    pub(crate) fn adopt(socket: OwnedFd) -> Result<(Self, Listen), ServerError> {
        let failed = |source| ServerError::Passed { source };
        let family = socket_domain(&socket).map_err(|error| failed(error.into()))?;
        let is_stream = socket_type(&socket).map_err(|error| failed(error.into()))?;
        let listens = socket_acceptconn(&socket).map_err(|error| failed(error.into()))?;
        if is_stream != SocketType::STREAM || !listens {
            return Err(ServerError::PassedOther);
        }
        match family {
            AddressFamily::INET | AddressFamily::INET6 => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                let listener = TcpListener::from_std(listener).map_err(failed)?;
                Ok((Self::Tcp(listener), Listen::Tcp(address)))
            }
            AddressFamily::UNIX => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                let path = address.as_pathname().ok_or(ServerError::PassedOther)?.to_owned();
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                Ok((Self::Unix { listener, _file: None }, Listen::Unix(path)))
            }
            _ => Err(ServerError::PassedOther),
        }
    }
}

/// A client's connection.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    /// The next client, and who that is.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    // The client is gone already; serving it will find out.
                    tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
                }
                Ok((Socket::Tcp(stream), peer.to_string()))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                if let Err(error) = set_socket_send_buffer_size(&stream, UNIX_SEND_BUFFER_BYTES) {
                    tracing::debug!(%error, "cannot enlarge a socket's buffer");
                }
                let peer = match stream.peer_cred() {
                    Ok(peer) => format!("unix uid {} pid {}", peer.uid(), peer.pid().unwrap_or(0)),
                    Err(_) => "unix".to_owned(),
                };
                Ok((Socket::Unix(stream), peer))
            }
        }
    }
}

fn bind_unix(
    path: &Path,
    permissions: SocketPermissions,
) -> Result<(UnixListener, SocketFile), ServerError> {
    let error = |source| ServerError::Unix { path: path.to_owned(), source };
    let socket = match try_bind_unix(path) {
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            try_bind_unix(path)
        }
        other => other,
    }
    .map_err(error)?;
    let file = SocketFile::new(path).map_err(error)?;
    // The mode comes last: with the wrong group it lets in the wrong people.
    let permit = || {
        if permissions.group.is_some() {
            chown(path, None, permissions.group)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(permissions.mode))
    };
    permit().map_err(|source| ServerError::UnixPermissions { path: path.to_owned(), source })?;
    let listener = socket.listen(BACKLOG).map_err(error)?;
    Ok((listener, file))
}

fn try_bind_unix(path: &Path) -> io::Result<UnixSocket> {
    let socket = UnixSocket::new_stream()?;
    // The file gets the socket's mode, so that nobody else can connect even for a moment.
    fs::File::from(socket.as_fd().try_clone_to_owned()?)
        .set_permissions(fs::Permissions::from_mode(PRIVATE_MODE))?;
    socket.bind(path)?;
    Ok(socket)
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let error = |source| ServerError::Unix { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(error)?;
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket of a server that is gone");
            fs::remove_file(path).map_err(error)
        }
        // It answers, or is too busy to.
        Ok(stream) => {
            Err(ServerError::UnixInUse { path: path.to_owned(), listener: listener_of(&stream) })
        }
        Err(_) => Err(ServerError::UnixInUse { path: path.to_owned(), listener: None }),
    }
}

/// Who listens at the other end.
fn listener_of(stream: &UnixStream) -> Option<SocketOwner> {
    let peer = socket_peercred(stream).ok()?;
    let pid = peer.pid.as_raw_nonzero().get();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(SocketOwner { pid, name: name.trim_end().to_owned() })
}

/// The file of a unix socket; removed when dropped, unless another took its place.
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: Self::identity(path)? })
    }

    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:/run/silt.sock", "127.0.0.1:10809", "[::1]:0"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        assert!(matches!("localhost:10809".parse(), Ok(Listen::Tcp(a)) if a.port() == 10809));
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        use ParseListenError as E;
        assert!(matches!("unix:".parse::<Listen>(), Err(E::NoPath)));
        for text in ["", "10809", ":10809", "::1:5"] {
            assert!(matches!(text.parse::<Listen>(), Err(E::Form { .. })), "{text}");
        }
        for text in ["localhost:", "localhost:65536", "localhost:nbd"] {
            assert!(matches!(text.parse::<Listen>(), Err(E::Port { .. })), "{text}");
        }
    }
}
