//! What clients, operator, strangers and watch share.

use std::{
    any::Any,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::Mutex;
use siltstone_benches::sample::Latencies;

use crate::server::Server;

/// More errors than this say nothing new.
const MAX_ERRORS: usize = 20;

/// What a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Flush];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Flush => "flushes",
        }
    }
}

/// What the operator did, and strangers.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) at: Instant,
    pub(crate) what: &'static str,
}

/// See the module's page.
pub(crate) struct World {
    /// `None` while it is restarted.
    pub(crate) server: Mutex<Option<Server>>,
    /// Odd while it is restarted.
    pub(crate) restarts: AtomicU64,
    pub(crate) operator_is_done: AtomicBool,
    pub(crate) clients_are_done: AtomicBool,
    /// Since the watch last took them.
    pub(crate) latencies: Mutex<[Latencies; 3]>,
    pub(crate) requests: AtomicU64,
    pub(crate) verified_blocks: AtomicU64,
    /// The longest time that a client was without its server.
    pub(crate) longest_pause_ms: AtomicU64,
    pub(crate) events: Mutex<Vec<Event>>,
    errors: Mutex<Vec<String>>,
    /// What strangers cost, in the words of the report.
    pub(crate) strangers: Mutex<Vec<(&'static str, f64)>>,
}

impl World {
    pub(crate) fn new(server: Server) -> Self {
        Self {
            server: Mutex::new(Some(server)),
            restarts: AtomicU64::new(0),
            operator_is_done: AtomicBool::new(false),
            clients_are_done: AtomicBool::new(false),
            latencies: Mutex::default(),
            requests: AtomicU64::new(0),
            verified_blocks: AtomicU64::new(0),
            longest_pause_ms: AtomicU64::new(0),
            events: Mutex::default(),
            errors: Mutex::default(),
            strangers: Mutex::default(),
        }
    }

    /// Something that nobody should have seen.
    pub(crate) fn fail(&self, error: impl Into<String>) {
        let error = error.into();
        let mut errors = self.errors.lock();
        if errors.len() < MAX_ERRORS {
            eprintln!("error: {error}");
            errors.push(error);
        }
    }

    pub(crate) fn note_panic(&self, who: &str, joined: Result<(), Box<dyn Any + Send>>) {
        if joined.is_err() {
            self.fail(format!("{who} has panicked"));
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.errors.lock().is_empty()
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        self.errors.lock().clone()
    }

    pub(crate) fn note(&self, what: &'static str) {
        self.events.lock().push(Event { at: Instant::now(), what });
    }

    /// Of a request that was answered at the first attempt.
    pub(crate) fn note_request(&self, kind: Kind, start: Instant) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.latencies.lock()[kind as usize].add(start);
    }
}
