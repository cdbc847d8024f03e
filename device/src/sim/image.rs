//! The contents of a simulated medium: sparse, and cheap to clone.
//!
//! Pages are shared between images until one of them writes; a chunk groups pages so that a
//! clone costs one reference count for each MiB in use. What was never written reads as zeros.

use std::{collections::HashMap, sync::Arc};

use crate::BLOCK_BYTES;

/// One block's bytes.
pub(super) type Page = [u8; BLOCK_BYTES];

const CHUNK_PAGES: u64 = 256;

#[derive(Clone, Default)]
pub(super) struct Image {
    chunks: HashMap<u64, Arc<Chunk>>,
}

#[derive(Clone)]
struct Chunk {
    pages: [Option<Arc<Page>>; CHUNK_PAGES as usize],
}

impl Image {
    /// The page with this number, or `None` if it is all zeros.
    pub(super) fn page(&self, number: u64) -> Option<&Arc<Page>> {
        let chunk = self.chunks.get(&(number / CHUNK_PAGES))?;
        chunk.pages[(number % CHUNK_PAGES) as usize].as_ref()
    }

    /// Replaces a page; `None` is all zeros.
    pub(super) fn set_page(&mut self, number: u64, page: Option<Arc<Page>>) {
        let chunk = number / CHUNK_PAGES;
        if page.is_none() && !self.chunks.contains_key(&chunk) {
            return;
        }
        let empty = || Arc::new(Chunk { pages: [const { None }; CHUNK_PAGES as usize] });
        let chunk = Arc::make_mut(self.chunks.entry(chunk).or_insert_with(empty));
        chunk.pages[(number % CHUNK_PAGES) as usize] = page;
    }

    /// Copies bytes out, at any offset.
    pub(super) fn read(&self, offset_bytes: u64, bytes: &mut [u8]) {
        for (number, within, part) in parts(offset_bytes, bytes.len()) {
            let target = &mut bytes[part];
            match self.page(number) {
                Some(page) => target.copy_from_slice(&page[within..within + target.len()]),
                None => target.fill(0),
            }
        }
    }

    /// Copies bytes in, at any offset.
    pub(super) fn write(&mut self, offset_bytes: u64, bytes: &[u8]) {
        for (number, within, part) in parts(offset_bytes, bytes.len()) {
            let mut page = self.page(number).map_or([0; BLOCK_BYTES], |page| **page);
            page[within..within + part.len()].copy_from_slice(&bytes[part]);
            self.set_page(number, Some(Arc::new(page)));
        }
    }
}

/// The pages that a range touches: number, offset in the page, and the part of the range there.
fn parts(
    offset_bytes: u64,
    len: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let position = offset_bytes + done as u64;
        let within = (position % BLOCK_BYTES as u64) as usize;
        let end = len.min(done + BLOCK_BYTES - within);
        let part = done..end;
        done = end;
        Some((position / BLOCK_BYTES as u64, within, part))
    })
}
