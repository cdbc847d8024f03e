//! The last lines of the log that matter: warnings, errors, and what the pool does by itself.
//!
//! Lines come here where they are logged, whatever the log's own level. One that comes again soon counts as
//! another time of the same, so that what is frequent does not push out what is rare.

use std::{
    collections::VecDeque,
    fmt::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tracing::{Level, Subscriber, field::Field};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::Context,
};

/// So many are kept.
const KEPT: usize = 200;
/// A line counts as another time of one of so many before it,
const LOOK_BACK: usize = 8;
/// if that came at most so long before.
const SOON_MS: u64 = 60_000;
/// The longest line.
const MAX_CHARS: usize = 500;

/// The last events. Thread-safe.
#[derive(Default)]
pub(crate) struct Events {
    recent: Mutex<VecDeque<Event>>,
    newest: AtomicU64,
    warnings: AtomicU64,
    errors: AtomicU64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Event {
    /// Grows with every line.
    number: u64,
    /// When it happened, the last time.
    unix_ms: u64,
    /// `error`, `warn` or `info`.
    level: &'static str,
    /// What happened.
    message: String,
    /// Particulars, the last time.
    details: String,
    /// How often.
    times: u64,
}

impl Events {
    /// The layer of the log that fills this.
    pub(crate) fn layer<S: Subscriber>(self: &Arc<Self>) -> impl Layer<S> {
        let targets = Targets::new()
            .with_default(LevelFilter::INFO)
            .with_target("siltstone_engine::collector", LevelFilter::DEBUG)
            // Who connects is in the metrics.
            .with_target("siltstone_nbd::connection", LevelFilter::WARN);
        Listener { events: Arc::clone(self), targets }
    }

    /// The newest last.
    pub(super) fn recent(&self) -> Vec<Event> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The newest one's number.
    pub(super) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// Warnings and errors so far, also those that are no longer kept.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.warnings.load(Ordering::Relaxed), self.errors.load(Ordering::Relaxed))
    }

    fn add(&self, level: Level, message: String, details: String, unix_ms: u64) {
        let level = match level {
            Level::ERROR => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                "error"
            }
            Level::WARN => {
                self.warnings.fetch_add(1, Ordering::Relaxed);
                "warn"
            }
            _ => "info",
        };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |event: &Event| {
            event.level == level
                && event.message == message
                && unix_ms.saturating_sub(event.unix_ms) <= SOON_MS
        };
        let first = recent.len().saturating_sub(LOOK_BACK);
        let same = (first..recent.len()).rfind(|&at| is_same(&recent[at]));
        let times = same.and_then(|at| recent.remove(at)).map_or(0, |event| event.times) + 1;
        if recent.len() == KEPT {
            recent.pop_front();
        }
        let number = self.newest() + 1;
        recent.push_back(Event { number, unix_ms, level, message, details, times });
        // Under the lock: numbers grow in the order of the events.
        self.newest.store(number, Ordering::Relaxed);
    }
}

struct Listener {
    events: Arc<Events>,
    targets: Targets,
}

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if !self.targets.would_enable(metadata.target(), metadata.level()) {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.events.add(
            *metadata.level(),
            shortened(line.message),
            shortened(line.details),
            unix_ms,
        );
    }
}

/// A line of the log, taken apart.
#[derive(Default)]
struct Line {
    message: String,
    details: String,
}

impl tracing::field::Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a text does not fail.
        let _ = match (field.name(), self.details.is_empty()) {
            ("message", _) => write!(self.message, "{value:?}"),
            (name, true) => write!(self.details, "{name} {value:?}"),
            (name, false) => write!(self.details, ", {name} {value:?}"),
        };
    }
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn lines(events: &Events) -> Vec<(&'static str, String, u64)> {
        events.recent().into_iter().map(|e| (e.level, e.message, e.times)).collect()
    }

    #[test]
    fn what_comes_again_soon_is_one_event_and_the_number_of_events_is_bounded() {
        let events = Events::default();
        let add = |level, message: &str, ms| events.add(level, message.into(), "".into(), ms);
        add(Level::WARN, "filling up", 0);
        add(Level::INFO, "collecting", 1);
        add(Level::WARN, "filling up", SOON_MS);
        add(Level::WARN, "filling up", 3 * SOON_MS);
        let expected = [("info", 1), ("warn", 2), ("warn", 1)];
        let found: Vec<_> = lines(&events).iter().map(|(level, _, n)| (*level, *n)).collect();
        assert_eq!(found, expected);
        for number in 0..2 * KEPT {
            add(Level::ERROR, &format!("error {number}"), 0);
        }
        assert_eq!((events.recent().len(), events.totals()), (KEPT, (3, 2 * KEPT as u64)));
        assert_eq!(events.recent().last().unwrap().number, events.newest());
    }

    #[test]
    fn lines_of_the_log_that_matter_become_events() {
        let events = Arc::new(Events::default());
        let log = tracing_subscriber::registry().with(events.layer());
        tracing::subscriber::with_default(log, || {
            tracing::info!(used_percent = 81, pool = "p", "the pool has {}", "room");
            tracing::debug!("nobody needs this");
            tracing::info!(target: "siltstone_nbd::connection", "serving");
            tracing::debug!(target: "siltstone_engine::collector", "a garbage collection begins");
            tracing::error!(error = "x".repeat(2 * MAX_CHARS), "failed");
        });
        let found = events.recent();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].message, "the pool has room");
        assert_eq!(found[0].details, "used_percent 81, pool p");
        assert_eq!((found[1].level, found[2].level), ("info", "error"));
        assert_eq!(found[2].details.chars().count(), MAX_CHARS + 1);
    }
}
