//! Where the control socket of a pool is: beside it, if that is possible.
//!
//! `pool.silt` is controlled on `pool.silt.control`. Nothing is put beside block devices, and not
//! every directory can be written to: then the socket is in the runtime directory
//! (`$XDG_RUNTIME_DIR/siltstone`, `/run/siltstone`), named by the numbers of the pool's file. Commands
//! look in the same places in the same order.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, fchmod, open},
    io::Errno,
    net::{
        AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
        connect as connect_to, listen, shutdown, socket_with, sockopt::socket_peercred,
    },
    process::geteuid,
};
use serde::{Deserialize, Serialize};

use super::packet::Connection;
use crate::args::pool::{Control, PoolArgument};

/// Connections that the kernel queues before they are accepted.
const BACKLOG: i32 = 16;
/// Only the server's own user may connect.
const SOCKET_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Only that user sees what is in its runtime directory.
const DIRECTORY_MODE: u32 = 0o700;

/// Which file or device a pool is, whatever path leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolIdentity {
    /// The block device, or the one that the file is on.
    device: u64,
    /// The file; 0 for a block device.
    inode: u64,
}

impl PoolIdentity {
    /// Of the pool at `path`.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(if found.file_type().is_block_device() {
            Self { device: found.rdev(), inode: 0 }
        } else {
            Self { device: found.dev(), inode: found.ino() }
        })
    }
}

/// Where the socket may be, the best place first; nowhere if none is wanted.
fn candidates(pool: &PoolArgument) -> io::Result<Vec<PathBuf>> {
    match &pool.control {
        Some(Control::None) => return Ok(Vec::new()),
        Some(Control::Path(path)) => return Ok(vec![path.clone()]),
        None => {}
    }
    let mut candidates = Vec::new();
    let identity = PoolIdentity::of(&pool.path)?;
    if identity.inode != 0 {
        let mut beside = fs::canonicalize(&pool.path)?.into_os_string();
        beside.push(".control");
        candidates.push(beside.into());
    }
    let name = format!("{:x}-{:x}.control", identity.device, identity.inode);
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    for directory in runtime.into_iter().chain(["/run".into()]) {
        candidates.push(Path::new(&directory).join("siltstone").join(&name));
    }
    Ok(candidates)
}

/// Why no server could be asked.
#[derive(Debug, thiserror::Error)]
#[error("no server takes commands for it on {} ({source})", path.display())]
pub(crate) struct NoAnswer {
    path: PathBuf,
    source: io::Error,
}

/// Connects to the server of a pool; `None` if none is to be asked.
pub(crate) fn connect(pool: &PoolArgument) -> Result<Option<Connection>, NoAnswer> {
    let at_pool = |source| NoAnswer { path: pool.path.clone(), source };
    let mut failure = None;
    for path in candidates(pool).map_err(at_pool)? {
        match connect_at(&path, &pool.path) {
            Ok(connection) => return Ok(Some(connection)),
            Err(source) => {
                let is_there = source.kind() != io::ErrorKind::NotFound;
                if failure.is_none() || is_there {
                    failure = Some(NoAnswer { path, source });
                }
            }
        }
    }
    failure.map_or(Ok(None), Err)
}

fn connect_at(path: &Path, pool: &Path) -> io::Result<Connection> {
    let socket = new_socket()?;
    with_address(path, |address| connect_to(&socket, address))?;
    let connection = Connection::new(socket);
    let peer = connection.peer().map_err(io::Error::other)?.uid;
    // Open files will be handed over: not to somebody who has just put a socket there.
    let is_trusted = peer.is_root()
        || peer == geteuid()
        || fs::metadata(pool).is_ok_and(|pool| pool.uid() == peer.as_raw());
    match is_trusted {
        true => Ok(connection),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it belongs to neither root, the pool's owner nor this user",
        )),
    }
}

/// A control socket that a server listens on. Its file is removed with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Of the file, which another may have replaced.
    identity: (u64, u64),
}

/// Why a server has no control socket.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot take commands on {}: {source}; say where by --control PATH, or do without by --control none",
    path.display()
)]
pub(crate) struct ListenError {
    path: PathBuf,
    source: io::Error,
}

impl Listener {
    /// Listens for commands on a pool, in the first place that can be had; `None` if none is
    /// wanted. If no place can be had, the error is that of the first.
    pub(crate) fn bind(pool: &PoolArgument) -> Result<Option<Self>, ListenError> {
        let at_pool = |source| ListenError { path: pool.path.clone(), source };
        let mut failure = None;
        for path in candidates(pool).map_err(at_pool)? {
            if pool.control.is_none()
                && let Some(directory) = path.parent()
                && directory.file_name().is_some_and(|name| name == "siltstone")
            {
                // If this fails, binding does.
                let _ = fs::DirBuilder::new().mode(DIRECTORY_MODE).create(directory);
            }
            match Self::bind_at(&path) {
                Ok(listener) => return Ok(Some(listener)),
                Err(source) => _ = failure.get_or_insert(ListenError { path, source }),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    fn bind_at(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        // The file gets the socket's mode, so that nobody else can connect even for a moment.
        fchmod(&socket, SOCKET_MODE)?;
        match with_address(path, |address| bind(&socket, address)) {
            Err(error) if error.raw_os_error() == Some(Errno::ADDRINUSE.raw_os_error()) => {
                remove_stale(path)?;
                with_address(path, |address| bind(&socket, address))?;
            }
            bound => bound?,
        }
        listen(&socket, BACKLOG)?;
        let identity = identity(path)?;
        Ok(Self { socket, path: path.to_owned(), identity })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a connection.
    pub(crate) fn accept(&self) -> io::Result<Connection> {
        Ok(Connection::new(accept_with(&self.socket, SocketFlags::CLOEXEC)?))
    }

    /// Ends the waiting, and every connection from now on. The file goes at once.
    pub(crate) fn close(&self) {
        self.remove();
        // It listens, so this does what it says.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    fn remove(&self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // One that is left behind is replaced by the next server.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is not a socket"));
    }
    let socket = new_socket()?;
    match with_address(path, |address| connect_to(&socket, address)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket of a server that is gone");
            fs::remove_file(path)
        }
        // It answers, or is too busy to.
        connected => {
            let peer = connected.ok().and_then(|()| socket_peercred(&socket).ok());
            let who = peer
                .map_or_else(|| "another server".into(), |peer| format!("process {}", peer.pid));
            Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{who} listens there")))
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let kind = SocketType::SEQPACKET;
    Ok(socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// Does something with a socket's address. A path that is too long for one is shortened by way of
/// its directory.
fn with_address(
    path: &Path,
    act: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<()>,
) -> io::Result<()> {
    match SocketAddrUnix::new(path) {
        Ok(address) => Ok(act(&address)?),
        Err(Errno::NAMETOOLONG) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = open(parent, flags, Mode::empty())?;
            let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
            let short = format!("/proc/self/fd/{}", directory.as_raw_fd());
            Ok(act(&SocketAddrUnix::new(Path::new(&short).join(name))?)?)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
