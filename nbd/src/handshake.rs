//! The negotiation: fixed newstyle, from the greeting to the choice of an export.
//!
//! Works over any byte stream and reads no byte beyond what it answers, so that a stream can be
//! handed over (to transmission, or to TLS) between any two options. All that a client has agreed
//! on with options is in [`Agreed`], which lives as long as one call of [`negotiate`]: what came
//! before TLS may have come from somebody else, so after it a new negotiation begins from nothing.
//! For the same reason nothing may follow STARTTLS before its answer: what does is never read as
//! an option, and the connection ends.

use std::{future::poll_fn, io, pin::Pin, sync::Arc, task::Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    config::Limits,
    error::HandshakeError,
    export::{Catalog, Export},
    identity::ClientIdentity,
    options::{self, InfoRequest, MetaContextRequest},
    protocol::{
        self, BASE_ALLOCATION, BASE_WILDCARD, EXPORT_NAME_PADDING_BYTES, ExportNameReply, Greeting,
        INIT_PASSWORD, InfoBlockSize, InfoExport, MAX_STRING_BYTES, OPTION_MAGIC,
        OPTION_REPLY_MAGIC, OptionHeader, OptionReplyHeader, handshake_flag, info, option,
        option_reply,
    },
    session::{HeaderStyle, Rules, Session},
};

/// Options longer than this are refused: a name and some queries of the longest allowed kind.
pub(crate) const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Refused options up to this length are skipped; longer ones end the connection.
pub(crate) const MAX_SKIPPED_OPTION_BYTES: u32 = 1 << 20;
/// Options that a client may send; enough to ask about every export of a large server.
pub(crate) const MAX_OPTIONS: usize = 4096;
/// Replies are sent when so much of them is waiting.
const REPLY_BUFFER_BYTES: usize = 64 << 10;
/// The identifier of `base:allocation` on the wire.
pub(crate) const BASE_ALLOCATION_ID: u32 = 1;

/// What a client has said to the greeting; stays when TLS begins, as there is no second greeting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientFlags {
    fixed_newstyle: bool,
    no_zeroes: bool,
}

/// What TLS is to a negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// The server has no certificate.
    Unavailable,
    /// The client may have it.
    Offered,
    /// Nothing can be negotiated before it.
    Demanded,
    /// Everything goes through it.
    InForce,
}

/// What a negotiation led to.
pub(crate) enum Negotiated {
    /// An export was chosen.
    Session(Session),
    /// TLS begins with the next byte. Never where it is in force already, or unavailable.
    StartTls,
    /// The client left in good order.
    Left,
}

/// What a client has agreed on by options so far.
#[derive(Debug)]
struct Agreed {
    style: HeaderStyle,
    /// The export for which `base:allocation` was selected.
    base_allocation_of: Option<String>,
}

/// Greets the client.
pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
) -> Result<ClientFlags, HandshakeError> {
    let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let greeting = Greeting {
        password: INIT_PASSWORD.into(),
        magic: OPTION_MAGIC.into(),
        flags: offered.into(),
    };
    stream.write_all(greeting.as_bytes()).await?;
    stream.flush().await?;
    let flags = stream.read_u32().await?;
    if flags & !u32::from(offered) != 0 {
        return Err(HandshakeError::UnknownFlags { flags });
    }
    Ok(ClientFlags {
        fixed_newstyle: flags & u32::from(handshake_flag::FIXED_NEWSTYLE) != 0,
        no_zeroes: flags & u32::from(handshake_flag::NO_ZEROES) != 0,
    })
}

/// Who negotiates.
pub(crate) struct Client<'a> {
    /// Where it comes from.
    pub(crate) peer: &'a str,
    /// What it has shown.
    pub(crate) identity: ClientIdentity,
}

/// Negotiates with `client` until it has chosen an export, starts TLS, or leaves.
pub(crate) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    flags: ClientFlags,
    protection: Protection,
    client: &Client<'_>,
    catalog: &dyn Catalog,
    limits: &Limits,
) -> Result<Negotiated, HandshakeError> {
    let (replies, refused, without_tls) = (Vec::new(), None, None);
    let mut handshake = Handshake {
        stream,
        flags,
        protection,
        client,
        catalog,
        limits,
        replies,
        refused,
        without_tls,
    };
    let negotiated = handshake.run().await;
    // Many begin so, and go on with TLS when they are told.
    if let Some(export) = handshake.without_tls
        && !matches!(negotiated, Ok(Negotiated::StartTls))
    {
        let why = "it has not begun TLS, which this server needs";
        limits.turned_away.refused(client.peer, &client.identity, export.as_deref(), why);
    }
    negotiated
}

