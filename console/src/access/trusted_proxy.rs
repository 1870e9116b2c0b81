//! A proxy in front of the console that signs people in, and says by a header who asks.

use std::path::Path;

use actix_web::http::header::{HeaderMap, HeaderName};
use anyhow::{Context, ensure};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use shared::text_file;

use super::{Role, User};
use crate::error::PageError;

/// The header in which the proxy sends the secret that it shares with the console.
const SECRET_HEADER: HeaderName = HeaderName::from_static("x-console-secret");

const MIN_SECRET: usize = 32;
const MAX_NAME: usize = 128;

/// Whom a proxy is believed to be, and where it says who asks.
pub struct TrustedProxy {
    secret_sha256: [u8; 32],
    user_header: HeaderName,
    /// Those who may act; all others look.
    operators: Vec<String>,
}

impl TrustedProxy {
    /// Reads the secret, which is all of the file but white space around it. The error never shows it.
    pub fn open(
        secret_file: &Path,
        user_header: &str,
        operators: &[String],
    ) -> anyhow::Result<Self> {
        let at = || format!("TRUSTED_PROXY_SECRET_FILE {}", secret_file.display());
        let text = text_file::read(secret_file).with_context(at)?;
        let secret = text_file::without_mark(text.expose_secret()).trim();
        ensure!(
            secret.len() >= MIN_SECRET && secret.bytes().all(|b| b.is_ascii_graphic()),
            "{} needs at least {MIN_SECRET} printable ASCII characters, as `openssl rand -hex 32` gives",
            at()
        );
        let user_header = user_header
            .parse()
            .context("TRUSTED_PROXY_USER_HEADER is no name of a header")?;
        Ok(Self {
            secret_sha256: Sha256::digest(secret).into(),
            user_header,
            operators: operators.to_vec(),
        })
    }

    /// Who asks, by a proxy that knows the secret.
    pub(super) fn user(&self, headers: &HeaderMap) -> Result<User, PageError> {
        let secret = only(headers, &SECRET_HEADER);
        // Digests, so that the time of the comparison tells nothing about the secret.
        let is_proxy = secret
            .is_some_and(|secret| <[u8; 32]>::from(Sha256::digest(secret)) == self.secret_sha256);
        if !is_proxy {
            return Err(PageError::Forbidden(
                "The console answers only through its proxy, which signs you in.",
            ));
        }
        let name = only(headers, &self.user_header)
            .filter(|name| (1..=MAX_NAME).contains(&name.len()))
            .map(str::to_owned)
            .ok_or(PageError::Forbidden(
                "The proxy does not say who asks: see TRUSTED_PROXY_USER_HEADER.",
            ))?;
        let role = match self.operators.contains(&name) {
            true => Role::Operator,
            false => Role::Viewer,
        };
        Ok(User { name, role })
    }
}

/// The value of a header that is there once. Of two, one may be somebody else's.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name);
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then(|| value.trim())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("short", "x-forwarded-user", "at least 32")]
    #[case("0123456789 123456789 123456789 1234", "x-forwarded-user", "printable")]
    #[case(
        "0123456789abcdef0123456789abcdef",
        "not a name",
        "no name of a header"
    )]
    fn what_would_let_others_in_is_refused_without_showing_it(
        #[case] secret: &str,
        #[case] header: &str,
        #[case] expected: &str,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, secret).expect("a file");
        let error = TrustedProxy::open(&file, header, &[])
            .err()
            .expect("refused");
        let error = format!("{error:#}");
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(secret), "{error}");
    }
}
