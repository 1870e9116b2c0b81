//! The settings of the console.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::ensure;
use clap::Parser;
use secrecy::SecretString;
use shared::{
    config::{DatabaseArgs, ProcessArgs},
    database::DatabaseUrl,
};

use crate::access::Role;

/// Shows the events, the dead letters and the ledger in a browser. Operators can dismiss dead letters
/// and replay them.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "console",
    version,
    after_help = "`console user NAME` asks for a password and prints the line of USERS_FILE for it."
)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub process: ProcessArgs,

    /// Where the pages are. It must be an address of loopback, as everybody who reaches it sees
    /// everything, unless USERS_FILE or TRUSTED_PROXY_SECRET_FILE says who may look
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,

    /// A file with those who may sign in, one a line: name:role:hash of the password, where the role is
    /// viewer or operator. It is read again when it changes
    #[arg(long, env = "USERS_FILE", conflicts_with = "trusted_proxy_secret_file")]
    pub users_file: Option<PathBuf>,

    /// A file with the secret by which a proxy that signs people in proves in the header
    /// X-Console-Secret that it is this proxy
    #[arg(long, env = "TRUSTED_PROXY_SECRET_FILE")]
    pub trusted_proxy_secret_file: Option<PathBuf>,

    /// The header in which that proxy says who asks
    #[arg(
        long,
        env = "TRUSTED_PROXY_USER_HEADER",
        default_value = "X-Forwarded-User"
    )]
    pub trusted_proxy_user_header: String,

    /// Let browsers send the sign-in only over HTTPS (or to the machine that they run on)
    #[arg(long, env = "SECURE_COOKIE", default_value_t = true, action = clap::ArgAction::Set)]
    pub secure_cookie: bool,

    /// Those who may act, by the names that the trusted proxy gives, separated by commas; everybody else
    /// looks
    #[arg(
        long,
        env = "OPERATORS",
        value_delimiter = ',',
        requires = "trusted_proxy_secret_file"
    )]
    pub operators: Vec<String>,

    /// What those may do who reach the console on loopback, where nobody signs in
    #[arg(
        long,
        env = "LOOPBACK_ROLE",
        value_enum,
        default_value_t = Role::Viewer,
        conflicts_with_all = ["users_file", "trusted_proxy_secret_file"]
    )]
    pub loopback_role: Role,

    /// As DATABASE_URL, for the account under which operators act; without it nobody can
    #[arg(long, env = "OPERATOR_DATABASE_URL", hide_env_values = true)]
    pub operator_database_url: Option<SecretString>,

    /// A file with the password for OPERATOR_DATABASE_URL, which then has none
    #[arg(
        long,
        env = "OPERATOR_DATABASE_PASSWORD_FILE",
        requires = "operator_database_url"
    )]
    pub operator_database_password_file: Option<PathBuf>,
}

impl Config {
    /// How to connect as the account under which operators act, in the schema of DATABASE_SCHEMA.
    pub fn operator_database(&self) -> anyhow::Result<Option<DatabaseUrl>> {
        let file = self.operator_database_password_file.as_deref();
        let url = self.operator_database_url.as_ref();
        url.map(|url| self.database.postgres_of("OPERATOR_DATABASE", url, file))
            .transpose()
    }

    /// Refuses an address that other machines reach unless it is known who asks.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.users_file.is_some()
                || self.trusted_proxy_secret_file.is_some()
                || self.listen.ip().is_loopback(),
            "LISTEN is {}, which others can reach, and nobody has to sign in: listen on 127.0.0.1 or \
             [::1], or set USERS_FILE or TRUSTED_PROXY_SECRET_FILE",
            self.listen
        );
        Ok(())
    }
}

/// Prints the line of USERS_FILE for one user.
#[derive(Clone, Debug, Parser)]
#[command(name = "console user")]
pub struct UserArgs {
    /// The name to sign in with: letters, digits, `.`, `-`, `_` and `@`
    pub name: String,

    /// What the user may do
    #[arg(long, value_enum, default_value_t = Role::Viewer)]
    pub role: Role,
}
