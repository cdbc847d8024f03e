//! Exports of one's own: `pattern`, a disk that nobody stores and everybody can check, and `ram`, a disk in
//! memory that can be written to.
//!
//! `cargo run --release -p siltstone-nbd --example custom_export -- unix:/tmp/custom.sock` serves both until it is
//! stopped by Ctrl-C. Then, from elsewhere:
//!
//! ```text
//! nbdinfo --list 'nbd+unix://?socket=/tmp/custom.sock'
//! nbdcopy image.raw 'nbd+unix:///ram?socket=/tmp/custom.sock'
//! ```
//!
//! [`siltstone_nbd::memory_export`] is a disk in memory with all that the protocol can say: holes, and a lock
//! for each piece.

use std::{error::Error, sync::Arc, time::Duration};

use parking_lot::RwLock;
use siltstone_nbd::{
    BoxFuture, Catalog, Export, ExportError, Listen, Payload, ReadData, Server, ServerConfig,
    StatusExtent, ZeroOptions, memory_export::FixedCatalog,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let addresses = std::env::args().skip(1).map(|address| address.parse());
    let addresses = addresses.collect::<Result<Vec<Listen>, _>>()?;
    let server = Server::bind(&addresses, catalog(), ServerConfig::default()).await?;
    tokio::signal::ctrl_c().await?;
    server.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

/// What is served. A catalog that finds its exports when they are asked for implements [`Catalog`] itself.
pub(crate) fn catalog() -> Arc<dyn Catalog> {
    Arc::new(FixedCatalog::new(vec![
        Arc::new(Pattern { size_bytes: 1 << 40 }),
        Arc::new(RamDisk(RwLock::new(vec![0; 64 << 20]))),
    ]))
}

/// An answer that is at hand.
fn ready<'a, T: Send + 'a>(
    answer: Result<T, ExportError>,
) -> BoxFuture<'a, Result<T, ExportError>> {
    Box::pin(std::future::ready(answer))
}

/// One extent that is all data: what to answer if holes are not known.
fn all_data(len: u64) -> BoxFuture<'static, Result<Vec<StatusExtent>, ExportError>> {
    ready(Ok(vec![StatusExtent { len, hole: false, zero: false }]))
}

/// A read-only disk of which every eight bytes hold their own offset, the highest byte first.
struct Pattern {
    size_bytes: u64,
}

impl Export for Pattern {
    fn name(&self) -> String {
        "pattern".into()
    }

    fn description(&self) -> Option<String> {
        Some("every eight bytes hold their own offset".into())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<ReadData, ExportError>> {
        let end = offset + u64::from(len);
        let words = (offset / 8..end.div_ceil(8)).flat_map(|word| (word * 8).to_be_bytes());
        let bytes: Vec<u8> = words.skip((offset % 8) as usize).take(len as usize).collect();
        ready(Ok(ReadData::data(bytes)))
    }

    fn prefetch(&self, _: u64, _: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(Ok(()))
    }

    fn block_status(
        &self,
        _offset: u64,
        len: u64,
        _max_extents: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        all_data(len)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(Ok(()))
    }

    // The server refuses changes of what is read-only: it calls none of these.

    fn allocate(&self, _offset: u64, len: u32) -> Box<dyn Payload> {
        Box::new(vec![0; len as usize])
    }

    fn write(
        &self,
        _offset: u64,
        _payload: Box<dyn Payload>,
        _fua: bool,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(Err(ExportError::ReadOnly))
    }

    fn trim(&self, _: u64, _: u64, _fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(Err(ExportError::ReadOnly))
    }

    fn write_zeroes(
        &self,
        _offset: u64,
        _len: u64,
        _options: ZeroOptions,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(Err(ExportError::ReadOnly))
    }
}

/// Bytes behind one lock. Nothing outlives the process, so a change is as durable as it can be when it is made:
/// flushes and `fua` ask for nothing more.
struct RamDisk(RwLock<Vec<u8>>);

impl RamDisk {
    /// The server has checked that a request lies within the disk.
    fn zero(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        self.0.write()[offset as usize..(offset + len) as usize].fill(0);
        ready(Ok(()))
    }
}

impl Export for RamDisk {
    fn name(&self) -> String {
        "ram".into()
    }

    fn size_bytes(&self) -> u64 {
        self.0.read().len() as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<ReadData, ExportError>> {
        let start = offset as usize;
        ready(Ok(ReadData::data(self.0.read()[start..start + len as usize].to_vec())))
    }

    /// Called before the payload is received. Storage that can take over its own kind of memory returns that.
    fn allocate(&self, _offset: u64, len: u32) -> Box<dyn Payload> {
        Box::new(vec![0; len as usize])
    }

    fn write(
        &self,
        offset: u64,
        payload: Box<dyn Payload>,
        _fua: bool,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        let bytes = payload.into_any().downcast::<Vec<u8>>().expect("is what allocate returned");
        let start = offset as usize;
        self.0.write()[start..start + bytes.len()].copy_from_slice(&bytes);
        ready(Ok(()))
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(Ok(()))
    }

    /// Zeros are one of the things that trimmed blocks may read as.
    fn trim(&self, offset: u64, len: u64, _fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        self.zero(offset, len)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        match options.fast {
            // The client has asked to be told rather than to wait for what a write would take.
            true => ready(Err(ExportError::NotSupported)),
            false => self.zero(offset, len),
        }
    }

    fn prefetch(&self, _: u64, _: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        ready(Ok(()))
    }

    fn block_status(
        &self,
        _offset: u64,
        len: u64,
        _max_extents: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        all_data(len)
    }
}
