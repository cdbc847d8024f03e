//! How far a command is, on stderr: a bar where that is a terminal, lines where it is not and somebody
//! wants them.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::size::{human, per_second};

const BYTES: &str = "{bar:20} {percent:>3} %, {binary_bytes} of {binary_total_bytes}, \
    {binary_bytes_per_sec}, {eta} left";
const STREAM: &str = "{spinner} {binary_bytes}, {binary_bytes_per_sec}";
/// A line of its own below them: beside them there is no room in 80 columns.
const REMARK: &str = "\n{wide_msg}";

/// A bar over a number of bytes, if that is known.
pub(crate) fn bytes(total: Option<u64>) -> ProgressBar {
    match total {
        Some(total) => ProgressBar::new(total).with_style(style(BYTES)),
        None => ProgressBar::no_length().with_style(style(STREAM)),
    }
}

/// A line of text that changes.
pub(crate) fn text() -> ProgressBar {
    ProgressBar::new_spinner().with_style(style("{spinner} {wide_msg}"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are valid")
}

/// How far a command is. Dropping it takes its bar away.
pub(crate) struct Progress {
    bar: ProgressBar,
    lines: Option<Lines>,
}

impl Progress {
    /// Begins, after what was done before; with a line `every` so often where there is no bar.
    pub(crate) fn begin(total: Option<u64>, before: u64, every: Option<Duration>) -> Self {
        let bar = bytes(total).with_position(before);
        // The rate is of what is done from now on.
        bar.reset_eta();
        let every = every.filter(|_| !stderr().is_terminal());
        Self { bar, lines: every.map(|every| Lines::begin(total, before, every)) }
    }

    /// Shows how far it is.
    pub(crate) fn advance(&mut self, bytes: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(bytes);
        if let Some(lines) = &mut self.lines
            && let Some(line) = lines.advance(bytes, Instant::now())
        {
            // Where nobody reads it, nothing is lost.
            let _ = stderr().write_all(line.as_bytes());
        }
    }

    /// Says something below it.
    pub(crate) fn remark(&mut self, text: &str) {
        if self.bar.message().is_empty() {
            let beside = if self.bar.length().is_some() { BYTES } else { STREAM };
            self.bar.set_style(style(&format!("{beside}{REMARK}")));
        }
        self.bar.set_message(text.to_owned());
        if let Some(lines) = &mut self.lines {
            text.clone_into(&mut lines.remark);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Lines about progress.
struct Lines {
    total: Option<u64>,
    /// What was done at the start, and when that was.
    before: u64,
    start: Instant,
    every: Duration,
    next: Instant,
    remark: String,
}

impl Lines {
    fn begin(total: Option<u64>, before: u64, every: Duration) -> Self {
        let start = Instant::now();
        Self { total, before, start, every, next: start + every, remark: String::new() }
    }

    /// A line, if it is time for one.
    fn advance(&mut self, bytes: u64, now: Instant) -> Option<String> {
        if now < self.next {
            return None;
        }
        self.next = now + self.every;
        let seconds = (now - self.start).as_secs_f64();
        let own = bytes.saturating_sub(self.before);
        let mut line = human(bytes);
        if let Some(total) = self.total {
            line += &format!(" of {} ({} %)", human(total), bytes * 100 / total.max(1));
        }
        line += &format!(", {}", per_second(own, seconds));
        if let Some(total) = self.total.filter(|_| own > 0) {
            let rest = total.saturating_sub(bytes) as f64 / own as f64 * seconds;
            let rest = Duration::from_secs(rest as u64);
            line += &format!(", {} left", humantime::format_duration(rest));
        }
        if !self.remark.is_empty() {
            line += &format!("; {}", self.remark);
        }
        line.push('\n');
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        bytes(Some(1));
        bytes(None);
        text();
        for total in [Some(1), None] {
            Progress::begin(total, 0, None).remark("a word");
        }
    }

    #[test]
    fn a_line_tells_what_this_command_has_done_and_has_left() {
        let second = Duration::from_secs(1);
        let mut lines = Lines::begin(Some(100 << 20), 20 << 20, second);
        let start = lines.start;
        assert_eq!(lines.advance(30 << 20, start), None);
        lines.remark = "a word".into();
        let line = lines.advance(40 << 20, start + 2 * second).unwrap();
        assert_eq!(line, "40 MiB of 100 MiB (40 %), 10 MiB/s, 6s left; a word\n");
        assert_eq!(lines.advance(40 << 20, start + 2 * second), None);
        let mut lines = Lines::begin(None, 0, second);
        let line = lines.advance(1 << 20, lines.start + second).unwrap();
        assert_eq!(line, "1 MiB, 1 MiB/s\n");
    }
}
