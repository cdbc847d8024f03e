//! `siltstone create`.

use siltstone_engine::{CreateOptions, OpenOptions};

use crate::{
    args::{CreateArguments, Sync},
    errors::CliError,
    open,
    output::print,
    size::human,
};

pub(crate) fn run(arguments: &CreateArguments) -> Result<(), CliError> {
    let options = CreateOptions {
        size_bytes: arguments.size.map(|size| size.0),
        nvram: arguments.nvram.clone(),
        nvram_mapped: arguments.nvram_mapped,
        nvram_bytes: arguments.nvram_size.map(|size| size.0),
        index_memory_bytes: arguments.index_memory.0,
        threshold: arguments.threshold,
        sync_always: arguments.sync == Sync::Always,
        overwrite: arguments.force,
        ..CreateOptions::default()
    };
    let path = &arguments.pool;
    open::create(path, &options)?;
    let pool = open::open(path, &OpenOptions { read_only: true, ..OpenOptions::default() })?;
    let (size, room) = (human(pool.size_bytes()), human(pool.free_bytes()));
    pool.close()?;
    print(&format!("created pool {}, {size}, with room for {room} of data\n", path.display()))
}
