//! Hostile bytes: whatever a client sends, the server ends the connection or answers, takes no
//! memory beyond its limits, and never panics.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod common;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{Gated, STYLES, Style, connect_with, pki::Pki, serve_within};
use proptest::{prelude::*, test_runner::TestRunner};
use siltstone_nbd::{
    ConnectionError, Ending, Limits, ServerConfig, Tls, TlsFiles, TlsMode, protocol::*,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zerocopy::IntoBytes;

fn config() -> ServerConfig {
    ServerConfig {
        max_requests_in_flight: 8,
        max_held_bytes: 256 << 10,
        max_payload_bytes: 128 << 10,
        ..ServerConfig::default()
    }
}

fn limits(tls: Option<TlsMode>) -> Limits {
    let limits = Limits::new(config()).unwrap();
    let Some(mode) = tls else { return limits };
    let pki = Pki::new();
    let (certificate, key) = (pki.file("server-cert.pem"), pki.file("server-key.pem"));
    let tls = Tls::load(mode, TlsFiles { certificate, key, client_ca: None });
    limits.with_tls(Arc::new(tls.unwrap()))
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the connection ends")
    })
}

/// Sends the bytes and leaves, reading all the while; returns how the connection ended.
async fn send_and_leave(
    client: common::Client,
    served: common::Served,
    bytes: Vec<u8>,
) -> Result<Ending, ConnectionError> {
    let (mut reader, mut writer) = tokio::io::split(client.stream);
    let reading = tokio::spawn(async move {
        let mut sink = vec![0; 4096];
        while reader.read(&mut sink).await.is_ok_and(|len| len > 0) {}
    });
    // The server may close first.
    let _ = writer.write_all(&bytes).await;
    let _ = writer.shutdown().await;
    let ended = served.await.expect("no panic");
    reading.await.unwrap();
    ended
}

/// Options of any kind: known ones, unknown ones, with contents that are nearly right.
fn option_soup() -> impl Strategy<Value = Vec<u8>> {
    let names = prop_oneof![Just(""), Just("gated"), Just("nobody")];
    let data = prop_oneof![
        Just(Vec::new()),
        names.clone().prop_map(|name| common::info_request(name, &[0, 1, 2, 3])),
        names.prop_map(|name| common::context_request(name, &["base:allocation", "base:"])),
        prop::collection::vec(any::<u8>(), 0..64),
    ];
    // GO and EXPORT_NAME among them; lengths are mostly true.
    let one = (0u32..13, data, prop::option::weighted(0.1, any::<u32>()));
    prop::collection::vec(one, 0..12).prop_map(|options| {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        for (option, data, lie) in options {
            let header = OptionHeader {
                magic: OPTION_MAGIC.into(),
                option: option.into(),
                len: lie.unwrap_or(data.len() as u32).into(),
            };
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&data);
        }
        bytes
    })
}

/// Requests that are mostly right, with anything in any field now and then, and with payload
/// that mostly follows where it should.
fn request_soup(style: Style) -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![6 => 0u16..2, 1 => 2u16..10, 4 => 3u16..8];
    let offset = prop_oneof![16 => 0u64..(1 << 20), 1 => any::<u64>()];
    let len = prop_oneof![16 => 0u64..5000, 8 => 0u64..(1 << 18), 1 => any::<u64>()];
    let flags = prop_oneof![
        16 => Just(0u16),
        4 => 0u16..64,
        1 => any::<u16>(),
    ];
    let lies = prop::bool::weighted(0.05);
    let one = (command, flags, any::<u64>(), offset, len, lies);
    prop::collection::vec(one, 0..20).prop_map(move |requests| {
        let mut bytes = Vec::new();
        for (command, flags, cookie, offset, len, lies) in requests {
            let flagged = style == Style::Extended && flags & command_flag::PAYLOAD_LEN != 0;
            let with_payload = (command == command::WRITE || flagged) != lies;
            let (cookie, offset) = (cookie.into(), offset.into());
            let (flags, command) = (flags.into(), command.into());
            if style == Style::Extended {
                let magic = EXTENDED_REQUEST_MAGIC.into();
                let len = len.into();
                let request = ExtendedRequest { magic, flags, command, cookie, offset, len };
                bytes.extend_from_slice(request.as_bytes());
            } else {
                let (magic, len) = (REQUEST_MAGIC.into(), (len as u32).into());
                let request = CompactRequest { magic, flags, command, cookie, offset, len };
                bytes.extend_from_slice(request.as_bytes());
            }
            if with_payload {
                bytes.resize(bytes.len() + len.min(1 << 18) as usize, 0xAB);
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_options_end_or_are_answered(
        bytes in option_soup(),
        tail in prop::collection::vec(any::<u8>(), 0..200),
        tls in prop::sample::select(&[None, Some(TlsMode::Optional), Some(TlsMode::Required)][..]),
    ) {
        run(async {
            let (client, served, _shutdown) = serve_within(vec![Gated::open()], limits(tls));
            let _ = send_and_leave(client, served, [bytes, tail].concat()).await;
        });
    }

    #[test]
    fn any_bytes_after_the_handshake_end_the_connection(
        style in prop::sample::select(&STYLES[..]),
        bytes in prop::collection::vec(any::<u8>(), 28..300),
    ) {
        run(async {
            let export = Gated::open();
            let (client, served, _shutdown) = connect_with(export.clone(), style, config()).await;
            let ended = send_and_leave(client, served, bytes).await;
            assert!(matches!(ended, Err(ConnectionError::Transmission(_))), "{ended:?}");
            assert_eq!(export.completed.load(Ordering::SeqCst), 0);
        });
    }
}

#[test]
fn any_requests_are_answered_within_the_limits() {
    let soups =
        prop::sample::select(&STYLES[..]).prop_flat_map(|style| (Just(style), request_soup(style)));
    let (completed, crowded) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let limit = config().max_requests_in_flight;
    TestRunner::new(ProptestConfig::with_cases(128))
        .run(&soups, |(style, bytes)| {
            let export = run(limited(style, bytes));
            let most_waiting = export.most_waiting.load(Ordering::SeqCst);
            prop_assert!(most_waiting <= limit);
            crowded.fetch_max(most_waiting, Ordering::SeqCst);
            completed.fetch_add(export.completed.load(Ordering::SeqCst), Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
    // The soup is rich enough to reach the storage, and the limit.
    assert!(completed.into_inner() > 200);
    assert_eq!(crowded.into_inner(), limit);
}

/// Serves the bytes from an export that is closed for a moment, so that requests pile up as far
/// as the limits let them.
async fn limited(style: Style, bytes: Vec<u8>) -> Arc<Gated> {
    let export = Gated::closed(0);
    let (client, served, _shutdown) = connect_with(export.clone(), style, config()).await;
    let opener = export.clone();
    let opening = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(opener.allocated.load(Ordering::SeqCst) <= config().max_held_bytes);
        opener.open_gate();
    });
    // How it ends depends on the bytes; that it does is the promise.
    let _ = send_and_leave(client, served, bytes).await;
    opening.await.expect("memory stays within its limit");
    export
}
