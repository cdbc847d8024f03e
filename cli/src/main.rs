//! The `siltstone` program: pools and volumes from the command line, served over NBD.
//!
//! `args` is the command line; each command has a file of its name. Commands on an open pool are
//! written once and work in two places (`on_pool`): on a pool that this process opens, and, sent
//! over the `control` socket, in the server that has it open. `session` is what such a command
//! knows of its user. `errors` holds the table of exit statuses, and every failure ends here, as
//! one sentence on stderr. `export_adapter` is where the engine's volumes meet the NBD server's
//! traits, which know nothing of each other.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod check;
mod client_commands;
mod connected;
mod control;
mod create;
mod errors;
mod estimate;
mod export;
mod export_adapter;
mod findings;
mod gc;
mod grow;
mod image;
mod import;
mod interrupt;
mod interval;
mod on_pool;
mod open;
mod open_files;
mod output;
mod plural;
mod progress;
mod repair;
mod scrub;
mod serve;
mod session;
mod size;
mod snapshot;
mod stat;
mod target;
mod terminal;
mod top;
mod torture;
mod volume;
mod waiting;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use tracing_subscriber::EnvFilter;

use crate::{
    args::{Arguments, Command, pool::PoolCommand},
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
        Command::Serve(arguments) => serve::run(arguments),
        Command::OnPool(command) => on_pool::run(command),
        Command::Check(arguments) => check::run(arguments),
        Command::Estimate(arguments) => estimate::run(arguments),
        Command::Bench(options) => bench::run(options),
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
        Command::Check(_)
        | Command::OnPool(PoolCommand::Stat(_) | PoolCommand::Scrub(_) | PoolCommand::Repair(_)) => {
            "error"
        }
        // That a pool is full is what the command itself will say, or stat.
        _ => "warn,siltstone_engine::fullness=off",
    };
    let given = arguments.log_level.clone().or_else(from_environment);
    let given = given.unwrap_or_else(|| default.into());
    let filter = EnvFilter::try_new(&given).map_err(|_| CliError::LogLevel { given })?;
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    Ok(())
}
