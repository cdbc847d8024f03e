//! The `siltstone` program: pools and volumes from the command line, served over NBD.
//!
//! `args` is the command line; each command has a file of its name. Commands on an open pool are
//! written once and work in two places (`on_pool`): on a pool that this process opens, and, sent
//! over the `control` socket, in the server that has it open. `session` is what such a command
//! knows of its user. What `serve` is told can stand in a `config` file as well; `interrupt` has its
//! signals, `reload` what SIGHUP does, `service_manager` what it and systemd tell each other, and
//! `access` what it was told about its clients. `errors` holds the table of exit statuses, and every
//! failure ends here, as one sentence on stderr. `export_adapter` is where the engine's volumes meet
//! the NBD server's traits, which know nothing of each other. `image` is what can be imported, and
//! `resume` how far copies were that were interrupted.
#![forbid(unsafe_code)]

mod access;
mod args;
mod bench;
mod check;
mod client_commands;
mod completions;
mod config;
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
mod holder;
mod image;
mod import;
mod interrupt;
mod interval;
mod log;
mod man;
mod monitor;
mod on_pool;
mod open;
mod open_files;
mod output;
mod plural;
mod progress;
mod reload;
mod repair;
mod resume;
mod scrub;
mod serve;
mod service_manager;
mod session;
mod size;
mod snapshot;
mod stat;
mod target;
mod terminal;
mod tips;
mod top;
mod torture;
mod volume;
mod waiting;

use std::{io::Write, process::ExitCode};

use crate::{
    args::{Arguments, Command},
    errors::CliError,
    log::Log,
};

fn main() -> ExitCode {
    match Arguments::of_process().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody reads stderr, the exit status still tells.
            let _ = writeln!(std::io::stderr(), "siltstone: {error}");
            error.exit_status().into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), CliError> {
    let log = Log::start(arguments)?;
    match &arguments.command {
        Command::Create(arguments) => create::run(arguments),
        Command::Serve(arguments) => serve::run(arguments, &log),
        Command::Config(command) => config::run(command),
        Command::OnPool(command) => on_pool::run(command),
        Command::Check(arguments) => check::run(arguments),
        Command::Estimate(arguments) => estimate::run(arguments),
        Command::Bench(options) => bench::run(options),
        Command::Torture(arguments) => torture::run(arguments),
        Command::Completions { shell } => completions::run(*shell),
        Command::Man { directory } => man::run(directory),
    }
}
