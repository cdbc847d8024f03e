//! Commands on an open pool, and where they are carried out: here, on a pool that this process
//! opens, or in the server that has the pool, by the same code.

use siltstone_engine::{OpenOptions, Pool};

use crate::{
    args::pool::{PoolArgument, PoolCommand},
    control::{client, packet::Connection, place},
    errors::CliError,
    open::{self, Opened},
    session::Session,
    terminal::Terminal,
};

/// What a command needs of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To look at it, beside others who do.
    Read,
    /// The same; and a pool that is opened for this has an index like one that is served.
    ReadWarm,
    /// To change it.
    Change,
}

/// A command on an open pool.
pub(crate) trait PoolOperation {
    /// Which pool.
    fn pool(&self) -> &PoolArgument;

    /// What it needs of the pool.
    fn access(&self) -> Access;

    /// Whether it is about what a server does.
    fn is_of_server(&self) -> Option<&'static str> {
        None
    }

    /// Does it. Others may use the pool meanwhile.
    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError>;
}

impl PoolCommand {
    /// The command itself.
    pub(crate) fn operation(&self) -> &dyn PoolOperation {
        match self {
            Self::Volume(command) => command,
            Self::Snapshot(command) => command,
            Self::Clone(arguments) => arguments,
            Self::Import(arguments) => arguments,
            Self::Export(arguments) => arguments,
            Self::Stat(arguments) => arguments,
            Self::Top(arguments) => arguments,
            Self::Scrub(arguments) => arguments,
            Self::Repair(arguments) => arguments,
            Self::Gc(arguments) => arguments,
            Self::Grow(arguments) => arguments,
        }
    }
}

/// Carries out a command that was given to this process.
pub(crate) fn run(command: &PoolCommand) -> Result<(), CliError> {
    let operation = command.operation();
    let access = operation.access();
    let mut terminal = Terminal::new(command);
    match reach(operation.pool(), access)? {
        Opened::Pool(_) if let Some(command) = operation.is_of_server() => {
            Err(CliError::NotServed { path: operation.pool().path.clone(), command })
        }
        Opened::Pool(pool) => {
            if access == Access::ReadWarm {
                pool.wait_index_warm()?;
            }
            let done = operation.execute(&pool, &mut terminal);
            done.and(pool.close().map_err(CliError::from))
        }
        Opened::Elsewhere(server) => client::run(command, &server, &mut terminal),
    }
}

/// Opens a pool to look at it, for a command that no server can carry out.
pub(crate) fn open_at_rest(pool: &PoolArgument, command: &'static str) -> Result<Pool, CliError> {
    match reach(pool, Access::Read)? {
        Opened::Pool(pool) => Ok(pool),
        Opened::Elsewhere(_) => Err(CliError::Served { path: pool.path.clone(), command }),
    }
}

/// Opens a pool, or else reaches the server that has it.
fn reach(pool: &PoolArgument, access: Access) -> Result<Opened<Connection>, CliError> {
    let read_only = access != Access::Change;
    let options = OpenOptions { read_only, ..OpenOptions::default() };
    let mut not_answered = None;
    let server = || match place::connect(pool) {
        Ok(server) => server,
        Err(error) => {
            not_answered = Some(error);
            None
        }
    };
    let found = open::open_or(&pool.path, &options, server);
    match (found, not_answered) {
        (Err(CliError::Locked { path, .. }), _)
            if access == Access::Change && open::is_being_read(&path) =>
        {
            Err(CliError::BeingRead { path })
        }
        (Err(CliError::Locked { path, holder }), Some(source)) => {
            Err(CliError::InUse { path, holder, source })
        }
        (found, _) => found,
    }
}
