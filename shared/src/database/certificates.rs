//! The TLS files that an address names.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sqlx::postgres::PgSslMode;

use crate::{
    address::AddressError,
    settings_file,
    tls::{Identity, NamedFile},
};

/// The TLS files and the `sslmode` of an address.
#[derive(Clone, Default)]
pub(super) struct Certificates {
    pub(super) mode: Option<PgSslMode>,
    pub(super) root: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl Certificates {
    /// The files that sqlx will read, including those of Postgres' environment variables.
    fn files(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let named = [
            ("sslrootcert of DATABASE_URL", &self.root, "PGSSLROOTCERT"),
            ("sslcert of DATABASE_URL", &self.certificate, "PGSSLCERT"),
            ("sslkey of DATABASE_URL", &self.key, "PGSSLKEY"),
        ];
        named.into_iter().filter_map(|(parameter, path, variable)| {
            let from_variable = || Some((variable, std::env::var_os(variable)?.into()));
            match path {
                Some(path) => Some((parameter, path.clone())),
                None => from_variable(),
            }
        })
    }

    /// Fails if one of the files is not a regular file. For a missing file, sqlx's own error is
    /// clear.
    pub(super) fn check_kinds(&self) -> anyhow::Result<()> {
        for (setting, path) in self.files() {
            settings_file::check(&path)
                .with_context(|| format!("{setting}: cannot read {}", path.display()))?;
        }
        Ok(())
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
        fn named<'a>(setting: &'a str, path: &'a Path) -> NamedFile<'a> {
            NamedFile { setting, path }
        }
        self.check_kinds()?;
        if let Some(root) = &self.root {
            named("sslrootcert of DATABASE_URL", root).authorities()?;
        }
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Identity::read(
                named("sslcert of DATABASE_URL", certificate),
                named("sslkey of DATABASE_URL", key),
            )
            .map(drop),
            (None, None) => Ok(()),
            (Some(_), None) => bail!("DATABASE_URL has sslcert and no sslkey"),
            (None, Some(_)) => bail!("DATABASE_URL has sslkey and no sslcert"),
        }
    }
}

/// The path of a file in an address. Unlike sqlx, it does not accept a certificate or key as text:
/// a key does not belong in an address.
pub(super) fn file(name: &'static str, value: &str) -> Result<PathBuf, AddressError> {
    if value.is_empty() || value.contains("-----") {
        return Err(AddressError::Value(name, "the path of a PEM file"));
    }
    Ok(value.into())
}
