//! Transmission: requests in, replies out, many at a time and in any order.
//!
//! One task drives a connection, without a lock. Each time it wakes it
//! 1. collects the outcomes of requests that run apart from it,
//! 2. takes requests from what was received, and starts them while the limits allow,
//! 3. sends all replies that are ready, with as few system calls as possible,
//! 4. receives more, unless a limit made it stop in 2: then the client has to wait.
//!
//! A request is first polled right here; one whose answer is at hand (most reads and writes of a
//! cached storage) costs no task and no wake-up, and its reply leaves together with those of the
//! requests that arrived with it. What is not ready at once runs `apart`: it becomes a task of its
//! own when what it waits for has come.
//!
//! # Invariants
//! - `in_flight` counts requests from their start (or refusal) until their reply is sent;
//!   `executing` those among them that run apart. Both are bounded by `max_requests_in_flight`,
//!   which thereby bounds the outcomes that wait and the queue of replies.
//! - `held_bytes` is the sum of [`charge_bytes`] of those in flight. It exceeds `max_held_bytes`
//!   never, unless a single request does.
//! - No request is started that was not received completely.
//! - A connection that waits for its client holds no buffer (`input`).
//! - Once it has started [`TURN_REQUESTS`] or received [`TURN_BYTES`] (and what one call of the
//!   system adds to that), a connection lets others have the thread.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::{
    apart,
    config::ServerConfig,
    error::{ExportError, TransmissionError},
    execute::{charge_bytes, execute},
    export::{Export, Payload},
    input::Input,
    outcomes::{Completed, Outcomes, Promise},
    output::Output,
    reply::{Encoder, Failure, Outcome},
    request::{Command, Header, Refusal, validate},
    session::{HeaderStyle, Rules, Session},
    shutdown::ShutdownSignal,
};

/// Reads and writes of this size and more run in a task of their own from the start, so that
/// copying their data does not delay the connection's other requests.
pub const INLINE_MAX_BYTES: u32 = 64 << 10;
/// The rest of a payload is received straight into its place if it is at least as long as this.
const DIRECT_RECEIVE_BYTES: usize = 16 << 10;
/// Payloads of refused requests are skipped up to this length.
pub(crate) const MAX_SKIPPED_PAYLOAD_BYTES: u64 = 64 << 20;
/// Requests are started only while less than this waits to be sent: enough that large reads go on
/// while others are being sent.
const OUTPUT_PAUSE_BYTES: usize = 8 << 20;
/// A connection that has started so many requests, or received so many bytes, lets others have
/// the thread: a client that never pauses must not keep it.
pub(crate) const TURN_REQUESTS: usize = 256;
const TURN_BYTES: usize = 1 << 20;
/// What a closed connection still receives is taken in pieces of this size.
const UNSEEN_BYTES: usize = 16 << 10;
/// How long a closed connection is kept for the client to see its last replies.
const LINGER: Duration = Duration::from_millis(100);

/// Why a connection ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client left.
    ClientLeft,
    /// The server is being shut down; all that was under way is done and answered.
    Shutdown,
    /// The export was deleted; all that was under way is answered.
    ExportDeleted,
}

/// Serves one client until it leaves, breaks the protocol, or the server shuts down. Returns only
/// when nothing of the connection runs any more.
pub(crate) async fn transmit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    session: Session,
    config: &ServerConfig,
    mut shutdown: ShutdownSignal,
) -> Result<Ending, TransmissionError> {
    let mut transmission = Transmission::new(stream, session, config);
    let result = loop {
        tokio::select! {
            biased;
            result = poll_fn(|context| transmission.poll(context)) => break result,
            _ = shutdown.begun(), if transmission.phase == Phase::Serving => {
                transmission.phase = Phase::Draining(Ending::Shutdown);
            }
        }
    };
    transmission.close(result.is_ok()).await;
    result
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Shutting down, or the export is no more: new requests are refused; the end comes when the
    /// others are answered.
    Draining(Ending),
    /// The client sends no more; the end comes when its requests are answered.
    ClientDone,
}

/// What the next received byte belongs to.
enum Receiving {
    Header,
    Payload { cookie: u64, command: Command, payload: Box<dyn Payload>, filled: usize },
    Skip { remaining: u64, header: Header, failure: Failure },
}

/// What a connection has done since it got the thread.
#[derive(Default)]
struct Turn {
    requests: usize,
    received_bytes: usize,
}

impl Turn {
    fn is_over(&self) -> bool {
        self.requests >= TURN_REQUESTS || self.received_bytes >= TURN_BYTES
    }
}

