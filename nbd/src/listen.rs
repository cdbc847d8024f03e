//! Addresses to listen on, and the sockets behind them.

use std::{
    fmt, fs, io,
    net::{SocketAddr, ToSocketAddrs},
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket};

use crate::error::{ParseListenError, ServerError};

/// Connections that the kernel queues before they are accepted.
const BACKLOG: u32 = 1024;
/// What the kernel may hold of replies on a unix socket (TCP's adapts by itself): the larger, the
/// less often server and client wait for each other in large reads. The system's limit counts.
const UNIX_SEND_BUFFER_BYTES: usize = 1 << 20;
/// Only the server's own user may connect to its unix sockets.
const UNIX_SOCKET_MODE: u32 = 0o600;

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
    /// The socket, and its file, which goes with it.
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

impl Listener {
    /// Listens; also tells the address as it came out (the port that the system chose).
    pub(crate) async fn bind(listen: &Listen) -> Result<(Self, Listen), ServerError> {
        match listen {
            Listen::Tcp(address) => {
                let error = |source| ServerError::Tcp { address: *address, source };
                let listener = TcpListener::bind(address).await.map_err(error)?;
                let bound = listener.local_addr().map_err(error)?;
                Ok((Self::Tcp(listener), Listen::Tcp(bound)))
            }
            Listen::Unix(path) => {
                let (listener, file) = bind_unix(path)?;
                Ok((Self::Unix { listener, _file: file }, listen.clone()))
            }
        }
    }
}

/// A client's connection.
pub(crate) enum Client {
    Tcp(TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    /// The next client, and who that is.
    pub(crate) async fn accept(&self) -> io::Result<(Client, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    // The client is gone already; serving it will find out.
                    tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
                }
                Ok((Client::Tcp(stream), peer.to_string()))
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
                Ok((Client::Unix(stream), peer))
            }
        }
    }
}

fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), ServerError> {
    let error = |source| ServerError::Unix { path: path.to_owned(), source };
    let listener = match try_bind_unix(path) {
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            try_bind_unix(path)
        }
        other => other,
    }
    .map_err(error)?;
    let file = SocketFile::new(path).map_err(error)?;
    Ok((listener, file))
}

fn try_bind_unix(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // The file gets the socket's mode, so that nobody else can connect even for a moment.
    fs::File::from(socket.as_fd().try_clone_to_owned()?)
        .set_permissions(fs::Permissions::from_mode(UNIX_SOCKET_MODE))?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
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
        _ => Err(ServerError::UnixInUse { path: path.to_owned() }),
    }
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
