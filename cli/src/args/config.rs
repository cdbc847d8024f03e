//! The arguments of `siltstone config`.

use std::path::PathBuf;

use clap::Subcommand;

use super::ServeArguments;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a config file can be used, and if not, in which line it is wrong.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Show what 'serve' with the same arguments would use, and who said so.
    ///
    /// What it prints is a config file itself.
    Show(Box<ServeArguments>),
}
