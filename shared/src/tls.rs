//! Reads certificates from PEM files: the authorities that sign a server's certificate, and a
//! client's certificate. Errors name the setting and the file, and never show a key's content.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail, ensure};
use rustls::{
    AlertDescription, CertificateError, Error, InconsistentKeys, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject},
    },
    sign::CertifiedKey,
};

use crate::settings_file;

/// Ten times the size of a system's bundle of all public authorities.
const MAX_BYTES: u64 = 4 << 20;

/// A file and the setting that names it.
#[derive(Clone, Copy, Debug)]
pub struct NamedFile<'a> {
    /// Such as `AMQP_CA_FILE`.
    pub setting: &'a str,
    /// The file's path.
    pub path: &'a Path,
}

impl fmt::Display for NamedFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.path.display())
    }
}

impl NamedFile<'_> {
    fn read(&self) -> anyhow::Result<Vec<u8>> {
        settings_file::read(self.path, MAX_BYTES)
            .with_context(|| format!("{}: cannot read {}", self.setting, self.path.display()))
    }

    fn certificates(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let content = self.read()?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
        let certificates =
            certificates.map_err(|_| anyhow!("{self} has a certificate that is damaged"))?;
        ensure!(
            !certificates.is_empty(),
            "{self} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"
        );
        Ok(certificates)
    }

    fn key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        // The error is not passed on, because it may repeat a line of the file.
        match PrivateKeyDer::from_pem_slice(&self.read()?) {
            Ok(key) => Ok(key),
            Err(PemError::NoItemsFound) => bail!(
                "{self} holds no private key in PEM that can be used: it must not be encrypted"
            ),
            Err(_) => bail!("{self} has a private key that is damaged"),
        }
    }

    /// Reads the authorities' certificates.
    ///
    /// # Errors
    /// If the file cannot be read or has other content.
    pub fn authorities(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let certificates = self.certificates()?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots
                .add(certificate.clone())
                .map_err(|_| anyhow!("{self} has a certificate that cannot be read"))?;
        }
        Ok(certificates)
    }
}

/// A client's certificate chain and its private key.
#[derive(PartialEq, Eq)]
pub struct Identity {
    /// The client's own certificate first, then the intermediate ones.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The key of the first certificate.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads both files.
    ///
    /// # Errors
    /// If a file cannot be read, or the key does not belong to the certificate.
    pub fn read(certificate: NamedFile<'_>, key: NamedFile<'_>) -> anyhow::Result<Self> {
        let identity = Self {
            certificates: certificate.certificates()?,
            key: key.key()?,
        };
        let provider = rustls::crypto::ring::default_provider();
        let certificates = identity.certificates.clone();
        match CertifiedKey::from_der(certificates, identity.key.clone_key(), &provider) {
            Ok(_) => Ok(identity),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => bail!(
                "{key} is not the key of the certificate in {} ({})",
                certificate.path.display(),
                certificate.setting
            ),
            Err(Error::InvalidCertificate(_)) => {
                bail!("{certificate} has a certificate that cannot be read")
            }
            Err(_) => bail!("{key} has a private key of a kind that cannot be used"),
        }
    }
}

/// The explanation of a rustls error, if it is one.
pub fn reason(error: &io::Error) -> Option<String> {
    let inner = error.get_ref()?;
    inner.downcast_ref().map(explain)
}

/// Explains a rustls error in words that need no knowledge of its source.
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => explain_certificate(reason),
        Error::InvalidMessage(_) => "the server does not speak TLS on this port".to_owned(),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server demands a client certificate".to_owned()
        }
        Error::AlertReceived(alert) => format!("the server refuses: {alert:?}"),
        other => other.to_string(),
    }
}

fn explain_certificate(error: &CertificateError) -> String {
    /// webpki's name for this error, which has no variant in rustls.
    const AUTHORITY: &str = "CaUsedAsEndEntity";
    match error {
        CertificateError::UnknownIssuer => {
            "the server's certificate comes from an authority that is not trusted here".to_owned()
        }
        CertificateError::Other(error) if format!("{error:?}").contains(AUTHORITY) => {
            "the server shows the certificate of an authority (CA:TRUE), which no server may have"
                .to_owned()
        }
        other => format!("the server's certificate is not accepted: {other}"),
    }
}

/// The authorities that a connection trusts, and the certificate that it presents.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The only authorities that vouch for the server; without any, the public ones do.
    pub authorities: Vec<CertificateDer<'static>>,
    /// The client's certificate.
    pub identity: Option<Identity>,
}

/// The files of RabbitMQ's [`Tls`]. They are read for each connection, so that a certificate can be
/// renewed without a restart.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// From `AMQP_CA_FILE`, `AMQP_CERT_FILE` and `AMQP_KEY_FILE`.
    ///
    /// # Errors
    /// If there is a certificate without a key, or a key without a certificate.
    pub fn new(
        ca: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => bail!("AMQP_CERT_FILE is set and AMQP_KEY_FILE is not"),
            (None, Some(_)) => bail!("AMQP_KEY_FILE is set and AMQP_CERT_FILE is not"),
        };
        Ok(Self { ca, identity })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ca.is_none() && self.identity.is_none()
    }

    /// Whether there is a client certificate.
    pub fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// If a file cannot be read or has the wrong content, or the key does not belong to the
    /// certificate.
    pub fn read(&self) -> anyhow::Result<Tls> {
        fn named<'a>(setting: &'a str, path: &'a Path) -> NamedFile<'a> {
            NamedFile { setting, path }
        }
        let authorities = match &self.ca {
            Some(ca) => named("AMQP_CA_FILE", ca).authorities()?,
            None => Vec::new(),
        };
        let identity = self.identity.as_ref().map(|(certificate, key)| {
            Identity::read(
                named("AMQP_CERT_FILE", certificate),
                named("AMQP_KEY_FILE", key),
            )
        });
        Ok(Tls {
            authorities,
            identity: identity.transpose()?,
        })
    }
}
