//! The least NBD client that can verify a server: one request at a time, simple replies.
#![allow(dead_code, unreachable_pub)] // Every test program uses its own part of this.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const EXPORT_NAME: u32 = 1;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

pub struct NbdClient {
    stream: UnixStream,
    pub size_bytes: u64,
    cookie: u64,
}

impl NbdClient {
    pub fn connect(socket: &Path, volume: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..8], b"NBDMAGIC");
        // Fixed newstyle, no zeroes.
        stream.write_all(&3u32.to_be_bytes())?;
        let mut option = Vec::new();
        option.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        option.extend_from_slice(&EXPORT_NAME.to_be_bytes());
        option.extend_from_slice(&(volume.len() as u32).to_be_bytes());
        option.extend_from_slice(volume.as_bytes());
        stream.write_all(&option)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let size_bytes = u64::from_be_bytes(export[..8].try_into().unwrap());
        Ok(Self { stream, size_bytes, cookie: 0 })
    }

    fn request(&mut self, kind: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request.extend_from_slice(&0u16.to_be_bytes());
        request.extend_from_slice(&kind.to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&len.to_be_bytes());
        request.extend_from_slice(data);
        self.stream.write_all(&request)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], REPLY_MAGIC.to_be_bytes());
        assert_eq!(reply[8..], self.cookie.to_be_bytes());
        match u32::from_be_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error as i32)),
        }
    }

    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.request(0, offset, out.len() as u32, &[])?;
        self.stream.read_exact(out)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(1, offset, data.len() as u32, data)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.request(3, 0, 0, &[])
    }
}
