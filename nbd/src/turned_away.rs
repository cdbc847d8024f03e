//! What the log says of clients that get no export. Whoever can connect can be turned away as often as
//! he likes, so there is a bound: some lines at a time, and with the next one the number of those left out.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{error::HandshakeError, identity::ClientIdentity};

/// So many lines there are at most...
const LINES: u32 = 10;
/// ...in so long.
const WINDOW: Duration = Duration::from_secs(10);

/// Those whom one server has turned away.
#[derive(Debug, Default)]
pub(crate) struct TurnedAway {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since the first of its lines.
    window: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl State {
    /// Whether there is to be a line, and how many there were not since the last.
    fn line(&mut self, now: Instant) -> Option<u64> {
        if self.window.is_none_or(|start| now >= start + WINDOW) {
            (self.window, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl TurnedAway {
    /// A client may not use what it has asked for; of an option that names no export, that is unknown.
    pub(crate) fn refused(
        &self,
        peer: &str,
        client: &ClientIdentity,
        export: Option<&str>,
        why: &'static str,
    ) {
        if let Some(left_out) = self.line() {
            tracing::warn!(peer, %client, export, why, left_out, "a client is refused");
        }
    }

    /// A negotiation has come to nothing.
    pub(crate) fn failed(&self, peer: &str, error: &HandshakeError) {
        if let Some(left_out) = self.line() {
            tracing::warn!(peer, %error, left_out, "connection closed");
        }
    }

    /// As many are served as may be.
    pub(crate) fn crowded_out(&self, peer: &str, max_connections: usize) {
        if let Some(left_out) = self.line() {
            tracing::warn!(
                peer,
                max_connections,
                left_out,
                "connection refused: too many connections"
            );
        }
    }

    /// Whether there is to be a line, and how many it has to tell of that there were not.
    fn line(&self) -> Option<Option<u64>> {
        let left_out = self.state.lock().line(Instant::now())?;
        Some((left_out > 0).then_some(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_the_next_one_counts_those_left_out() {
        let (mut state, start) = (State::default(), Instant::now());
        let later = |tenths: u32| start + WINDOW / 10 * tenths;
        for _ in 0..LINES {
            assert_eq!(state.line(later(0)), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(state.line(later(9)), None);
        }
        assert_eq!(state.line(later(10)), Some(1000));
        assert_eq!(state.line(later(11)), Some(0));
    }
}
