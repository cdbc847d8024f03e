//! `siltstone torture --damage`: what becomes of pools that were damaged, in a table.

use std::fmt::Write;

use serde::Serialize;
use siltstone_torture::damage::{
    self, Outcome, Plan,
    structures::Kind,
    tally::Counts,
    trial::{Form, Trial},
};

use super::{
    Watch,
    ending::{Ending, Violation},
    jobs,
};
use crate::{args::torture::TortureArguments, errors::CliError, plural::count};

pub(super) fn run(arguments: &TortureArguments) -> Result<(), CliError> {
    let options = &arguments.damage;
    let only = options.at.zip(options.pool).map(|(offset_bytes, end)| {
        let flip = Trial::flip(end, offset_bytes);
        Trial { form: options.form, value: options.value.unwrap_or(flip.value), ..flip }
    });
    let every = usize::try_from(options.every).unwrap_or(usize::MAX);
    let plan = Plan { every, jobs: jobs(arguments), only, peak_bytes: None };
    let watch = Watch::start()?;
    let outcome = damage::run(&plan, |done, all| {
        watch.show(|| format!("{done} of {} damaged", count(all as u64, "place")))
    });
    watch.end();
    let outcome = outcome.map_err(|reason| CliError::Impossible { reason: reason.to_string() })?;
    let ending = Ending {
        counts: Outcomes { outcomes: lines(&outcome) },
        seconds: outcome.elapsed.as_secs_f64(),
        interrupted: outcome.interrupted,
        violations: outcome.violations.iter().map(violation).collect(),
    };
    ending.tell(arguments.json, &table(&outcome), &summary(&outcome))
}

fn violation(violation: &damage::Violation) -> Violation {
    let damage::Violation { trial, kind, reason } = violation;
    let Trial { end, form, offset_bytes, .. } = trial;
    Violation {
        reason: reason.clone(),
        place: format!("{kind}, byte {offset_bytes} of the {end} pool, {}", form.label()),
        repeat: format!("siltstone torture {}", trial.arguments()),
        seed: None,
        cut: None,
        pool: None,
    }
}

fn summary(outcome: &Outcome) -> String {
    let bytes = outcome.tally.bytes.values().map(Counts::total).sum();
    let ranges = outcome.tally.ranges.values().map(Counts::total).sum();
    let (bytes, ranges) = (count(bytes, "byte"), count(ranges, "larger place"));
    format!("{bytes} and {ranges} (sectors, blocks) damaged")
}

fn table(outcome: &Outcome) -> String {
    let mut text = String::new();
    if !outcome.tally.bytes.is_empty() {
        heading(&mut text, "one byte of");
    }
    for (kind, counts) in &outcome.tally.bytes {
        line(&mut text, kind.label(), counts);
    }
    if !outcome.tally.ranges.is_empty() {
        heading(&mut text, "a sector or block of");
    }
    for ((kind, form), counts) in &outcome.tally.ranges {
        line(&mut text, &format!("{kind}: {}", form.label()), counts);
    }
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

/// The table for scripts.
#[derive(Serialize)]
struct Outcomes {
    outcomes: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    structure: &'static str,
    form: &'static str,
    #[serde(flatten)]
    counts: Counts,
}

fn lines(outcome: &Outcome) -> Vec<Line> {
    let bytes = outcome.tally.bytes.iter().map(|(kind, counts)| (*kind, Form::Flip, *counts));
    let ranges = outcome.tally.ranges.iter();
    let ranges = ranges.map(|((kind, form), counts)| (*kind, *form, *counts));
    let line = |(kind, form, counts): (Kind, Form, _)| {
        let (structure, form) = (kind.label(), form.label());
        Line { structure, form, counts }
    };
    bytes.chain(ranges).map(line).collect()
}