struct Transmission<S> {
    stream: S,
    name: String,
    export: Arc<dyn Export>,
    rules: Rules,
    max_requests_in_flight: usize,
    max_held_bytes: usize,
    phase: Phase,
    input: Input,
    receiving: Receiving,
    output: Output,
    needs_flush: bool,
    in_flight: usize,
    held_bytes: usize,
    executing: usize,
    outcomes: Arc<Outcomes>,
    turn: Turn,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transmission<S> {
    fn new(stream: S, session: Session, config: &ServerConfig) -> Self {
        Self {
            stream,
            name: session.name,
            export: session.export,
            rules: session.rules,
            max_requests_in_flight: config.max_requests_in_flight,
            max_held_bytes: config.max_held_bytes,
            phase: Phase::Serving,
            input: Input::default(),
            receiving: Receiving::Header,
            output: Output::default(),
            needs_flush: false,
            in_flight: 0,
            held_bytes: 0,
            executing: 0,
            outcomes: Arc::default(),
            turn: Turn::default(),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Ending, TransmissionError>> {
        self.turn = Turn::default();
        loop {
            if self.turn.is_over() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            while let Poll::Ready(completed) = self.outcomes.poll_take(context) {
                self.executing -= completed.len();
                completed.into_iter().for_each(|completed| self.reply(completed));
            }
            let must_wait = self.take_requests()?;
            let has_sent = match self.send(context) {
                Ok(has_sent) => has_sent,
                // A client that has left does not wait for its replies.
                Err(_) if self.phase == Phase::ClientDone => {
                    return Poll::Ready(Ok(Ending::ClientLeft));
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            };
            if self.executing == 0 && self.output.is_empty() && !self.needs_flush {
                match self.phase {
                    Phase::Serving => {}
                    Phase::Draining(ending) => return Poll::Ready(Ok(ending)),
                    Phase::ClientDone => return Poll::Ready(Ok(Ending::ClientLeft)),
                }
            }
            if must_wait {
                if has_sent {
                    continue;
                }
                // An outcome or room in the socket will wake this task: one of the two is what
                // the limits wait for.
                self.input.release();
                return Poll::Pending;
            }
            let received_bytes = ready!(self.poll_receive(context))?;
            self.turn.received_bytes += received_bytes;
            if received_bytes == 0 {
                match self.receiving {
                    Receiving::Header if self.input.as_slice().is_empty() => {
                        self.phase = Phase::ClientDone;
                    }
                    _ => return Poll::Ready(Err(TransmissionError::Truncated)),
                }
            }
        }
    }

    /// Takes requests from the input and starts them. Returns whether the limits, rather than a
    /// lack of input, ended this.
    fn take_requests(&mut self) -> Result<bool, TransmissionError> {
        loop {
            if self.phase == Phase::ClientDone {
                return Ok(true);
            }
            match std::mem::replace(&mut self.receiving, Receiving::Header) {
                Receiving::Payload { cookie, command, mut payload, mut filled } => {
                    let target = payload.as_mut_slice();
                    filled += self.input.take_into(&mut target[filled..]);
                    if filled < target.len() {
                        self.receiving = Receiving::Payload { cookie, command, payload, filled };
                        return Ok(false);
                    }
                    self.start(cookie, command, Some(payload));
                }
                Receiving::Skip { mut remaining, header, failure } => {
                    let len = remaining.min(self.input.as_slice().len() as u64);
                    self.input.consume(len as usize);
                    remaining -= len;
                    if remaining > 0 {
                        self.receiving = Receiving::Skip { remaining, header, failure };
                        return Ok(false);
                    }
                    self.refuse(&header, failure);
                }
                Receiving::Header => {
                    if self.in_flight >= self.max_requests_in_flight
                        || self.output.waiting_bytes() >= OUTPUT_PAUSE_BYTES
                    {
                        return Ok(true);
                    }
                    let style = self.rules.style;
                    let Some(header) = Header::parse(self.input.as_slice(), style)? else {
                        return Ok(false);
                    };
                    if !self.take_request(header)? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Takes the request whose header is next in the input, if there is room for it.
    fn take_request(&mut self, header: Header) -> Result<bool, TransmissionError> {
        let Rules { style, .. } = self.rules;
        let payload_bytes = header.payload_bytes(style);
        if payload_bytes > MAX_SKIPPED_PAYLOAD_BYTES {
            return Err(TransmissionError::PayloadTooLong { len_bytes: payload_bytes });
        }
        let command = match (validate(&header, &self.rules), self.phase) {
            (Ok(Command::Disconnect), _) => {
                self.phase = Phase::ClientDone;
                return Ok(true);
            }
            (Ok(command), Phase::Serving) => command,
            (refused, _) => {
                let refusal = refused.err().unwrap_or(Refusal::Shutdown);
                self.consume_header(style);
                self.skip(payload_bytes, header, refusal.into());
                return Ok(true);
            }
        };
        let charge = charge_bytes(&command);
        if self.in_flight > 0 && self.held_bytes + charge > self.max_held_bytes {
            return Ok(false);
        }
        self.consume_header(style);
        self.in_flight += 1;
        self.held_bytes += charge;
        let Command::Write { offset, len, .. } = command else {
            self.start(header.cookie, command, None);
            return Ok(true);
        };
        let mut payload = self.export.allocate(offset, len);
        let given = payload.as_mut_slice().len();
        if given == len as usize {
            let cookie = header.cookie;
            self.receiving = Receiving::Payload { cookie, command, payload, filled: 0 };
        } else {
            self.in_flight -= 1;
            self.held_bytes -= charge;
            let failure = Failure::WrongLength { given, expected: len as usize };
            self.skip(payload_bytes, header, failure);
        }
        Ok(true)
    }

    fn consume_header(&mut self, style: HeaderStyle) {
        self.input.consume(Header::wire_bytes(style));
    }

    /// Skips a request's payload, then answers it with the failure.
    fn skip(&mut self, remaining: u64, header: Header, failure: Failure) {
        self.receiving = Receiving::Skip { remaining, header, failure };
    }

    fn refuse(&mut self, header: &Header, failure: Failure) {
        self.turn.requests += 1;
        self.in_flight += 1;
        let Header { cookie, offset, .. } = *header;
        self.reply(Completed { cookie, offset, charge: 0, outcome: Outcome::Failed(failure) });
    }

    /// Starts a request that counts as in flight already.
    fn start(&mut self, cookie: u64, command: Command, payload: Option<Box<dyn Payload>>) {
        self.turn.requests += 1;
        let (offset, inline) = match command {
            Command::Read { offset, len, .. } | Command::Write { offset, len, .. } => {
                (offset, len < INLINE_MAX_BYTES)
            }
            Command::Trim { offset, .. }
            | Command::Prefetch { offset, .. }
            | Command::WriteZeroes { offset, .. }
            | Command::BlockStatus { offset, .. } => (offset, true),
            Command::Flush | Command::Disconnect => (0, true),
        };
        let charge = charge_bytes(&command);
        let mut future = Box::pin(execute(self.export.clone(), command, payload));
        if inline {
            // Whatever runs it if it is not ready polls it again, and is then woken.
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(outcome) = future.as_mut().poll(&mut context) {
                return self.reply(Completed { cookie, offset, charge, outcome });
            }
        }
        self.executing += 1;
        let promise = Promise::new(&self.outcomes, cookie, offset, charge);
        let future = Box::pin(async move { promise.keep(future.await) });
        if inline {
            apart::run(future);
        } else {
            tokio::spawn(future);
        }
    }

    fn reply(&mut self, completed: Completed) {
        let Completed { cookie, offset, charge, outcome } = completed;
        let style = self.rules.style;
        let encoder = Encoder { style, cookie, offset, charge, output: &mut self.output };
        let Some(failure) = encoder.encode(outcome) else { return };
        if matches!(failure, Failure::Export(ExportError::Deleted)) && self.phase == Phase::Serving
        {
            self.phase = Phase::Draining(Ending::ExportDeleted);
        }
        let export = &self.name;
        if failure.code() == crate::ErrorCode::Io {
            tracing::error!(export, offset_bytes = offset, %failure, "request failed");
        } else {
            tracing::debug!(export, offset_bytes = offset, %failure, "request failed");
        }
    }

    /// Sends until nothing is left or the socket is full; returns whether anything was sent.
    fn send(&mut self, context: &mut Context<'_>) -> std::io::Result<bool> {
        let mut has_sent = false;
        while !self.output.is_empty() {
            match self.output.poll_send(&mut self.stream, context) {
                Poll::Ready(sent) => {
                    let sent = sent?;
                    self.in_flight -= sent.replies;
                    self.held_bytes -= sent.charge;
                    self.needs_flush = true;
                    has_sent = true;
                }
                Poll::Pending => return Ok(has_sent),
            }
        }
        if self.needs_flush
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(context)
        {
            flushed?;
            self.needs_flush = false;
        }
        Ok(has_sent)
    }

    /// Receives more; resolves to how much, zero at the end of the stream.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if let Receiving::Payload { payload, filled, .. } = &mut self.receiving {
            let target = &mut payload.as_mut_slice()[*filled..];
            if target.len() >= DIRECT_RECEIVE_BYTES {
                let mut target = ReadBuf::new(target);
                ready!(Pin::new(&mut self.stream).poll_read(context, &mut target))?;
                let received = target.filled().len();
                *filled += received;
                return Poll::Ready(Ok(received));
            }
        }
        self.input.poll_fill(&mut self.stream, context)
    }

    /// Closes the connection once nothing of it runs any more.
    async fn close(mut self, in_good_order: bool) {
        while self.executing > 0 {
            self.executing -= poll_fn(|context| self.outcomes.poll_take(context)).await.len();
        }
        if !in_good_order {
            return;
        }
        // A socket that is closed with bytes unread resets the connection, and the client might
        // lose replies that it has not yet read.
        let linger = async {
            self.stream.shutdown().await?;
            let mut unseen = vec![0; UNSEEN_BYTES];
            while self.stream.read(&mut unseen).await? > 0 {}
            Ok::<(), std::io::Error>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(LINGER, linger).await {
            tracing::debug!(%error, "the client was gone before the connection was closed");
        }
    }
}
