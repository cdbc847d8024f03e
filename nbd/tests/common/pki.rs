//! An authority and its certificates, in files of the names that TLS clients of NBD look for.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // For tests and benchmarks, each with its own part.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

/// An authority with a folder: `ca-cert.pem`, `server-cert.pem` and `server-key.pem`.
pub struct Pki {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// An authority, and its certificate for a server on this machine.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("pki").tempdir().unwrap();
        let mut params = params("test authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        std::fs::write(folder.path().join("ca-cert.pem"), authority.pem()).unwrap();
        let pki = Self { folder, authority };
        pki.renew_server();
        pki
    }

    /// Gives the server another certificate.
    pub fn renew_server(&self) {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        self.issue(self.folder.path(), "server", "server", &["localhost", "127.0.0.1"], usage);
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder for a client of that name: `ca-cert.pem`, `client-cert.pem` and `client-key.pem`.
    pub fn client(&self, common_name: &str, dns_names: &[&str]) -> PathBuf {
        let folder = self.stranger(common_name);
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.issue(&folder, "client", common_name, dns_names, usage);
        folder
    }

    /// A folder for a client without a certificate of its own.
    pub fn stranger(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(format!("of {name}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(self.file("ca-cert.pem"), folder.join("ca-cert.pem")).unwrap();
        folder
    }

    fn issue(
        &self,
        folder: &Path,
        role: &str,
        common_name: &str,
        alternatives: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) {
        let mut params = params(common_name, alternatives);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(folder.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }
}

fn params(common_name: &str, alternatives: &[&str]) -> CertificateParams {
    let alternatives: Vec<String> = alternatives.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(alternatives).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}
