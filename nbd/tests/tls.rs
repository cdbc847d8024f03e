//! TLS: nothing before it counts, nobody gets around it, and certificates say who may do what.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod common;

use std::{io, path::Path, sync::Arc};

use common::{Client, Gated, STYLES, Served, Style, context_request, info_request, pki::Pki};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use siltstone_nbd::{
    AllowLists, Catalog, ClientCa, ClientIdentity, ConnectionError, Ending, Export, HandshakeError,
    Limits, ServerConfig, Shutdown, Tls, TlsError, TlsFiles, TlsMode,
    memory_export::{FixedCatalog, MemoryExport},
    protocol::*,
    serve_stream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

const SIZE: u64 = 1 << 20;

fn files(pki: &Pki, client_ca: Option<bool>) -> TlsFiles {
    let client_ca = client_ca
        .map(|is_required| ClientCa { certificates: pki.file("ca-cert.pem"), is_required });
    TlsFiles {
        certificate: pki.file("server-cert.pem"),
        key: pki.file("server-key.pem"),
        client_ca,
    }
}

fn tls(pki: &Pki, mode: TlsMode, client_ca: Option<bool>) -> Arc<Tls> {
    Arc::new(Tls::load(mode, files(pki, client_ca)).unwrap())
}

/// Exports of which some are for some clients only.
struct Restricted {
    exports: FixedCatalog,
    lists: AllowLists,
}

impl Catalog for Restricted {
    fn list(&self) -> Vec<String> {
        self.exports.list()
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Export>> {
        self.exports.open(name)
    }

    fn allows(&self, export: &str, client: &ClientIdentity) -> bool {
        self.lists.allows(export, client)
    }
}

/// Serves `names` to one client, which has yet to read the greeting.
fn serve(names: &[&str], allow: &[(&str, &str)], tls: &Arc<Tls>) -> (Client, Served) {
    let exports: Vec<Arc<dyn Export>> = names
        .iter()
        .map(|name| Arc::new(MemoryExport::new(name, SIZE)) as Arc<dyn Export>)
        .collect();
    let lists = allow.iter().map(|(export, client)| ((*export).into(), (*client).into()));
    let catalog = Restricted { exports: FixedCatalog::new(exports), lists: AllowLists::new(lists) };
    let limits = Limits::new(ServerConfig::default()).unwrap().with_tls(tls.clone());
    let (near, far) = tokio::io::duplex(64 << 10);
    let served = tokio::spawn(async move {
        serve_stream(far, &catalog, &limits, Shutdown::new().signal()).await
    });
    (Client::new(near), served)
}

/// The client's side of TLS, with the certificates in its folder.
async fn handshake(
    stream: DuplexStream,
    folder: &Path,
) -> io::Result<Client<TlsStream<DuplexStream>>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca-cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let certificate = folder.join("client-cert.pem");
    let config = match certificate.exists() {
        true => {
            let chain = CertificateDer::pem_file_iter(certificate).unwrap();
            let key = PrivateKeyDer::from_pem_file(folder.join("client-key.pem")).unwrap();
            config.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
        }
        false => config.with_no_client_auth(),
    };
    let name = ServerName::try_from("localhost").unwrap();
    Ok(Client::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
}

/// Greets the server and starts TLS.
async fn start_tls(
    mut client: Client,
    folder: &Path,
) -> io::Result<Client<TlsStream<DuplexStream>>> {
    client.greet(3).await;
    assert_eq!(client.verdict(option::STARTTLS, &[]).await, option_reply::ACK);
    handshake(client.stream, folder).await
}

async fn failure(served: Served) -> HandshakeError {
    match served.await.unwrap() {
        Err(ConnectionError::Handshake(error)) => error,
        other => panic!("not a failed handshake: {other:?}"),
    }
}

#[tokio::test]
async fn where_tls_is_required_nothing_else_can_be_negotiated_before_it() {
    let pki = Pki::new();
    let tls = tls(&pki, TlsMode::Required, None);
    let (mut client, served) = serve(&["disk"], &[], &tls);
    client.greet(3).await;
    for (option, data) in [
        (option::LIST, vec![]),
        (option::INFO, info_request("disk", &[])),
        (option::GO, info_request("disk", &[])),
        (option::GO, b"garbage".to_vec()),
        (option::STRUCTURED_REPLY, vec![]),
        (option::EXTENDED_HEADERS, vec![]),
        (option::LIST_META_CONTEXT, context_request("disk", &[])),
        (option::SET_META_CONTEXT, context_request("disk", &[BASE_ALLOCATION])),
        (77, vec![]),
    ] {
        let verdict = client.verdict(option, &data).await;
        assert_eq!(verdict, option_reply::ERR_TLS_REQD, "option {option}");
    }
    assert_eq!(client.verdict(option::STARTTLS, b"x").await, option_reply::ERR_INVALID);
    assert_eq!(client.verdict(option::ABORT, &[]).await, option_reply::ACK);
    assert_eq!(served.await.unwrap().unwrap(), Ending::ClientLeft);

    // There is no other answer to this one.
    let (mut client, served) = serve(&["disk"], &[], &tls);
    client.greet(3).await;
    client.send_option(option::EXPORT_NAME, b"disk").await;
    assert!(client.is_closed().await);
    assert!(matches!(failure(served).await, HandshakeError::ExportNameWithoutTls { .. }));
}

#[tokio::test]
async fn where_tls_is_optional_clients_choose() {
    let pki = Pki::new();
    let tls = tls(&pki, TlsMode::Optional, None);
    let (mut plain, _served) = serve(&["disk"], &[], &tls);
    plain.enter("disk", Style::Structured).await;
    assert_eq!(plain.write(0, &[1; 512]).await, 0);

    let (client, _served) = serve(&["disk"], &[], &tls);
    let mut client = start_tls(client, pki.path()).await.unwrap();
    assert_eq!(client.verdict(option::GO, &info_request("disk", &[])).await, option_reply::ACK);
    assert_eq!(client.write(0, &[1; 512]).await, 0);
}

#[tokio::test]
async fn what_was_negotiated_before_tls_is_forgotten() {
    let pki = Pki::new();
    let tls = tls(&pki, TlsMode::Optional, None);
    let (mut client, _served) = serve(&["disk"], &[], &tls);
    client.greet(3).await;
    let contexts = context_request("disk", &[BASE_ALLOCATION]);
    assert_eq!(client.verdict(option::EXTENDED_HEADERS, &[]).await, option_reply::ACK);
    assert_eq!(client.verdict(option::SET_META_CONTEXT, &contexts).await, option_reply::ACK);
    assert_eq!(client.verdict(option::STARTTLS, &[]).await, option_reply::ACK);

    let mut client = handshake(client.stream, pki.path()).await.unwrap();
    let verdict = client.verdict(option::STARTTLS, &[]).await;
    assert_eq!(verdict, option_reply::ERR_INVALID, "TLS is in force");
    let verdict = client.verdict(option::SET_META_CONTEXT, &contexts).await;
    assert_eq!(verdict, option_reply::ERR_INVALID, "structured replies were not asked for");
    assert_eq!(client.verdict(option::STRUCTURED_REPLY, &[]).await, option_reply::ACK);
    assert_eq!(client.verdict(option::GO, &info_request("disk", &[])).await, option_reply::ACK);
    // Neither extended headers, nor the selected context.
    client.style = Style::Structured;
    assert_eq!(client.write(0, &[7; 512]).await, 0);
    assert_eq!(client.request(command::BLOCK_STATUS, 0, 0, 4096).await, 22);
}

/// The injection that many servers of other protocols were open to: somebody on the way adds
/// options in plaintext, for the server to take them for the client's own, under TLS.
#[tokio::test]
async fn plaintext_behind_starttls_ends_the_connection_and_is_not_acted_on() {
    let pki = Pki::new();
    for mode in [TlsMode::Optional, TlsMode::Required] {
        let tls = tls(&pki, mode, None);
        let (mut client, served) = serve(&["disk"], &[], &tls);
        client.greet(3).await;
        let mut bytes = Vec::new();
        for option in [option::STARTTLS, option::LIST] {
            bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
            bytes.extend_from_slice(&option.to_be_bytes());
            bytes.extend_from_slice(&[0; 4]);
        }
        client.stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        client.stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"", "not even STARTTLS is acknowledged");
        assert!(matches!(failure(served).await, HandshakeError::PlaintextBehindStartTls));

        // One that waits for the answer, and does not keep to it.
        let (mut client, served) = serve(&["disk"], &[], &tls);
        client.greet(3).await;
        assert_eq!(client.verdict(option::STARTTLS, &[]).await, option_reply::ACK);
        client.send_option(option::LIST, &[]).await;
        let mut answer = Vec::new();
        client.stream.read_to_end(&mut answer).await.unwrap();
        // At most a TLS alert (record type 21).
        assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
        assert!(matches!(failure(served).await, HandshakeError::Tls(_)));
    }
}

/// What the server makes of a client's certificate, known by whether it can use the export.
async fn is_served(tls: &Arc<Tls>, folder: &Path) -> bool {
    let (client, _served) = serve(&["disk"], &[], tls);
    let Ok(mut client) = start_tls(client, folder).await else { return false };
    // In TLS 1.3 the client is done before the server has looked at its certificate.
    if client.stream.write_all(&OPTION_MAGIC.to_be_bytes()).await.is_err() {
        return false;
    }
    let rest = [&option::ABORT.to_be_bytes()[..], &[0; 4]].concat();
    client.stream.write_all(&rest).await.is_ok()
        && client.stream.read_exact(&mut [0; 20]).await.is_ok()
}

#[tokio::test]
async fn clients_are_asked_for_certificates_as_the_server_was_told() {
    let (pki, other) = (Pki::new(), Pki::new());
    let (alice, stranger) = (pki.client("alice", &[]), pki.stranger("nobody"));
    // It knows this server, and has a certificate of an authority that nobody here knows.
    let impostor = other.client("alice", &[]);
    std::fs::copy(pki.file("ca-cert.pem"), impostor.join("ca-cert.pem")).unwrap();
    for (client_ca, of_stranger, of_impostor) in
        [(None, true, true), (Some(false), true, false), (Some(true), false, false)]
    {
        let tls = tls(&pki, TlsMode::Required, client_ca);
        assert!(is_served(&tls, &alice).await, "{client_ca:?}");
        assert_eq!(is_served(&tls, &stranger).await, of_stranger, "{client_ca:?}");
        assert_eq!(is_served(&tls, &impostor).await, of_impostor, "{client_ca:?}");
    }
}

#[tokio::test]
async fn an_export_that_a_client_may_not_use_does_not_exist_for_it() {
    let pki = Pki::new();
    let tls = tls(&pki, TlsMode::Optional, Some(false));
    let allow = [("secret", "alice"), ("secret", "host.test")];
    let contexts = context_request("secret", &[BASE_ALLOCATION]);

    for allowed in [pki.client("alice", &[]), pki.client("bob", &["host.test"])] {
        let (client, _served) = serve(&["open", "secret"], &allow, &tls);
        let mut client = start_tls(client, &allowed).await.unwrap();
        assert_eq!(client.option(option::LIST, &[]).await.len(), 3);
        client.option(option::STRUCTURED_REPLY, &[]).await;
        assert_eq!(client.verdict(option::SET_META_CONTEXT, &contexts).await, option_reply::ACK);
        let verdict = client.verdict(option::GO, &info_request("secret", &[])).await;
        assert_eq!(verdict, option_reply::ACK);
    }
    for refused in [pki.client("Alice", &["host.test.evil"]), pki.stranger("nobody")] {
        let (client, _served) = serve(&["open", "secret"], &allow, &tls);
        let client = start_tls(client, &refused).await.unwrap();
        assert_is_hidden(client).await;
    }
    let (mut client, _served) = serve(&["open", "secret"], &allow, &tls);
    client.greet(3).await;
    assert_is_hidden(client).await;

    // Not by asking for the default export either, nor in the oldest way.
    let (mut client, served) = serve(&["secret"], &allow, &tls);
    client.greet(3).await;
    let verdict = client.verdict(option::GO, &info_request("", &[])).await;
    assert_eq!(verdict, option_reply::ERR_UNKNOWN);
    client.send_option(option::EXPORT_NAME, b"secret").await;
    assert!(client.is_closed().await);
    assert!(matches!(failure(served).await, HandshakeError::UnknownExport { .. }));
}

/// `open` is there, and `secret` is told from no export that does not exist.
async fn assert_is_hidden<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut client: Client<S>,
) {
    let replies = client.option(option::LIST, &[]).await;
    assert_eq!((replies.len(), &replies[0].1[4..]), (2, &b"open"[..]));
    client.option(option::STRUCTURED_REPLY, &[]).await;
    let request = |name: &str, option| match option {
        option::GO | option::INFO => info_request(name, &[]),
        _ => context_request(name, &[BASE_ALLOCATION]),
    };
    for option in [option::INFO, option::GO, option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let secret = client.option(option, &request("secret", option)).await;
        assert_eq!(secret, client.option(option, &request("absent", option)).await);
        assert_eq!(secret[0].0, option_reply::ERR_UNKNOWN);
    }
    assert_eq!(client.verdict(option::GO, &info_request("open", &[])).await, option_reply::ACK);
}

