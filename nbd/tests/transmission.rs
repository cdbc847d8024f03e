//! Transmission, in all three header styles: what is written is read, every error has its number,
//! replies come as they are ready, and limits hold.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod common;

use std::sync::{Arc, atomic::Ordering};

use common::{FAULTS, Fault, Gated, MIB, STYLES, Style, connect, connect_with};
use siltstone_nbd::{
    ConnectionError, Ending, Operation, ServerConfig, TransmissionError,
    memory_export::MemoryExport,
    protocol::{command as c, command_flag as f, *},
};
use tokio::{io::AsyncWriteExt, time::Instant};

fn disk() -> Arc<MemoryExport> {
    Arc::new(MemoryExport::new("disk", 64 * MIB))
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

#[tokio::test]
async fn what_is_written_is_read_whatever_its_size_and_alignment() {
    for style in STYLES {
        let (mut client, _served, _shutdown) = connect(disk(), style).await;
        for (offset, len) in [(0, 1), (4096, 4096), (12_345, 70_001), (MIB, 8 << 20)] {
            let data = pattern(len, style as u8);
            assert_eq!(client.write(offset, &data).await, 0);
            let (read, _) = client.read(0, offset, len).await.unwrap();
            assert!(read == data, "{style:?} {offset} {len}");
        }
    }
}

#[tokio::test]
async fn changes_without_payload_take_effect_with_every_legal_flag() {
    for style in STYLES {
        let (mut client, _served, _shutdown) = connect(disk(), style).await;
        client.write(0, &[1; 65_536]).await;
        assert_eq!(client.request(c::WRITE_ZEROES, f::FUA, 0, 4096).await, 0);
        assert_eq!(client.request(c::WRITE_ZEROES, f::NO_HOLE, 4096, 4096).await, 0);
        assert_eq!(client.request(c::WRITE_ZEROES, f::FAST_ZERO, 8192, 100).await, 0);
        assert_eq!(client.request(c::TRIM, f::FUA, 16_384, 4096).await, 0);
        assert_eq!(client.request(c::CACHE, f::FUA, 0, 65_536).await, 0);
        assert_eq!(client.request(c::FLUSH, f::FUA, 0, 0).await, 0);
        let (read, _) = client.read(f::FUA, 0, 65_536).await.unwrap();
        let mut expected = vec![1; 65_536];
        expected[..8192 + 100].fill(0);
        expected[16_384..20_480].fill(0);
        assert!(read == expected, "{style:?}");
        // ENOTSUP is for fast zeroing alone.
        let slow = f::FAST_ZERO | f::NO_HOLE;
        assert_eq!(client.request(c::WRITE_ZEROES, slow, 0, 4096).await, 95);
    }
}

#[tokio::test]
async fn reads_tell_holes_apart_unless_asked_not_to() {
    for style in STYLES {
        let (mut client, _served, _shutdown) = connect(disk(), style).await;
        client.write(8192, &[5; 4096]).await;
        client.write(20_480, &[6; 4096]).await;
        let mut expected = vec![0; 32_768];
        expected[8192..12_288].fill(5);
        expected[20_480..24_576].fill(6);
        let (data, holes) = client.read(0, 0, 32_768).await.unwrap();
        assert_eq!(data, expected);
        let all = vec![0..8192, 12_288..20_480, 24_576..32_768];
        assert_eq!(holes, if style == Style::Simple { vec![] } else { all });

        // Holes that are not worth a chunk come as data.
        let (data, holes) = client.read(0, 8192 - 100, 200).await.unwrap();
        assert_eq!(data, expected[8092..8292]);
        assert_eq!(holes, []);

        if style != Style::Simple {
            for (offset, len) in [(0, 32_768), (MIB, 100_000)] {
                client.send_header(c::READ, f::DF, 9, offset, len).await;
                let whole = client.chunk(0).await;
                assert_eq!((whole.kind, whole.done), (chunk::OFFSET_DATA, true));
                assert_eq!(whole.payload.len() as u64, 8 + len);
            }
            let (_, holes) = client.read(0, MIB, 100_000).await.unwrap();
            assert_eq!(holes, vec![0..100_000; 1]);
        }
    }
}

#[tokio::test]
async fn block_status_covers_the_range_in_both_widths() {
    // Longer than 32 bits can say.
    let huge = Arc::new(MemoryExport::new("huge", 5 << 30));
    for style in [Style::Structured, Style::Extended] {
        let (mut client, _served, _shutdown) = connect(huge.clone(), style).await;
        client.write(8192, &[5; 8192]).await;
        let hole = 3;
        let extents = client.status(0, 4096, 65_536).await;
        assert_eq!(extents, [(4096, hole), (8192, 0), (53_248, hole)]);
        assert_eq!(client.status(f::REQ_ONE, 0, 65_536).await, [(8192, hole)]);
        assert_eq!(client.status(f::REQ_ONE, 1 << 30, 100).await, [(100, hole)]);
    }
    let (mut client, _served, _shutdown) = connect(huge, Style::Extended).await;
    let extents = client.status(0, 16_384, (5 << 30) - 16_384).await;
    assert_eq!(extents, [((5 << 30) - 16_384, 3)]);
    assert_eq!(client.request(c::TRIM, 0, 0, 5 << 30).await, 0);
    assert_eq!(client.status(0, 0, 5 << 30).await, [(5 << 30, 3)]);
}

#[tokio::test]
async fn a_refused_request_costs_an_error_and_not_the_connection() {
    for style in STYLES {
        let (mut client, _served, _shutdown) = connect(disk(), style).await;
        let end = 64 * MIB;
        assert_eq!(client.read(0, end, 1).await.unwrap_err(), 22);
        assert_eq!(client.read(0, 0, 33 << 20).await.unwrap_err(), 75);
        assert_eq!(client.read(0, 0, 0).await.unwrap_err(), 22);
        // Payload that is refused is taken off the stream all the same.
        assert_eq!(client.write(end - 1, &[1; 4096]).await, 28);
        assert_eq!(client.write(0, &vec![1; (32 << 20) + 1]).await, 22);
        assert_eq!(client.request(c::TRIM, 0, end, 1).await, 22);
        assert_eq!(client.request(c::WRITE_ZEROES, 0, end, 1).await, 28);
        assert_eq!(client.request(77, 0, 0, 0).await, 22);
        assert_eq!(client.request(c::READ, f::REQ_ONE, 0, 1).await, 22);
        if style == Style::Extended {
            // qemu's client leaves the payload flag out of its writes.
            client.send_header(c::WRITE, 0, 1, 4096, 512).await;
            client.stream.write_all(&[3; 512]).await.unwrap();
            assert_eq!(client.chunk(0).await.error, 0);
            client.send_header(c::TRIM, f::PAYLOAD_LEN, 1, 0, 512).await;
            client.stream.write_all(&[0; 512]).await.unwrap();
            assert_eq!(client.chunk(0).await.error, 22);
            assert_eq!(client.request(c::TRIM, 0, u64::MAX, u64::MAX).await, 22);
        }
        assert_eq!(client.read(0, 0, 512).await.unwrap().0, [0; 512]);
    }
}

#[tokio::test]
async fn a_read_only_export_refuses_changes() {
    let export = MemoryExport::new("fixed", MIB).read_only();
    export.fill(0, &[9; 512]);
    let (mut client, _served, _shutdown) = connect(Arc::new(export), Style::Structured).await;
    assert_eq!(client.write(0, &[1; 512]).await, 1);
    assert_eq!(client.request(c::TRIM, 0, 0, 512).await, 1);
    assert_eq!(client.request(c::WRITE_ZEROES, 0, 0, 512).await, 1);
    assert_eq!(client.request(c::FLUSH, 0, 0, 0).await, 0);
    assert_eq!(client.read(0, 0, 512).await.unwrap().0, [9; 512]);
}

/// An export's failures, even its bugs, reach the client as errors of the one request.
#[tokio::test]
async fn failures_of_the_export_have_their_error_numbers() {
    for style in STYLES {
        let (mut client, _served, _shutdown) = connect(Gated::open(), style).await;
        for (offset, fault) in FAULTS {
            let error = match fault {
                Fault::NoSpace => 28,
                Fault::Io => 5,
                Fault::NotSupported => 22,
                Fault::ShuttingDown => 108,
                Fault::Panic => continue,
                Fault::PanicLater => 5,
                Fault::ShortRead | Fault::WrongHoles if style == Style::Simple => continue,
                Fault::ShortRead | Fault::WrongHoles => {
                    assert_eq!(client.read(0, offset, 4096).await.unwrap_err(), 5, "{fault:?}");
                    continue;
                }
                Fault::NoExtents if style == Style::Simple => continue,
                Fault::NoExtents => {
                    assert_eq!(client.request(c::BLOCK_STATUS, 0, offset, 4096).await, 5);
                    continue;
                }
            };
            assert_eq!(client.read(0, offset, 4096).await.unwrap_err(), error, "{fault:?}");
            assert_eq!(client.write(offset, &[1; 4096]).await, error, "{fault:?}");
            assert_eq!(client.request(c::TRIM, 0, offset, 4096).await, error, "{fault:?}");
        }
        let (offset, _) = FAULTS.into_iter().find(|(_, fault)| *fault == Fault::ShortRead).unwrap();
        assert_eq!(client.write(offset, &[1; 4096]).await, 5, "memory of the wrong length");
        assert_eq!(client.write(0, &[1; 4096]).await, 0);
    }
}

#[tokio::test]
async fn every_request_is_counted_with_its_time_and_whether_it_failed() {
    let export = Gated::open();
    let (mut client, _served, _shutdown) = connect(export.clone(), Style::Structured).await;
    // Some are answered at once, some run apart from the connection.
    for len in [512, 4096, 128 << 10] {
        assert_eq!(client.write(0, &vec![1; len]).await, 0);
        client.read(0, 0, len).await.unwrap();
    }
    let (full, _) = FAULTS.into_iter().find(|(_, fault)| *fault == Fault::NoSpace).unwrap();
    assert_eq!(client.write(full, &[1; 4096]).await, 28);
    assert_eq!(client.request(c::TRIM, 0, 0, 65_536).await, 0);
    assert_eq!(client.request(c::FLUSH, 0, 0, 0).await, 0);
    // These are not counted, nor is what the server itself refuses.
    assert_eq!(client.request(c::CACHE, 0, 0, 4096).await, 0);
    assert_eq!(client.request(c::TRIM, 0, 2 * MIB, 4096).await, 22);
    let bytes = 512 + 4096 + (128 << 10);
    for (operation, requests, bytes, failures) in [
        (Operation::Read, 3, bytes as u64, 0),
        (Operation::Write, 4, bytes as u64 + 4096, 1),
        (Operation::Trim, 1, 65_536, 0),
        (Operation::Flush, 1, 0, 0),
        (Operation::WriteZeroes, 0, 0, 0),
    ] {
        let found = export.traffic.of(operation);
        let counted = (found.latencies.count(), found.bytes, found.failures);
        assert_eq!(counted, (requests, bytes, failures), "{operation:?}");
        assert_eq!(found.latencies.sum_seconds() > 0.0, requests > 0, "{operation:?}");
    }
}

#[tokio::test]
async fn a_requests_time_includes_that_in_which_it_waits() {
    let export = Gated::closed(0);
    let (mut client, _served, _shutdown) = connect(export.clone(), Style::Structured).await;
    let begun = std::time::Instant::now();
    client.send_header(c::READ, 0, 7, 0, 4096).await;
    common::until("it waits", || export.waiting.load(Ordering::SeqCst) == 1).await;
    let waited = std::time::Instant::now();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let waited = waited.elapsed();
    export.open_gate();
    client.read_reply(0, 4096).await.unwrap();
    let counted = export.traffic.of(Operation::Read).latencies.sum_seconds();
    let most = begun.elapsed().as_secs_f64();
    assert!(counted >= waited.as_secs_f64() && counted <= most, "{counted}: {waited:?}, {most}");
}

#[tokio::test]
async fn replies_come_as_requests_complete_and_not_in_their_order() {
    let export = Gated::closed(MIB / 2);
    let (mut client, _served, _shutdown) = connect(export.clone(), Style::Structured).await;
    for cookie in 0..8 {
        client.send_header(c::TRIM, 0, cookie, MIB / 2 + 64 * 1024 + cookie * 512, 512).await;
    }
    assert_eq!(client.write(0, &[1; 512]).await, 0, "overtakes those that wait");
    export.open_gate();
    let mut cookies = Vec::new();
    for _ in 0..8 {
        cookies.push(client.chunk(0).await.cookie);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, (0..8).collect::<Vec<_>>());
}

#[tokio::test]
async fn requests_in_flight_are_limited_and_the_rest_waits() {
    let config = ServerConfig { max_requests_in_flight: 4, ..ServerConfig::default() };
    let export = Gated::closed(0);
    let (mut client, _served, _shutdown) =
        connect_with(export.clone(), Style::Simple, config).await;
    for cookie in 0..64 {
        client.send_header(c::TRIM, 0, cookie, 512 * cookie, 512).await;
    }
    common::until("four wait", || export.waiting.load(Ordering::SeqCst) == 4).await;
    export.open_gate();
    for _ in 0..64 {
        assert_eq!(client.chunk(0).await.error, 0);
    }
    assert!(export.most_waiting.load(Ordering::SeqCst) <= 4);
}

#[tokio::test]
async fn memory_held_for_a_client_is_limited_in_both_directions() {
    let config = ServerConfig {
        max_held_bytes: 256 << 10,
        max_payload_bytes: 128 << 10,
        ..ServerConfig::default()
    };
    let export = Gated::closed(0);
    let (client, _served, _shutdown) = connect_with(export.clone(), Style::Simple, config).await;
    let (mut reader, mut writer) = tokio::io::split(client.stream);
    let sender = tokio::spawn(async move {
        for cookie in 0..32u64 {
            use zerocopy::IntoBytes;
            let header = CompactRequest {
                magic: REQUEST_MAGIC.into(),
                flags: 0.into(),
                command: c::WRITE.into(),
                cookie: cookie.into(),
                offset: 0.into(),
                len: (64 << 10).into(),
            };
            writer.write_all(header.as_bytes()).await.unwrap();
            writer.write_all(&[1; 64 << 10]).await.unwrap();
        }
        writer
    });
    common::until("four wait", || export.waiting.load(Ordering::SeqCst) == 4).await;
    // A fifth would exceed the limit: no memory was taken for it.
    assert_eq!(export.allocated.load(Ordering::SeqCst), 256 << 10);
    export.open_gate();
    let mut replies = vec![0; 32 * 16];
    tokio::io::AsyncReadExt::read_exact(&mut reader, &mut replies).await.unwrap();
    drop(sender.await.unwrap());
}

/// A client that sends everything before it reads anything gets every answer.
#[tokio::test]
async fn sending_all_before_reading_any_does_not_lock_up() {
    let (client, _served, _shutdown) = connect(disk(), Style::Simple).await;
    let (mut reader, writer) = tokio::io::split(client.stream);
    let sender = tokio::spawn(async move {
        let mut sending = common::Client::new(writer_only(writer));
        for cookie in 0..200 {
            sending.send_header(c::READ, 0, cookie, 0, 4096).await;
        }
        sending
    });
    let sending = sender.await.unwrap();
    let mut replies = vec![0; 200 * (16 + 4096)];
    tokio::io::AsyncReadExt::read_exact(&mut reader, &mut replies).await.unwrap();
    drop(sending);
}

fn writer_only<W: tokio::io::AsyncWrite + Unpin>(
    writer: W,
) -> impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin {
    tokio::io::join(tokio::io::empty(), writer)
}

#[tokio::test]
async fn disconnecting_waits_for_what_is_under_way_and_answers_it() {
    let export = Gated::closed(0);
    let (mut client, served, _shutdown) = connect(export.clone(), Style::Simple).await;
    client.send_write(0, 5, 0, &[1; 512]).await;
    client.disconnect().await;
    common::until("it waits", || export.waiting.load(Ordering::SeqCst) == 1).await;
    assert!(!served.is_finished());
    export.open_gate();
    assert_eq!(client.chunk(0).await.cookie, 5);
    assert!(client.is_closed().await);
    assert_eq!(served.await.unwrap().unwrap(), Ending::ClientLeft);
}

#[tokio::test]
async fn nothing_runs_any_more_when_a_lost_connection_has_ended() {
    let export = Gated::closed(0);
    let (mut client, served, _shutdown) = connect(export.clone(), Style::Simple).await;
    client.send_write(0, 5, 0, &[1; 512]).await;
    client.send_header(c::WRITE, 0, 6, 0, 512).await;
    drop(client);
    common::until("it waits", || export.waiting.load(Ordering::SeqCst) == 1).await;
    export.open_gate();
    let error = served.await.unwrap().unwrap_err();
    assert!(matches!(error, ConnectionError::Transmission(TransmissionError::Truncated)));
    // The write that was received whole was carried out, the other one was not begun.
    assert_eq!(export.completed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn breaking_the_protocol_ends_the_connection_with_the_reason() {
    let (mut client, served, _shutdown) = connect(disk(), Style::Structured).await;
    client.stream.write_all(&[b'X'; 28]).await.unwrap();
    let error = served.await.unwrap().unwrap_err();
    assert!(matches!(
        error,
        ConnectionError::Transmission(TransmissionError::BadMagic { found: 0x5858_5858, .. })
    ));

    let (mut client, served, _shutdown) = connect(disk(), Style::Extended).await;
    client.send_header(c::WRITE, f::PAYLOAD_LEN, 0, 0, u64::MAX).await;
    let error = served.await.unwrap().unwrap_err();
    assert!(matches!(
        error,
        ConnectionError::Transmission(TransmissionError::PayloadTooLong { len_bytes: u64::MAX })
    ));
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_under_way_and_refuses_the_rest() {
    let export = Gated::closed(0);
    let (mut client, served, shutdown) = connect(export.clone(), Style::Structured).await;
    client.send_write(0, 1, 0, &[1; 512]).await;
    common::until("it waits", || export.waiting.load(Ordering::SeqCst) == 1).await;
    shutdown.begin(Instant::now());
    // Lets the connection's task, on this same thread, take notice.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    client.send_write(0, 2, 0, &[2; 512]).await;
    let reply = client.chunk(0).await;
    assert_eq!((reply.cookie, reply.error), (2, 108));
    export.open_gate();
    let reply = client.chunk(0).await;
    assert_eq!((reply.cookie, reply.error), (1, 0));
    assert!(client.is_closed().await);
    assert_eq!(served.await.unwrap().unwrap(), Ending::Shutdown);
}

#[tokio::test]
async fn every_flush_reaches_the_export() {
    let export = Gated::open();
    let (mut client, _served, _shutdown) = connect(export.clone(), Style::Simple).await;
    for _ in 0..3 {
        assert_eq!(client.request(c::FLUSH, 0, 0, 0).await, 0);
    }
    assert_eq!(export.flushes.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_deleted_export_ends_its_connections_when_all_is_answered() {
    for style in STYLES {
        let export = Gated::closed(common::DELETED_AT + 4096);
        let (mut client, served, _shutdown) = connect(export.clone(), style).await;
        client.send_write(0, 1, common::DELETED_AT + 8192, &[1; 512]).await;
        common::until("it waits", || export.waiting.load(Ordering::SeqCst) == 1).await;
        for (cookie, offset) in [(2, common::DELETED_AT), (3, 0)] {
            client.send_write(0, cookie, offset, &[2; 512]).await;
            let reply = client.chunk(0).await;
            assert_eq!((reply.cookie, reply.error), (cookie, 108), "{style:?}");
        }
        export.open_gate();
        let reply = client.chunk(0).await;
        assert_eq!((reply.cookie, reply.error), (1, 0), "{style:?}");
        assert!(client.is_closed().await);
        assert_eq!(served.await.unwrap().unwrap(), Ending::ExportDeleted);
    }
}