struct Handshake<'a, S> {
    stream: &'a mut S,
    flags: ClientFlags,
    protection: Protection,
    client: &'a Client<'a>,
    catalog: &'a dyn Catalog,
    limits: &'a Limits,
    replies: Vec<u8>,
    /// The export that the client was refused last.
    refused: Option<String>,
    /// The client was told that it needs TLS, when it asked for this export, or for something else.
    without_tls: Option<Option<String>>,
}

/// What an option leads to.
enum Next {
    Option,
    End(Negotiated),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<'_, S> {
    async fn run(&mut self) -> Result<Negotiated, HandshakeError> {
        let mut agreed = Agreed { style: HeaderStyle::Simple, base_allocation_of: None };
        for _ in 0..MAX_OPTIONS {
            let next = self.option(&mut agreed).await?;
            self.send_replies().await?;
            if let Next::End(negotiated) = next {
                return Ok(negotiated);
            }
        }
        Err(HandshakeError::TooManyOptions { limit: MAX_OPTIONS })
    }

    /// Reads one option and answers it.
    async fn option(&mut self, agreed: &mut Agreed) -> Result<Next, HandshakeError> {
        let mut header = [0; size_of::<OptionHeader>()];
        match self.stream.read_exact(&mut header).await {
            Ok(_) => {}
            // Leaving without ABORT is common, and harms nobody.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Next::End(Negotiated::Left));
            }
            Err(error) => return Err(error.into()),
        }
        let header = OptionHeader::read_from_bytes(&header).expect("the length is the struct's");
        let (magic, option, len) = (header.magic.get(), header.option.get(), header.len.get());
        if magic != OPTION_MAGIC {
            return Err(HandshakeError::BadMagic { found: magic });
        }
        if !self.flags.fixed_newstyle && option != option::EXPORT_NAME {
            return Err(HandshakeError::NotFixedNewstyle { option });
        }
        if len > MAX_SKIPPED_OPTION_BYTES {
            return Err(HandshakeError::OptionTooLong { option, len_bytes: len });
        }
        if len > MAX_OPTION_BYTES {
            if option == option::EXPORT_NAME {
                return Err(HandshakeError::OptionTooLong { option, len_bytes: len });
            }
            self.skip(len).await?;
            self.refuse(option, option_reply::ERR_TOO_BIG, "the option is too long");
            return Ok(Next::Option);
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).await?;

