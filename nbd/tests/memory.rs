//! What all connections together hold in memory for payloads.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{Client, Gated, Served, Style, serve_within};
use siltstone_nbd::{
    ConnectionError, Limits, ServerConfig, Shutdown, TransmissionError, protocol::command as c,
};
use tokio::{io::AsyncWriteExt, time::sleep};

const CLIENTS: usize = 12;
const LARGE_BYTES: usize = 128 << 10;
/// Room for two large requests, and not for three.
const TOTAL_BYTES: usize = 256 << 10;
const STALL_TIMEOUT_MS: u64 = 10_000;

fn limits() -> Limits {
    Limits::new(ServerConfig {
        max_held_bytes: TOTAL_BYTES,
        max_held_total_bytes: TOTAL_BYTES,
        max_payload_bytes: LARGE_BYTES as u32,
        stall_timeout_ms: STALL_TIMEOUT_MS,
        ..ServerConfig::default()
    })
    .unwrap()
}

async fn connect(export: &Arc<Gated>, limits: &Limits) -> (Client, Served, Shutdown) {
    let (mut client, served, shutdown) = serve_within(vec![export.clone()], limits.clone());
    client.enter("", Style::Simple).await;
    (client, served, shutdown)
}

/// Clients that have each sent the beginning of a large write.
async fn beginners(export: &Arc<Gated>, limits: &Limits) -> Vec<(Client, Served, Shutdown)> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let (mut client, served, shutdown) = connect(export, limits).await;
        client.send_header(c::WRITE, 0, 7, 0, LARGE_BYTES as u64).await;
        client.stream.write_all(&[1; 1000]).await.unwrap();
        clients.push((client, served, shutdown));
    }
    clients
}

async fn finish(client: &mut Client) {
    client.stream.write_all(&[1; LARGE_BYTES - 1000]).await.unwrap();
    assert_eq!(client.chunk(0).await.error, 0);
}

#[tokio::test]
async fn large_writes_begun_by_many_take_bounded_memory_and_all_of_them_end() {
    let (export, limits) = (Gated::open(), limits());
    let clients = beginners(&export, &limits).await;
    // Who asks for little is answered meanwhile, and all the others have been looked at then.
    let (mut modest, _served, _shutdown) = connect(&export, &limits).await;
    for _ in 0..3 {
        assert_eq!(modest.write(0, &[2; 4096]).await, 0);
    }
    let allocated = export.allocated.load(Ordering::SeqCst);
    assert_eq!(allocated, 2 * LARGE_BYTES + 3 * 4096, "of {CLIENTS} large ones two are received");
    let finishing: Vec<_> = clients
        .into_iter()
        .map(|(mut client, _served, _shutdown)| {
            tokio::spawn(async move { finish(&mut client).await })
        })
        .collect();
    for finished in finishing {
        finished.await.unwrap();
    }
    assert_eq!(export.allocated.load(Ordering::SeqCst), CLIENTS * LARGE_BYTES + 3 * 4096);
}

/// A reply holds memory until its client has taken it.
#[tokio::test]
async fn large_reads_asked_for_by_many_take_bounded_memory_and_all_of_them_are_answered() {
    let (export, limits) = (Gated::closed(0), limits());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let (mut client, _served, shutdown) = connect(&export, &limits).await;
        client.send_header(c::READ, 0, 44, 0, LARGE_BYTES as u64).await;
        clients.push((client, shutdown));
    }
    common::until("two are carried out", || export.waiting.load(Ordering::SeqCst) == 2).await;
    export.open_gate();
    for (client, _) in &mut clients {
        assert_eq!(client.read_reply(0, LARGE_BYTES).await.unwrap().0, [0; LARGE_BYTES]);
    }
    assert_eq!(export.most_waiting.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn who_keeps_memory_for_which_others_wait_loses_its_connection() {
    let (export, limits) = (Gated::open(), limits());
    let mut clients = beginners(&export, &limits).await;
    // The first ones send no more.
    let idle: Vec<_> = clients.drain(..2).collect();
    for (client, _, _) in &mut clients {
        finish(client).await;
    }
    for (_client, served, _) in idle {
        let ended = served.await.unwrap();
        let Err(ConnectionError::Transmission(TransmissionError::Stalled { held_bytes })) = ended
        else {
            panic!("it has stalled: {ended:?}")
        };
        assert_eq!(held_bytes, LARGE_BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_in_nobodys_way_may_stall() {
    let (export, limits) = (Gated::open(), limits());
    let (mut slow, _served, _shutdown) = connect(&export, &limits).await;
    slow.send_header(c::WRITE, 0, 7, 0, LARGE_BYTES as u64).await;
    slow.stream.write_all(&[1; 1000]).await.unwrap();
    let (mut other, _other_served, _other_shutdown) = connect(&export, &limits).await;
    for _ in 0..10 {
        sleep(Duration::from_millis(STALL_TIMEOUT_MS)).await;
        assert_eq!(other.write(0, &[3; LARGE_BYTES]).await, 0);
    }
    finish(&mut slow).await;
}
