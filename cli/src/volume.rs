//! `siltstone volume`: creating, listing, resizing and deleting volumes.

use siltstone_engine::{EngineError, Pool, VolumeInfo, VolumeOptions};

use crate::{
    args::{Compression, ReportArguments, VolumeCommand},
    errors::CliError,
    open,
    output::{print, print_json, table},
    size::human,
};

pub(crate) fn run(command: &VolumeCommand) -> Result<(), CliError> {
    match command {
        VolumeCommand::Create { pool, name, size, compression } => {
            let pool = open::open(pool)?;
            create(&pool, name, size.0, *compression)?;
            pool.close()?;
            print(&format!("created volume '{name}', {}\n", human(size.0)))
        }
        VolumeCommand::List(arguments) => list(arguments),
        VolumeCommand::Resize { pool, name, size } => {
            let pool = open::open(pool)?;
            pool.resize_volume(name, size.0)?;
            pool.close()?;
            print(&format!("volume '{name}' has {} now\n", human(size.0)))
        }
        VolumeCommand::Delete { pool, name } => {
            let pool = open::open(pool)?;
            pool.delete_volume(name)?;
            pool.close()?;
            print(&format!("deleted volume '{name}'\n"))
        }
    }
}

/// Creates a volume, at the default level unless one is given.
pub(crate) fn create(
    pool: &Pool,
    name: &str,
    size_bytes: u64,
    compression: Compression,
) -> Result<siltstone_engine::Volume, CliError> {
    let options = VolumeOptions::new(size_bytes);
    let level = compression.level.unwrap_or(options.level);
    Ok(pool.create_volume(name, &options.with_level(level))?)
}

fn list(arguments: &ReportArguments) -> Result<(), CliError> {
    let volumes = open::open_read_only(&arguments.pool)?.volumes();
    if arguments.json {
        return print_json(&volumes);
    }
    let mut rows = vec![vec!["NAME".into(), "SIZE".into(), "LEVEL".into()]];
    for volume in volumes {
        rows.push(vec![volume.name, human(volume.size_bytes), volume.level.to_string()]);
    }
    print(&table(&rows))
}

/// The error for a volume that exists and is not what was asked for.
pub(crate) fn differs(pool: &Pool, name: &str) -> CliError {
    let volumes = pool.volumes();
    match volumes.into_iter().find(|volume| volume.name == name) {
        Some(VolumeInfo { name: volume, size_bytes, level }) => {
            CliError::VolumeDiffers { volume, size_bytes, level }
        }
        None => EngineError::NoSuchVolume { volume: name.into() }.into(),
    }
}