        if self.protection == Protection::Demanded
            && !matches!(option, option::STARTTLS | option::ABORT)
        {
            if option == option::EXPORT_NAME {
                let name = String::from_utf8_lossy(&data[..data.len().min(MAX_STRING_BYTES)]);
                return Err(HandshakeError::ExportNameWithoutTls { name: name.into_owned() });
            }
            let request = match option {
                option::INFO | option::GO => InfoRequest::parse(&data),
                _ => None,
            };
            self.without_tls = Some(request.map(|request| request.name.to_owned()));
            self.refuse(option, option_reply::ERR_TLS_REQD, "this server needs TLS first");
            return Ok(Next::Option);
        }
        match option {
            option::EXPORT_NAME => return self.export_name(agreed, &data),
            option::ABORT => {
                self.acknowledge(option);
                return Ok(Next::End(Negotiated::Left));
            }
            option::INFO | option::GO => return Ok(self.info_or_go(option, agreed, &data)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, agreed, &data);
            }
            option::LIST
            | option::STRUCTURED_REPLY
            | option::EXTENDED_HEADERS
            | option::STARTTLS
                if !data.is_empty() =>
            {
                self.refuse(option, option_reply::ERR_INVALID, "the option takes no data");
            }
            option::LIST => self.list().await?,
            option::STRUCTURED_REPLY if agreed.style == HeaderStyle::Extended => {
                let message = "extended headers are in force";
                self.refuse(option, option_reply::ERR_EXT_HEADER_REQD, message);
            }
            option::STRUCTURED_REPLY => {
                agreed.style = HeaderStyle::Structured;
                self.acknowledge(option);
            }
            option::EXTENDED_HEADERS => {
                agreed.style = HeaderStyle::Extended;
                self.acknowledge(option);
            }
            option::STARTTLS => return self.start_tls().await,
            _ => self.refuse(option, option_reply::ERR_UNSUP, "the option is unknown"),
        }
        Ok(Next::Option)
    }

    async fn start_tls(&mut self) -> Result<Next, HandshakeError> {
        let option = option::STARTTLS;
        match self.protection {
            Protection::Unavailable => {
                self.refuse(option, option_reply::ERR_UNSUP, "this server does not speak TLS");
            }
            Protection::InForce => {
                self.refuse(option, option_reply::ERR_INVALID, "TLS is in force");
            }
            Protection::Offered | Protection::Demanded => {
                if self.has_come_ahead().await? {
                    return Err(HandshakeError::PlaintextBehindStartTls);
                }
                self.acknowledge(option);
                return Ok(Next::End(Negotiated::StartTls));
            }
        }
        Ok(Next::Option)
    }

    /// Whether something is there already that the client should send later. What comes while this
    /// looks goes to TLS, which takes nothing but its own handshake.
    async fn has_come_ahead(&mut self) -> io::Result<bool> {
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        poll_fn(|context| match Pin::new(&mut *self.stream).poll_read(context, &mut byte) {
            Poll::Pending => Poll::Ready(Ok(false)),
            Poll::Ready(read) => Poll::Ready(read.map(|()| !byte.filled().is_empty())),
        })
        .await
    }

    fn export_name(&mut self, agreed: &Agreed, name: &[u8]) -> Result<Next, HandshakeError> {
        if agreed.style == HeaderStyle::Extended {
            return Err(HandshakeError::ExportNameAfterExtendedHeaders);
        }
        let Some((name, export)) = options::name(name).and_then(|name| self.open(name)) else {
            let name = String::from_utf8_lossy(&name[..name.len().min(MAX_STRING_BYTES)]);
            return Err(HandshakeError::UnknownExport { name: name.into_owned() });
        };
        let session = self.session(agreed, &name, export);
        let reply = ExportNameReply {
            size_bytes: session.rules.size_bytes.into(),
            flags: session.rules.flags().into(),
        };
        self.replies.extend_from_slice(reply.as_bytes());
        if !self.flags.no_zeroes {
            self.replies.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        Ok(Next::End(Negotiated::Session(session)))
    }

    fn info_or_go(&mut self, option: u32, agreed: &Agreed, data: &[u8]) -> Next {
        let Some(request) = InfoRequest::parse(data) else {
            self.refuse(option, option_reply::ERR_INVALID, "the option is malformed");
            return Next::Option;
        };
        let Some((name, export)) = self.open(request.name) else {
            self.refuse(option, option_reply::ERR_UNKNOWN, "there is no such export");
            return Next::Option;
        };
        let canonical_name = export.name();
        let description = export.description();
        let session = self.session(agreed, &name, export);
        let rules = &session.rules;
        let export_info = InfoExport {
            kind: info::EXPORT.into(),
            size_bytes: rules.size_bytes.into(),
            flags: rules.flags().into(),
        };
        self.reply(option, option_reply::INFO, &[export_info.as_bytes()]);
        if request.asks_for(info::NAME) {
            let kind = info::NAME.to_be_bytes();
            self.reply(option, option_reply::INFO, &[&kind, canonical_name.as_bytes()]);
        }
        if let Some(description) = description.filter(|_| request.asks_for(info::DESCRIPTION)) {
            let kind = info::DESCRIPTION.to_be_bytes();
            self.reply(option, option_reply::INFO, &[&kind, description.as_bytes()]);
        }
        if request.asks_for(info::BLOCK_SIZE) {
            let sizes = InfoBlockSize {
                kind: info::BLOCK_SIZE.into(),
                minimum: rules.block_sizes.minimum().into(),
                preferred: rules.block_sizes.preferred().into(),
                maximum: rules.block_sizes.maximum().into(),
            };
            self.reply(option, option_reply::INFO, &[sizes.as_bytes()]);
        }
        self.acknowledge(option);
        match option {
            option::GO => Next::End(Negotiated::Session(session)),
            _ => Next::Option,
        }
    }

    fn meta_context(&mut self, option: u32, agreed: &mut Agreed, data: &[u8]) {
        let is_set = option == option::SET_META_CONTEXT;
        if is_set {
            // Also when this fails, the last selection is gone.
            agreed.base_allocation_of = None;
        }
        if agreed.style == HeaderStyle::Simple {
            let message = "metadata contexts need structured replies";
            return self.refuse(option, option_reply::ERR_INVALID, message);
        }
        let Some(request) = MetaContextRequest::parse(data) else {
            return self.refuse(option, option_reply::ERR_INVALID, "the option is malformed");
        };
        let Some((name, _)) = self.open(request.export) else {
            return self.refuse(option, option_reply::ERR_UNKNOWN, "there is no such export");
        };
        let found = if is_set {
            request.queries.contains(&BASE_ALLOCATION)
        } else {
            request.queries.is_empty()
                || request.queries.iter().any(|q| *q == BASE_ALLOCATION || *q == BASE_WILDCARD)
        };
        if found {
            let id = if is_set { BASE_ALLOCATION_ID } else { 0 };
            let parts = [&id.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()];
            self.reply(option, option_reply::META_CONTEXT, &parts);
            if is_set {
                agreed.base_allocation_of = Some(name);
            }
        }
        self.acknowledge(option);
    }

    async fn list(&mut self) -> Result<(), HandshakeError> {
        for name in self.catalog.list() {
            if !self.catalog.allows(&name, &self.client.identity) {
                continue;
            }
            // A longer name cannot be put on the wire, nor asked for.
            if name.len() <= MAX_STRING_BYTES {
                let len = (name.len() as u32).to_be_bytes();
                self.reply(option::LIST, option_reply::SERVER, &[&len, name.as_bytes()]);
            }
            if self.replies.len() >= REPLY_BUFFER_BYTES {
                self.send_replies().await?;
            }
        }
        self.acknowledge(option::LIST);
        Ok(())
    }

    /// The export of that name. One that the client may not use does not exist for it.
    fn open(&mut self, name: &str) -> Option<(String, Arc<dyn Export>)> {
        let export = self.catalog.open(name)?;
        // The name by which it was asked for may be that of the default export.
        let (asked_for, Client { peer, identity }) = (export.name(), self.client);
        if self.catalog.allows(&asked_for, identity) {
            return Some((name.to_owned(), export));
        }
        // Clients ask in several ways.
        if self.refused.as_ref() != Some(&asked_for) {
            let why = match identity.names() {
                [] => {
                    "it has shown no certificate with a name, and only some clients may use the export"
                }
                _ => "its certificate has none of the names that may use the export",
            };
            self.limits.turned_away.refused(peer, identity, Some(&asked_for), why);
            self.refused = Some(asked_for);
        }
        None
    }

    fn session(&self, agreed: &Agreed, name: &str, export: Arc<dyn Export>) -> Session {
        let base_allocation = agreed.base_allocation_of.as_deref() == Some(name);
        let rules = Rules::new(&*export, &self.limits.config, agreed.style, base_allocation);
        Session { name: export.name(), rules, export }
    }

    async fn skip(&mut self, len: u32) -> io::Result<()> {
        let mut rest = (&mut *self.stream).take(u64::from(len));
        if tokio::io::copy(&mut rest, &mut tokio::io::sink()).await? < u64::from(len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn acknowledge(&mut self, option: u32) {
        self.reply(option, option_reply::ACK, &[]);
    }

    fn refuse(&mut self, option: u32, error: u32, message: &str) {
        tracing::debug!(option, error, message, "option refused");
        self.reply(option, error, &[message.as_bytes()]);
    }

    fn reply(&mut self, option: u32, reply: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let header = OptionReplyHeader {
            magic: OPTION_REPLY_MAGIC.into(),
            option: option.into(),
            reply: reply.into(),
            len: u32::try_from(len).expect("replies are a few strings of bounded length").into(),
        };
        self.replies.extend_from_slice(header.as_bytes());
        parts.iter().for_each(|part| self.replies.extend_from_slice(part));
    }

    async fn send_replies(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.replies).await?;
        self.replies.clear();
        self.stream.flush().await
    }
}

const _: () = assert!(MAX_OPTION_BYTES as usize >= 2 * protocol::MAX_STRING_BYTES);