#[tokio::test]
async fn requests_and_replies_of_all_sizes_and_styles_go_through_tls() {
    let pki = Pki::new();
    let tls = tls(&pki, TlsMode::Required, None);
    for style in STYLES {
        let (client, _served) = serve(&["disk"], &[], &tls);
        let mut client = start_tls(client, pki.path()).await.unwrap();
        match style {
            Style::Simple => {}
            Style::Structured => _ = client.option(option::STRUCTURED_REPLY, &[]).await,
            Style::Extended => _ = client.option(option::EXTENDED_HEADERS, &[]).await,
        }
        client.option(option::GO, &info_request("disk", &[])).await;
        client.style = style;
        for len in [1usize, 4096, 16_384, 16_385, 100_000, 1 << 20] {
            let data: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            assert_eq!(client.write(0, &data).await, 0);
            assert!(client.read(0, 0, len).await.unwrap().0 == data, "{style:?} {len}");
        }
    }
}

/// Most clients just close their socket.
#[tokio::test]
async fn a_client_that_leaves_without_a_farewell_is_no_error() {
    let pki = Pki::new();
    let tls = tls(&pki, TlsMode::Required, None);
    let (client, served) = serve(&["disk"], &[], &tls);
    let mut client = start_tls(client, pki.path()).await.unwrap();
    client.verdict(option::GO, &info_request("disk", &[])).await;
    assert_eq!(client.write(0, &[1; 512]).await, 0);
    drop(client);
    assert_eq!(served.await.unwrap().unwrap(), Ending::ClientLeft);

    let (client, served) = serve(&["disk"], &[], &tls);
    drop(start_tls(client, pki.path()).await.unwrap());
    assert_eq!(served.await.unwrap().unwrap(), Ending::ClientLeft);

    // In the middle of a request it is one.
    let (client, served) = serve(&["disk"], &[], &tls);
    let mut client = start_tls(client, pki.path()).await.unwrap();
    client.verdict(option::GO, &info_request("disk", &[])).await;
    client.send_header(command::WRITE, 0, 1, 0, 4096).await;
    drop(client);
    let ended = served.await.unwrap();
    assert!(matches!(ended, Err(ConnectionError::Transmission(_))), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_get_on_with_tls_is_dropped() {
    let pki = Pki::new();
    let (mut client, served) = serve(&["disk"], &[], &tls(&pki, TlsMode::Required, None));
    client.greet(3).await;
    assert_eq!(client.verdict(option::STARTTLS, &[]).await, option_reply::ACK);
    assert!(matches!(failure(served).await, HandshakeError::Timeout { timeout_ms: 10_000 }));
}

#[tokio::test]
async fn certificates_are_loaded_again_for_connections_that_come_later() {
    let pki = Pki::new();
    let tls = tls(&pki, TlsMode::Required, None);
    let shown = async || {
        let (client, served) = serve(&["disk"], &[], &tls);
        let client = start_tls(client, pki.path()).await.unwrap();
        let certificate = client.stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        (client, served, certificate)
    };
    let (mut old, _served, first) = shown().await;
    pki.renew_server();
    assert!(shown().await.2 == first, "not before it is told to");
    tls.reload().unwrap();
    let (_, _, second) = shown().await;
    assert!(second != first);

    std::fs::write(pki.file("server-key.pem"), "").unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::NoKey { .. })));
    assert!(shown().await.2 == second, "what was there stays in use");
    assert_eq!(old.verdict(option::GO, &info_request("disk", &[])).await, option_reply::ACK);
}

