//! The negotiation: what each option promises, and that a refused option costs nothing but a reply.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod common;

use std::sync::Arc;

use common::{Client, Served, Style, context_request, info_request, serve};
use siltstone_nbd::{
    BlockSizes, ConnectionError, Ending, Export, HandshakeError, ServerConfig,
    memory_export::MemoryExport,
    protocol::{transmission_flag as flag, *},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zerocopy::FromBytes;

const SIZE: u64 = 1 << 20;

fn exports() -> Vec<Arc<dyn Export>> {
    let sizes = BlockSizes::new(512, 8192, 1 << 20).unwrap();
    vec![
        Arc::new(MemoryExport::new("alpha", SIZE).with_block_sizes(sizes)),
        Arc::new(MemoryExport::new("beta", SIZE).read_only()),
    ]
}

async fn greeted() -> (Client, Served) {
    let (mut client, served, shutdown) = serve(exports(), ServerConfig::default());
    std::mem::forget(shutdown);
    client.greet(3).await;
    (client, served)
}

async fn failure(served: Served) -> HandshakeError {
    match served.await.unwrap() {
        Err(ConnectionError::Handshake(error)) => error,
        other => panic!("not a failed handshake: {other:?}"),
    }
}

#[tokio::test]
async fn info_tells_what_was_asked_for_and_nothing_else() {
    let (mut client, _served) = greeted().await;
    let replies = client.option(option::INFO, &info_request("alpha", &[])).await;
    assert_eq!(replies.len(), 2);
    let export = InfoExport::read_from_bytes(&replies[0].1).unwrap();
    assert_eq!((export.kind.get(), export.size_bytes.get()), (info::EXPORT, SIZE));

    let all = [info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 999];
    let replies = client.option(option::INFO, &info_request("alpha", &all)).await;
    assert_eq!(replies.len(), 5);
    assert_eq!(replies[1].1, b"\0\x01alpha");
    assert_eq!(replies[2].1, b"\0\x02a disk in memory");
    let sizes = InfoBlockSize::read_from_bytes(&replies[3].1).unwrap();
    let sizes = (sizes.minimum.get(), sizes.preferred.get(), sizes.maximum.get());
    assert_eq!(sizes, (512, 8192, 1 << 20));
    assert_eq!(replies[4], (option_reply::ACK, vec![]));
}

#[tokio::test]
async fn flags_tell_what_the_export_and_the_reply_style_can_do() {
    let both = flag::HAS_FLAGS
        | flag::SEND_FLUSH
        | flag::SEND_FUA
        | flag::CAN_MULTI_CONN
        | flag::SEND_CACHE;
    let writable = flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    let (mut client, _served) = greeted().await;
    for structured in [0, flag::SEND_DF] {
        for (name, expected) in [("alpha", writable), ("beta", flag::READ_ONLY)] {
            let replies = client.option(option::INFO, &info_request(name, &[])).await;
            let export = InfoExport::read_from_bytes(&replies[0].1).unwrap();
            assert_eq!(export.flags.get(), both | expected | structured, "{name}");
        }
        client.option(option::STRUCTURED_REPLY, &[]).await;
    }
}

#[tokio::test]
async fn export_name_pads_its_reply_unless_told_not_to() {
    for (flags, padding) in [(1, 124), (3, 0)] {
        let (mut client, _served, _shutdown) = serve(exports(), ServerConfig::default());
        client.greet(flags).await;
        client.send_option(option::EXPORT_NAME, b"alpha").await;
        let mut reply = [0; 10];
        client.stream.read_exact(&mut reply).await.unwrap();
        let reply = ExportNameReply::read_from_bytes(&reply).unwrap();
        assert_eq!(reply.size_bytes.get(), SIZE);
        let mut zeros = vec![1; padding];
        client.stream.read_exact(&mut zeros).await.unwrap();
        assert!(zeros.iter().all(|byte| *byte == 0));
        // Transmission has begun: the next bytes are a reply.
        assert_eq!(client.write(0, &[7; 512]).await, 0);
    }
}

#[tokio::test]
async fn a_client_without_options_can_use_export_name_only() {
    let (mut client, served, _shutdown) = serve(exports(), ServerConfig::default());
    client.greet(0).await;
    client.send_option(option::LIST, &[]).await;
    assert!(client.is_closed().await);
    assert!(matches!(failure(served).await, HandshakeError::NotFixedNewstyle { option: 3 }));
}

#[tokio::test]
async fn list_names_every_export() {
    let (mut client, _served) = greeted().await;
    let replies = client.option(option::LIST, &[]).await;
    let names: Vec<&[u8]> = replies[..2].iter().map(|(_, data)| &data[4..]).collect();
    assert_eq!(names, [b"alpha".as_slice(), b"beta"]);
    assert_eq!(replies[2].0, option_reply::ACK);
}

#[tokio::test]
async fn refused_options_leave_the_negotiation_going() {
    use option_reply as r;
    let (mut client, _served) = greeted().await;
    let too_big = vec![0; (64 << 10) + 1];
    for (option, data, verdict) in [
        (option::LIST, &b"x"[..], r::ERR_INVALID),
        (option::STRUCTURED_REPLY, b"x", r::ERR_INVALID),
        (option::EXTENDED_HEADERS, b"x", r::ERR_INVALID),
        (option::STARTTLS, b"x", r::ERR_INVALID),
        (option::STARTTLS, b"", r::ERR_UNSUP),
        (4, b"", r::ERR_UNSUP),
        (0xffff_ffff, b"some data", r::ERR_UNSUP),
        (option::GO, b"garbage", r::ERR_INVALID),
        (option::INFO, &info_request("nobody", &[]), r::ERR_UNKNOWN),
        // There are two exports, so none of them is the default one.
        (option::GO, &info_request("", &[]), r::ERR_UNKNOWN),
        (option::GO, &too_big, r::ERR_TOO_BIG),
        (77, &too_big, r::ERR_TOO_BIG),
    ] {
        assert_eq!(client.verdict(option, data).await, verdict, "option {option}");
    }
    assert_eq!(client.verdict(option::GO, &info_request("beta", &[])).await, r::ACK);
}

#[tokio::test]
async fn abort_is_acknowledged_and_leaving_without_it_is_no_error() {
    let (mut client, served) = greeted().await;
    assert_eq!(client.verdict(option::ABORT, b"ignored").await, option_reply::ACK);
    assert_eq!(served.await.unwrap().unwrap(), Ending::ClientLeft);

    let (client, served) = greeted().await;
    drop(client);
    assert_eq!(served.await.unwrap().unwrap(), Ending::ClientLeft);
}

#[tokio::test]
async fn extended_headers_take_precedence_over_structured_replies() {
    let (mut client, served) = greeted().await;
    assert_eq!(client.verdict(option::STRUCTURED_REPLY, &[]).await, option_reply::ACK);
    assert_eq!(client.verdict(option::EXTENDED_HEADERS, &[]).await, option_reply::ACK);
    let verdict = client.verdict(option::STRUCTURED_REPLY, &[]).await;
    assert_eq!(verdict, option_reply::ERR_EXT_HEADER_REQD);
    // They imply what structured replies allow.
    let data = context_request("alpha", &[BASE_ALLOCATION]);
    assert_eq!(client.verdict(option::SET_META_CONTEXT, &data).await, option_reply::ACK);
    // They rule out EXPORT_NAME.
    client.send_option(option::EXPORT_NAME, b"alpha").await;
    assert!(client.is_closed().await);
    assert!(matches!(failure(served).await, HandshakeError::ExportNameAfterExtendedHeaders));
}

#[tokio::test]
async fn contexts_are_listed_by_name_and_by_wildcard_but_set_by_name_only() {
    let (mut client, _served) = greeted().await;
    let query = |queries: &[&str]| context_request("alpha", queries);
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let verdict = client.verdict(option, &query(&[])).await;
        assert_eq!(verdict, option_reply::ERR_INVALID, "structured replies come first");
    }
    client.option(option::STRUCTURED_REPLY, &[]).await;
    for (queries, listed, set) in [
        (&[][..], true, false),
        (&["base:"], true, false),
        (&["base:allocation"], true, true),
        (&["x-unknown:thing", "base:allocation", "base:allocation"], true, true),
        (&["base:other"], false, false),
        (&["nonsense"], false, false),
    ] {
        for (option, id, found) in
            [(option::LIST_META_CONTEXT, 0, listed), (option::SET_META_CONTEXT, 1, set)]
        {
            let replies = client.option(option, &query(queries)).await;
            let expected = if found { vec![option_reply::META_CONTEXT] } else { vec![] };
            let kinds: Vec<u32> = replies.iter().map(|(kind, _)| *kind).collect();
            assert_eq!(kinds, [expected, vec![option_reply::ACK]].concat(), "{queries:?}");
            if found {
                assert_eq!(replies[0].1, [&[0, 0, 0, id], BASE_ALLOCATION.as_bytes()].concat());
            }
        }
    }
    let unknown = context_request("nobody", &[BASE_ALLOCATION]);
    let verdict = client.verdict(option::SET_META_CONTEXT, &unknown).await;
    assert_eq!(verdict, option_reply::ERR_UNKNOWN);
}

