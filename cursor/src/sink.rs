//! Where what a merge keeps goes: to the relocator, if there is one, then joined, counted, written.

use crate::{
    error::MapError,
    extent::{Coalescer, Extent, Target},
    patch_writer::PatchWriter,
    space::{Edit, Relocator},
};

/// Moved blocks that a relocator is asked for at a time.
const MAX_MOVING_BLOCKS: usize = 1024;
/// Extents that wait for a relocator.
const MAX_PENDING: usize = 4096;

/// See the module's page.
pub(crate) struct Sink<'a, 'b, 'c> {
    pub(crate) writer: &'a mut PatchWriter<'b>,
    pub(crate) edit: &'a mut Edit,
    relocator: Option<&'c mut (dyn Relocator + 'c)>,
    /// Stacks that wait for the relocator, one after the other, and how many versions each has.
    pending: Vec<Extent>,
    heights: Vec<usize>,
    moving_blocks: usize,
    joined: Coalescer,
}

impl<'a, 'b, 'c> Sink<'a, 'b, 'c> {
    pub(crate) fn new(
        writer: &'a mut PatchWriter<'b>,
        edit: &'a mut Edit,
        relocator: Option<&'c mut (dyn Relocator + 'c)>,
    ) -> Self {
        Self {
            writer,
            edit,
            relocator,
            pending: Vec::new(),
            heights: Vec::new(),
            moving_blocks: 0,
            joined: Coalescer::default(),
        }
    }

    /// Takes the versions of one run of blocks, newest first; none is nothing. What it leaves in
    /// `stack` means nothing.
    pub(crate) async fn push(&mut self, stack: &mut Vec<Extent>) -> Result<(), MapError> {
        if stack.is_empty() {
            return Ok(());
        }
        let Some(relocator) = &mut self.relocator else { return self.write(stack).await };
        let moves = |version: &&Extent| match version.target {
            Target::Stored(place) => relocator.moves(place.segment()),
            Target::Hole => false,
        };
        let moving = stack.iter().filter(moves).count();
        if moving == 0 {
            self.heights.push(stack.len());
            self.pending.append(stack);
        } else {
            // Blocks of one run may go to different frames; versions of a run have the same ends.
            let (from, to) = (stack[0].address.0, stack[0].end_address());
            for at in from..to {
                self.heights.push(stack.len());
                self.pending.extend(stack.iter().map(|version| version.slice(at, at + 1)));
            }
            self.moving_blocks += moving * (to - from) as usize;
        }
        if self.moving_blocks >= MAX_MOVING_BLOCKS || self.pending.len() >= MAX_PENDING {
            self.relocate().await?;
        }
        Ok(())
    }

    /// Whether a relocator has moved as much as it wants to.
    pub(crate) fn has_enough(&self) -> bool {
        self.relocator.as_ref().is_some_and(|relocator| relocator.has_enough())
    }

    async fn relocate(&mut self) -> Result<(), MapError> {
        if let Some(relocator) = &mut self.relocator
            && self.moving_blocks > 0
        {
            relocator.relocate(&mut self.pending).await?;
        }
        self.moving_blocks = 0;
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        let mut stack = Vec::new();
        for height in std::mem::take(&mut self.heights) {
            let (versions, after) = rest.split_at(height);
            stack.clear();
            stack.extend_from_slice(versions);
            self.write(&mut stack).await?;
            rest = after;
        }
        Ok(())
    }

    async fn write(&mut self, stack: &mut Vec<Extent>) -> Result<(), MapError> {
        self.joined.push(stack);
        stack.iter().for_each(|version| self.edit.count_blocks(version, 1));
        self.writer.push(stack).await
    }

    /// Writes what is left, and makes sure that all of it can be read.
    pub(crate) async fn finish(mut self) -> Result<(), MapError> {
        self.relocate().await?;
        let last = self.joined.finish();
        last.iter().for_each(|version| self.edit.count_blocks(version, 1));
        self.writer.push(&last).await?;
        self.writer.complete().await?;
        match self.relocator {
            Some(relocator) => relocator.complete().await,
            None => Ok(()),
        }
    }
}
