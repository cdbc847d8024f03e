//! The server: its sockets, its limits, and its shutdown.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod common;

use std::{
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{Client, Gated, Style};
use siltstone_nbd::{
    Drained, Export, Limits, Listen, Server, ServerConfig, ServerError, SocketPermissions,
    memory_export::FixedCatalog, protocol::command as c,
};
use tokio::net::{TcpStream, UnixStream};

const SECOND: Duration = Duration::from_secs(1);

async fn bind(
    path: &Path,
    export: Arc<dyn Export>,
    config: ServerConfig,
) -> Result<Server, ServerError> {
    let catalog = Arc::new(FixedCatalog::new(vec![export]));
    let listen = [Listen::Unix(path.to_owned()), "127.0.0.1:0".parse().unwrap()];
    Server::bind(&listen, catalog, config).await
}

async fn connect(path: &Path) -> Client<UnixStream> {
    let mut client = Client::new(UnixStream::connect(path).await.unwrap());
    client.enter("", Style::Structured).await;
    client
}

#[tokio::test]
async fn one_export_is_served_on_every_address() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = bind(&path, Gated::open(), ServerConfig::default()).await.unwrap();
    let Listen::Tcp(address) = server.addresses()[1] else { panic!("not TCP") };
    assert_ne!(address.port(), 0, "the port that the system chose");
    let mut tcp = Client::new(TcpStream::connect(address).await.unwrap());
    tcp.enter("gated", Style::Simple).await;
    let mut unix = connect(&path).await;
    assert_eq!(tcp.write(0, &[3; 100_000]).await, 0);
    assert_eq!(unix.read(0, 0, 100_000).await.unwrap().0, [3; 100_000]);
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_unix_socket_is_private_and_goes_with_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = bind(&path, Gated::open(), ServerConfig::default()).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(server.shutdown(SECOND).await, Drained::default());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    // A server that was killed leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = bind(&path, Gated::open(), ServerConfig::default()).await.unwrap();

    let second = bind(&path, Gated::open(), ServerConfig::default()).await;
    let Err(ServerError::UnixInUse { listener: Some(listener), .. }) = second else { panic!() };
    assert_eq!(listener.pid as u32, std::process::id());
    assert_eq!(connect(&path).await.request(c::FLUSH, 0, 0, 0).await, 0);
    server.shutdown(SECOND).await;

    std::fs::write(&path, "precious").unwrap();
    let third = bind(&path, Gated::open(), ServerConfig::default()).await;
    assert!(matches!(third, Err(ServerError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn sockets_that_listen_already_are_served_beside_others_and_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passed");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp_address = tcp.local_addr().unwrap();
    let passed = vec![tcp.into(), UnixListener::bind(&path).unwrap().into()];
    let own = Listen::Unix(folder.path().join("own"));
    let catalog = || Arc::new(FixedCatalog::new(vec![Gated::open()]));
    let limits = || Limits::new(ServerConfig::default()).unwrap();
    let permissions = SocketPermissions::default();
    let listen = std::slice::from_ref(&own);
    let server = Server::bind_beside(passed, listen, catalog(), limits(), permissions);
    let server = server.await.unwrap();
    assert_eq!(server.addresses(), [Listen::Tcp(tcp_address), Listen::Unix(path.clone()), own]);
    let mut tcp = Client::new(TcpStream::connect(tcp_address).await.unwrap());
    tcp.enter("", Style::Simple).await;
    assert_eq!(tcp.request(c::FLUSH, 0, 0, 0).await, 0);
    assert_eq!(connect(&path).await.request(c::FLUSH, 0, 0, 0).await, 0);
    drop(tcp);
    server.shutdown(SECOND).await;
    assert!(path.exists(), "whoever has made it removes it");

    let (connected, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let passed = vec![connected.into()];
    let refused = Server::bind_beside(passed, &[], catalog(), limits(), permissions).await;
    assert!(matches!(refused, Err(ServerError::PassedOther)));
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    for config in [
        ServerConfig { max_connections: 0, ..ServerConfig::default() },
        ServerConfig { max_half_open: 0, ..ServerConfig::default() },
        ServerConfig { max_requests_in_flight: 0, ..ServerConfig::default() },
        ServerConfig { max_held_bytes: 1 << 20, ..ServerConfig::default() },
        ServerConfig { max_held_total_bytes: 48 << 20, ..ServerConfig::default() },
        ServerConfig { stall_timeout_ms: 0, ..ServerConfig::default() },
    ] {
        let result = bind(&path, Gated::open(), config).await;
        assert!(matches!(result, Err(ServerError::Config(_))), "{config:?}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_a_place_is_free_again_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let config = ServerConfig { max_connections: 2, ..ServerConfig::default() };
    let server = bind(&path, Gated::open(), config).await.unwrap();
    let (mut first, second) = (connect(&path).await, connect(&path).await);
    let mut third = Client::new(UnixStream::connect(&path).await.unwrap());
    assert!(third.is_closed().await);
    assert_eq!(first.request(c::FLUSH, 0, 0, 0).await, 0);
    drop(second);
    common::until("a place is free", || server.connections() == 1).await;
    assert_eq!(connect(&path).await.request(c::FLUSH, 0, 0, 0).await, 0);
}

/// Strangers that connect and stay silent keep nobody out, and are ended as others come.
#[tokio::test]
async fn connections_that_never_choose_an_export_take_no_place_and_end_when_there_are_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let config = ServerConfig { max_connections: 2, max_half_open: 3, ..ServerConfig::default() };
    let server = bind(&path, Gated::open(), config).await.unwrap();
    let mut first = connect(&path).await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        let mut stranger = Client::new(UnixStream::connect(&path).await.unwrap());
        // Each in a different state.
        if strangers.len() % 2 == 0 {
            stranger.greet(3).await;
        }
        strangers.push(stranger);
        assert_eq!(first.request(c::FLUSH, 0, 0, 0).await, 0);
    }
    let mut second = connect(&path).await;
    assert_eq!(second.request(c::FLUSH, 0, 0, 0).await, 0);
    assert_eq!(server.connections(), 2);
    // The second client was one more, too.
    let last = strangers.split_off(18);
    for mut stranger in strangers {
        let mut bytes = Vec::new();
        // A greeting, or nothing at all; then the end.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stranger.stream, &mut bytes).await;
    }
    drop((first, second));
    common::until("places are free", || server.connections() == 0).await;
    for mut stranger in last {
        tokio::io::AsyncWriteExt::write_all(&mut stranger.stream, &[0; 4]).await.unwrap();
    }
}

/// Clients that stall in every way do not harm one that behaves.
#[tokio::test]
async fn stalled_and_broken_clients_harm_only_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _server = bind(&path, Gated::open(), ServerConfig::default()).await.unwrap();
    let _silent = UnixStream::connect(&path).await.unwrap();
    let mut half_written = connect(&path).await;
    half_written.send_header(c::WRITE, 0, 1, 0, 1 << 20).await;
    let mut never_reads = connect(&path).await;
    for cookie in 0..200 {
        never_reads.send_header(c::READ, 4, cookie, 0, 1 << 20).await;
    }
    let mut broken = connect(&path).await;
    tokio::io::AsyncWriteExt::write_all(&mut broken.stream, &[0; 28]).await.unwrap();
    let mut panicking = connect(&path).await;
    panicking.send_header(c::READ, 0, 1, 528 << 10, 4096).await;

    assert!(broken.is_closed().await);
    assert!(panicking.is_closed().await);
    let mut good = connect(&path).await;
    for round in 0..50u8 {
        assert_eq!(good.write(4096, &[round; 8192]).await, 0);
        assert_eq!(good.read(0, 4096, 8192).await.unwrap().0, [round; 8192]);
    }
}

/// What CAN_MULTI_CONN promises: a flush on one connection begins after the writes that other
/// connections have seen completed, and covers them.
#[tokio::test]
async fn connections_share_one_view_and_one_flush() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let export = Gated::open();
    let _server = bind(&path, export.clone(), ServerConfig::default()).await.unwrap();
    let (mut one, mut two) = (connect(&path).await, connect(&path).await);
    assert_eq!(one.write(0, &[8; 4096]).await, 0);
    assert_eq!(two.request(c::FLUSH, 0, 0, 0).await, 0);
    assert_eq!(export.flushes.load(Ordering::SeqCst), 1);
    assert_eq!(two.read(0, 0, 4096).await.unwrap().0, [8; 4096]);
}

#[tokio::test]
async fn shutdown_answers_what_is_under_way_before_it_returns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let export = Gated::closed(0);
    let server = bind(&path, export.clone(), ServerConfig::default()).await.unwrap();
    let mut busy = connect(&path).await;
    let mut idle = connect(&path).await;
    busy.send_write(0, 1, 0, &[1; 4096]).await;
    common::until("it waits", || export.waiting.load(Ordering::SeqCst) == 1).await;
    let shutdown = tokio::spawn(server.shutdown(60 * SECOND));
    assert!(idle.is_closed().await);
    assert!(!shutdown.is_finished());
    export.open_gate();
    assert_eq!(busy.chunk(0).await.error, 0);
    assert!(busy.is_closed().await);
    assert_eq!(shutdown.await.unwrap(), Drained { finished: 2, cut_off: 0 });
    assert!(UnixStream::connect(&path).await.is_err());
}

#[tokio::test]
async fn shutdown_cuts_off_what_takes_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let export = Gated::closed(0);
    let server = bind(&path, export.clone(), ServerConfig::default()).await.unwrap();
    let mut stuck = connect(&path).await;
    stuck.send_write(0, 1, 0, &[1; 4096]).await;
    common::until("it waits", || export.waiting.load(Ordering::SeqCst) == 1).await;
    let drained = server.shutdown(Duration::from_millis(50)).await;
    assert_eq!(drained, Drained { finished: 0, cut_off: 1 });
    assert!(stuck.is_closed().await);
    // Nobody ever opens the gate, and still nothing of the connection is left.
    assert_eq!(Arc::strong_count(&export), 1);
}
