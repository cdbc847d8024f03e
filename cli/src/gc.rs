//! `siltstone gc`.

use std::time::Duration;

use siltstone_engine::Pool;

use crate::{
    args::pool::{GcArguments, PoolArgument},
    errors::CliError,
    on_pool::{Access, PoolOperation},
    plural::count,
    session::Session,
    size::human,
    waiting,
};

impl PoolOperation for GcArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        Access::Change
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let (before, free_before) = (pool.counters(), pool.free_bytes());
        // What is left to do when it is cancelled, a server goes on doing when room gets short.
        let collected = pool.collect_garbage_async();
        waiting::unless_cancelled(collected, &session.cancellation(), Duration::ZERO)??;
        let (after, free_after) = (pool.counters(), pool.free_bytes());
        let moved = after.collector_moved_blocks - before.collector_moved_blocks;
        let linked = after.collector_linked_blocks - before.collector_linked_blocks;
        let freed = after.freed_segments - before.freed_segments;
        session.print(&format!(
            "moved {} and found {} stored elsewhere; freed {}: {} are free, {} more than before\n",
            count(moved, "block"),
            linked,
            count(freed, "segment"),
            human(free_after),
            // Others may have written meanwhile.
            human(free_after.saturating_sub(free_before)),
        ))?;
        let damaged = after.damaged_patches;
        if damaged > 0 {
            let parts = count(damaged, "part");
            session.print(&format!(
                "left {parts} of the map as it is, with what it refers to: damaged (see check)\n"
            ))?;
        }
        Ok(())
    }
}
