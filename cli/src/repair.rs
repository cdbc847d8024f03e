//! `siltstone repair`.

use std::time::Duration;

use siltstone_engine::Pool;

use crate::{
    args::pool::{PoolArgument, RepairArguments},
    errors::CliError,
    findings,
    on_pool::{Access, PoolOperation},
    plural::count,
    session::Session,
    size::human,
    waiting,
};

impl PoolOperation for RepairArguments {
    fn pool(&self) -> &PoolArgument {
        &self.scrub.pool
    }

    fn access(&self) -> Access {
        Access::Change
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let (before, end) = self.scrub.pass(pool, session)?;
        if end.is_err() || before.findings.is_sound() {
            self.scrub.tell(&before, session)?;
            return end;
        }
        // Copies are found by it.
        let warm = pool.wait_index_warm_async();
        waiting::unless_cancelled(warm, &session.cancellation(), Duration::ZERO)??;
        let mended_before = pool.counters().mended_blocks;
        // What is left to do when it is cancelled, a server goes on doing.
        waiting::unless_cancelled(pool.repair_async(), &session.cancellation(), Duration::ZERO)??;
        let mended = pool.counters().mended_blocks - mended_before;
        let (after, end) = self.scrub.pass(pool, session)?;
        self.scrub.tell(&after, session)?;
        if !self.scrub.listing.json {
            session.print(&format!(
                "repaired: {} found stored elsewhere; {} were lost before, {} are\n",
                count(mended, "damaged block"),
                human(before.findings.lost_bytes),
                human(after.findings.lost_bytes),
            ))?;
        }
        if after.findings.lost_bytes > 0 && !self.scrub.listing.json {
            session.note(
                "what is still lost can come from a backup: import it into any volume of this pool, and \
                 repair again\n",
            )?;
        }
        end.and_then(|()| findings::verdict(&self.scrub.pool.path, "repair", &after.findings))
    }
}
