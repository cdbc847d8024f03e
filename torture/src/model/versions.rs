//! The versions of a block, and which of them a cut, or a snapshot, may show.

use crate::{
    content::{Block, ZERO},
    report,
};

/// What an operation made of a block.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) content: Block,
    pub(super) begun_event: usize,
    pub(super) begun: u64,
    /// The tick at which it was done; `u64::MAX` before that, and for ever if it failed.
    pub(super) done: u64,
    /// The event from which on it is certain; `usize::MAX` if never.
    pub(super) certain: usize,
}

impl Version {
    /// What is there from the beginning.
    pub(super) fn base(content: Block) -> Self {
        Self { content, begun_event: 0, begun: 0, done: 0, certain: 0 }
    }
}

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// The cut: nothing that began at this event or later has left anything.
    pub(super) event: usize,
    /// The last tick that counts: of a snapshot, the one at which it was taken.
    pub(super) moment: u64,
    /// Whether all that was done by that tick is there, flushed or not.
    pub(super) kept: bool,
}

impl Sight {
    /// A volume after a cut.
    pub(super) fn after_cut(event: usize) -> Self {
        Self { event, moment: u64::MAX, kept: false }
    }

    fn settles(&self, version: &Version) -> bool {
        let is_certain = version.certain <= self.event;
        version.done <= self.moment && (self.kept || is_certain)
    }

    /// The versions of which one must be seen.
    fn allowed<'a>(&self, versions: &'a [Version]) -> impl Iterator<Item = &'a Version> + Clone {
        let Self { event, moment, .. } = *self;
        let settled = versions.iter().filter(|version| self.settles(version));
        let newest = settled.map(|version| version.begun).max().unwrap_or(0);
        versions.iter().filter(move |version| {
            let has_begun = version.begun_event < event && version.begun <= moment;
            (version.begun == 0 || has_begun) && version.done >= newest
        })
    }

    /// Whether a block may look like this.
    pub(super) fn may_see(&self, versions: Option<&Vec<Version>>, found: &[u32]) -> bool {
        let zero = [Version::base(ZERO)];
        let versions = versions.map_or(&zero[..], Vec::as_slice);
        self.allowed(versions).any(|version| looks_so(version, found))
    }

    /// Why a block may not look like this.
    pub(super) fn explain(
        &self,
        block: u64,
        versions: Option<&Vec<Version>>,
        found: &[u32],
    ) -> String {
        let zero = [Version::base(ZERO)];
        let versions = versions.map_or(&zero[..], Vec::as_slice);
        let written = |version: &Version| match version.begun {
            0 => "there from the beginning".into(),
            _ => format!("written from event {} on", version.begun_event),
        };
        let text = |v: &Version| format!("{}, {}", report::contents(&v.content), written(v));
        let expected: Vec<_> = self.allowed(versions).map(text).collect();
        let which = match versions.iter().rfind(|version| looks_so(version, found)) {
            None => "never written to it".into(),
            Some(v) if v.begun > 0 && v.begun_event >= self.event => {
                format!("{}, after the cut at event {}", written(v), self.event)
            }
            Some(v) if v.begun > self.moment => format!("{}, after the snapshot", written(v)),
            Some(v) if self.kept => format!("{}, and overwritten before the snapshot", written(v)),
            Some(v) => format!("{}, and durably overwritten since", written(v)),
        };
        let found = format!("{}, {which}", report::contents(found));
        report::wrong_block(block, &found, &expected)
    }
}

/// Of a block that its volume ends in, only what is in the volume counts.
fn looks_so(version: &Version, found: &[u32]) -> bool {
    *found == version.content[..found.len()]
}
