//! Raw images to import: files whose holes are skipped, and streams.

use std::{
    fs::File,
    io::{self, Read, Seek},
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
};

use siltstone_device::sparse;
use siltstone_engine::{Volume, WriteBuffer};

use crate::{
    errors::CliError,
    terminal::shown,
    waiting::{self, Direction},
};

/// Bytes that are read and written together. Pieces end at multiples of it.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;
/// Data runs are widened to whole blocks, which the engine takes without merging.
const BLOCK_BYTES: u64 = 4096;

/// A raw image.
pub(crate) struct Image {
    name: String,
    contents: Contents,
}

enum Contents {
    /// A file or block device.
    Sized { file: File, size_bytes: u64 },
    /// Standard input, a pipe.
    Stream(File),
}

/// A part of an image, for the same place in a volume.
pub(crate) enum Piece {
    /// Bytes to be written.
    Data(WriteBuffer, u64),
    /// Zeros.
    Hole(Range<u64>),
}

impl Image {
    /// Opens an image; `-` is standard input.
    pub(crate) fn open(path: &Path) -> Result<Self, CliError> {
        let name = shown(path, "standard input");
        let opened = match path == Path::new("-") {
            true => rustix::io::dup(io::stdin())
                .map_err(io::Error::from)
                .map(|file| (file.into(), None)),
            false => open_file(path),
        };
        let (file, size_bytes) = opened.map_err(|error| CliError::file("open", &name, error))?;
        Ok(Self::new(path, file, size_bytes))
    }

    /// The image that was opened as `path`; without a size it is a stream.
    pub(crate) fn new(path: &Path, file: File, size_bytes: Option<u64>) -> Self {
        let contents = match size_bytes {
            Some(size_bytes) => Contents::Sized { file, size_bytes },
            None => Contents::Stream(file),
        };
        Self { name: shown(path, "standard input"), contents }
    }

    /// What it is, for [`Image::new`] elsewhere.
    pub(crate) fn into_parts(self) -> (File, Option<u64>) {
        match self.contents {
            Contents::Sized { file, size_bytes } => (file, Some(size_bytes)),
            Contents::Stream(file) => (file, None),
        }
    }

    /// What to call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its size, unless it is a stream.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        match &self.contents {
            Contents::Sized { size_bytes, .. } => Some(*size_bytes),
            Contents::Stream(_) => None,
        }
    }

    /// Reads it, front to back, in pieces for `volume`, until `sink` returns false. Together they
    /// cover the whole volume; what lies behind the image is a hole. A stream is not waited for
    /// once it is `enough`.
    pub(crate) fn read(
        self,
        volume: &Volume,
        sink: &mut dyn FnMut(Piece) -> bool,
        enough: &dyn Fn() -> bool,
    ) -> Result<(), CliError> {
        let read_error = |error| CliError::file("read", &self.name, error);
        match self.contents {
            Contents::Sized { file, size_bytes } => {
                read_file(&file, size_bytes, volume, sink).map_err(read_error)
            }
            Contents::Stream(file) => {
                let stream = Stream { file, enough };
                if read_stream(stream, volume, sink).map_err(read_error)? {
                    return Ok(());
                }
                let (volume, size_bytes) = (volume.name().into(), volume.size_bytes());
                Err(CliError::ImageTooLarge { file: self.name, volume, size_bytes })
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
    size_bytes: u64,
    volume: &Volume,
    sink: &mut dyn FnMut(Piece) -> bool,
) -> io::Result<()> {
    let mut at = 0;
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
            if !sink(Piece::Data(buffer, len)) {
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

/// Returns whether all of the stream fitted into the volume.
fn read_stream(
    mut stream: Stream<'_>,
    volume: &Volume,
    sink: &mut dyn FnMut(Piece) -> bool,
) -> io::Result<bool> {
    let size_bytes = volume.size_bytes();
    let mut at = 0;
    while at < size_bytes {
        let wanted = PIECE_BYTES.min(size_bytes - at);
        let mut buffer = volume.buffer(at, wanted as usize);
        let len = stream.read_full(buffer.as_mut_slice())?;
        if len as u64 == wanted {
            if !sink(Piece::Data(buffer, wanted)) {
                return Ok(true);
            }
            at += wanted;
            continue;
        }
        // The stream ends here.
        let mut last = volume.buffer(at, len);
        last.as_mut_slice().copy_from_slice(&buffer.as_mut_slice()[..len]);
        at += len as u64;
        if sink(Piece::Data(last, len as u64)) && at < size_bytes {
            sink(Piece::Hole(at..size_bytes));
        }
        return Ok(true);
    }
    Ok(stream.read_full(&mut [0])? == 0)
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
