//! How many files and sockets this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a server needs besides its connections: the pool, its rings, commands and their files.
const SPARE: u64 = 256;

/// Raises the limit so that `connections` fit, as far as the system lets it; says so if they do
/// not fit.
pub(crate) fn allow_connections(connections: u64) {
    let wanted = connections + SPARE;
    let limit = getrlimit(Resource::Nofile);
    let possible = limit.maximum.unwrap_or(u64::MAX).min(wanted);
    if limit.current.is_some_and(|current| current < possible) {
        let raised = Rlimit { current: Some(possible), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if allowed < wanted {
        let fitting = allowed.saturating_sub(SPARE);
        tracing::warn!(
            open_files = allowed,
            connections,
            "the system's limit of open files leaves room for {fitting} connections only: raise \
             it (ulimit -n, LimitNOFILE=)"
        );
    }
}
