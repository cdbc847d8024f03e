//! A device that counts what is written to it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use siltstone_device::{Device, Request};

/// See the module's page.
pub(crate) struct Counted {
    device: Arc<dyn Device>,
    written_bytes: AtomicU64,
    read_bytes: AtomicU64,
}

impl Counted {
    pub(crate) fn new(device: Arc<dyn Device>) -> Arc<Self> {
        let (written_bytes, read_bytes) = Default::default();
        Arc::new(Self { device, written_bytes, read_bytes })
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }
}

impl Device for Counted {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn submit(&self, batch: Vec<Request>) {
        for request in &batch {
            match request {
                Request::Write { buffer, .. } => {
                    self.written_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                }
                Request::Read { buffer, .. } => {
                    self.read_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                }
                Request::Flush { .. } | Request::Discard { .. } => {}
            }
        }
        self.device.submit(batch);
    }
}
