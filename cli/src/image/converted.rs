//! An image that another process converts and sends as the requests of an NBD client: the receiving
//! end, a server of one export for one client.

use std::{any::Any, io, ops::Range, os::unix::net::UnixStream, sync::Arc, time::Duration};

use siltstone_engine::{Volume, WriteBuffer};
use siltstone_nbd::{
    BlockSizes, BoxFuture, Export, ExportError, Limits, Payload, ReadData, ServerConfig, Shutdown,
    StatusExtent, ZeroOptions, memory_export::FixedCatalog, serve_stream,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{PIECE_BYTES, Piece, qemu::EXPORT};

/// Pieces that are received before the first of them is taken.
const PIECES_AHEAD: usize = 2;
/// How often one who waits for a piece looks whether it is enough.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Receives a range of an image, whose end is the image's, until its sender leaves, `sink` returns
/// false or it is `enough`. That the sender has left does not mean that it has sent everything: it has
/// to be asked.
pub(super) fn receive(
    socket: UnixStream,
    range: Range<u64>,
    volume: &Volume,
    sink: &mut dyn FnMut(Piece) -> bool,
    enough: &dyn Fn() -> bool,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(socket)?;
        let (sender, pieces) = channel(PIECES_AHEAD);
        let export =
            ReceivingExport { volume: volume.clone(), range: range.clone(), pieces: sender };
        let catalog = FixedCatalog::new(vec![Arc::new(export)]);
        let limits = Limits::new(ServerConfig::default()).map_err(io::Error::other)?;
        let shutdown = Shutdown::new();
        let serve = async move {
            let signal = shutdown.signal();
            let served = serve_stream(socket, &catalog, &limits, signal).await;
            // With the export, the pieces end.
            drop(catalog);
            served
        };
        let behind = range.end..volume.size_bytes();
        let take = take(pieces, behind, sink, enough);
        tokio::pin!(serve, take);
        tokio::select! {
            biased;
            served = &mut serve => {
                // A sender that failed says more about it than its connection does.
                tracing::debug!(?served, "the image's sender has left");
                take.await;
            }
            () = &mut take => {}
        }
        Ok(())
    })
}

/// Hands pieces on until there are no more, and then what is `behind` the image, unless nobody wants
/// them any more.
async fn take(
    mut pieces: Receiver<Piece>,
    behind: Range<u64>,
    sink: &mut dyn FnMut(Piece) -> bool,
    enough: &dyn Fn() -> bool,
) {
    loop {
        match tokio::time::timeout(LOOK_EVERY, pieces.recv()).await {
            Ok(Some(piece)) => {
                if !sink(piece) {
                    return;
                }
            }
            Ok(None) => break,
            Err(_elapsed) if enough() => return,
            Err(_elapsed) => {}
        }
    }
    if !behind.is_empty() {
        sink(Piece::Hole(behind));
    }
}

/// The rest of an image, to be written once.
struct ReceivingExport {
    volume: Volume,
    range: Range<u64>,
    pieces: Sender<Piece>,
}

impl ReceivingExport {
    async fn receive(&self, piece: Piece) -> Result<(), ExportError> {
        let gone = |_| ExportError::io("nobody wants the rest of the image");
        self.pieces.send(piece).await.map_err(gone)
    }
}

/// The engine's own memory for a piece.
struct PiecePayload(WriteBuffer);

impl Payload for PiecePayload {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

impl Export for ReceivingExport {
    fn name(&self) -> String {
        EXPORT.into()
    }

    fn size_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::new(1, 4096, PIECE_BYTES as u32).expect("powers of two, the larger one last")
    }

    fn allocate(&self, offset: u64, len: u32) -> Box<dyn Payload> {
        Box::new(PiecePayload(self.volume.buffer(self.range.start + offset, len as usize)))
    }

    fn write(
        &self,
        offset: u64,
        payload: Box<dyn Payload>,
        _fua: bool,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            let payload = payload.into_any().downcast::<PiecePayload>();
            let PiecePayload(mut buffer) = *payload.expect("payloads come from `allocate`");
            let start = self.range.start + offset;
            let len = buffer.as_mut_slice().len() as u64;
            self.receive(Piece::Data(start, buffer, len)).await
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            // A sender that could do so would zero everything first, and pieces come in order.
            if options.fast {
                return Err(ExportError::NotSupported);
            }
            let start = self.range.start + offset;
            self.receive(Piece::Hole(start..start + len)).await
        })
    }

    /// The importer flushes, as it knows when.
    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn read(&self, _: u64, _: u32) -> BoxFuture<'_, Result<ReadData, ExportError>> {
        Box::pin(std::future::ready(Err(ExportError::NotSupported)))
    }

    fn prefetch(&self, _: u64, _: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn block_status(
        &self,
        _: u64,
        len: u64,
        _: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        Box::pin(std::future::ready(Ok(vec![StatusExtent { len, hole: false, zero: false }])))
    }
}
