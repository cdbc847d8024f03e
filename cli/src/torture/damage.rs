//! `siltstone torture --damage`: what becomes of pools that were damaged, in a table.

use std::fmt::Write;

use serde::Serialize;
use siltstone_torture::damage::{
    self, Outcome, Plan,
    tally::Counts,
    trial::{Form, Trial},
};

use super::jobs;
use crate::{
    args::TortureArguments,
    errors::CliError,
    output::{print, print_json},
    progress,
};

pub(super) fn run(arguments: &TortureArguments) -> Result<(), CliError> {
    let only = arguments.at.zip(arguments.pool).map(|(offset_bytes, end)| {
        let flip = Trial::flip(end, offset_bytes);
        Trial { form: arguments.form, value: arguments.value.unwrap_or(flip.value), ..flip }
    });
    let every = usize::try_from(arguments.every).unwrap_or(usize::MAX);
    let plan = Plan { every, jobs: jobs(arguments), only, peak_bytes: None };
    let counter = progress::text();
    let outcome = damage::run(&plan, |done, all| {
        counter.set_message(format!("{done} of {all} places damaged"));
        counter.tick();
    });
    counter.finish_and_clear();
    if arguments.json {
        print_json(&Report::new(&outcome))?;
    } else {
        print(&text(&outcome))?;
    }
    match outcome.violations.len() {
        0 => Ok(()),
        violations => Err(CliError::PromiseBroken { violations }),
    }
}

fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    for violation in &outcome.violations {
        let _ = writeln!(text, "VIOLATION: {violation}");
        let _ = writeln!(text, "repeat: siltstone torture {}", violation.trial.arguments());
    }
    heading(&mut text, "one byte of");
    for (kind, counts) in &outcome.tally.bytes {
        line(&mut text, kind.label(), counts);
    }
    heading(&mut text, "a sector or block of");
    for ((kind, form), counts) in &outcome.tally.ranges {
        line(&mut text, &format!("{kind}: {}", form.label()), counts);
    }
    let bytes: u64 = outcome.tally.bytes.values().map(Counts::total).sum();
    let ranges: u64 = outcome.tally.ranges.values().map(Counts::total).sum();
    let seconds = outcome.elapsed.as_secs_f64();
    let violations = outcome.violations.len();
    let _ = writeln!(
        text,
        "{bytes} bytes, {ranges} sectors and blocks damaged in {seconds:.1} s, {violations} \
         violations"
    );
    text
}

fn heading(text: &mut String, what: &str) {
    let columns = ["corrected", "blocks", "refused", "harmless", "silent"];
    let [corrected, blocks, refused, harmless, silent] = columns;
    let _ = writeln!(
        text,
        "{what:46} {corrected:>9} {blocks:>9} {refused:>9} {harmless:>9} {silent:>9}"
    );
}

fn line(text: &mut String, what: &str, counts: &Counts) {
    let Counts { corrected, blocks_reported, opening_refused, harmless, silent } = counts;
    let _ = writeln!(
        text,
        "{what:46} {corrected:9} {blocks_reported:9} {opening_refused:9} {harmless:9} {silent:9}"
    );
}

/// The outcome for scripts.
#[derive(Serialize)]
struct Report {
    outcomes: Vec<Line>,
    seconds: f64,
    violations: Vec<Violation>,
}

#[derive(Serialize)]
struct Line {
    structure: &'static str,
    form: &'static str,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Serialize)]
struct Violation {
    repeat: String,
    reason: String,
}

impl Report {
    fn new(outcome: &Outcome) -> Self {
        let bytes = outcome.tally.bytes.iter().map(|(kind, counts)| (*kind, Form::Flip, *counts));
        let ranges = outcome.tally.ranges.iter();
        let ranges = ranges.map(|((kind, form), counts)| (*kind, *form, *counts));
        let line =
            |(kind, form, counts): (siltstone_torture::damage::structures::Kind, Form, _)| Line {
                structure: kind.label(),
                form: form.label(),
                counts,
            };
        let violation = |violation: &damage::Violation| Violation {
            repeat: violation.trial.arguments(),
            reason: violation.to_string(),
        };
        Self {
            outcomes: bytes.chain(ranges).map(line).collect(),
            seconds: outcome.elapsed.as_secs_f64(),
            violations: outcome.violations.iter().map(violation).collect(),
        }
    }
}
