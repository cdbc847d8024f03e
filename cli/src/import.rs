//! `siltstone import`.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use siltstone_engine::{EngineError, Pool, Volume, stats::CounterValues};

use crate::{
    args::pool::{ImportArguments, PoolArgument},
    errors::CliError,
    image::{Image, Piece},
    on_pool::{Access, PoolOperation},
    session::Session,
    size::{human, per_second},
    volume, waiting,
};

/// Pieces that are read ahead of the engine.
const PIECES_AHEAD: usize = 8;
/// How often an import that waits for its image looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What the engine stores and counts.
const BLOCK_BYTES: u64 = 4096;
/// Volumes are made of sectors.
const SECTOR_BYTES: u64 = 512;

impl PoolOperation for ImportArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        Access::Change
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let image = session.open_image()?;
        let (volume, is_new) = volume_for(&image, pool, self)?;
        // A file system in use would find other blocks under it than those that it wrote.
        if !is_new && session.has_clients(&self.volume) {
            return Err(CliError::VolumeConnected { volume: self.volume.clone() });
        }
        let name = image.name().to_owned();
        let imported = import(image, pool, &volume, is_new, session);
        session.finish();
        let imported = match imported {
            Ok(imported) => imported,
            Err(error) => {
                let is_there =
                    !matches!(error, CliError::Engine(EngineError::VolumeDeleted { .. }));
                if is_new && is_there {
                    // Half an image is of no use; why there is no more matters more than a
                    // failure here.
                    let _ = pool.delete_volume(volume.name());
                }
                return Err(error);
            }
        };
        session.print(&imported.summary(&name, &volume))
    }
}

/// Copies the image. It is durable when this returns.
fn import(
    image: Image,
    pool: &Pool,
    volume: &Volume,
    is_new: bool,
    session: &mut dyn Session,
) -> Result<Imported, CliError> {
    let size_bytes = image.size_bytes();
    session.begin(size_bytes)?;
    // What the index does not know yet would be stored again.
    let warm = pool.wait_index_warm_async();
    waiting::unless_cancelled(warm, &session.cancellation(), Duration::ZERO)??;
    // So that what others wrote before is counted before.
    pool.checkpoint()?;
    let (start, before) = (Instant::now(), pool.counters());
    let copied = copy(image, volume, is_new, session)?;
    volume.flush()?;
    pool.checkpoint()?;
    let seconds = start.elapsed().as_secs_f64();
    let image_bytes = size_bytes.unwrap_or(copied.read_bytes);
    Ok(Imported { image_bytes, copied, seconds, before, after: pool.counters() })
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
            if volume.is_read_only() {
                return Err(EngineError::SnapshotReadOnly { snapshot: name.clone() }.into());
            }
            let volumes = pool.volumes();
            let is_so = volumes
                .iter()
                .find(|info| info.name == *name)
                .is_none_or(|info| arguments.compression.or(info.compression) == info.compression);
            let same_size = given_bytes.is_none_or(|bytes| bytes == volume.size_bytes());
            if !same_size || !is_so {
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

/// What was copied.
#[derive(Clone, Copy, Debug, Default)]
struct Copied {
    /// Bytes read from the image, but for its holes.
    read_bytes: u64,
    /// Bytes of blocks among them that are not all zeros.
    data_bytes: u64,
}

fn copy(
    image: Image,
    volume: &Volume,
    is_new: bool,
    session: &mut dyn Session,
) -> Result<Copied, CliError> {
    let (sender, pieces) = sync_channel(PIECES_AHEAD);
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let enough = &enough;
        let reader = thread::Builder::new().name("image-reader".into());
        let read = move || {
            let mut sink = |piece| sender.send(Ok(piece)).is_ok();
            let read = image.read(volume, &mut sink, &|| enough.load(Ordering::Relaxed));
            if let Err(error) = read {
                // If nobody waits for it any more, another error is being reported.
                let _ = sender.send(Err(error));
            }
        };
        let reader = reader.spawn_scoped(scope, read);
        reader.map_err(|source| CliError::System { action: "start a thread", source })?;
        let written = write(&pieces, volume, is_new, session);
        enough.store(true, Ordering::Relaxed);
        // The reader may be waiting for room in it.
        drop(pieces);
        written
    })
}

fn write(
    pieces: &Receiver<Result<Piece, CliError>>,
    volume: &Volume,
    is_new: bool,
    session: &mut dyn Session,
) -> Result<Copied, CliError> {
    let mut copied = Copied::default();
    let mut at = 0;
    loop {
        session.advance(at, None)?;
        let piece = match pieces.recv_timeout(LOOK_EVERY) {
            Ok(piece) => piece?,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(copied),
        };
        match piece {
            Piece::Data(mut buffer, len_bytes) => {
                copied.read_bytes += len_bytes;
                let blocks = buffer.as_mut_slice().chunks(BLOCK_BYTES as usize);
                let blocks = blocks.filter(|block| block.iter().any(|byte| *byte != 0));
                copied.data_bytes += blocks.map(|block| block.len() as u64).sum::<u64>();
                pollster::block_on(volume.write_buffer(buffer))?;
                at += len_bytes;
            }
            Piece::Hole(range) => {
                let len_bytes = range.end - range.start;
                if !is_new {
                    volume.write_zeroes(range.start, len_bytes)?;
                }
                at += len_bytes;
            }
        }
    }
}

/// What an import did, and what the pool did meanwhile.
struct Imported {
    image_bytes: u64,
    copied: Copied,
    seconds: f64,
    before: CounterValues,
    after: CounterValues,
}

impl Imported {
    fn summary(&self, image: &str, volume: &Volume) -> String {
        let Self { image_bytes, copied, seconds, before, after } = self;
        let behind = match volume.size_bytes().saturating_sub(*image_bytes) {
            0 => String::new(),
            _ => format!(", and zeros from there to {}", human(volume.size_bytes())),
        };
        let Copied { read_bytes, data_bytes } = *copied;
        let text = format!(
            "imported {image} into volume '{}': {}{behind} in {seconds:.1} s ({}); {} of it zero, {} \
             data",
            volume.name(),
            human(*image_bytes),
            per_second(read_bytes, *seconds),
            human(image_bytes.saturating_sub(data_bytes)),
            human(data_bytes)
        );
        // Counters are the pool's, and do not know whose data was new.
        if after.written_bytes - before.written_bytes != read_bytes {
            return text + "; how much was new is not known, as others wrote to the pool, too\n";
        }
        let stored_blocks = after.stored_blocks - before.stored_blocks;
        // The end of an image may be a part of a block.
        let new_bytes = (stored_blocks * BLOCK_BYTES).min(data_bytes);
        let stored_bytes = after.unit_bytes - before.unit_bytes;
        text + &match new_bytes {
            0 if data_bytes == 0 => "\n".into(),
            0 => ", all of it duplicates of what the pool holds: nothing was stored\n".into(),
            _ => format!(
                ", of which {} are duplicates and {} new, stored in {} (dedup {:.2}:1, \
                 compression {:.2}:1)\n",
                human(data_bytes.saturating_sub(new_bytes)),
                human(new_bytes),
                human(stored_bytes),
                data_bytes as f64 / new_bytes as f64,
                new_bytes as f64 / stored_bytes.max(1) as f64
            ),
        }
    }
}
