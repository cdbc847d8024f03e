//! Which parts of a volume are holes.

use siltstone_cursor::{Run, Target};
use siltstone_device::BlockAddress;

use super::{BLOCK, Volume};
use crate::{error::Result, findings::LostRange, lost};

/// A run of a volume's bytes that is allocated or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRun {
    /// Where it starts, in bytes.
    pub offset_bytes: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Nothing is stored for it: it reads as zeros.
    pub is_hole: bool,
}

impl Volume {
    /// Says which parts of a range are holes: at most `max_runs` runs, in order and without gaps,
    /// neighbours of the same kind joined. They may cover less than the range, but never nothing.
    ///
    /// # Errors
    /// If the range passes the end or the map cannot be read.
    pub async fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max_runs: usize,
    ) -> Result<Vec<StatusRun>> {
        const WINDOW_BLOCKS: u64 = 1 << 16;
        self.shared.check_range(offset_bytes, len_bytes)?;
        self.core.await_inherited(&self.shared).await?;
        let end_bytes = offset_bytes + len_bytes;
        let end = end_bytes.div_ceil(BLOCK);
        let mut at = offset_bytes / BLOCK;
        let mut runs: Vec<StatusRun> = Vec::new();
        while at < end {
            let window = (end - at).min(WINDOW_BLOCKS);
            for (first, count, is_hole) in self.window_status(at, window).await? {
                let start = (first * BLOCK).max(offset_bytes);
                let len = ((first + count) * BLOCK).min(end_bytes) - start;
                let full = runs.len() >= max_runs.max(1);
                match runs.last_mut() {
                    Some(last) if last.is_hole == is_hole => last.len_bytes += len,
                    _ if full => return Ok(runs),
                    _ => runs.push(StatusRun { offset_bytes: start, len_bytes: len, is_hole }),
                }
            }
            at += window;
        }
        self.shared.check_exists()?;
        Ok(runs)
    }

    /// What damaged pages of the map hide of the volume, in order: there nothing can be read, and
    /// [`status`](Self::status) fails. Reads the volume's part of the map.
    pub async fn hidden_ranges(&self) -> Vec<LostRange> {
        lost::hidden(&self.core, &self.shared).await
    }

    /// `(first block, count, is hole)` for a window, gapless.
    async fn window_status(&self, first: u64, count: u64) -> Result<Vec<(u64, u64, bool)>> {
        let address = BlockAddress(first);
        let mut staged = Vec::new();
        self.shared.overlay.read(address, count, &mut staged);
        let mut mapped: Vec<Run> = Vec::new();
        let chain = self.shared.chain();
        self.core.map.lookup(&chain, address, count as u32, &mut mapped).await?;
        let mut mapped = mapped.into_iter().peekable();
        let mut staged = staged.into_iter().peekable();
        let mut out = Vec::new();
        let mut at = first;
        while at < first + count {
            while mapped.next_if(|run| run.address.0 + u64::from(run.len_blocks) <= at).is_some() {}
            while staged.next_if(|run| run.address.0 + u64::from(run.len_blocks) <= at).is_some() {}
            let end_of = |address: BlockAddress, len: u32| address.0 + u64::from(len);
            let (end, is_hole) = match (staged.peek(), mapped.peek()) {
                (Some(run), _) if run.address.0 <= at => {
                    (end_of(run.address, run.len_blocks), run.is_hole())
                }
                (over, Some(run)) => {
                    let limit = over.map_or(u64::MAX, |over| over.address.0);
                    (end_of(run.address, run.len_blocks).min(limit), run.target == Target::Hole)
                }
                (_, None) => (first + count, true),
            };
            let end = end.min(first + count);
            out.push((at, end - at, is_hole));
            at = end;
        }
        Ok(out)
    }
}
