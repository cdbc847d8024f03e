//! A client that does what it is told, right or wrong, and an export that can be told to wait or
//! to fail.
#![allow(dead_code, unreachable_pub)] // Every test program uses its own part of this.

pub mod pki;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use siltstone_nbd::{
    BlockSizes, BoxFuture, ConnectionError, Ending, Export, ExportError, Limits, Payload, ReadData,
    ServerConfig, Shutdown, StatusExtent, Traffic, ZeroOptions,
    memory_export::{FixedCatalog, MemoryExport},
    protocol::*,
    serve_stream,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::Semaphore,
    task::JoinHandle,
};
use zerocopy::{FromBytes, IntoBytes};

pub const MIB: u64 = 1 << 20;

/// What the server made of a connection.
pub type Served = JoinHandle<Result<Ending, ConnectionError>>;

/// Serves one connection over memory; the client has yet to read the greeting.
pub fn serve(exports: Vec<Arc<dyn Export>>, config: ServerConfig) -> (Client, Served, Shutdown) {
    serve_within(exports, Limits::new(config).unwrap())
}

/// The same, with limits that others share.
pub fn serve_within(exports: Vec<Arc<dyn Export>>, limits: Limits) -> (Client, Served, Shutdown) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let shutdown = Shutdown::new();
    let signal = shutdown.signal();
    let catalog = FixedCatalog::new(exports);
    let served = tokio::spawn(async move { serve_stream(far, &catalog, &limits, signal).await });
    (Client::new(near), served, shutdown)
}

/// The same, with the export chosen.
pub async fn connect(export: Arc<dyn Export>, style: Style) -> (Client, Served, Shutdown) {
    connect_with(export, style, ServerConfig::default()).await
}

pub async fn connect_with(
    export: Arc<dyn Export>,
    style: Style,
    config: ServerConfig,
) -> (Client, Served, Shutdown) {
    let (mut client, served, shutdown) = serve(vec![export], config);
    client.enter("", style).await;
    (client, served, shutdown)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Simple,
    Structured,
    Extended,
}

pub const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// One chunk of a reply (a simple reply counts as one).
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub cookie: u64,
    pub kind: u16,
    pub done: bool,
    pub error: u32,
    pub payload: Vec<u8>,
}

