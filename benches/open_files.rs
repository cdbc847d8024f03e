//! How many connections a process may have.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for all else.
const SPARE_DESCRIPTORS: u64 = 100;

/// Allows this process so many connections, and what else it needs.
///
/// # Errors
/// If the system does not.
pub fn allow_connections(connections: usize) -> io::Result<()> {
    let wanted = connections as u64 + SPARE_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })?)
}
