//! `siltstone volume`: creating, listing, changing and deleting volumes.

use serde::Serialize;
use siltstone_engine::{Compression, EngineError, Pool, VolumeInfo, VolumeOptions};

use crate::{
    args::pool::{CompressionArguments, PoolArgument, VolumeCommand},
    errors::CliError,
    on_pool::{Access, PoolOperation},
    output::table,
    session::{Session, print_json},
    size::human,
};

impl PoolOperation for VolumeCommand {
    fn pool(&self) -> &PoolArgument {
        match self {
            Self::Create { pool, .. }
            | Self::List { pool, .. }
            | Self::Resize { pool, .. }
            | Self::Set { pool, .. }
            | Self::Delete { pool, .. } => pool,
        }
    }

    fn access(&self) -> Access {
        match self {
            Self::List { .. } => Access::Read,
            Self::Create { .. } | Self::Resize { .. } | Self::Set { .. } | Self::Delete { .. } => {
                Access::Change
            }
        }
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        match self {
            Self::Create { name, size, compression, .. } => {
                create(pool, name, size.0, *compression)?;
                session.print(&format!("created volume '{name}', {}\n", human(size.0)))
            }
            Self::List { json, .. } => list(pool, *json, session),
            Self::Resize { name, size, shrink, .. } => {
                if !shrink {
                    check_grows(pool, name, size.0)?;
                }
                forget_import_if_cut_off(pool, name, size.0, session)?;
                pool.resize_volume(name, size.0)?;
                session.print(&format!("volume '{name}' has {} now\n", human(size.0)))
            }
            Self::Set { name, compression: given, .. } => {
                let given = *given;
                let compression = pool.change_compression(name, move |found| given.or(found))?;
                let Compression { levels, frame } = compression;
                session.print(&format!(
                    "what is written to volume '{name}' from now on has levels {levels} and frames of {frame}\n"
                ))
            }
            Self::Delete { name, snapshots, .. } => {
                let volume = pool.volume(name).ok();
                // It has the name of one, then; that a pool is open for reading is told below.
                if volume.is_some() && name.contains('@') {
                    return Err(CliError::IsSnapshot { snapshot: name.clone() });
                }
                let identity = volume.map(|volume| volume.identity().to_string());
                match snapshots {
                    true => pool.delete_volume_and_snapshots(name)?,
                    false => pool.delete_volume(name)?,
                }
                if let Some(identity) = identity {
                    // What is known of an import into it is of no more use, and does no harm.
                    let _ = session.forget(&identity);
                }
                session.print(&format!("deleted volume '{name}'\n"))
            }
        }
    }
}

/// Creates a volume, compressed as is usual unless something else is given.
pub(crate) fn create(
    pool: &Pool,
    name: &str,
    size_bytes: u64,
    compression: CompressionArguments,
) -> Result<siltstone_engine::Volume, CliError> {
    let options = VolumeOptions::new(size_bytes);
    let compression = compression.or(options.compression);
    Ok(pool.create_volume(name, &options.with_compression(compression))?)
}

/// Whether nothing of a volume is cut off at a new size.
fn check_grows(pool: &Pool, name: &str, size_bytes: u64) -> Result<(), CliError> {
    let volume = pool.volume(name)?;
    let current_bytes = volume.size_bytes();
    // A snapshot is refused for what it is.
    if size_bytes < current_bytes && !volume.is_read_only() {
        return Err(CliError::WouldShrink { volume: name.into(), current_bytes, size_bytes });
    }
    Ok(())
}

/// What is known of an import into a volume is not so any more once a part of that is gone. It is
/// forgotten before that is, as otherwise it could be believed.
fn forget_import_if_cut_off(
    pool: &Pool,
    name: &str,
    size_bytes: u64,
    session: &mut dyn Session,
) -> Result<(), CliError> {
    let volume = pool.volume(name)?;
    match size_bytes < volume.size_bytes() && !volume.is_read_only() {
        true => session.forget(&volume.identity().to_string()),
        false => Ok(()),
    }
}

/// A volume, and what else is known of it.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    info: VolumeInfo,
    /// Its import was begun by who asks, and is not complete.
    is_import_unfinished: bool,
}

fn list(pool: &Pool, json: bool, session: &mut dyn Session) -> Result<(), CliError> {
    let volumes = pool.volumes();
    let identity = |info: &VolumeInfo| match pool.volume(&info.name) {
        Ok(volume) => volume.identity().to_string(),
        // It was deleted this moment.
        Err(_) => String::new(),
    };
    let identities: Vec<String> = volumes.iter().map(identity).collect();
    let unfinished = session.unfinished(&identities)?;
    let listed = volumes.into_iter().zip(unfinished);
    let listed: Vec<Listed> =
        listed.map(|(info, is_import_unfinished)| Listed { info, is_import_unfinished }).collect();
    if json {
        return print_json(session, &listed);
    }
    let is_any_unfinished = listed.iter().any(|volume| volume.is_import_unfinished);
    let mut rows = vec![vec!["NAME".into(), "SIZE".into(), "LEVELS".into(), "FRAME".into()]];
    if is_any_unfinished {
        rows[0].push("IMPORT".into());
    }
    for Listed { info, is_import_unfinished } in listed {
        let Compression { levels, frame } = info.compression;
        let (levels, frame) = (levels.to_string(), frame.to_string());
        let mut row = vec![info.name, human(info.size_bytes), levels, frame];
        if is_any_unfinished {
            row.push(if is_import_unfinished { "not complete" } else { "" }.into());
        }
        rows.push(row);
    }
    session.print(&table(&rows))
}

/// The error for a volume that exists and is not what was asked for.
pub(crate) fn differs(pool: &Pool, name: &str) -> CliError {
    let volumes = pool.volumes();
    match volumes.into_iter().find(|volume| volume.name == name) {
        Some(VolumeInfo { name: volume, size_bytes, compression }) => {
            let Compression { levels, frame } = compression;
            CliError::VolumeDiffers { volume, size_bytes, levels, frame }
        }
        None => EngineError::NoSuchVolume { volume: name.into() }.into(),
    }
}
