//! `hookctl doctor`: checks everything that the pipeline needs and that can be seen from outside, one file
//! for each area. It changes nothing.

mod backlog;
mod bounds;
mod clocks;
mod durability;
mod encryption;
mod finding;
mod grants;
mod nodes;
mod permissions;
mod postgres;
mod queues;
mod rabbitmq;
mod routes;
mod schema;
mod secrets;
mod services;
mod settings;

use std::time::Duration;

use hyper::Uri;
use shared::{broker::BrokerUrl, config::StoreLocations, database::DatabaseUrl};
use worker::config::RetentionArgs;

use self::finding::Finding;
use crate::{
    duration,
    http::UrlParser,
    management::Management,
    output::OutputArgs,
    secrets::SecretArgs,
    verdict::{Verdict, WrongSettings},
};

/// Check both stores, the queues, the schema, the accounts, the secrets and the clocks.
///
/// It changes nothing. What the user of a store may not look at, or what was not given, is skipped
/// and says so.
///
/// Exit codes: 0 no problem (perhaps warnings), 2 wrong settings, 3 problems.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stores: StoreLocations,

    /// RabbitMQ's management, as http://host:15672, with the user of AMQP_URL; without it only what
    /// AMQP tells is checked
    #[arg(long, env = "RABBITMQ_MANAGEMENT_URL")]
    pub rabbitmq_management_url: Option<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub secrets: SecretArgs,

    /// A service's private port, as http://127.0.0.1:9100, for its readiness and its clock; can be
    /// given several times. Of a webhook port only the clock is read
    #[arg(long, value_parser = UrlParser)]
    pub url: Vec<Uri>,

    /// How long rows of the spool may be overdue
    #[arg(long, default_value = "5m", value_parser = duration::parse)]
    pub overdue: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub retention: RetentionArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

/// The settings of a check, validated.
struct Checkup<'a> {
    args: &'a Args,
    database: DatabaseUrl,
    broker: BrokerUrl,
    management: Option<Management>,
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let checkup = Checkup::new(args).map_err(WrongSettings::new)?;
    let findings = checkup.run().await;
    args.output.print_rows(&findings)?;
    if !args.output.json {
        finding::print_remedies(&findings)?;
    }
    Ok(Verdict::of(!findings.iter().any(Finding::is_problem)))
}

impl<'a> Checkup<'a> {
    fn new(args: &'a Args) -> anyhow::Result<Self> {
        args.retention.check()?;
        let broker = args.stores.broker.broker()?;
        let management = args
            .rabbitmq_management_url
            .as_ref()
            .map(|url| Management::new(url, &broker))
            .transpose()?;
        Ok(Self {
            args,
            database: args.stores.database.postgres()?,
            broker,
            management,
        })
    }

    async fn run(&self) -> Vec<Finding> {
        let mut findings = postgres::check(
            &self.database,
            &self.args.stores.broker.topology_prefix,
            self.args.overdue,
            self.args.retention,
        )
        .await;
        findings.extend(encryption::check(&self.database));
        let topology = self.args.stores.broker.topology();
        let prefix = &self.args.stores.broker.topology_prefix;
        let management = self.management.as_ref();
        findings.extend(rabbitmq::check(&self.broker, management, &topology, prefix).await);
        findings.push(secrets::check(&self.args.secrets));
        findings.extend(services::check(&self.args.url).await);
        findings
    }
}
