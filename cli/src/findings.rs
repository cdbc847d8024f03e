//! What `check` and `scrub` found, for people; and how the commands end.

use std::path::Path;

use siltstone_engine::Findings;

use crate::errors::CliError;

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

fn more(count: u64, what: &str) -> String {
    match count {
        0 => String::new(),
        1 => format!("and 1 more {what}; --all lists it\n"),
        _ => format!("and {count} more {what}s; --all lists them\n"),
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
