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
//! - `share` holds the sum of [`charge_bytes`] of those in flight. It exceeds `max_held_bytes`
//!   never, unless a single request does; `memory` bounds what all connections' shares hold.
//! - No request is started that was not received completely.
//! - A connection that waits for its client holds no buffer (`input`).
//! - Once it has started [`TURN_REQUESTS`] or received [`TURN_BYTES`] (and what one call of the
//!   system adds to that), a connection lets others have the thread.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    apart::Waiting,
    config::Limits,
    error::{ExportError, TransmissionError},
    execute::{charge_bytes, execute},
    export::{Export, Payload},
    input::Input,
    memory::Share,
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

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientLeft => "the client left",
            Self::Shutdown => "the server stops",
            Self::ExportDeleted => "the export was deleted",
        })
    }
}

/// Serves one client until it leaves, breaks the protocol, or the server shuts down. Returns only
/// when nothing of the connection runs any more.
pub(crate) async fn transmit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    session: Session,
    limits: &Limits,
    mut shutdown: ShutdownSignal,
) -> Result<Ending, TransmissionError> {
    let mut transmission = Transmission::new(stream, session, limits);
    let result = loop {
        tokio::select! {
            biased;
            result = poll_fn(|context| transmission.poll_watched(context)) => break result,
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
    share: Share,
    /// When it is looked whether the client keeps memory for which others wait.
    looks: Interval,
    /// Sent and received since transmission began.
    moved_bytes: u64,
    executing: usize,
    apart: Waiting,
    outcomes: Arc<Outcomes>,
    turn: Turn,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transmission<S> {
    fn new(stream: S, session: Session, limits: &Limits) -> Self {
        let mut looks = interval(Duration::from_millis(limits.config.stall_timeout_ms));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            stream,
            name: session.name,
            export: session.export,
            rules: session.rules,
            max_requests_in_flight: limits.config.max_requests_in_flight,
            max_held_bytes: limits.config.max_held_bytes,
            phase: Phase::Serving,
            input: Input::default(),
            receiving: Receiving::Header,
            output: Output::default(),
            needs_flush: false,
            in_flight: 0,
            share: Share::of(&limits.memory),
            looks,
            moved_bytes: 0,
            executing: 0,
            apart: Waiting::default(),
            outcomes: Arc::default(),
            turn: Turn::default(),
        }
    }

    /// Goes on, unless the client keeps memory for which others wait.
    fn poll_watched(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Ending, TransmissionError>> {
        let polled = self.poll(context);
        while polled.is_pending()
            && self.share.is_shared()
            && self.looks.poll_tick(context).is_ready()
        {
            let awaits_client = self.executing == 0
                && (matches!(self.receiving, Receiving::Payload { .. }) || !self.output.is_empty());
            if self.share.is_hoarded(self.moved_bytes, awaits_client) {
                let held_bytes = self.share.held_bytes();
                return Poll::Ready(Err(TransmissionError::Stalled { held_bytes }));
            }
        }
        polled
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
                for completed in completed {
                    completed.place.into_iter().for_each(|place| self.apart.ended(place));
                    self.reply(completed);
                }
            }
            let must_wait = self.take_requests(context)?;
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
                // An outcome, room in the socket or memory will wake this task: one of these is
                // what the limits wait for.
                self.input.release();
                return Poll::Pending;
            }
            let received_bytes = match ready!(self.poll_receive(context)) {
                // The end of a stream under TLS that its client did not announce. Whether a
                // request was cut off is known without.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
                received => received?,
            };
            self.turn.received_bytes += received_bytes;
            self.moved_bytes += received_bytes as u64;
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
    fn take_requests(&mut self, context: &mut Context<'_>) -> Result<bool, TransmissionError> {
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
                    if !self.take_request(header, context)? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Takes the request whose header is next in the input, if there is room for it.
    fn take_request(
        &mut self,
        header: Header,
        context: &mut Context<'_>,
    ) -> Result<bool, TransmissionError> {
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
                // It may have waited when the shutdown began.
                self.share.give_up_place();
                self.consume_header(style);
                self.skip(payload_bytes, header, refusal.into());
                return Ok(true);
            }
        };
        let charge = charge_bytes(&command);
        if self.in_flight > 0 && self.share.held_bytes() + charge > self.max_held_bytes
            || self.share.poll_take(charge, context).is_pending()
        {
            return Ok(false);
        }
        self.consume_header(style);
        self.in_flight += 1;
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
            self.share.give_back(charge);
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
        let outcome = Outcome::Failed(failure);
        self.reply(Completed { cookie, offset, charge: 0, outcome, place: None });
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
                return self.reply(Completed { cookie, offset, charge, outcome, place: None });
            }
        }
        self.executing += 1;
        let promise = Promise::new(&self.outcomes, cookie, offset, charge);
        let run = async move |promise: Promise| promise.keep(future.await);
        if inline {
            self.apart.run(|place| Box::pin(run(promise.at(place))));
        } else {
            tokio::spawn(run(promise));
        }
    }

    fn reply(&mut self, completed: Completed) {
        let Completed { cookie, offset, charge, outcome, place: _ } = completed;
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
                    self.share.give_back(sent.charge);
                    self.moved_bytes += sent.bytes as u64;
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
