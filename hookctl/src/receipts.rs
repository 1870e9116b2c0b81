//! `hookctl receipts`: receipts whose events are missing, and writing off those whose events will never
//! arrive.

use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use serde_json::{Value, json};
use shared::config::DatabaseArgs;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow};

use crate::{
    actions::Run,
    age,
    database::{self, CHANGING, Connection, READING},
    output::{OutputArgs, Row},
    printable::printable,
    verdict::{Verdict, WrongSettings},
};

/// See receipts whose events are nowhere, and write off those that will not come any more.
///
/// A receipt says that ingest accepted an event. Where the event is neither stored nor spooled, it
/// should still be in RabbitMQ's queue; `hookctl reconcile` tells whether it can be.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    List(ListArgs),
    WriteOff(WriteOffArgs),
    Restore(RestoreArgs),
}

/// List receipts whose events are neither stored nor spooled, the oldest first.
#[derive(Clone, Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    which: Which,

    /// Those that were written off instead
    #[arg(long)]
    written_off: bool,
}

/// Write receipts off: the ledger no longer counts them, and the reason is kept.
///
/// If the event is sent and accepted again, its receipt counts again.
#[derive(Clone, Debug, clap::Args)]
struct WriteOffArgs {
    /// Why the event will not come, for whoever looks at the ledger later
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    reason: String,

    /// Do it. Without this it is only shown which they are
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    which: Which,
}

/// Take write-offs back: the receipts count as unstored again.
#[derive(Clone, Debug, clap::Args)]
struct RestoreArgs {
    /// Do it. Without this it is only shown which they are
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    which: Which,
}

#[derive(Clone, Debug, clap::Args)]
struct Which {
    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    output: OutputArgs,

    /// Only this webhook id; may be repeated
    #[arg(long = "id", value_name = "WEBHOOK_ID")]
    ids: Vec<String>,

    /// Only those that were accepted longer ago than this, such as 2h
    #[arg(long, value_parser = crate::duration::parse)]
    older_than: Option<Duration>,
}

/// The list that a receipt is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unstored,
    WrittenOff,
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    match &args.command {
        Command::List(args) => {
            let state = match args.written_off {
                true => State::WrittenOff,
                false => State::Unstored,
            };
            let mut connection = connect(&args.which).await?;
            let mut transaction = connection.begin(&READING).await?;
            let receipts = find(&mut transaction, &args.which, state).await?;
            args.which.output.print_rows(&receipts)?;
        }
        Command::WriteOff(args) => {
            let change = Change::WriteOff(&args.reason);
            change.run(&args.which, args.yes).await?;
        }
        Command::Restore(args) => Change::Restore.run(&args.which, args.yes).await?,
    }
    Ok(Verdict::Fine)
}

async fn connect(which: &Which) -> anyhow::Result<Connection> {
    let url = which.database.postgres().map_err(WrongSettings::new)?;
    database::connect_to_tables(&url).await
}

/// A receipt whose event is missing.
#[derive(Debug, Serialize)]
struct Receipt {
    webhook_id: String,
    received_at: DateTime<Utc>,
    published_at: Option<DateTime<Utc>>,
    age_s: f64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    write_off: Option<WriteOff>,
}

#[derive(Debug, Serialize)]
struct WriteOff {
    written_off_at: DateTime<Utc>,
    written_off_by: Option<String>,
    write_off_reason: Option<String>,
}

const COLUMNS: &str = "webhook_id, received_at, published_at, written_off_at, written_off_by,
    write_off_reason, extract(epoch from now() - received_at)::float8 as age";

impl Receipt {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let written_off_at: Option<DateTime<Utc>> = row.try_get("written_off_at")?;
        Ok(Self {
            webhook_id: row.try_get("webhook_id")?,
            received_at: row.try_get("received_at")?,
            published_at: row.try_get("published_at")?,
            age_s: row.try_get("age")?,
            write_off: match written_off_at {
                None => None,
                Some(written_off_at) => Some(WriteOff {
                    written_off_at,
                    written_off_by: row.try_get("written_off_by")?,
                    write_off_reason: row.try_get("write_off_reason")?,
                }),
            },
        })
    }
}

impl Row for Receipt {
    const HEADER: &'static [&'static str] = &["webhook id", "accepted (UTC)", "age", "written off"];

    fn cells(&self) -> Vec<String> {
        let write_off = self.write_off.as_ref().map(|write_off| {
            format!(
                "{} UTC by {}: {}",
                write_off.written_off_at.format("%F %R"),
                printable(
                    write_off.written_off_by.as_deref().unwrap_or_default(),
                    false
                ),
                printable(
                    write_off.write_off_reason.as_deref().unwrap_or_default(),
                    false
                )
            )
        });
        vec![
            printable(&self.webhook_id, false),
            self.received_at.format("%F %T").to_string(),
            age::words(self.age_s),
            write_off.unwrap_or_default(),
        ]
    }
}

impl Which {
    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.older_than.is_none()
    }

    /// The given filter, for the audit record.
    fn describe(&self) -> Value {
        json!({
            "older_than_s": self.older_than.map(|age| age.as_secs_f64()),
            "ids": (!self.ids.is_empty()).then_some(&self.ids),
        })
    }

    /// Appends the ids of the selected receipts as a query.
    fn push(&self, state: State, query: &mut QueryBuilder<Postgres>) {
        query.push("select webhook_id from ");
        query.push(match state {
            State::Unstored => "unstored_receipts",
            State::WrittenOff => "written_off_receipts",
        });
        query.push(" where true");
        if !self.ids.is_empty() {
            query.push(" and webhook_id = any(").push_bind(&self.ids);
            query.push(")");
        }
        if let Some(age) = self.older_than {
            query.push(" and received_at < now() - make_interval(secs => ");
            query.push_bind(age.as_secs_f64()).push(")");
        }
    }
}

