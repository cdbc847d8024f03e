//! The log: events on stderr, one line each.
//!
//! At the level info a server has a line for what happens once: its start and end, clients that
//! come and go, commands that change the pool, scrubs, fullness, failures. Requests have none, unless
//! the storage fails them.

use std::{io::IsTerminal, sync::Arc};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt,
    layer::SubscriberExt,
    reload::{self, Handle},
    util::SubscriberInitExt,
};

use crate::{
    args::{Arguments, Command, LogFormat, pool::PoolCommand},
    errors::CliError,
    monitor::events::Events,
};

/// The log of this process.
pub(crate) struct Log {
    filter: Handle<EnvFilter, Registry>,
    events: Option<Arc<Events>>,
}

impl Log {
    /// Starts to log what `--log-level` says, or else RUST_LOG.
    pub(crate) fn start(arguments: &Arguments) -> Result<Self, CliError> {
        let (filter, handle) = reload::Layer::new(filter(arguments)?);
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match arguments.log_format {
            LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let events = match &arguments.command {
            Command::Serve(serve) => serve.metrics.map(|_| Arc::<Events>::default()),
            _ => None,
        };
        let layer = events.as_ref().map(Events::layer);
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(layer).init();
        Ok(Self { filter: handle, events })
    }

    /// What keeps its last lines, if somebody is to see them.
    pub(crate) fn events(&self) -> Option<&Arc<Events>> {
        self.events.as_ref()
    }

    /// Logs what these arguments say from now on.
    pub(crate) fn set_filter(&self, arguments: &Arguments) -> Result<(), CliError> {
        if let Err(error) = self.filter.reload(filter(arguments)?) {
            tracing::error!(%error, "the log cannot be changed");
        }
        Ok(())
    }
}

fn filter(arguments: &Arguments) -> Result<EnvFilter, CliError> {
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
    EnvFilter::try_new(&given).map_err(|_| CliError::LogLevel { given })
}