pub struct Client<S = DuplexStream> {
    pub stream: S,
    pub style: Style,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, style: Style::Simple }
    }

    /// Reads the greeting and answers it.
    pub async fn greet(&mut self, flags: u32) {
        let mut greeting = [0; size_of::<Greeting>()];
        self.stream.read_exact(&mut greeting).await.unwrap();
        let greeting = Greeting::read_from_bytes(&greeting).unwrap();
        assert_eq!(greeting.password.get(), INIT_PASSWORD);
        assert_eq!(greeting.magic.get(), OPTION_MAGIC);
        assert_eq!(greeting.flags.get(), 3);
        self.stream.write_u32(flags).await.unwrap();
    }

    pub async fn send_option(&mut self, option: u32, data: &[u8]) {
        let header = OptionHeader {
            magic: OPTION_MAGIC.into(),
            option: option.into(),
            len: (data.len() as u32).into(),
        };
        self.stream.write_all(header.as_bytes()).await.unwrap();
        self.stream.write_all(data).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends an option; returns the replies up to the final one.
    pub async fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data).await;
        let mut replies = Vec::new();
        loop {
            let mut header = [0; size_of::<OptionReplyHeader>()];
            self.stream.read_exact(&mut header).await.unwrap();
            let header = OptionReplyHeader::read_from_bytes(&header).unwrap();
            assert_eq!(header.magic.get(), OPTION_REPLY_MAGIC);
            assert_eq!(header.option.get(), option);
            let mut data = vec![0; header.len.get() as usize];
            self.stream.read_exact(&mut data).await.unwrap();
            let reply = header.reply.get();
            replies.push((reply, data));
            if reply == option_reply::ACK || reply >= 1 << 31 {
                return replies;
            }
        }
    }

    /// The final reply to an option.
    pub async fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data).await.last().unwrap().0
    }

    /// Negotiates everything that the style allows, and chooses the export.
    pub async fn enter(&mut self, name: &str, style: Style) {
        self.greet(3).await;
        match style {
            Style::Simple => {}
            Style::Structured => {
                assert_eq!(self.verdict(option::STRUCTURED_REPLY, &[]).await, option_reply::ACK);
            }
            Style::Extended => {
                assert_eq!(self.verdict(option::EXTENDED_HEADERS, &[]).await, option_reply::ACK);
            }
        }
        if style != Style::Simple {
            let data = context_request(name, &[BASE_ALLOCATION]);
            let replies = self.option(option::SET_META_CONTEXT, &data).await;
            assert_eq!(replies[0].0, option_reply::META_CONTEXT);
        }
        let verdict = self.verdict(option::GO, &info_request(name, &[])).await;
        assert_eq!(verdict, option_reply::ACK);
        self.style = style;
    }

    /// Sends a request's header only.
    pub async fn send_header(&mut self, cmd: u16, flags: u16, cookie: u64, offset: u64, len: u64) {
        let bytes = if self.style == Style::Extended {
            ExtendedRequest {
                magic: EXTENDED_REQUEST_MAGIC.into(),
                flags: flags.into(),
                command: cmd.into(),
                cookie: cookie.into(),
                offset: offset.into(),
                len: len.into(),
            }
            .as_bytes()
            .to_vec()
        } else {
            CompactRequest {
                magic: REQUEST_MAGIC.into(),
                flags: flags.into(),
                command: cmd.into(),
                cookie: cookie.into(),
                offset: offset.into(),
                len: (len as u32).into(),
            }
            .as_bytes()
            .to_vec()
        };
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub async fn send_write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let payload = if self.style == Style::Extended { command_flag::PAYLOAD_LEN } else { 0 };
        self.send_header(command::WRITE, flags | payload, cookie, offset, data.len() as u64).await;
        self.stream.write_all(data).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next chunk; a simple reply that succeeds is followed by `data_bytes` of payload.
    pub async fn chunk(&mut self, data_bytes: usize) -> Chunk {
        let mut magic = [0; 4];
        self.stream.read_exact(&mut magic).await.unwrap();
        let (cookie, flags, kind, len) = match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC => {
                assert_eq!(self.style, Style::Simple);
                let error = self.stream.read_u32().await.unwrap();
                let cookie = self.stream.read_u64().await.unwrap();
                let mut payload = vec![0; if error == 0 { data_bytes } else { 0 }];
                self.stream.read_exact(&mut payload).await.unwrap();
                return Chunk { cookie, kind: chunk::NONE, done: true, error, payload };
            }
            STRUCTURED_REPLY_MAGIC => {
                assert_eq!(self.style, Style::Structured);
                let mut rest = [0; size_of::<StructuredChunk>()];
                self.stream.read_exact(&mut rest[4..]).await.unwrap();
                let head = StructuredChunk::read_from_bytes(&rest).unwrap();
                (head.cookie.get(), head.flags.get(), head.kind.get(), head.len.get().into())
            }
            EXTENDED_REPLY_MAGIC => {
                assert_eq!(self.style, Style::Extended);
                let mut rest = [0; size_of::<ExtendedChunk>()];
                self.stream.read_exact(&mut rest[4..]).await.unwrap();
                let head = ExtendedChunk::read_from_bytes(&rest).unwrap();
                (head.cookie.get(), head.flags.get(), head.kind.get(), head.len.get())
            }
            other => panic!("not the magic of a reply: {other:#x}"),
        };
        let mut payload = vec![0; len as usize];
        self.stream.read_exact(&mut payload).await.unwrap();
        let error = if kind == chunk::ERROR {
            let (head, message) = ErrorPayload::read_from_prefix(&payload).unwrap();
            assert_eq!(usize::from(head.message_len.get()), message.len());
            assert!(std::str::from_utf8(message).is_ok());
            head.error.get()
        } else {
            0
        };
        Chunk { cookie, kind, done: flags & REPLY_FLAG_DONE != 0, error, payload }
    }

    /// Sends a request without payload, waits for its reply, and returns its error.
    pub async fn request(&mut self, cmd: u16, flags: u16, offset: u64, len: u64) -> u32 {
        self.send_header(cmd, flags, 42, offset, len).await;
        let reply = self.chunk(0).await;
        assert_eq!((reply.cookie, reply.done), (42, true));
        reply.error
    }

    pub async fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.send_write(0, 43, offset, data).await;
        let reply = self.chunk(0).await;
        assert_eq!((reply.cookie, reply.done), (43, true));
        reply.error
    }

    /// Reads a range; also tells which parts came as holes.
    pub async fn read(
        &mut self,
        flags: u16,
        offset: u64,
        len: usize,
    ) -> Result<(Vec<u8>, Vec<Range<usize>>), u32> {
        self.send_header(command::READ, flags, 44, offset, len as u64).await;
        self.read_reply(offset, len).await
    }

    pub async fn read_reply(
        &mut self,
        offset: u64,
        len: usize,
    ) -> Result<(Vec<u8>, Vec<Range<usize>>), u32> {
        let (mut data, mut holes, mut covered) = (vec![0xEE; len], Vec::new(), 0);
        loop {
            let part = self.chunk(len).await;
            if part.error != 0 {
                return Err(part.error);
            }
            if self.style == Style::Simple {
                return Ok((part.payload, holes));
            }
            match part.kind {
                chunk::OFFSET_DATA => {
                    let (at, bytes) = part.payload.split_at(8);
                    let at = (u64::from_be_bytes(at.try_into().unwrap()) - offset) as usize;
                    assert!(!bytes.is_empty());
                    data[at..at + bytes.len()].copy_from_slice(bytes);
                    covered += bytes.len();
                }
                chunk::OFFSET_HOLE => {
                    let hole = HolePayload::read_from_bytes(&part.payload).unwrap();
                    let start = (hole.offset.get() - offset) as usize;
                    let hole = start..start + hole.len.get() as usize;
                    data[hole.clone()].fill(0);
                    covered += hole.len();
                    holes.push(hole);
                }
                kind => panic!("not the content of a read: {kind}"),
            }
            if part.done {
                assert_eq!(covered, len, "the chunks cover the request");
                return Ok((data, holes));
            }
        }
    }

    /// The extents of a range as lengths and flags.
    pub async fn status(&mut self, flags: u16, offset: u64, len: u64) -> Vec<(u64, u64)> {
        self.send_header(command::BLOCK_STATUS, flags, 45, offset, len).await;
        let reply = self.chunk(0).await;
        assert_eq!((reply.error, reply.done), (0, true));
        if self.style == Style::Extended {
            assert_eq!(reply.kind, chunk::BLOCK_STATUS_EXT);
            let (head, rest) = ExtentsHeader::read_from_prefix(&reply.payload).unwrap();
            let extents = <[WideExtent]>::ref_from_bytes(rest).unwrap();
            assert_eq!(head.count.get() as usize, extents.len());
            extents.iter().map(|extent| (extent.len.get(), extent.flags.get())).collect()
        } else {
            assert_eq!(reply.kind, chunk::BLOCK_STATUS);
            let extents = <[Extent]>::ref_from_bytes(&reply.payload[4..]).unwrap();
            let wide = |extent: &Extent| (extent.len.get().into(), extent.flags.get().into());
            extents.iter().map(wide).collect()
        }
    }

    pub async fn disconnect(&mut self) {
        self.send_header(command::DISC, 0, 0, 0, 0).await;
    }

    /// Whether the server has closed the connection, with nothing left to read.
    pub async fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]).await, Ok(0) | Err(_))
    }
}

