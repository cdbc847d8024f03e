//! TLS: the server's certificate, what clients have to show, and who may go on without.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{error::TlsError, identity::ClientIdentity};

/// What is received at a time: rustls itself asks for 4 KiB.
const RECEIVE_BYTES: usize = 32 << 10;

/// Who has to use TLS, where a server has a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Clients that ask for it.
    Optional,
    /// Everybody: nothing but TLS can be negotiated without.
    Required,
}

/// Where a server's credentials are: files in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by those between it and its authority.
    pub certificate: PathBuf,
    /// The private key that belongs to it, not encrypted.
    pub key: PathBuf,
    /// Whose certificates clients may show.
    pub client_ca: Option<ClientCa>,
}

/// The authorities that vouch for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCa {
    /// Their certificates.
    pub certificates: PathBuf,
    /// Whether clients without a certificate are turned away. Those that show one that cannot be
    /// verified always are.
    pub is_required: bool,
}

/// What a server needs for TLS. Can be loaded again while it serves.
pub struct Tls {
    mode: TlsMode,
    files: TlsFiles,
    acceptor: RwLock<TlsAcceptor>,
}

/// A connection under TLS.
pub(crate) type Encrypted<S> = TlsStream<BufReader<S>>;

impl Tls {
    /// Loads the credentials.
    pub fn load(mode: TlsMode, files: TlsFiles) -> Result<Self, TlsError> {
        let acceptor = RwLock::new(acceptor(&files)?);
        Ok(Self { mode, files, acceptor })
    }

    /// Loads the credentials from the same files again, for connections that come from now on. If
    /// that fails, those that it had stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        *self.acceptor.write() = acceptor(&self.files)?;
        Ok(())
    }

    /// Who has to use it.
    #[must_use]
    pub fn mode(&self) -> TlsMode {
        self.mode
    }

    /// The server's side of a TLS handshake, and who the client is.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<(Encrypted<S>, ClientIdentity)> {
        let acceptor = self.acceptor.read().clone();
        let stream = acceptor.accept(BufReader::with_capacity(RECEIVE_BYTES, stream)).await?;
        let (_, connection) = stream.get_ref();
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let identity =
            certificate.map_or_else(ClientIdentity::anonymous, ClientIdentity::of_certificate);
        Ok((stream, identity))
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let TlsFiles { certificate, key, client_ca } = files;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(certificate)?;
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(|source| match source {
        pem::Error::NoItemsFound => TlsError::NoKey { path: key.clone() },
        source => unreadable(key, source),
    })?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|source| certificate_error(certificate, source))?;
    let config = match client_ca {
        Some(client_ca) => config.with_client_cert_verifier(client_verifier(client_ca, &provider)?),
        None => config.with_no_client_auth(),
    };
    let mut config =
        config.with_single_cert(chain, private_key).map_err(|source| match source {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::KeyMismatch { certificate: certificate.clone(), key: key.clone() }
            }
            rustls::Error::InvalidCertificate(_) => {
                TlsError::Certificate { path: certificate.clone(), source: source.into() }
            }
            source => TlsError::Key { path: key.clone(), source: source.into() },
        })?;
    // Connections are few and long: each shows its certificate anew, and nothing is kept of it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn client_verifier(
    client_ca: &ClientCa,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let path = &client_ca.certificates;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| certificate_error(path, source))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let verifier = match client_ca.is_required {
        true => verifier,
        false => verifier.allow_unauthenticated(),
    };
    verifier.build().map_err(|source| certificate_error(path, source))
}

/// The certificates in a file: one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| unreadable(path, source);
    let certificates = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    match certificates.is_empty() {
        true => Err(TlsError::NoCertificate { path: path.to_owned() }),
        false => Ok(certificates),
    }
}

fn unreadable(path: &Path, source: pem::Error) -> TlsError {
    let path = path.to_owned();
    match source {
        pem::Error::Io(source) => TlsError::File { path, source },
        source => TlsError::Pem { path, source: source.into() },
    }
}

fn certificate_error(
    path: &Path,
    source: impl std::error::Error + Send + Sync + 'static,
) -> TlsError {
    TlsError::Certificate { path: path.to_owned(), source: source.into() }
}
