//! The config file of `siltstone serve`: TOML that says what the flags say.
//!
//! There is one definition of all settings, the command line of `serve` ([`crate::args`]). A key of
//! the file is the long name of a flag, or `pool`; its value is read by the flag's own parser. So a
//! flag that is added there can be written in the file at once, is checked, shown and compared at a
//! reload, with nothing to add here: a flag without a value is `true` or `false`, one that may be
//! repeated is a list, and all others are a text or a whole number.
//!
//! [`file`] reads the file; [`line`] puts what it says into the command line where that says
//! nothing, so flags win, and rules such as "this needs that" hold across both; [`settings`] is the
//! result with its sources.

pub(crate) mod error;
pub(crate) mod file;
pub(crate) mod line;
pub(crate) mod settings;

use std::path::Path;

use clap::{CommandFactory, FromArgMatches};

use crate::{
    access::Access,
    args::{Arguments, Command, config::ConfigCommand},
    config::{error::ConfigError, file::ConfigFile},
    errors::CliError,
    output::print,
    plural::count,
};

/// `siltstone config`.
pub(crate) fn run(command: &ConfigCommand) -> Result<(), CliError> {
    match command {
        ConfigCommand::Check { file } => {
            let settings = check(file)?;
            print(&format!(
                "{}: {}, all well; not tried: to open the pool, and to listen on the addresses\n",
                file.display(),
                count(settings, "setting")
            ))
        }
        ConfigCommand::Show(arguments) => print(&arguments.settings.to_string()),
    }
}

/// Reads a file as `serve` would that is given nothing else, and the certificates that it names; returns
/// how many settings it has.
fn check(path: &Path) -> Result<u64, ConfigError> {
    let mut command = Arguments::command();
    let serve = line::serve_of(&mut command);
    let file = ConfigFile::read(path, serve)?;
    let mut words = vec!["siltstone".into(), "serve".into()];
    words.extend(file.words(|_| true));
    // The pool may be named on the command line alone.
    let pool = file.pool().unwrap_or("pool");
    words.extend(["--".into(), pool.into()]);
    let whole = |reason| ConfigError::Whole { path: path.into(), reason };
    let matches = command.try_get_matches_from(words);
    let matches = matches.map_err(|error| whole(error::reason(&error)))?;
    let arguments = Arguments::from_arg_matches(&matches);
    let arguments = arguments.map_err(|error| whole(error::reason(&error)))?;
    if let Command::Serve(serve) = &arguments.command {
        Access::new(&serve.access, &serve.listen).map_err(|error| whole(error.to_string()))?;
    }
    Ok(file.len() as u64)
}
