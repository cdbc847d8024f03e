//! How every kind of torture ends: violations with a way to see them again, a summary, a status.

use std::{fmt::Write, path::PathBuf};

use serde::Serialize;

use crate::{
    errors::CliError,
    output::{print, print_json},
    plural::count,
};

/// A promise that was found broken.
#[derive(Serialize)]
pub(super) struct Violation {
    /// What was expected and what was found, in lines.
    pub(super) reason: String,
    /// Where.
    #[serde(rename = "where")]
    pub(super) place: String,
    /// The command that shows it again, or as nearly as can be.
    pub(super) repeat: String,
    /// The history, of simulated pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,
    /// Its cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cut: Option<usize>,
    /// A pool that was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pool: Option<PathBuf>,
}

impl Violation {
    fn report(&self) -> String {
        let mut lines = self.reason.trim_end().lines();
        let mut text = format!("VIOLATION: {}\n", lines.next().unwrap_or_default());
        for line in lines {
            let _ = writeln!(text, "    {line}");
        }
        let _ = writeln!(text, "    where:    {}", self.place);
        if let Some(pool) = &self.pool {
            let _ = writeln!(text, "    pool:     {} (kept)", pool.display());
        }
        let _ = writeln!(text, "    repeat:   {}\n", self.repeat);
        text
    }
}

/// What came of a torture.
#[derive(Serialize)]
pub(super) struct Ending<C: Serialize> {
    /// What was done, for scripts.
    #[serde(flatten)]
    pub(super) counts: C,
    pub(super) seconds: f64,
    pub(super) interrupted: bool,
    pub(super) violations: Vec<Violation>,
}

impl<C: Serialize> Ending<C> {
    /// Prints it, for people with `table` and `summary`; fails if a promise was broken, or if it
    /// was interrupted.
    pub(super) fn tell(self, json: bool, table: &str, summary: &str) -> Result<(), CliError> {
        let violations = self.violations.len() as u64;
        if json {
            print_json(&self)?;
        } else {
            let mut text: String = self.violations.iter().map(Violation::report).collect();
            text += table;
            let _ = write!(text, "{summary} in {:.1} s, ", self.seconds);
            if self.interrupted {
                text += "interrupted, ";
            }
            let _ = writeln!(text, "{}", count(violations, "violation"));
            print(&text)?;
        }
        match violations {
            0 if self.interrupted => Err(CliError::Interrupted),
            0 => Ok(()),
            violations => Err(CliError::PromiseBroken { violations }),
        }
    }
}
