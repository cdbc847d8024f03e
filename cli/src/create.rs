//! `siltstone create`.

use siltstone_engine::CreateOptions;

use crate::{
    args::{CreateArguments, Sync},
    errors::CliError,
    open,
    output::print,
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
    open::create(&arguments.pool, &options)?;
    print(&format!("created pool {}\n", arguments.pool.display()))
}
