//! The least NBD client that can verify a server: one request at a time, simple replies.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use siltstone_nbd::protocol::{
    CompactRequest, ExportNameReply, Greeting, INIT_PASSWORD, OPTION_MAGIC, OptionHeader,
    REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, SimpleReply, command, command_flag, handshake_flag, option,
};
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

/// A server that does not answer for so long has broken the connection.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server has gone, or does not answer.
    #[error("the connection broke: {0}")]
    Connection(#[from] io::Error),
    /// The server said what no server may say.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused the request, or failed at it.
    #[error("the server answered: {}", io::Error::from_raw_os_error(*errno as i32))]
    Refused {
        /// Its error number.
        errno: u32,
    },
}

/// Whether a change is to be durable before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// By a later flush.
    Later,
    /// At once: forced unit access.
    Now,
}

/// A connection that serves one volume.
#[derive(Debug)]
pub struct NbdClient {
    stream: UnixStream,
    size_bytes: u64,
    flags: u16,
    cookie: u64,
}

impl NbdClient {
    /// Connects to a server and asks for a volume.
    ///
    /// # Errors
    /// [`ClientError::Connection`] also if there is no such volume.
    pub fn connect(socket: &Path, volume: &str) -> Result<Self, ClientError> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let greeting: Greeting = receive(&mut stream)?;
        let is_new_style = greeting.flags.get() & handshake_flag::FIXED_NEWSTYLE != 0;
        let magics = (greeting.password.get(), greeting.magic.get());
        if magics != (INIT_PASSWORD, OPTION_MAGIC) || !is_new_style {
            return Err(ClientError::Protocol(format!("it greets with {greeting:?}")));
        }
        let flags = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        stream.write_all(&flags.to_be_bytes())?;
        let header = OptionHeader {
            magic: OPTION_MAGIC.into(),
            option: option::EXPORT_NAME.into(),
            len: (volume.len() as u32).into(),
        };
        stream.write_all(&[header.as_bytes(), volume.as_bytes()].concat())?;
        let reply: ExportNameReply = receive(&mut stream)?;
        let (size_bytes, flags) = (reply.size_bytes.get(), reply.flags.get());
        Ok(Self { stream, size_bytes, flags, cookie: 0 })
    }

    /// The volume's size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What the server offers: [`siltstone_nbd::protocol::transmission_flag`].
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.flags
    }

    fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        len_bytes: usize,
        data: &[u8],
    ) -> Result<(), ClientError> {
        self.cookie += 1;
        let too_long = |_| ClientError::Protocol("a request has at most 4 GiB".into());
        let len = u32::try_from(len_bytes).map_err(too_long)?;
        let request = CompactRequest {
            magic: REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: self.cookie.into(),
            offset: offset_bytes.into(),
            len: len.into(),
        };
        self.stream.write_all(request.as_bytes())?;
        self.stream.write_all(data)?;
        let reply: SimpleReply = receive(&mut self.stream)?;
        if reply.magic.get() != SIMPLE_REPLY_MAGIC || reply.cookie.get() != self.cookie {
            return Err(ClientError::Protocol(format!("it replies {reply:?} to {request:?}")));
        }
        match reply.error.get() {
            0 => Ok(()),
            errno => Err(ClientError::Refused { errno }),
        }
    }

    /// Reads `out.len()` bytes.
    ///
    /// # Errors
    /// As the server or the connection fails; the same for the requests below.
    pub fn read(&mut self, offset_bytes: u64, out: &mut [u8]) -> Result<(), ClientError> {
        self.request(command::READ, 0, offset_bytes, out.len(), &[])?;
        Ok(self.stream.read_exact(out)?)
    }

    /// Writes bytes.
    pub fn write(
        &mut self,
        offset_bytes: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<(), ClientError> {
        self.request(command::WRITE, flags(durability), offset_bytes, data.len(), data)
    }

    /// Discards bytes; of a thin volume they read as zeros from then on.
    pub fn trim(
        &mut self,
        offset_bytes: u64,
        len_bytes: usize,
        durability: Durability,
    ) -> Result<(), ClientError> {
        self.request(command::TRIM, flags(durability), offset_bytes, len_bytes, &[])
    }

    /// Writes zeros.
    pub fn write_zeroes(
        &mut self,
        offset_bytes: u64,
        len_bytes: usize,
        durability: Durability,
    ) -> Result<(), ClientError> {
        self.request(command::WRITE_ZEROES, flags(durability), offset_bytes, len_bytes, &[])
    }

    /// Makes durable what was acknowledged before, on any connection.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.request(command::FLUSH, 0, 0, 0, &[])
    }
}

fn flags(durability: Durability) -> u16 {
    match durability {
        Durability::Later => 0,
        Durability::Now => command_flag::FUA,
    }
}

fn receive<T: FromBytes + IntoBytes + KnownLayout>(stream: &mut UnixStream) -> io::Result<T> {
    let mut value = T::new_zeroed();
    stream.read_exact(value.as_mut_bytes())?;
    Ok(value)
}
