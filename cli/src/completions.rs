//! `siltstone completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Arguments, errors::CliError, output::print};

/// Prints the script for a shell.
pub(crate) fn run(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "siltstone", &mut script);
    print(&String::from_utf8_lossy(&script))
}
