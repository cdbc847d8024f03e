//! The arguments of `siltstone config`.

use std::path::PathBuf;

use clap::Subcommand;

use super::ServeArguments;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a config file can be used, and if not, in which line it is wrong.
    ///
    /// The certificates that it names are read, too. A server that is given nothing else would start with
    /// it, unless the pool, an address or a socket of the service manager is not what it should be.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Show what 'serve' with the same arguments would use, and who said so.
    ///
    /// What it prints is a config file itself.
    Show(Box<ServeArguments>),
}
