//! What places of a pool held before: what lost writes would have left there.

use std::ops::Range;

use super::{life::Life, structures::Kind};

impl Life {
    /// What a place held at an earlier checkpoint, if that was something else: structures like
    /// those that are there now, if it held such at any, or else what it held last.
    pub(super) fn older(&self, start: u64, len: usize) -> Option<Vec<u8>> {
        let now = self.device.peek(start, len);
        let identities = self.identities(start, start + len as u64);
        let likeness = |bytes: &Vec<u8>| {
            let is_like = |range: &&Range<usize>| bytes[(*range).clone()] == now[(*range).clone()];
            identities.iter().filter(is_like).count()
        };
        let earlier = self.earlier.iter().map(|device| device.peek(start, len));
        let others = earlier.filter(|bytes| *bytes != now && bytes.iter().any(|&byte| byte != 0));
        // Of several the newest.
        others.max_by_key(likeness)
    }

    /// Where in a range its structures say what they are and where they belong, but not which use
    /// of the place they are of.
    fn identities(&self, start: u64, end: u64) -> Vec<Range<usize>> {
        let headers = self.structures.touching(start, end).iter().filter_map(|stretch| {
            let fields = identity(stretch.kind)?;
            Some(stretch.start + fields.start..stretch.start + fields.end)
        });
        let whole = headers.filter(|fields| fields.start >= start && fields.end <= end);
        whole.map(|fields| (fields.start - start) as usize..(fields.end - start) as usize).collect()
    }
}

/// Where a structure says what it is and where it belongs: of a frame's header segment, offset and
/// pool, of others the magic and the kind.
fn identity(kind: Kind) -> Option<Range<u64>> {
    match kind {
        Kind::FrameHeaderCovered | Kind::FrameHeaderUncovered => Some(24..40),
        Kind::FrameContentsCovered
        | Kind::FrameContentsUncovered
        | Kind::LogDataLive
        | Kind::LogDataStale
        | Kind::Padding
        | Kind::Unused => None,
        _ => Some(0..6),
    }
}
