//! Reading pages: from the cache or the device, always verified.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use siltstone_device::{
    AlignedBuffer, BufferPool, ByteOffset, Device,
    request::{self, Pending},
};

use crate::{
    error::MapError,
    page::{PAGE_BYTES, Page, PageRef},
    page_cache::PageCache,
    space::SegmentGeometry,
};

/// Idle buffers kept for reuse: a few large writes or read-aheads.
const MAX_IDLE_BUFFER_BYTES: usize = 4 << 20;

pub(crate) struct PageStore {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) pool: u64,
    pub(crate) geometry: SegmentGeometry,
    pub(crate) cache: PageCache,
    pub(crate) buffers: BufferPool,
    /// Pages read from the device.
    pub(crate) page_reads: AtomicU64,
}

impl PageStore {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        pool: u64,
        geometry: SegmentGeometry,
        cache_bytes: usize,
    ) -> Self {
        Self {
            device,
            pool,
            geometry,
            cache: PageCache::new(cache_bytes),
            buffers: BufferPool::new(MAX_IDLE_BUFFER_BYTES),
            page_reads: AtomicU64::new(0),
        }
    }

    /// Starts to read `count` adjacent pages.
    pub(crate) fn start_read(&self, address: ByteOffset, count: usize) -> Pending<AlignedBuffer> {
        self.page_reads.fetch_add(count as u64, Ordering::Relaxed);
        let buffer = self.buffers.take(count * PAGE_BYTES);
        request::read(&*self.device, address, buffer)
    }

    async fn finish_read(
        &self,
        page: PageRef,
        read: Pending<AlignedBuffer>,
    ) -> Result<Arc<Page>, MapError> {
        let PageRef { patch, address, .. } = page;
        let bytes = read.await.map_err(|source| MapError::Read { patch, address, source })?;
        let page = Page::new(bytes, page, self.pool).map_err(|source| MapError::Page {
            patch,
            address,
            source,
        })?;
        Ok(Arc::new(page))
    }

    /// A page, from the cache if it is there, and not left there if it was not.
    pub(crate) async fn read_once(&self, page: PageRef) -> Result<Arc<Page>, MapError> {
        if let Some(page) = self.cache.get(&page) {
            return Ok(page);
        }
        self.finish_read(page, self.start_read(page.address, 1)).await
    }

    /// A page as it is on the medium, whether or not it is cached.
    pub(crate) async fn read_from_medium(&self, page: PageRef) -> Result<Arc<Page>, MapError> {
        self.finish_read(page, self.start_read(page.address, 1)).await
    }

    /// Reads pages concurrently; caches them, and appends them to `out`.
    pub(crate) async fn load(
        &self,
        pages: &[PageRef],
        out: &mut Vec<Arc<Page>>,
    ) -> Result<(), MapError> {
        let buffers = pages
            .iter()
            .map(|page| request::prepare_read(page.address, self.buffers.take(PAGE_BYTES)));
        let (requests, reads): (Vec<_>, Vec<_>) = buffers.unzip();
        self.page_reads.fetch_add(pages.len() as u64, Ordering::Relaxed);
        self.device.submit(requests);
        for (page, read) in pages.iter().zip(reads) {
            let page = self.finish_read(*page, read).await?;
            self.cache.insert(&page);
            out.push(page);
        }
        Ok(())
    }
}
