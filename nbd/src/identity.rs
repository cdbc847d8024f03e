//! Who a client is: the names in the certificate that it has shown.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    attr::AttributeTypeAndValue,
    der::{self, Decode, oid::db::rfc4519::COMMON_NAME},
    ext::pkix::{
        SubjectAltName,
        name::{DirectoryString, GeneralName},
    },
};

/// Who a client is. Only names that a trusted authority has certified count; a client without TLS,
/// or without a certificate, has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientIdentity {
    names: Vec<String>,
}

impl ClientIdentity {
    /// A client that has shown nothing.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A client with these names, for tests of a [`crate::Catalog`].
    #[must_use]
    pub fn named(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect() }
    }

    /// Its names, as the certificate spells them: those of its subject (CN), then its DNS names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Of a certificate that has been verified.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Self {
        match names(certificate) {
            Ok(names) => Self { names },
            Err(error) => {
                tracing::warn!(%error, "the names in a client's certificate cannot be read");
                Self::anonymous()
            }
        }
    }
}

impl fmt::Display for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.as_slice() {
            [] => f.write_str("anonymous"),
            names => f.write_str(&names.join(", ")),
        }
    }
}

fn names(certificate: &[u8]) -> der::Result<Vec<String>> {
    let certificate = Certificate::from_der(certificate)?;
    let certificate = certificate.tbs_certificate();
    let is_common_name = |part: &&AttributeTypeAndValue| part.oid == COMMON_NAME;
    let mut names = Vec::new();
    for part in certificate.subject().iter().filter(is_common_name) {
        names.push(DirectoryString::try_from(&part.value)?.value().into_owned());
    }
    if let Some((_, SubjectAltName(alternatives))) = certificate.get_extension()? {
        for alternative in alternatives {
            if let GeneralName::DnsName(name) = alternative {
                names.push(name.as_str().to_owned());
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(common_names: &[&str], dns_names: &[&str]) -> CertificateDer<'static> {
        let dns_names: Vec<String> = dns_names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(dns_names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "mallory");
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn names_are_the_subjects_and_the_dns_names() {
        let identity = ClientIdentity::of_certificate(&certificate(&["größe"], &["a.test", "b"]));
        assert_eq!(identity.names(), ["größe", "a.test", "b"]);
        assert_eq!(identity.to_string(), "größe, a.test, b");
    }

    #[test]
    fn without_names_or_a_certificate_that_can_be_read_a_client_is_anonymous() {
        for certificate in [certificate(&[], &[]), CertificateDer::from(vec![0x30, 3, 1, 1, 1])] {
            assert_eq!(ClientIdentity::of_certificate(&certificate), ClientIdentity::anonymous());
        }
    }
}