/// Only the last SET_META_CONTEXT counts, and only for the export that it named.
#[tokio::test]
async fn block_status_needs_the_context_of_this_very_export() {
    let garbage = b"garbage".to_vec();
    for (last, error) in [
        (context_request("alpha", &[BASE_ALLOCATION]), 0),
        (context_request("beta", &[BASE_ALLOCATION]), 22),
        (context_request("alpha", &[]), 22),
        (garbage, 22),
    ] {
        let (mut client, _served) = greeted().await;
        client.option(option::STRUCTURED_REPLY, &[]).await;
        let first = context_request("alpha", &[BASE_ALLOCATION]);
        client.option(option::SET_META_CONTEXT, &first).await;
        client.option(option::SET_META_CONTEXT, &last).await;
        client.option(option::GO, &info_request("alpha", &[])).await;
        client.style = Style::Structured;
        assert_eq!(client.request(command::BLOCK_STATUS, 0, 0, 4096).await, error);
    }
}

#[tokio::test]
async fn breaking_the_protocol_ends_the_connection_with_the_reason() {
    let (mut client, served, _shutdown) = serve(exports(), ServerConfig::default());
    client.greet(0x8000_0003).await;
    assert!(client.is_closed().await);
    let expected = HandshakeError::UnknownFlags { flags: 0x8000_0003 };
    assert_eq!(failure(served).await.to_string(), expected.to_string());

    let (mut client, served) = greeted().await;
    client.stream.write_all(&[b'X'; 16]).await.unwrap();
    assert!(matches!(failure(served).await, HandshakeError::BadMagic { .. }));

    let (mut client, served) = greeted().await;
    let mut header = OPTION_MAGIC.to_be_bytes().to_vec();
    header.extend_from_slice(&option::GO.to_be_bytes());
    header.extend_from_slice(&u32::MAX.to_be_bytes());
    client.stream.write_all(&header).await.unwrap();
    assert!(matches!(
        failure(served).await,
        HandshakeError::OptionTooLong { option: option::GO, len_bytes: u32::MAX }
    ));

    let (mut client, served) = greeted().await;
    client.send_option(option::EXPORT_NAME, b"nobody").await;
    assert!(
        matches!(failure(served).await, HandshakeError::UnknownExport { name } if name == "nobody")
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_get_on_with_it_is_dropped() {
    let (mut client, served) = greeted().await;
    client.stream.write_all(&OPTION_MAGIC.to_be_bytes()).await.unwrap();
    assert!(matches!(failure(served).await, HandshakeError::Timeout { timeout_ms: 10_000 }));
}

#[tokio::test]
async fn a_client_that_negotiates_forever_is_dropped() {
    let (mut client, served) = greeted().await;
    for _ in 0..4096 {
        client.option(option::STRUCTURED_REPLY, &[]).await;
    }
    assert!(client.is_closed().await);
    assert!(matches!(failure(served).await, HandshakeError::TooManyOptions { .. }));
}

#[tokio::test]
async fn a_shutdown_ends_a_negotiation() {
    let (mut client, served, shutdown) = serve(exports(), ServerConfig::default());
    client.greet(3).await;
    shutdown.begin(tokio::time::Instant::now());
    assert!(client.is_closed().await);
    assert_eq!(served.await.unwrap().unwrap(), Ending::Shutdown);
}
