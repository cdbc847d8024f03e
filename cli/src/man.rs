//! `siltstone man`.

use std::{fs, path::Path};

use clap::CommandFactory;

use crate::{args::Arguments, errors::CliError};

/// Writes a page for each command into a directory.
pub(crate) fn run(directory: &Path) -> Result<(), CliError> {
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), directory))
        .map_err(|error| {
            CliError::file("write manual pages to", &directory.to_string_lossy(), error)
        })
}
