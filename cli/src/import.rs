//! `siltstone import`: one image into a volume, or each of many into a volume of its own.

mod copy;
mod flusher;
mod names;
mod summary;

use siltstone_engine::{EngineError, Pool, Volume};

use self::{copy::Import, summary::Imported};
use crate::{
    args::pool::{ImportArguments, PoolArgument},
    errors::CliError,
    image::Image,
    on_pool::{Access, PoolOperation},
    session::Session,
    volume,
};

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
        if !self.each.is_empty() {
            return each(self, pool, session);
        }
        let volume = self.volume.as_deref().unwrap_or_default();
        let done = one(self, 0, volume, pool, session)?;
        // Left behind, it would say no more than is true.
        let _ = session.forget(&done.identity);
        session.print(&done.sentence)
    }
}

/// Imports every file, also if others fail.
fn each(
    arguments: &ImportArguments,
    pool: &Pool,
    session: &mut dyn Session,
) -> Result<(), CliError> {
    let volumes = names::of(&arguments.each, arguments.resume, pool)?;
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for (index, volume) in volumes.iter().enumerate() {
        match one(arguments, index, volume, pool, session) {
            Ok(one) => {
                session.print(&one.sentence)?;
                done.push(one);
            }
            Err(error) if error.is_of_all() => return Err(error),
            Err(error) => {
                session.note(&format!("siltstone: {error}\n"))?;
                failures.push(error.exit_status());
            }
        }
    }
    let imported: Vec<_> = done.iter().filter_map(|one| one.imported.as_ref()).collect();
    session.print(&summary::table(&imported))?;
    if let Some(status) = failures.first() {
        let (failed, all) = (failures.len(), volumes.len());
        return Err(CliError::EachFailed { failed, all, status: *status });
    }
    for one in done {
        let _ = session.forget(&one.identity);
    }
    Ok(())
}

/// What became of one image.
struct Done {
    /// The volume's.
    identity: String,
    sentence: String,
    /// Nothing, if it was there already.
    imported: Option<Imported>,
}

/// Imports one image; that all of it is there is kept, if it is one of many.
fn one(
    arguments: &ImportArguments,
    index: usize,
    name: &str,
    pool: &Pool,
    session: &mut dyn Session,
) -> Result<Done, CliError> {
    let image = session.open_image(index)?;
    if arguments.resume && image.size_bytes().is_none() {
        return Err(CliError::StreamResumed { file: image.name().into() });
    }
    let (volume, is_new) = volume_for(&image, pool, name, arguments)?;
    // A file system in use would find other blocks under it than those that it wrote.
    if !is_new && session.has_clients(name) {
        return Err(CliError::VolumeConnected { volume: name.into() });
    }
    let identity = volume.identity().to_string();
    let mut from_bytes = 0;
    if !is_new {
        if arguments.resume {
            from_bytes = session.recall(&identity)?;
            // Of the whole volume: behind the image it may have held something else.
            if from_bytes >= volume.size_bytes() {
                let sentence = format!("volume '{name}' has all of {} already\n", image.name());
                return Ok(Done { identity, sentence, imported: None });
            }
            // So that there is something to read.
            from_bytes = from_bytes.min(image.size_bytes().unwrap_or(0).saturating_sub(1));
            from_bytes -= from_bytes % BLOCK_BYTES;
        }
        if from_bytes == 0 {
            // What is written from now on is another image.
            session.forget(&identity)?;
        }
    }
    let file = image.name().to_owned();
    let is_resumable = image.size_bytes().is_some();
    let mut import = Import { pool, volume: &volume, identity: &identity, is_new, at: from_bytes };
    let imported = import.run(image, session);
    session.finish();
    let imported = match imported {
        Ok(imported) => imported,
        Err(error) if arguments.resume => {
            let done_bytes = import.keep(session).unwrap_or(0);
            let (source, volume) = (Box::new(error), name.into());
            return Err(CliError::Unfinished { source, file, volume, done_bytes });
        }
        Err(error) => {
            // Somebody may have deleted it, and made another one of its name.
            let there = pool.volume(volume.name());
            if is_new && there.is_ok_and(|there| there.identity() == volume.identity()) {
                // Half an image is of no use; why there is no more matters more than a failure
                // here.
                let _ = pool.delete_volume(volume.name());
                let _ = session.forget(&identity);
            }
            return Err(error);
        }
    };
    // Until the others are there, too, this one need not be imported again.
    if is_resumable && !arguments.each.is_empty() {
        session.mark(&identity, volume.size_bytes())?;
    }
    let sentence = imported.sentence(&volume);
    Ok(Done { identity, sentence, imported: Some(imported) })
}

/// The volume to import into, and whether it was made for that.
fn volume_for(
    image: &Image,
    pool: &Pool,
    name: &str,
    arguments: &ImportArguments,
) -> Result<(Volume, bool), CliError> {
    let given_bytes = arguments.size.map(|size| size.0);
    let (volume, is_new) = match pool.volume(name) {
        Ok(volume) => {
            if volume.is_read_only() {
                return Err(EngineError::SnapshotReadOnly { snapshot: name.into() }.into());
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
            let missing = || CliError::StreamSizeMissing { file: file(), volume: name.into() };
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
