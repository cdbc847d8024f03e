//! What `check` and `scrub` found, for people; and how the commands end.

use std::path::Path;

use siltstone_engine::{Findings, Repair};

use crate::{errors::CliError, plural::count};

/// One line for each problem and each lost range, and how many are not listed.
pub(crate) fn lines(findings: &Findings) -> String {
    let mut text = String::new();
    for problem in &findings.problems {
        text += &format!("{problem}\n");
    }
    text += &more(findings.more_problems, "problem");
    for range in &findings.lost {
        text += &format!("{range}\n");
    }
    text + &more(findings.more_lost, "lost range")
}

/// One line for each thing that was damaged, and of which nothing is lost.
pub(crate) fn notes(repairs: &[Repair]) -> String {
    repairs.iter().map(|repair| format!("note: {repair}\n")).collect()
}

fn more(number: u64, what: &str) -> String {
    match number {
        0 => String::new(),
        1 => format!("and 1 more {what}; --all lists it\n"),
        _ => format!("and {}; --all lists them\n", count(number, &format!("more {what}"))),
    }
}

/// Success only if nothing was found. `pass` names the command.
pub(crate) fn verdict(
    pool: &Path,
    pass: &'static str,
    findings: &Findings,
) -> Result<(), CliError> {
    if findings.is_sound() {
        return Ok(());
    }
    Err(CliError::DamageFound {
        path: pool.into(),
        pass,
        problems: findings.problem_count(),
        lost_ranges: findings.lost_count(),
        lost_bytes: findings.lost_bytes,
    })
}
