//! `siltstone import`.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    time::Instant,
};

use indicatif::ProgressBar;
use siltstone_engine::{EngineError, Pool, Volume};

use crate::{
    args::ImportArguments,
    errors::CliError,
    image::{Image, Piece},
    open,
    output::print,
    progress,
    size::human,
    volume,
};

/// Pieces that are read ahead of the engine.
const PIECES_AHEAD: usize = 8;
/// Volumes are made of sectors.
const SECTOR_BYTES: u64 = 512;

pub(crate) fn run(arguments: &ImportArguments) -> Result<(), CliError> {
    let image = Image::open(&arguments.file)?;
    let pool = open::open(&arguments.pool)?;
    let (volume, is_new) = volume_for(&image, &pool, arguments)?;
    let name = image.name().to_owned();
    // What the index does not know yet would be stored again.
    pool.wait_index_warm()?;
    let start = Instant::now();
    if let Err(error) = copy(image, &volume, is_new).and_then(|()| Ok(pool.checkpoint()?)) {
        if is_new {
            // Half an image is of no use; why there is no more matters more than a failure here.
            let _ = pool.delete_volume(volume.name());
        }
        return Err(error);
    }
    let text = summary(&name, &pool, &volume, start.elapsed().as_secs_f64())?;
    pool.close()?;
    print(&text)
}

/// The volume to import into, and whether it was made for that.
fn volume_for(
    image: &Image,
    pool: &Pool,
    arguments: &ImportArguments,
) -> Result<(Volume, bool), CliError> {
    let name = &arguments.volume;
    let given_bytes = arguments.size.map(|size| size.0);
    let (volume, is_new) = match pool.volume(name) {
        Ok(volume) => {
            let volumes = pool.volumes();
            let level = volumes.iter().find(|info| info.name == *name).map(|info| info.level);
            let same_size = given_bytes.is_none_or(|bytes| bytes == volume.size_bytes());
            let same_level =
                arguments.compression.level.is_none() || arguments.compression.level == level;
            if !same_size || !same_level {
                return Err(volume::differs(pool, name));
            }
            (volume, false)
        }
        Err(EngineError::NoSuchVolume { .. }) => {
            let image_bytes = image.size_bytes().map(|bytes| bytes.next_multiple_of(SECTOR_BYTES));
            let file = || image.name().to_owned();
            if image_bytes == Some(0) && given_bytes.is_none() {
                return Err(CliError::ImageEmpty { file: file() });
            }
            let missing = || CliError::StreamSizeMissing { file: file(), volume: name.clone() };
            let size_bytes = given_bytes.or(image_bytes).ok_or_else(missing)?;
            check_fits(image, name, size_bytes)?;
            (volume::create(pool, name, size_bytes, arguments.compression)?, true)
        }
        Err(error) => return Err(error.into()),
    };
    check_fits(image, name, volume.size_bytes())?;
    Ok((volume, is_new))
}

fn check_fits(image: &Image, volume: &str, size_bytes: u64) -> Result<(), CliError> {
    if image.size_bytes().is_some_and(|bytes| bytes > size_bytes) {
        let (file, volume) = (image.name().into(), volume.into());
        return Err(CliError::ImageTooLarge { file, volume, size_bytes });
    }
    Ok(())
}

/// Copies the image. It is durable when this returns.
fn copy(image: Image, volume: &Volume, is_new: bool) -> Result<(), CliError> {
    let bar = progress::bytes(image.size_bytes());
    let (sender, pieces) = sync_channel(PIECES_AHEAD);
    let target = volume.clone();
    let reader = std::thread::Builder::new().name("image-reader".into()).spawn(move || {
        let read = image.read(&target, &mut |piece| sender.send(Ok(piece)).is_ok());
        if let Err(error) = read {
            // If nobody waits for it any more, another error is being reported.
            let _ = sender.send(Err(error));
        }
    });
    // Never joined: after a failure here it may wait for a stream that nobody writes to.
    reader.map_err(|source| CliError::System { action: "start a thread", source })?;
    let written = write(pieces, volume, is_new, &bar);
    bar.finish_and_clear();
    written?;
    Ok(volume.flush()?)
}

fn write(
    pieces: Receiver<Result<Piece, CliError>>,
    volume: &Volume,
    is_new: bool,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    for piece in pieces {
        match piece? {
            Piece::Data(buffer, len_bytes) => {
                pollster::block_on(volume.write_buffer(buffer))?;
                bar.inc(len_bytes);
            }
            Piece::Hole(range) => {
                let len_bytes = range.end - range.start;
                if !is_new {
                    volume.write_zeroes(range.start, len_bytes)?;
                }
                bar.inc(len_bytes);
            }
        }
    }
    Ok(())
}

/// What it cost. The pool was opened for this import, so its counters tell about nothing else.
fn summary(image: &str, pool: &Pool, volume: &Volume, seconds: f64) -> Result<String, CliError> {
    const BLOCK_BYTES: u64 = 4096;
    let counters = pool.stat()?.counters;
    let read_bytes = counters.written_bytes;
    let data_bytes = read_bytes.saturating_sub(counters.zero_blocks * BLOCK_BYTES);
    let unique_bytes = counters.stored_blocks * BLOCK_BYTES;
    let mut text = format!(
        "imported {image} into volume '{}': {} in {seconds:.1} s ({:.0} MB/s), {} of it not zero",
        volume.name(),
        human(volume.size_bytes()),
        read_bytes as f64 / 1e6 / seconds.max(1e-3),
        human(data_bytes)
    );
    if unique_bytes == 0 {
        return Ok(text + "; nothing was new\n");
    }
    text += &format!(
        "; {} were new (dedup {:.2}:1), stored in {} (compression {:.2}:1)\n",
        human(unique_bytes),
        data_bytes as f64 / unique_bytes as f64,
        human(counters.unit_bytes),
        unique_bytes as f64 / counters.unit_bytes.max(1) as f64
    );
    Ok(text)
}
