//! What SIGHUP does to a server: it reads its command line and config file again, and applies what
//! can be applied while clients are connected, none of whom notices.

use siltstone_engine::Pool;

use crate::{
    access::Access,
    args::{Arguments, Command, ServeArguments},
    config::settings::Settings,
    errors::CliError,
    export_adapter::PoolCatalog,
    log::Log,
    serve,
};

/// The settings that a reload applies; [`apply`] is where. Others count from the next start.
const APPLIED: [&str; 4] = ["create", "export", "allow", "log-level"];

/// Reloads, again and again.
pub(crate) struct Reload {
    /// The settings that the server was started with.
    started_with: Settings,
}

impl Reload {
    /// For a server that was started with these arguments.
    pub(crate) fn new(arguments: &ServeArguments) -> Self {
        Self { started_with: arguments.settings.clone() }
    }

    /// Reloads once. What cannot be used is told in the log, and the server goes on as before.
    pub(crate) fn run(&self, pool: &Pool, catalog: &PoolCatalog, access: &Access, log: &Log) {
        match self.try_run(pool, catalog, access, log) {
            Ok(()) => tracing::info!(volumes = catalog.volumes().len(), "reloaded the config"),
            Err(error) => tracing::error!(%error, "cannot reload the config"),
        }
    }

    fn try_run(
        &self,
        pool: &Pool,
        catalog: &PoolCatalog,
        access: &Access,
        log: &Log,
    ) -> Result<(), CliError> {
        let arguments = Arguments::again()?;
        let Command::Serve(serve) = &arguments.command else { return Ok(()) };
        apply(&arguments, serve, pool, catalog, access, log)?;
        for key in serve.settings.differing(&self.started_with) {
            if !APPLIED.contains(&key) {
                tracing::warn!(setting = key, "a changed setting counts from the next start");
            }
        }
        Ok(())
    }
}

/// Applies new arguments to a server. First what may fail, so that a failure changes little.
fn apply(
    arguments: &Arguments,
    serve: &ServeArguments,
    pool: &Pool,
    catalog: &PoolCatalog,
    access: &Access,
    log: &Log,
) -> Result<(), CliError> {
    access.reload(&serve.access)?;
    serve::create_missing(pool, &serve.create)?;
    log.set_filter(arguments)?;
    catalog.serve_only(&serve.export);
    Ok(())
}