pub fn info_request(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(kinds.len() as u16).to_be_bytes());
    kinds.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    data
}

pub fn context_request(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// What a [`Gated`] export does to requests at its marked offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    NoSpace,
    Io,
    NotSupported,
    ShuttingDown,
    Panic,
    PanicLater,
    ShortRead,
    WrongHoles,
    NoExtents,
}

/// Offsets from here on are marked; every 4 KiB stands for a fault.
pub const FAULTS: [(u64, Fault); 9] = [
    (512 << 10, Fault::NoSpace),
    (516 << 10, Fault::Io),
    (520 << 10, Fault::NotSupported),
    (524 << 10, Fault::ShuttingDown),
    (528 << 10, Fault::Panic),
    (532 << 10, Fault::PanicLater),
    (536 << 10, Fault::ShortRead),
    (540 << 10, Fault::WrongHoles),
    (544 << 10, Fault::NoExtents),
];

/// Requests there find that the export was deleted.
pub const DELETED_AT: u64 = 548 << 10;

/// A memory export whose requests wait at a gate (if it is closed) and may fail.
pub struct Gated {
    pub inner: MemoryExport,
    /// A request passes with a permit, which it gives back.
    pub gate: Semaphore,
    /// Requests below this offset do not wait at the gate.
    pub gate_from: u64,
    pub waiting: AtomicUsize,
    pub most_waiting: AtomicUsize,
    pub allocated: AtomicUsize,
    pub completed: AtomicUsize,
    pub flushes: AtomicUsize,
    pub traffic: Traffic,
}

