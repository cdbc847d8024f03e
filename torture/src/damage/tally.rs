//! Outcomes, counted by what was damaged and how.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{structures::Kind, trial::Form, verdict::Verdict};

/// How often something came of damage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Every block right, the damage named.
    pub corrected: u64,
    /// Some blocks refused, all others right.
    pub blocks_reported: u64,
    /// The opening refused.
    pub opening_refused: u64,
    /// Every block right, nothing to name.
    pub harmless: u64,
    /// A promise broken.
    pub silent: u64,
}

impl Counts {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.corrected + self.blocks_reported + self.opening_refused + self.harmless + self.silent
    }

    fn add(&mut self, verdict: &Verdict) {
        let counter = match verdict {
            Verdict::Corrected => &mut self.corrected,
            Verdict::BlocksReported => &mut self.blocks_reported,
            Verdict::Refused => &mut self.opening_refused,
            Verdict::Harmless => &mut self.harmless,
            Verdict::Silent(_) => &mut self.silent,
        };
        *counter += 1;
    }
}

/// All outcomes.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By what was damaged, of single bytes.
    pub bytes: BTreeMap<Kind, Counts>,
    /// By what was damaged and how, of sectors and blocks.
    pub ranges: BTreeMap<(Kind, Form), Counts>,
}

impl Tally {
    pub(super) fn add(&mut self, kind: Kind, form: Form, verdict: &Verdict) {
        match form {
            Form::Flip => self.bytes.entry(kind).or_default().add(verdict),
            _ => self.ranges.entry((kind, form)).or_default().add(verdict),
        }
    }
}
