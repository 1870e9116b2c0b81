//! A certificate authority of the test's own, and the certificates that it issues.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// A certificate and its key, as PEM files.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Files {
    fn write(folder: &Path, name: &str, certificate: &str, key: &KeyPair) -> Self {
        let files = Self {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, certificate).expect("a file");
        fs::write(&files.key, key.serialize_pem()).expect("a file");
        files
    }
}

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    /// Its own certificate, and its key; a server may be given it by mistake.
    pub(crate) files: Files,
}

impl Authority {
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            files: Files::write(folder, name, &certificate.pem(), &key),
            issuer: Issuer::new(params, key),
            folder: folder.to_owned(),
        }
    }

    /// A certificate for a server with these names, or, without names, for the client with this name.
    pub(crate) fn issue(&self, name: &str, hosts: &[&str]) -> Files {
        self.sign(name, params(name, hosts))
    }

    /// The same as [`Authority::issue`], but expired some years ago.
    pub(crate) fn issue_expired(&self, name: &str, hosts: &[&str]) -> Files {
        let mut params = params(name, hosts);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(&format!("{name}-expired"), params)
    }

    fn sign(&self, file: &str, params: CertificateParams) -> Files {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Files::write(&self.folder, file, &certificate.pem(), &key)
    }
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("good names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}
