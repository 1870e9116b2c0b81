//! The secrets to sign with: the same settings as ingest's, read by the same code.

use std::path::PathBuf;

use anyhow::{Context, bail};
use ingest::{secrets::Secrets, signature::Key};
use secrecy::SecretString;
use shared::text_file;

/// Where the secrets are.
#[derive(Clone, Debug, clap::Args)]
pub struct SecretArgs {
    /// Named secrets, separated by commas, as ingest has them: current=whsec_…,previous=whsec_…
    #[arg(long, env = "WEBHOOK_SECRETS", hide_env_values = true)]
    webhook_secrets: Option<SecretString>,

    /// A file with the named secrets, one a line
    #[arg(
        long,
        alias = "secret-file",
        value_name = "FILE",
        env = "WEBHOOK_SECRETS_FILE",
        conflicts_with = "webhook_secrets"
    )]
    webhook_secrets_file: Option<PathBuf>,
}

/// Which secret signs.
#[derive(Clone, Debug, clap::Args)]
pub struct SigningArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub secrets: SecretArgs,

    /// Name of the secret that signs [default: the first]
    #[arg(long, value_name = "NAME")]
    secret_name: Option<String>,
}

impl SecretArgs {
    /// The secrets, if any are given.
    pub fn read(&self) -> anyhow::Result<Option<Secrets>> {
        match (&self.webhook_secrets, &self.webhook_secrets_file) {
            (Some(text), _) => Secrets::parse(text).map(Some).context("WEBHOOK_SECRETS"),
            (None, Some(path)) => text_file::read(path)
                .and_then(|text| Secrets::parse(&text))
                .map(Some)
                .with_context(|| format!("the secrets in {}", path.display())),
            (None, None) => Ok(None),
        }
    }
}

impl SigningArgs {
    /// The key that signs.
    pub fn key(&self) -> anyhow::Result<Key> {
        let Some(secrets) = self.secrets.read()? else {
            bail!(
                "no secret to sign with: give --webhook-secrets-file FILE, or set \
                 WEBHOOK_SECRETS=name=whsec_… or WEBHOOK_SECRETS_FILE"
            );
        };
        let wanted = |name: &str| self.secret_name.as_deref().is_none_or(|n| n == name);
        let key = secrets.iter().find(|(name, _)| wanted(name));
        let (_, key) = key.with_context(|| {
            let known = secrets.names().collect::<Vec<_>>().join(", ");
            format!("there is no secret of that name, but {known}")
        })?;
        Ok(key.clone())
    }
}
