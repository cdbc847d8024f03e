//! `siltstone grow`.

use siltstone_engine::{Growth, Pool};

use crate::{
    args::pool::{GrowArguments, PoolArgument},
    errors::CliError,
    on_pool::{Access, PoolOperation},
    session::Session,
    size::human,
};

impl PoolOperation for GrowArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        Access::Change
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let Growth { before_bytes, size_bytes } = pool.grow(self.size.map(|size| size.0))?;
        let said = match size_bytes - before_bytes {
            0 => format!("the pool has {} already\n", human(size_bytes)),
            more => format!("the pool has {} now, {} more\n", human(size_bytes), human(more)),
        };
        session.print(&said)
    }
}
