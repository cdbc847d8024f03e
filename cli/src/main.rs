//! The `siltstone` program: pools and volumes from the command line, served over NBD.
//!
//! `args` is the command line; each command has a file of its name. `errors` holds the table of
//! exit statuses, and every failure ends here, as one sentence on stderr. `export_adapter` is
//! where the engine's volumes meet the NBD server's traits, which know nothing of each other.
#![forbid(unsafe_code)]

mod args;
mod check;
mod client_commands;
mod create;
mod errors;
mod estimate;
mod export;
mod export_adapter;
mod findings;
mod image;
mod import;
mod interrupt;
mod interval;
mod open;
mod output;
mod plural;
mod progress;
mod scrub;
mod serve;
mod size;
mod stat;
mod target;
mod torture;
mod volume;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use tracing_subscriber::EnvFilter;

use crate::{
    args::{Arguments, Command},
    errors::CliError,
};

fn main() -> ExitCode {
    let arguments = Arguments::of_process();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody reads stderr, the exit status still tells.
            let _ = writeln!(std::io::stderr(), "siltstone: {error}");
            error.exit_status().into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), CliError> {
    start_log(arguments)?;
    match &arguments.command {
        Command::Create(arguments) => create::run(arguments),
        Command::Volume(command) => volume::run(command),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Stat(arguments) => stat::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Scrub(arguments) => scrub::run(arguments),
        Command::Estimate(arguments) => estimate::run(arguments),
        Command::Torture(arguments) => torture::run(arguments),
    }
}

/// Sends the log to stderr: what `--log-level` says, or else RUST_LOG.
fn start_log(arguments: &Arguments) -> Result<(), CliError> {
    let from_environment = || std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|f| !f.is_empty());
    let default = match arguments.command {
        Command::Serve(_) => "info",
        // Thousands of pools fail there, as they should.
        Command::Torture(_) => "off",
        // They tell what they find by themselves.
        Command::Stat(_) | Command::Check(_) | Command::Scrub(_) => "error",
        // That a pool is full is what the command itself will say.
        _ => "warn,siltstone_engine::volume=error",
    };
    let given = arguments.log_level.clone().or_else(from_environment);
    let given = given.unwrap_or_else(|| default.into());
    let filter = EnvFilter::try_new(&given).map_err(|_| CliError::LogLevel { given })?;
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    Ok(())
}
