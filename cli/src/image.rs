//! Images to import: raw files, whose holes are skipped, streams, and what `qemu` can convert.
//!
//! An image is opened by the command that was given its name, and read by whoever has the pool.

mod converted;
pub(crate) mod format;
pub(crate) mod qemu;

use std::{
    fs::File,
    io::{self, Read, Seek},
    ops::Range,
    os::unix::{
        fs::{FileExt, FileTypeExt},
        net::UnixStream,
    },
    path::Path,
};

use siltstone_device::sparse;
use siltstone_engine::{Volume, WriteBuffer};

use self::{format::ImageFormat, qemu::QemuImage};
use crate::{
    args::pool::ImageArguments,
    errors::CliError,
    session::Session,
    terminal::shown,
    waiting::{self, Direction},
};

/// Bytes that are read and written together. Pieces end at multiples of it.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;
/// Data runs are widened to whole blocks, which the engine takes without merging.
const BLOCK_BYTES: u64 = 4096;
/// What standard input is called.
const STDIN: &str = "standard input";

/// An image.
pub(crate) struct Image {
    name: String,
    contents: Contents,
}

/// What an image is to whoever reads it.
pub(crate) enum Contents {
    /// A raw file or block device.
    Sized {
        /// It.
        file: File,
        /// Its size.
        size_bytes: u64,
    },
    /// Standard input, a pipe.
    Stream {
        /// It.
        file: File,
        /// Whatever it begins with, it is raw.
        as_is: bool,
    },
    /// What another process converts, and will send on a socket.
    Converted {
        /// The disk's size.
        size_bytes: u64,
        /// From when it was asked to begin.
        socket: Option<UnixStream>,
    },
}

/// A part of an image, for the same place in a volume.
pub(crate) enum Piece {
    /// Bytes to be written at an offset, and how many.
    Data(u64, WriteBuffer, u64),
    /// Zeros.
    Hole(Range<u64>),
}

/// Opens an image; `-` is standard input. What is not raw comes as a [`QemuImage`], too, and, unless it
/// is a stream, the open file with what its size is.
pub(crate) fn open(
    path: &Path,
    arguments: &ImageArguments,
) -> Result<(Image, File, Option<QemuImage>), CliError> {
    let name = shown(path, STDIN);
    let unreadable = |error| CliError::file("open", &name, error);
    let opened = match path == Path::new("-") {
        true => {
            rustix::io::dup(io::stdin()).map_err(io::Error::from).map(|file| (file.into(), None))
        }
        false => open_file(path),
    };
    let (file, size_bytes): (File, _) = opened.map_err(unreadable)?;
    let again = file.try_clone().map_err(unreadable)?;
    let Some(size_bytes) = size_bytes else {
        let as_is = match arguments.format {
            None => false,
            Some(ImageFormat::Raw) => true,
            Some(format) => return Err(CliError::StreamFormat { file: name, format }),
        };
        return Ok((Image::new(path, Contents::Stream { file, as_is }), again, None));
    };
    let format = match arguments.format {
        Some(format) => format,
        None => ImageFormat::of_file(&file, size_bytes).map_err(unreadable)?,
    };
    if format == ImageFormat::Raw {
        return Ok((Image::new(path, Contents::Sized { file, size_bytes }), again, None));
    }
    let found = QemuImage::find(path, format, arguments.backing)?;
    let contents = Contents::Converted { size_bytes: found.size_bytes, socket: None };
    Ok((Image::new(path, contents), again, Some(found)))
}

impl Image {
    /// The image that was opened as `path`.
    pub(crate) fn new(path: &Path, contents: Contents) -> Self {
        Self { name: shown(path, STDIN), contents }
    }

    /// What it is, for [`Image::new`] elsewhere.
    pub(crate) fn into_contents(self) -> Contents {
        self.contents
    }

