//! The settings of the ingest service.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::bail;
use clap::Parser;
use secrecy::SecretString;
use shared::config::{
    DAY, HOUR, ProcessArgs, SECOND, StoreArgs, parse_duration_in, parse_in_range,
};

use crate::{rotation::Source, secrets::DevelopmentSecret};

/// Senders wait at least 15 s for an answer, and Postgres ends our idle transactions after 15 s.
const MAX_ACCEPT_DEADLINE: u64 = 14 * SECOND;

/// Receives Pleo's webhooks: verifies, dedups, publishes to RabbitMQ, answers 2xx only when safe.
#[derive(Clone, Debug, Parser)]
#[command(name = "ingest", version)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stores: StoreArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub process: ProcessArgs,

    /// Where POST /webhooks/pleo listens
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// The secret, whsec_…, or several with names, separated by commas: current=whsec_…,previous=whsec_…
    #[arg(long, env = "WEBHOOK_SECRETS", hide_env_values = true)]
    pub webhook_secrets: Option<SecretString>,

    /// A file with the secrets, one a line, instead of WEBHOOK_SECRETS; it is read again when it
    /// changes
    #[arg(long, env = "WEBHOOK_SECRETS_FILE", conflicts_with = "webhook_secrets")]
    pub webhook_secrets_file: Option<PathBuf>,

    /// This is no production system: accept the development secret, which everybody knows
    #[arg(long, env = "DEVELOPMENT", default_value_t = false, action = clap::ArgAction::Set)]
    pub development: bool,

    /// How far a webhook's timestamp may be from this server's clock, both ways (1s to 1d)
    #[arg(long, env = "TIMESTAMP_TOLERANCE", default_value = "5m", value_parser = parse_duration_in::<SECOND, DAY>)]
    pub timestamp_tolerance: Duration,

    /// The largest body accepted, in bytes (a worker's batch of them has to fit one statement)
    #[arg(long, env = "BODY_LIMIT", default_value = "262144", value_parser = parse_in_range::<1_024, 524_288>)]
    pub body_limit: usize,

    /// How long a connection without a request stays open (1s to 2h). Set it above the idle time of
    /// the load balancer, which otherwise sends into a connection that is just being closed
    #[arg(long, env = "KEEP_ALIVE", default_value = "75s", value_parser = parse_duration_in::<SECOND, { 2 * HOUR }>)]
    pub keep_alive: Duration,

    /// Verified events under way at once; past it the answer is 503 without delay
    #[arg(long, env = "IN_FLIGHT_LIMIT", default_value = "1024", value_parser = parse_in_range::<1, 65_536>)]
    pub in_flight_limit: usize,

    /// From a read request to its answer, at most (1s to 14s)
    #[arg(long, env = "ACCEPT_DEADLINE", default_value = "5s", value_parser = parse_duration_in::<SECOND, MAX_ACCEPT_DEADLINE>)]
    pub accept_deadline: Duration,

    /// For how long a receipt alone proves that an event is safe; after that it must be in the
    /// database, or a repeated delivery publishes it again (1s to 1d)
    #[arg(long, env = "RECEIPT_TRUST", default_value = "5m", value_parser = parse_duration_in::<SECOND, DAY>)]
    pub receipt_trust: Duration,

    /// The most events published together
    #[arg(long, env = "BATCH_SIZE", default_value = "256", value_parser = parse_in_range::<1, 4_096>)]
    pub batch_size: usize,

    /// The most batches under way at once: one is with Postgres while another one is with RabbitMQ
    #[arg(long, env = "BATCHES_IN_FLIGHT", default_value = "2", value_parser = parse_in_range::<1, 64>)]
    pub batches_in_flight: usize,
}

impl Config {
    /// Where to read the secrets from.
    pub fn secrets_source(&self) -> anyhow::Result<Source> {
        match (&self.webhook_secrets, &self.webhook_secrets_file) {
            (Some(text), _) => Ok(Source::Setting(text.clone())),
            (None, Some(path)) => Ok(Source::File(path.clone())),
            (None, None) => bail!(
                "no secret is configured: set WEBHOOK_SECRETS=whsec_… or WEBHOOK_SECRETS_FILE"
            ),
        }
    }

    /// Whether the development secret is allowed.
    pub fn development_secret(&self) -> DevelopmentSecret {
        if self.development {
            DevelopmentSecret::Allowed
        } else {
            DevelopmentSecret::Refused
        }
    }
}
