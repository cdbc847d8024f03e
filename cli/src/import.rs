//! `siltstone import`: one image into a volume, or each of many into a volume of its own.

mod advice;
mod beginning;
mod copy;
mod flusher;
mod names;
mod summary;

use siltstone_engine::{EngineError, ErrorKind, Pool, Volume};

use self::{advice::Advice, beginning::Beginning, copy::Import, summary::Imported};
use crate::{
    args::pool::{ImportArguments, PoolArgument},
    errors::CliError,
    image::Image,
    on_pool::{Access, PoolOperation},
    resume::Extent,
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
        session.print(&done.sentence)
    }
}

/// Imports every file, also if others fail.
fn each(
    arguments: &ImportArguments,
    pool: &Pool,
    session: &mut dyn Session,
) -> Result<(), CliError> {
    let volumes = names::of(arguments, pool)?;
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    let mut is_any_unfinished = false;
    for (index, volume) in volumes.iter().enumerate() {
        match one(arguments, index, volume, pool, session) {
            Ok(one) => {
                session.print(&one.sentence)?;
                done.push(one);
            }
            Err(error) if error.is_of_all() => return Err(error),
            Err(error) => {
                session.note(&format!("siltstone: {error}\n"))?;
                is_any_unfinished |= matches!(error, CliError::Unfinished { .. });
                failures.push(error.exit_status());
            }
        }
    }
    let imported: Vec<_> = done.iter().filter_map(|one| one.imported.as_ref()).collect();
    // Of none there is nothing to sum up.
    if !imported.is_empty() {
        session.print(&summary::table(&imported))?;
    }
    if let Some(status) = failures.first() {
        let (failed, all) = (failures.len(), volumes.len());
        return Err(CliError::EachFailed { failed, all, is_any_unfinished, status: *status });
    }
    Ok(())
}

/// What became of one image.
struct Done {
    sentence: String,
    /// Nothing, if it was there already.
    imported: Option<Imported>,
}

/// Imports one image, and keeps that all of it is there.
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
    let identity = volume.identity().to_string();
    let beginning = match is_new {
        true => Beginning::default(),
        false => {
            let recalled = session.recall(&identity)?;
            if beginning::is_complete(arguments, recalled) {
                let sentence = format!(
                    "{} is imported into volume '{name}' already: nothing to do ({} imports it again)\n",
                    image.name(),
                    Advice::new(arguments, name, image.name()).again()
                );
                return Ok(Done { sentence, imported: None });
            }
            // A file system in use would find other blocks under it than those that it wrote.
            if session.has_clients(name) {
                return Err(CliError::VolumeConnected { volume: name.into() });
            }
            beginning::of(arguments, &image, &volume, recalled, session)?
        }
    };
    let file = image.name().to_owned();
    let mut import = Import::new(pool, &volume, &identity, is_new, beginning);
    let imported = import.run(image, session);
    session.finish();
    let imported = match imported {
        Ok(imported) => imported,
        Err(error) => return Err(interrupted(&mut import, arguments, file, error, session)),
    };
    session.mark(&identity, Extent::Whole)?;
    let sentence = imported.sentence(&volume);
    Ok(Done { sentence, imported: Some(imported) })
}

/// What is left of an import that ends with an error, and how it goes on, if it does.
fn interrupted(
    import: &mut Import<'_>,
    arguments: &ImportArguments,
    file: String,
    error: CliError,
    session: &mut dyn Session,
) -> CliError {
    let Import { pool, volume, identity, is_new, has_begun, .. } = *import;
    // Somebody may have deleted it, and made another one of its name.
    let there = pool.volume(volume.name());
    if !there.is_ok_and(|there| there.identity() == volume.identity()) {
        return error;
    }
    let mut rest = match import.holds_more {
        true => ", and behind that what it held before".into(),
        false => String::new(),
    };
    if is_new && !(arguments.resume && has_begun) {
        // Half an image is of no use.
        match pool.delete_volume(volume.name()) {
            Ok(()) => {
                // Why there is no more of it matters more than a failure here.
                let _ = session.forget(identity);
                return error;
            }
            // Of a pool that takes no changes, the error says so itself.
            Err(stays) if stays.kind() == ErrorKind::Refused => {
                rest = format!(", and is not deleted, as {stays}");
            }
            Err(_) => {}
        }
    } else if !has_begun {
        return error;
    }
    let done_bytes = import.keep(session);
    let advice = Advice::new(arguments, volume.name(), &file);
    let next = advice.after_interruption(import.why_not_resumed.as_deref());
    let (source, volume) = (Box::new(error), volume.name().into());
    CliError::Unfinished { source, file, volume, done_bytes, rest, next }
}

/// The volume to import into, and whether it was made for that.
fn volume_for(
    image: &Image,
    pool: &Pool,
    name: &str,
    arguments: &ImportArguments,
) -> Result<(Volume, bool), CliError> {
    let given_bytes = arguments.size.map(|size| size.0);
    let image_bytes = image.size_bytes().map(|bytes| bytes.next_multiple_of(SECTOR_BYTES));
    let is_empty = image_bytes == Some(0);
    let (volume, is_new) = match pool.volume(name) {
        // A download that has failed, rather than what is to replace a volume.
        Ok(_) if is_empty => return Err(CliError::ImageEmpty { file: image.name().into() }),
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
            let file = || image.name().to_owned();
            if is_empty && given_bytes.is_none() {
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