    /// What to call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its size, unless it is a stream.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        match &self.contents {
            Contents::Sized { size_bytes, .. } | Contents::Converted { size_bytes, .. } => {
                Some(*size_bytes)
            }
            Contents::Stream { .. } => None,
        }
    }

    /// Whether another process converts it, which has to be asked how that ended.
    pub(crate) fn is_converted(&self) -> bool {
        matches!(self.contents, Contents::Converted { .. })
    }

    /// Has what it takes to be read from an offset on.
    pub(crate) fn prepare(
        &mut self,
        from_bytes: u64,
        session: &mut dyn Session,
    ) -> Result<(), CliError> {
        if let Contents::Converted { socket, .. } = &mut self.contents {
            *socket = Some(session.convert_image(from_bytes)?);
        }
        Ok(())
    }

    /// Reads it from `from_bytes` on, in pieces for `volume`, until `sink` returns false. Together they
    /// cover the rest of the volume; what lies behind the image is a hole. A stream, which is read from
    /// its start, is not waited for once it is `enough`.
    pub(crate) fn read(
        self,
        from_bytes: u64,
        volume: &Volume,
        sink: &mut dyn FnMut(Piece) -> bool,
        enough: &dyn Fn() -> bool,
    ) -> Result<(), CliError> {
        let read_error = |error| CliError::file("read", &self.name, error);
        match self.contents {
            Contents::Sized { file, size_bytes } => {
                read_file(&file, from_bytes..size_bytes, volume, sink).map_err(read_error)
            }
            Contents::Converted { size_bytes, socket } => {
                let socket =
                    socket.ok_or_else(|| read_error(io::ErrorKind::NotConnected.into()))?;
                let range = from_bytes..size_bytes;
                converted::receive(socket, range, volume, sink, enough).map_err(read_error)
            }
            Contents::Stream { file, as_is } => {
                let stream = Stream { file, enough };
                match read_stream(stream, as_is, volume, sink).map_err(read_error)? {
                    StreamEnd::Fits => Ok(()),
                    StreamEnd::NotRaw(format) => {
                        Err(CliError::StreamFormat { file: self.name, format })
                    }
                    StreamEnd::TooLong => {
                        let (volume, size_bytes) = (volume.name().into(), volume.size_bytes());
                        Err(CliError::ImageTooLarge { file: self.name, volume, size_bytes })
                    }
                }
            }
        }
    }
}

/// An open file, and its size unless it is a stream.
fn open_file(path: &Path) -> io::Result<(File, Option<u64>)> {
    let mut file = File::open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Ok((file, None));
    }
    // Only a hint: a refusal costs nothing but speed.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    let size_bytes = file.seek(io::SeekFrom::End(0))?;
    Ok((file, Some(size_bytes)))
}

fn read_file(
    file: &File,
    range: Range<u64>,
    volume: &Volume,
    sink: &mut dyn FnMut(Piece) -> bool,
) -> io::Result<()> {
    let Range { start: mut at, end: size_bytes } = range;
    while let Some(data) = sparse::next_data(file, at, size_bytes)? {
        let start = (data.start - data.start % BLOCK_BYTES).max(at);
        let end = data.end.next_multiple_of(BLOCK_BYTES).min(size_bytes);
        if at < start && !sink(Piece::Hole(at..start)) {
            return Ok(());
        }
        at = start;
        while at < end {
            let len = (PIECE_BYTES - at % PIECE_BYTES).min(end - at);
            let mut buffer = volume.buffer(at, len as usize);
            file.read_exact_at(buffer.as_mut_slice(), at)?;
            if !sink(Piece::Data(at, buffer, len)) {
                return Ok(());
            }
            at += len;
        }
    }
    if at < volume.size_bytes() {
        sink(Piece::Hole(at..volume.size_bytes()));
    }
    Ok(())
}

/// What became of a stream.
enum StreamEnd {
    /// All of it is in the volume.
    Fits,
    /// It is longer than the volume.
    TooLong,
    /// It holds an image that is no sequence of a disk's bytes.
    NotRaw(ImageFormat),
}

fn read_stream(
    mut stream: Stream<'_>,
    as_is: bool,
    volume: &Volume,
    sink: &mut dyn FnMut(Piece) -> bool,
) -> io::Result<StreamEnd> {
    let size_bytes = volume.size_bytes();
    let mut at = 0;
    while at < size_bytes {
        let wanted = PIECE_BYTES.min(size_bytes - at);
        let mut buffer = volume.buffer(at, wanted as usize);
        let len = stream.read_full(buffer.as_mut_slice())?;
        if at == 0 && !as_is {
            match ImageFormat::of_head(&buffer.as_mut_slice()[..len.min(format::HEAD_BYTES)]) {
                ImageFormat::Raw => {}
                format => return Ok(StreamEnd::NotRaw(format)),
            }
        }
        if len as u64 == wanted {
            if !sink(Piece::Data(at, buffer, wanted)) {
                return Ok(StreamEnd::Fits);
            }
            at += wanted;
            continue;
        }
        // The stream ends here.
        let mut last = volume.buffer(at, len);
        last.as_mut_slice().copy_from_slice(&buffer.as_mut_slice()[..len]);
        if sink(Piece::Data(at, last, len as u64)) && at + (len as u64) < size_bytes {
            sink(Piece::Hole(at + len as u64..size_bytes));
        }
        return Ok(StreamEnd::Fits);
    }
    let is_at_end = stream.read_full(&mut [0])? == 0;
    Ok(if is_at_end { StreamEnd::Fits } else { StreamEnd::TooLong })
}

/// A stream, whose writer may never come.
struct Stream<'a> {
    file: File,
    enough: &'a dyn Fn() -> bool,
}

impl Stream<'_> {
    /// Reads until `out` is full or the stream ends.
    fn read_full(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut len = 0;
        while len < out.len() {
            if !waiting::until(&self.file, Direction::Read, self.enough) {
                return Err(io::Error::other("nobody wants the rest"));
            }
            match self.file.read(&mut out[len..]) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(len)
    }
}
