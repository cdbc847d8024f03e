//! `siltstone top`.

use std::time::{Duration, Instant};

use siltstone_device::{Runtime, Threads};
use siltstone_engine::{Explanation, Pool};

use crate::{
    args::pool::{PoolArgument, TopArguments},
    errors::CliError,
    on_pool::{Access, PoolOperation},
    output::to_json_line,
    session::Session,
    size::per_second,
    waiting,
};

/// Lines between two headings.
const LINES_A_HEADING: u64 = 20;

impl PoolOperation for TopArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        Access::Read
    }

    fn is_of_server(&self) -> Option<&'static str> {
        Some("top")
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        session.begin(None, 0)?;
        session.finish();
        let cancellation = session.cancellation();
        let mut before = pool.activity();
        let mut next = Instant::now();
        for line in 0..self.count.unwrap_or(u64::MAX) {
            next += self.interval.0;
            waiting::unless_cancelled(Threads.sleep_until(next), &cancellation, Duration::ZERO)?;
            let now = pool.activity();
            let explanation = now.since(&before);
            before = now;
            if self.json {
                session.print(&to_json_line(&explanation)?)?;
                continue;
            }
            if line.is_multiple_of(LINES_A_HEADING) && !self.stages || line == 0 {
                session.print(&heading())?;
            }
            session.print(&row(&explanation))?;
            if self.stages {
                session.print(&stages(&explanation))?;
            }
        }
        Ok(())
    }
}

fn heading() -> String {
    format!(
        "{:>12} {:>12} {:>12} {:>9}  {:<22} {}\n",
        "WRITTEN", "UNITS", "READ", "FLUSHES", "BOUND BY", "WITHOUT THAT"
    )
}

fn row(explanation: &Explanation) -> String {
    let rate = |bytes: f64| per_second(bytes as u64, 1.0);
    let (bound, without) = (explanation.bound_in_words(), explanation.without_in_words());
    let line = format!(
        "{:>12} {:>12} {:>12} {:>9.0}  {bound:<22} {without}",
        rate(explanation.written_bytes_per_second),
        rate(explanation.unit_bytes_per_second),
        rate(explanation.read_bytes_per_second),
        explanation.flushes_per_second,
    );
    line.trim_end().to_owned() + "\n"
}

fn stages(explanation: &Explanation) -> String {
    explanation.stages.iter().map(|stage| format!("    {stage}\n")).collect()
}
