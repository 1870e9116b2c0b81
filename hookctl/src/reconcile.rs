//! `hookctl reconcile`: checks the ledger. Every accepted event is stored, spooled or in RabbitMQ, and
//! stored events agree with the typed tables. The check relies on no service.

mod ledger;
mod queues;
mod report;
mod typed_rows;
mod typed_tables;

use std::time::Duration;

use shared::{config::StoreLocations, database::TransactionMode};

use worker::config::{Retention, parse_retention};

use self::{ledger::Ledger, queues::Queues, report::Report};
use crate::{
    database::{self, Connection, READING},
    duration,
    management::Management,
    output::OutputArgs,
    verdict::{Verdict, WrongSettings},
};

/// Check that whatever was accepted is stored, or on its way.
///
/// Exit codes: 0 nothing is missing and the tables agree, 1 it could not be checked, 2 wrong
/// settings, 3 something is missing or disagrees.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stores: StoreLocations,

    /// RabbitMQ's management, as http://host:15672, which also knows what workers have in hand.
    /// Without it only messages that nobody has taken are counted, so that a long backlog can look
    /// like a loss while it is worked off
    #[arg(long, env = "RABBITMQ_MANAGEMENT_URL")]
    pub rabbitmq_management_url: Option<String>,

    /// How long an accepted event may be on its way
    #[arg(long, default_value = "15m", value_parser = duration::parse)]
    pub missing_after: Duration,

    /// For how long ingest takes a repetition for a duplicate by its receipt alone, as ingest has it
    #[arg(long, env = "RECEIPT_TRUST", default_value = "5m", value_parser = duration::parse)]
    pub receipt_trust: Duration,

    /// At most so many ids of each finding
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub limit: u32,

    /// How long the workers keep events, if not forever: the events of older typed rows may be gone
    #[arg(long, env = "EVENT_RETENTION", default_value = "forever", value_parser = parse_retention)]
    pub event_retention: Retention,

    /// Look for newer states than those of the typed rows only among events that were received within
    /// this time, such as 7d [default: among all]
    #[arg(long, value_parser = duration::parse)]
    pub newer_states_within: Option<Duration>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let report = look(args).await?;
    args.output.print(&report, Report::text)?;
    Ok(Verdict::of(report.is_fine()))
}

/// Counts the queues first and reads Postgres after them. An event that is not in Postgres by then was
/// still in its queue at the count. In the other order, a backlog that a worker stores between the two
/// would look like a loss. Events that arrive meanwhile are too young to count.
async fn look(args: &Args) -> anyhow::Result<Report> {
    let database = args
        .stores
        .database
        .postgres()
        .map_err(WrongSettings::new)?;
    let broker = args.stores.broker.broker().map_err(WrongSettings::new)?;
    let topology = args.stores.broker.topology();
    let management = args.rabbitmq_management_url.as_deref();
    let management = management
        .map(|url| Management::new(url, &broker))
        .transpose()
        .map_err(WrongSettings::new)?;
    let mut queues = Queues::count(&broker, &topology).await?;
    if let Some(management) = management {
        queues
            .add_unacknowledged(&management, &broker.vhost())
            .await?;
    }
    let mut postgres = database::connect_to_tables(&database).await?;
    let ledger = snapshot(&mut postgres, args).await?;
    Ok(Report::new(queues, ledger, args.missing_after))
}

/// Time limit, as it may have to compare every event with its rows.
const SNAPSHOT: TransactionMode = READING
    .in_one_snapshot()
    .statement_timeout(Duration::from_secs(1_800));

/// Reads everything in Postgres in one snapshot.
async fn snapshot(postgres: &mut Connection, args: &Args) -> anyhow::Result<Ledger> {
    let mut transaction = postgres.begin(&SNAPSHOT).await?;
    let ledger = Ledger::read(&mut transaction, args).await?;
    transaction.rollback().await?;
    Ok(ledger)
}
