#![no_main]
//! A client that sends anything, from the greeting on or after a proper negotiation.

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use siltstone_fuzz::client::{EXPORT, STYLES, Style, negotiation, request};
use siltstone_nbd::{
    Export, ServerConfig, Shutdown,
    memory_export::{FixedCatalog, MemoryExport},
    protocol::{command, command_flag},
    serve_stream,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
};

const EXPORT_BYTES: u64 = 1 << 20;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_all().build().expect("a runtime needs no more than this")
});

/// A request with its payload, mostly well formed.
fn next_request(style: Style, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let number = input.int_in_range(0..=9)?;
    let mut flags = u16::from(input.arbitrary::<u8>()?) & 0x1f;
    if input.ratio(1, 8)? {
        flags = input.arbitrary()?;
    }
    let wide = input.ratio(1, 8)?;
    let offset =
        if wide { input.arbitrary()? } else { input.arbitrary::<u64>()? % (EXPORT_BYTES + 1) };
    let len: u64 = if wide { input.arbitrary()? } else { input.int_in_range(0..=0x1_8000)? };
    let with_payload = number == command::WRITE;
    if with_payload && style == Style::Extended {
        flags |= command_flag::PAYLOAD_LEN;
    }
    let mut bytes = request(style, number, flags, input.arbitrary::<u8>()?.into(), offset, len);
    if with_payload {
        bytes.resize(bytes.len() + len.min(1 << 18) as usize, input.arbitrary()?);
    }
    Ok(bytes)
}

/// What the client sends.
fn script(input: &[u8]) -> Vec<u8> {
    let (&[mode], rest) = input.split_first_chunk().unwrap_or((&[0], input));
    let style = STYLES[usize::from(mode / 3) % 3];
    match mode % 3 {
        0 => rest.to_vec(),
        1 => [&*negotiation(style), rest].concat(),
        _ => {
            let mut bytes = negotiation(style);
            let mut input = Unstructured::new(rest);
            while !input.is_empty() && bytes.len() < 1 << 20 {
                let Ok(request) = next_request(style, &mut input) else { break };
                bytes.extend(request);
            }
            bytes
        }
    }
}

async fn converse(bytes: Vec<u8>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let export = MemoryExport::new(EXPORT, EXPORT_BYTES);
    export.fill(1 << 16, &[9; 5000]);
    let exports: Vec<Arc<dyn Export>> = vec![Arc::new(export)];
    let catalog = FixedCatalog::new(exports);
    let config = ServerConfig {
        max_requests_in_flight: 8,
        max_held_bytes: 256 << 10,
        max_payload_bytes: 128 << 10,
        ..ServerConfig::default()
    };
    let shutdown = Shutdown::new();
    let signal = shutdown.signal();
    let (mut reader, mut writer) = tokio::io::split(near);
    let reading = async {
        let mut sink = vec![0; 16 << 10];
        while reader.read(&mut sink).await.is_ok_and(|len| len > 0) {}
    };
    let writing = async {
        // The server may close first.
        let _ = writer.write_all(&bytes).await;
        let _ = writer.shutdown().await;
    };
    let serving = serve_stream(far, &catalog, &config, signal);
    let _ = tokio::join!(reading, writing, serving);
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| RUNTIME.block_on(converse(script(input))));