async fn find(
    connection: &mut PgConnection,
    which: &Which,
    state: State,
) -> Result<Vec<Receipt>, sqlx::Error> {
    let mut query = QueryBuilder::new(format!(
        "select {COLUMNS} from webhook_receipts where webhook_id in ("
    ));
    which.push(state, &mut query);
    query.push(") order by received_at, webhook_id");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter().map(Receipt::read).collect()
}

/// The change of a receipt.
#[derive(Clone, Copy, Debug)]
enum Change<'a> {
    /// Write off, with the reason.
    WriteOff(&'a str),
    Restore,
}

impl Change<'_> {
    #[expect(clippy::print_stderr, reason = "JSON on standard output stays JSON")]
    async fn run(self, which: &Which, yes: bool) -> anyhow::Result<()> {
        if which.is_empty() {
            let error = anyhow!("say which ones, with --id or --older-than");
            return Err(WrongSettings::new(error).into());
        }
        let mut connection = connect(which).await?;
        let (from, verb) = match self {
            Self::WriteOff(_) => (State::Unstored, "written off"),
            Self::Restore => (State::WrittenOff, "restored"),
        };
        if !yes {
            let mut transaction = connection.begin(&READING).await?;
            let receipts = find(&mut transaction, which, from).await?;
            which.output.print_rows(&receipts)?;
            let count = receipts.len();
            eprintln!("{count} would be {verb}; nothing was changed, do it with --yes");
            return Ok(());
        }
        Run::check(&mut connection).await?;
        let (receipts, left_out) = self.apply(&mut connection, which, from).await?;
        which.output.print_rows(&receipts)?;
        for (webhook_id, reason) in left_out {
            eprintln!("{}: {reason}", printable(&webhook_id, false));
        }
        eprintln!("{} {verb}", receipts.len());
        Ok(())
    }

    /// Removes receipts that ingest has published again since they were selected, because their events are
    /// on their way again, and those that somebody else has written off or restored. Says which those are,
    /// and why.
    async fn apply(
        self,
        connection: &mut Connection,
        which: &Which,
        from: State,
    ) -> anyhow::Result<(Vec<Receipt>, Vec<(String, &'static str)>)> {
        let mut query = QueryBuilder::new(
            "with chosen as materialized (
                 select webhook_id as id, published_at as published, written_off_at as was_at,
                        written_off_by as was_by, write_off_reason as was_reason
                   from webhook_receipts
                  where webhook_id in (",
        );
        which.push(from, &mut query);
        query.push(") order by webhook_id), changed as (update webhook_receipts set ");
        match self {
            Self::WriteOff(reason) => query
                .push("written_off_at = now(), written_off_by = session_user, write_off_reason = ")
                .push_bind(reason),
            Self::Restore => {
                query.push("written_off_at = null, written_off_by = null, write_off_reason = null")
            }
        };
        query.push(format!(
            " from chosen where webhook_id = id and published_at is not distinct from published
                            and written_off_at is not distinct from was_at
             returning {COLUMNS},
             jsonb_build_object(
                 'webhook_id', webhook_id,
                 'before', jsonb_build_object('written_off_at', was_at, 'written_off_by', was_by,
                                              'write_off_reason', was_reason),
                 'after', jsonb_build_object('written_off_at', written_off_at,
                                             'written_off_by', written_off_by,
                                             'write_off_reason', write_off_reason)) as change)
             select chosen.id, changed.* from chosen left join changed on webhook_id = id"
        ));
        let applied = connection.change(&CHANGING, async |connection| {
            let rows = query.build().fetch_all(&mut *connection).await?;
            let mut receipts = Vec::new();
            let mut changes = Vec::new();
            let mut left_out: Vec<String> = Vec::new();
            for row in &rows {
                match row.try_get("change")? {
                    None => left_out.push(row.try_get("id")?),
                    Some(change) => {
                        changes.push(change);
                        receipts.push(Receipt::read(row)?);
                    }
                }
            }
            let left_out = self.explain(connection, left_out).await?;
            let run = Run::new(self.action(), which.describe(), None);
            run.record(connection, changes).await?;
            Ok((receipts, left_out))
        });
        applied.await
    }

    fn action(self) -> &'static str {
        match self {
            Self::WriteOff(_) => "receipts write-off",
            Self::Restore => "receipts restore",
        }
    }

    /// Why these were left out, for receipts that still exist.
    async fn explain(
        self,
        connection: &mut PgConnection,
        left_out: Vec<String>,
    ) -> Result<Vec<(String, &'static str)>, sqlx::Error> {
        let sql = "select webhook_id, written_off_at is not null from webhook_receipts
                    where webhook_id = any($1) order by webhook_id";
        let query = sqlx::query_as(sql).bind(left_out);
        let found: Vec<(String, bool)> = query.fetch_all(connection).await?;
        let explain = |(id, is_written_off)| match (self, is_written_off) {
            (Self::WriteOff(_), true) => (id, "somebody else has written it off meanwhile"),
            (Self::Restore, false) => (id, "somebody else has restored it meanwhile"),
            (_, _) => (id, "it was accepted again, or changed, meanwhile"),
        };
        Ok(found.into_iter().map(explain).collect())
    }
}
