#![no_main]
//! A client that sends anything, from the greeting on or after a proper negotiation, to a server
//! without TLS, with it, or through it.

#[path = "../../nbd/tests/common/pki.rs"]
mod pki;

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use siltstone_fuzz::client::{self, EXPORT, STYLES, Style, negotiation, request};
use siltstone_nbd::{
    Export, Limits, ServerConfig, Shutdown, Tls, TlsFiles, TlsMode,
    memory_export::{FixedCatalog, MemoryExport},
    protocol::{Greeting, OptionReplyHeader, command, command_flag, option},
    serve_stream,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    runtime::{Builder, Runtime},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const EXPORT_BYTES: u64 = 1 << 20;
/// What a client says to the greeting.
const FLAGS: [u8; 4] = 3u32.to_be_bytes();

/// What TLS is to a conversation.
#[derive(Clone, Copy)]
enum Protection {
    Unavailable,
    Optional,
    Required,
    /// The client starts it before it says anything else.
    InForce,
}

const PROTECTIONS: [Protection; 4] =
    [Protection::Unavailable, Protection::Optional, Protection::Required, Protection::InForce];

/// Both ends of TLS.
struct Ends {
    optional: Arc<Tls>,
    required: Arc<Tls>,
    connector: TlsConnector,
}

static ENDS: LazyLock<Ends> = LazyLock::new(|| {
    let pki = pki::Pki::new();
    let load = |mode| {
        let (certificate, key) = (pki.file("server-cert.pem"), pki.file("server-key.pem"));
        let tls = Tls::load(mode, TlsFiles { certificate, key, client_ca: None });
        Arc::new(tls.expect("these certificates were just made"))
    };
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(pki.file("ca-cert.pem")).expect("it was written");
    roots.add(root).expect("it is a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("these versions are there")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ends {
        optional: load(TlsMode::Optional),
        required: load(TlsMode::Required),
        connector: TlsConnector::from(Arc::new(config)),
    }
});

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

/// What the client sends, and what TLS is to it.
fn script(input: &[u8]) -> (Vec<u8>, Protection) {
    let (&[mode], rest) = input.split_first_chunk().unwrap_or((&[0], input));
    let style = STYLES[usize::from(mode / 3) % 3];
    let protection = PROTECTIONS[usize::from(mode / 9) % 4];
    let bytes = match mode % 3 {
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
    };
    (bytes, protection)
}

/// The client's way to TLS.
async fn start_tls(mut stream: DuplexStream) -> std::io::Result<TlsStream<DuplexStream>> {
    stream.read_exact(&mut [0; size_of::<Greeting>()]).await?;
    stream.write_all(&FLAGS).await?;
    stream.write_all(&client::option(option::STARTTLS, &[])).await?;
    stream.read_exact(&mut [0; size_of::<OptionReplyHeader>()]).await?;
    let name = ServerName::try_from("localhost").expect("it is a name");
    ENDS.connector.connect(name, stream).await
}

/// Sends everything, reading all the while.
async fn send(stream: impl AsyncRead + AsyncWrite, bytes: &[u8]) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = async {
        let mut sink = vec![0; 16 << 10];
        while reader.read(&mut sink).await.is_ok_and(|len| len > 0) {}
    };
    let writing = async {
        // The server may close first.
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    tokio::join!(reading, writing);
}

async fn converse(bytes: Vec<u8>, protection: Protection) {
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
    let limits = Limits::new(config).expect("these limits can work together");
    let limits = match protection {
        Protection::Unavailable => limits,
        Protection::Optional => limits.with_tls(ENDS.optional.clone()),
        Protection::Required | Protection::InForce => limits.with_tls(ENDS.required.clone()),
    };
    let shutdown = Shutdown::new();
    let signal = shutdown.signal();
    let client = async {
        match protection {
            Protection::InForce => {
                let stream = start_tls(near).await.expect("TLS comes about");
                // The greeting is answered already.
                send(stream, bytes.strip_prefix(&FLAGS).unwrap_or(&bytes)).await;
            }
            _ => send(near, &bytes).await,
        }
    };
    let serving = serve_stream(far, &catalog, &limits, signal);
    let _ = tokio::join!(client, serving);
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (bytes, protection) = script(input);
    RUNTIME.block_on(converse(bytes, protection));
});
