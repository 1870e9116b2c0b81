//! `hookctl secrets distrust`: reverts the events that a stolen secret signed. They become dead letters of
//! a kind of their own, and the typed rows that they had set are computed again from the healthy events
//! that are left.
//!
//! Workers run meanwhile. All events of a resource are reverted in one transaction with its row, so no
//! transaction leaves a row of a distrusted event, or shows an older forged state.

mod batch;
mod report;
mod set;

use anyhow::{Context, anyhow, bail};
use chrono::{DateTime, Utc};
use clap::builder::NonEmptyStringValueParser;
use serde_json::json;
use shared::{config::DatabaseArgs, shutdown};
use tokio_util::sync::CancellationToken;

use self::{
    batch::{Batch, Done},
    report::Report,
    set::{LONG, Set},
};
use crate::{
    actions::Run,
    database::{self, Connection, READING},
    output::OutputArgs,
    progress, time,
    typed_table::{Survivors, Table},
    verdict::{Verdict, WrongSettings},
};

/// Act on what a webhook secret has signed.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    Distrust(DistrustArgs),
}

/// Take back what a stolen secret signed: its events become dead letters, and rows that they had set
/// are computed again from the other events, or removed if there is none.
///
/// Take the secret out of ingest's settings first. Without --yes it is only shown how much there is.
/// Workers may run meanwhile. It can be stopped and repeated at any time; events that were still in the
/// spool or in RabbitMQ are taken back by a later run.
///
/// Exit codes: 0 done (or shown), 1 it could not be done or was stopped, 2 wrong settings, 3 done, and
/// events of the secret wait in the spool, so that it has to be run again.
#[derive(Clone, Debug, clap::Args)]
struct DistrustArgs {
    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    which: Which,

    /// Do it. Without this it is only shown what would change
    #[arg(long)]
    yes: bool,
}

/// Which events are distrusted.
#[derive(Clone, Debug, clap::Args)]
struct Which {
    /// Name of the secret, as ingest's settings have it
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    secret: String,

    /// Only events that ingest received at this time or later, such as 2026-11-26T10:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    since: DateTime<Utc>,

    /// Only events that ingest received before this time [default: all since then]
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    until: Option<DateTime<Utc>>,
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let Command::Distrust(args) = &args.command;
    if args
        .which
        .until
        .is_some_and(|until| until <= args.which.since)
    {
        return Err(WrongSettings::new(anyhow!("--until is not later than --since")).into());
    }
    let url = args.database.postgres().map_err(WrongSettings::new)?;
    let stop = shutdown::on_signal()?;
    let mut connection = database::connect_to_tables(&url).await?;
    let tables = Table::find_all(&mut *connection.begin(&READING).await?).await?;
    let mut report = Report::look(&mut connection, &args.which, &tables).await?;
    if args.yes {
        Run::check(&mut connection).await?;
        let distrust = Distrust {
            which: &args.which,
            tables: &tables,
            run: Run::new("secrets distrust", args.which.describe(), None),
            stop: &stop,
        };
        report.done = Some(distrust.all(&mut connection).await?);
        report.count_spooled(&mut connection, &args.which).await?;
    }
    args.output.print(&report, Report::text)?;
    Ok(Verdict::of(!args.yes || report.is_complete()))
}

impl Which {
    fn describe(&self) -> serde_json::Value {
        json!({"secret": self.secret, "since": self.since, "until": self.until})
    }
}

struct Distrust<'a> {
    which: &'a Which,
    tables: &'a [Table],
    run: Run,
    stop: &'a CancellationToken,
}

impl Distrust<'_> {
    async fn all(&self, connection: &mut Connection) -> anyhow::Result<Done> {
        let set = Set::find(connection, self.which, self.tables).await?;
        let survivors = self.survivors(connection, &set).await?;
        let bar = progress::bar(set.len() as u64);
        let mut done = Done::default();
        for groups in set.batches() {
            if self.stop.is_cancelled() {
                bail!(
                    "stopped after {} events; what was done stays done. Run it again for the others",
                    done.distrusted
                );
            }
            let batch = Batch {
                which: self.which,
                tables: self.tables,
                survivors: &survivors,
                run: &self.run,
                groups,
            };
            done.add(batch.apply(connection).await.with_context(|| {
                format!(
                    "{} event(s) distrusted, with their rows, and none of the others; run it again for those",
                    done.distrusted
                )
            })?);
            bar.inc(groups.iter().map(|group| group.ids.len() as u64).sum());
        }
        bar.finish_and_clear();
        Ok(done)
    }

    /// The events that can set the rows instead, by the index of the table.
    async fn survivors(
        &self,
        connection: &mut Connection,
        set: &Set,
    ) -> anyhow::Result<Vec<Survivors>> {
        let mut transaction = connection.begin(&LONG).await?;
        let mut survivors = Vec::new();
        for (place, table) in self.tables.iter().enumerate() {
            let trust = |query: &mut _| self.which.push_others(query);
            let resources = set.resources(place);
            let found = Survivors::find(&mut transaction, table, &resources, &trust).await?;
            survivors.push(found);
        }
        Ok(survivors)
    }
}
