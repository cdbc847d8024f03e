//! Requests of 1 MiB in order, 8 under way, through TLS and in plaintext, to the same server; and what
//! connections take that do nothing under TLS.

use std::{
    error::Error,
    io::{self, BufReader, Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use siltstone_benches::report::{Report, Target, Turns, Unit};
use siltstone_nbd::protocol::{OptionReplyHeader, option};

use crate::{
    Outcome,
    bed::{Bed, PIECE_BYTES},
    client::{self, Pipeline},
    many,
    pki::Pki,
    sequential::{DEPTH, Work, by_client},
    servers::{self, Server},
};

/// What the client receives at a time: rustls itself asks for 4 KiB.
const RECEIVE_BYTES: usize = 64 << 10;

/// A socket that is read in large pieces.
struct Buffered(BufReader<UnixStream>);

impl Read for Buffered {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

pub(crate) fn read(bed: &Bed, report: &mut Report) -> Outcome {
    measure(bed, report, Work::Read, "sequential read, 1 MiB, qd 8, TLS beside plaintext")
}

pub(crate) fn write(bed: &Bed, report: &mut Report) -> Outcome {
    measure(bed, report, Work::Write, "sequential write, 1 MiB, qd 8, TLS beside plaintext")
}

/// The memory of connections that do nothing, under TLS.
pub(crate) fn idle(bed: &Bed, report: &mut Report, connections: usize) -> Outcome {
    let pki = Pki::new();
    let options = server_options(&pki);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let config = client_config(&pki)?;
    let name = format!("memory of {connections} idle connections under TLS");
    let connect = |server: &Server| connect(server, &config);
    many::idle_over(bed, report, &name, &options, connect, connections)
}

fn server_options(pki: &Pki) -> [String; 6] {
    let file = |name: &str| pki.file(name).display().to_string();
    let (certificate, key) = (file("server-cert.pem"), file("server-key.pem"));
    ["--tls", "optional", "--tls-cert", &certificate, "--tls-key", &key].map(String::from)
}

fn measure(bed: &Bed, report: &mut Report, work: Work, name: &str) -> Outcome {
    let pki = Pki::new();
    let options = server_options(&pki);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let config = client_config(&pki)?;
    let mut rate = Turns::new(name, Unit::BytesPerSecond, Target::NONE);
    let mut cpu = Turns::new("the server's processor time", Unit::MicrosecondsEach, Target::NONE);
    for _ in 0..bed.rounds {
        // Each begins with a pool just opened, and an empty one if it writes.
        let start = || -> Result<Server, Box<dyn Error>> {
            if work == Work::Write {
                bed.make_pool()?;
            }
            servers::siltstone(&bed.program, &bed.pool, &options)
        };
        let turn = |encrypted: bool| -> Result<(f64, f64), Box<dyn Error>> {
            let server = start()?;
            let cpu_start = server.cpu_seconds()?;
            let sample = if encrypted {
                let stream = connect(&server, &config)?;
                by_client(bed, work, &mut Pipeline::over(stream, DEPTH as u64))?
            } else {
                let mut pipeline = Pipeline::new(&server.socket, server.export, DEPTH as u64)?;
                by_client(bed, work, &mut pipeline)?
            };
            let server_seconds = server.cpu_seconds()? - cpu_start;
            let pieces = sample.seconds() * sample.rate();
            Ok((sample.times(PIECE_BYTES as u64).rate(), server_seconds / pieces * 1e6))
        };
        let ((plain, plain_us), (encrypted, encrypted_us)) = (turn(false)?, turn(true)?);
        rate.add(encrypted, plain);
        cpu.add(encrypted_us, plain_us);
    }
    report.add(rate);
    report.add(cpu);
    Ok(())
}

fn client_config(pki: &Pki) -> Result<Arc<ClientConfig>, Box<dyn Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.file("ca-cert.pem"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A connection in transmission, under TLS.
fn connect(
    server: &Server,
    config: &Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, Buffered>, Box<dyn Error>> {
    let mut stream = client::greet(&server.socket)?;
    stream.write_all(&client::option(option::STARTTLS, &[]))?;
    stream.read_exact(&mut [0; size_of::<OptionReplyHeader>()])?;
    let connection = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
    let stream = Buffered(BufReader::with_capacity(RECEIVE_BYTES, stream));
    let mut stream = StreamOwned::new(connection, stream);
    client::choose(&mut stream, server.export)?;
    Ok(stream)
}
