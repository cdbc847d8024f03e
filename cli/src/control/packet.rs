//! Packets between a command and a server: a message in JSON, and perhaps an open file.
//!
//! The socket keeps packets apart (SOCK_SEQPACKET), so there is no length to trust, and nothing is
//! ever received in part.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, Shutdown, UCred, recvmsg, sendmsg, shutdown, sockopt,
    },
};
use serde::{Serialize, de::DeserializeOwned};

/// The longest packet.
pub(crate) const MAX_PACKET_BYTES: usize = 64 << 10;

/// Why a conversation over the control socket has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The socket failed.
    #[error("cannot {action} the control socket: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A message does not fit a packet.
    #[error(
        "the command is too long to be sent to the pool's server: {len_bytes} bytes of at most \
         {MAX_PACKET_BYTES}"
    )]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
    /// A packet is longer than any may be, or brings more files than one.
    #[error("a packet on the control socket is too large")]
    TooLarge,
    /// A packet is no message.
    #[error("a packet on the control socket makes no sense: {source}")]
    Senseless {
        /// Why.
        source: serde_json::Error,
    },
    /// A message that does not belong there.
    #[error("a message on the control socket was not to be expected: {what}")]
    Unexpected {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Nothing came in time.
    #[error("nothing was received on the control socket in time")]
    Timeout,
    /// The server has gone.
    #[error("the pool's server has ended before the command did; its log may say why")]
    ServerGone,
}

/// A connection between a command and a server.
#[derive(Debug)]
pub(crate) struct Connection(OwnedFd);

/// What was received.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    /// The open file that came with it.
    pub(crate) file: Option<File>,
}

impl Packet {
    /// The message in it.
    pub(crate) fn message<M: DeserializeOwned>(&self) -> Result<M, ControlError> {
        decode(&self.bytes)
    }

    /// The message as it came.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A message from what may be anything.
pub(crate) fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, ControlError> {
    serde_json::from_slice(bytes).map_err(|source| ControlError::Senseless { source })
}

impl Connection {
    /// A connection over a connected socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The same connection once more.
    pub(crate) fn try_clone(&self) -> Result<Self, ControlError> {
        self.0.try_clone().map(Self).map_err(failed("copy"))
    }

    /// Gives up sending if the other end does not take anything for so long.
    pub(crate) fn set_send_timeout(&self, timeout: Duration) -> Result<(), ControlError> {
        let set = sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Send, Some(timeout));
        set.map_err(failed("set up"))
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> Result<UCred, ControlError> {
        sockopt::socket_peercred(&self.0).map_err(failed("ask who is at the other end of"))
    }

    /// Sends a message, and perhaps an open file.
    pub(crate) fn send<M: Serialize>(
        &self,
        message: &M,
        file: Option<&File>,
    ) -> Result<(), ControlError> {
        self.send_with(message, file, SendFlags::empty())
    }

    /// Sends a message to one who may have left: the last that it said tells why.
    pub(crate) fn send_unless_gone<M: Serialize>(
        &self,
        message: &M,
        file: Option<&File>,
    ) -> Result<(), ControlError> {
        match self.send(message, file) {
            Err(ControlError::Socket { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            sent => sent,
        }
    }

    /// Sends a message that need not arrive: not if it would have to wait.
    pub(crate) fn send_if_room<M: Serialize>(&self, message: &M) -> Result<(), ControlError> {
        match self.send_with(message, None, SendFlags::DONTWAIT) {
            Err(ControlError::Socket { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                Ok(())
            }
            sent => sent,
        }
    }

    fn send_with<M: Serialize>(
        &self,
        message: &M,
        file: Option<&File>,
        flags: SendFlags,
    ) -> Result<(), ControlError> {
        let bytes = serde_json::to_vec(message);
        let bytes = bytes.map_err(|source| ControlError::Senseless { source })?;
        if bytes.len() > MAX_PACKET_BYTES {
            return Err(ControlError::TooLong { len_bytes: bytes.len() });
        }
        let files: Vec<BorrowedFd<'_>> = file.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            let has_room = control.push(SendAncillaryMessage::ScmRights(&files));
            assert!(has_room, "the buffer is made for one file");
        }
        let flags = flags | SendFlags::NOSIGNAL;
        retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags))
            .map_err(failed("write to"))?;
        Ok(())
    }

    /// Waits for a packet; `None` if the other end sends no more.
    pub(crate) fn receive(&self) -> Result<Option<Packet>, ControlError> {
        let mut bytes = vec![0; MAX_PACKET_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut receive = || {
            retry_on_intr(|| {
                recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
            })
        };
        let received = match receive() {
            // It left without having read everything. That is told once, and before what it said.
            Err(Errno::CONNRESET) => receive(),
            received => received,
        };
        let received = received.map_err(failed("read from"))?;
        // Whatever is not kept of these is closed here.
        let mut files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let file = files.next().and_then(|mut files| files.next()).map(File::from);
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ControlError::TooLarge);
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(received.bytes);
        Ok(Some(Packet { bytes, file }))
    }

    /// Whether the other end has left, or sends no more.
    pub(crate) fn is_peer_gone(&self) -> bool {
        let flags = PollFlags::RDHUP;
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut socket = [PollFd::new(&self.0, flags)];
        match poll(&mut socket, Some(&now)) {
            Ok(_) => {
                let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
                socket[0].revents().intersects(gone)
            }
            Err(error) => error != Errno::INTR,
        }
    }

    /// Sends no more, which the other end sees as a wish to end.
    pub(crate) fn end_sending(&self) {
        // One that is not connected any more has ended already.
        let _ = shutdown(&self.0, Shutdown::Write);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> ControlError {
    move |source| ControlError::Socket { action, source: source.into() }
}