impl Gated {
    pub fn open() -> Arc<Self> {
        Arc::new(Self::with_gate(Semaphore::MAX_PERMITS, 0))
    }

    /// Requests from `gate_from` on wait until permits are added.
    pub fn closed(gate_from: u64) -> Arc<Self> {
        Arc::new(Self::with_gate(0, gate_from))
    }

    fn with_gate(permits: usize, gate_from: u64) -> Self {
        Self {
            inner: MemoryExport::new("gated", MIB),
            gate: Semaphore::new(permits),
            gate_from,
            waiting: AtomicUsize::new(0),
            most_waiting: AtomicUsize::new(0),
            allocated: AtomicUsize::new(0),
            completed: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            traffic: Traffic::default(),
        }
    }

    /// Lets everything pass from now on.
    pub fn open_gate(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    async fn pass(&self, offset: u64) -> Result<Option<Fault>, ExportError> {
        if offset >= self.gate_from {
            let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_waiting.fetch_max(waiting, Ordering::SeqCst);
            let permit = self.gate.acquire().await;
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            drop(permit);
        }
        self.completed.fetch_add(1, Ordering::SeqCst);
        if offset == DELETED_AT {
            return Err(ExportError::Deleted);
        }
        let fault = FAULTS.iter().find(|(at, _)| *at == offset).map(|(_, fault)| *fault);
        match fault {
            Some(Fault::NoSpace) => Err(ExportError::NoSpace),
            Some(Fault::Io) => Err(ExportError::io("the disk is on fire")),
            Some(Fault::NotSupported) => Err(ExportError::NotSupported),
            Some(Fault::ShuttingDown) => Err(ExportError::ShuttingDown),
            Some(Fault::Panic) => panic!("an export that panics"),
            Some(Fault::PanicLater) => {
                tokio::task::yield_now().await;
                panic!("an export that panics later")
            }
            fault => Ok(fault),
        }
    }
}

impl Export for Gated {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn traffic(&self) -> Option<&Traffic> {
        Some(&self.traffic)
    }

    fn block_sizes(&self) -> BlockSizes {
        self.inner.block_sizes()
    }

    fn allocate(&self, offset: u64, len: u32) -> Box<dyn Payload> {
        self.allocated.fetch_add(len as usize, Ordering::SeqCst);
        let short = FAULTS.contains(&(offset, Fault::ShortRead));
        self.inner.allocate(offset, if short { len - 1 } else { len })
    }

    fn write(
        &self,
        offset: u64,
        payload: Box<dyn Payload>,
        fua: bool,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.pass(offset).await?;
            self.inner.write(offset, payload, fua).await
        })
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<ReadData, ExportError>> {
        Box::pin(async move {
            match self.pass(offset).await? {
                Some(Fault::ShortRead) => Ok(ReadData::data(vec![0; len as usize - 1])),
                Some(Fault::WrongHoles) => {
                    let holes = vec![0..1024, 512..2048];
                    Ok(ReadData::with_holes(vec![0; len as usize], holes))
                }
                _ => self.inner.read(offset, len).await,
            }
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.inner.flush()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.pass(offset).await?;
            self.inner.trim(offset, len, fua).await
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.pass(offset).await?;
            self.inner.write_zeroes(offset, len, options).await
        })
    }

    fn prefetch(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        self.inner.prefetch(offset, len)
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        Box::pin(async move {
            match self.pass(offset).await? {
                Some(Fault::NoExtents) => Ok(Vec::new()),
                _ => self.inner.block_status(offset, len, max_extents).await,
            }
        })
    }
}

/// Waits for something that another task is about to do.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("waited in vain until {what}");
}