#[test]
fn credentials_that_cannot_be_used_are_told_with_their_file() {
    let (pki, other) = (Pki::new(), Pki::new());
    let load = |change: &dyn Fn(&mut TlsFiles)| {
        let mut files = files(&pki, Some(true));
        change(&mut files);
        Tls::load(TlsMode::Required, files).map(|_| ()).unwrap_err().to_string()
    };
    let empty = pki.file("empty.pem");
    std::fs::write(&empty, "nothing\n").unwrap();
    let torn = pki.file("torn.pem");
    std::fs::write(&torn, "-----BEGIN CERTIFICATE-----\nMIIB\n").unwrap();
    let nonsense = pki.file("nonsense.pem");
    let wrapped = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&nonsense, wrapped).unwrap();
    let missing = pki.file("missing.pem");
    let ca = |path: &Path| Some(ClientCa { certificates: path.into(), is_required: true });
    for (sentence, file, part) in [
        (load(&|files| files.certificate = missing.clone()), &missing, "No such file"),
        (load(&|files| files.key = missing.clone()), &missing, "No such file"),
        (load(&|files| files.client_ca = ca(&missing)), &missing, "No such file"),
        (load(&|files| files.certificate = empty.clone()), &empty, "no certificate"),
        (load(&|files| files.client_ca = ca(&empty)), &empty, "no certificate"),
        (load(&|files| files.key = empty.clone()), &empty, "no private key"),
        (load(&|files| files.certificate = torn.clone()), &torn, "not a sound PEM file"),
        (load(&|files| files.client_ca = ca(&nonsense)), &nonsense, "cannot be used"),
        (load(&|files| files.certificate = nonsense.clone()), &nonsense, "cannot be used"),
        (
            load(&|files| files.key = other.file("server-key.pem")),
            &other.file("server-key.pem"),
            "does not belong to the first certificate",
        ),
    ] {
        let file = file.display().to_string();
        assert!(sentence.contains(&file) && sentence.contains(part), "{sentence}");
    }
}

/// A storage that is slow does not hold up what TLS has to say.
#[tokio::test]
async fn replies_come_out_of_order_under_tls() {
    let pki = Pki::new();
    let export = Gated::closed(SIZE / 2);
    let limits = Limits::new(ServerConfig::default()).unwrap();
    let limits = limits.with_tls(tls(&pki, TlsMode::Required, None));
    let (client, _served, _shutdown) = common::serve_within(vec![export.clone()], limits);
    let mut client = start_tls(client, pki.path()).await.unwrap();
    client.verdict(option::GO, &info_request("", &[])).await;
    client.send_write(0, 1, SIZE - 4096, &[1; 4096]).await;
    client.send_write(0, 2, 0, &[2; 4096]).await;
    assert_eq!(client.chunk(0).await.cookie, 2);
    export.open_gate();
    assert_eq!(client.chunk(0).await.cookie, 1);
}
