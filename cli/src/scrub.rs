//! `siltstone scrub`, and the scrub in the background of `siltstone serve`.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use siltstone_device::{
    Runtime, Threads,
    runtime::{Joining, either},
};
use siltstone_engine::{Pool, ScrubOptions, ScrubProgress, ScrubReport};
use tokio::sync::oneshot;

use crate::{
    args::pool::{PoolArgument, ScrubArguments},
    errors::CliError,
    findings,
    on_pool::{Access, PoolOperation},
    plural::count,
    session::{Session, print_json},
    size::{human, per_second},
    waiting,
};

/// How long a pass that is to end may take to its next step.
const STEP_PATIENCE: Duration = Duration::from_secs(1);

impl PoolOperation for ScrubArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        Access::Read
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let (report, end) = self.pass(pool, session)?;
        self.tell(&report, session)?;
        end.and_then(|()| findings::verdict(&self.pool.path, "scrub", &report.findings))
    }
}

impl ScrubArguments {
    /// Makes a pass that can be interrupted; the report, and what has ended it early.
    pub(crate) fn pass(
        &self,
        pool: &Pool,
        session: &mut dyn Session,
    ) -> Result<(ScrubReport, Result<(), CliError>), CliError> {
        let options = ScrubOptions {
            rate_bytes_per_second: self.rate.map(|rate| rate.0),
            list_limit: self.listing.limit(),
        };
        session.begin(Some(0), 0)?;
        let cancellation = session.cancellation();
        let mut end = Ok(());
        let mut advance = |progress: ScrubProgress| {
            end = session.advance(progress.bytes, Some(progress.bytes_total));
            if end.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        // At its next step it ends by itself and says what it has found; that may be hours away.
        let pass = pool.scrub_async(&options, &mut advance);
        let report = waiting::unless_cancelled(pass, &cancellation, STEP_PATIENCE);
        session.finish();
        Ok((report?, end))
    }

    /// Says what a pass has found.
    pub(crate) fn tell(
        &self,
        report: &ScrubReport,
        session: &mut dyn Session,
    ) -> Result<(), CliError> {
        if self.listing.json {
            return print_json(session, report);
        }
        let found = findings::lines(&report.findings) + &findings::notes(&report.repairs);
        session.print(&(found + &summary(report)))?;
        if !report.complete {
            session.note(incomplete(report))?;
        }
        Ok(())
    }
}

/// What a pass that was ended early has not done.
fn incomplete(report: &ScrubReport) -> &'static str {
    match report.findings.problem_count() {
        0 => "the scrub was ended early: what it had read is sound, the rest was not read\n",
        _ => {
            "the scrub was ended early: the rest was not read, and which data are lost by these \
             problems was not looked up\n"
        }
    }
}

fn summary(report: &ScrubReport) -> String {
    let seconds = report.elapsed_ms as f64 / 1e3;
    format!(
        "scrubbed {} in {}, {} and {}, and {}: {} in {seconds:.1} s ({})\n",
        count(report.blocks, "block"),
        count(report.frames, "frame"),
        count(report.units, "write unit"),
        count(report.segments, "segment"),
        count(report.map_pages, "map page"),
        human(report.bytes),
        per_second(report.bytes, seconds)
    )
}

/// Scrubs a pool that is being served, again and again. Dropping it stops it and waits for its
/// end, so that nothing of it holds on to the pool.
pub(crate) struct BackgroundScrub {
    stop: Option<oneshot::Sender<()>>,
    task: Option<Joining>,
}

impl BackgroundScrub {
    /// Starts: a pass at once, and one each `interval` after the start of the last, or at its end
    /// if that is later.
    pub(crate) fn start(
        pool: &Arc<Pool>,
        rate_bytes_per_second: u64,
        interval: Duration,
    ) -> Result<Self, CliError> {
        let pool = Arc::clone(pool);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = Box::pin(async move {
            scrub_for_ever(&pool, rate_bytes_per_second, interval, stopped).await;
        });
        let task = Threads.spawn("scrub", task);
        let task = task.map_err(|source| CliError::System { action: "start threads", source })?;
        Ok(Self { stop: Some(stop), task: Some(task) })
    }
}

impl Drop for BackgroundScrub {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take()
            && pollster::block_on(task).is_err()
        {
            tracing::error!("the scrub has ended by a panic; please report this");
        }
    }
}

async fn scrub_for_ever(
    pool: &Pool,
    rate_bytes_per_second: u64,
    interval: Duration,
    mut stopped: oneshot::Receiver<()>,
) {
    let options = ScrubOptions {
        rate_bytes_per_second: Some(rate_bytes_per_second),
        ..ScrubOptions::default()
    };
    loop {
        let started = Instant::now();
        tracing::info!(bytes_per_second = rate_bytes_per_second, "a scrub begins");
        // A pass that is stopped ends at its next step and says what it has found.
        let (stop, mut report) = (AtomicBool::new(false), None);
        let mut go_on = |_| match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let pass = async { report = Some(pool.scrub_async(&options, &mut go_on).await) };
        let patience = async {
            _ = (&mut stopped).await;
            stop.store(true, Ordering::Relaxed);
            Threads.sleep_until(Instant::now() + STEP_PATIENCE).await;
        };
        either(pass, patience).await;
        match &report {
            Some(report) => log(report),
            None => tracing::warn!("a scrub was stopped and cannot say what it had found"),
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let mut is_stopped = false;
        let stopped = async {
            _ = (&mut stopped).await;
            is_stopped = true;
        };
        either(Threads.sleep_until(started + interval), stopped).await;
        if is_stopped {
            return;
        }
    }
}

/// A line for each problem, one for each lost range, and one for the pass.
fn log(report: &ScrubReport) {
    let findings = &report.findings;
    for problem in &findings.problems {
        tracing::warn!(%problem, "damaged");
    }
    if findings.more_problems > 0 {
        tracing::warn!(problems = findings.more_problems, "damaged, and not listed above");
    }
    for range in &findings.lost {
        let (volume, cause) = (&range.volume, &range.cause);
        let (offset_bytes, len_bytes) = (range.offset_bytes, range.len_bytes);
        tracing::error!(volume, offset_bytes, len_bytes, %cause, "lost");
    }
    if findings.more_lost > 0 {
        tracing::error!(ranges = findings.more_lost, "lost, and not listed above");
    }
    tracing::info!(
        complete = report.complete,
        segments = report.segments,
        blocks = report.blocks,
        bytes = report.bytes,
        seconds = report.elapsed_ms / 1000,
        problems = findings.problem_count(),
        lost_ranges = findings.lost_count(),
        lost_bytes = findings.lost_bytes,
        "a scrub has ended"
    );
}
