//! How every kind of torture ends: violations with a way to see them again, a summary, a status.

use std::{fmt::Write, path::PathBuf};

use serde::Serialize;

use crate::{
    errors::CliError,
    output::{print, to_json},
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
            print(&to_json(&self)?)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_told_in_lines() {
        let violation = Violation {
            reason: "block 7 holds what it may not\nfound:    zeros\nexpected: tag 3\n".into(),
            place: "seed 5, full pool, cut at event 9".into(),
            repeat: "siltstone torture --seed 5 --cut 9".into(),
            seed: Some(5),
            cut: Some(9),
            pool: Some("/tmp/pool".into()),
        };
        let text = "\
VIOLATION: block 7 holds what it may not
    found:    zeros
    expected: tag 3
    where:    seed 5, full pool, cut at event 9
    pool:     /tmp/pool (kept)
    repeat:   siltstone torture --seed 5 --cut 9

";
        assert_eq!(violation.report(), text);
        let json = serde_json::to_value(&violation).unwrap();
        assert_eq!(json["where"], "seed 5, full pool, cut at event 9");
    }

    #[test]
    fn what_is_broken_counts_for_more_than_an_interruption() {
        let end = |interrupted, violations: u64| {
            let violation = |_| Violation {
                reason: "it is another".into(),
                place: "there".into(),
                repeat: "siltstone torture".into(),
                seed: None,
                cut: None,
                pool: None,
            };
            let violations = (0..violations).map(violation).collect();
            let ending = Ending { counts: (), seconds: 1.0, interrupted, violations };
            ending.tell(false, "", "nothing").map_err(|error| error.to_string())
        };
        assert_eq!(end(false, 0), Ok(()));
        assert_eq!(end(true, 0), Err("interrupted".into()));
        for interrupted in [false, true] {
            let text = "1 promise broken; each is described with a way to see it again";
            assert_eq!(end(interrupted, 1), Err(text.into()));
        }
    }
}
