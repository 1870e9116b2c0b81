//! `hookctl tail`: shows events as they are stored.

mod cursor;
mod event;

use std::{io, time::Duration};

use anyhow::Context;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use shared::{
    Family,
    broker::reconnect_delays,
    config::DatabaseArgs,
    database::{DatabaseUrl, TransactionMode},
    shutdown,
};
use sqlx::{Postgres, QueryBuilder};
use tokio::time::{sleep, timeout};

use self::{cursor::Cursor, event::Event};
use crate::{
    database::{self, Connection},
    duration, family,
    output::OutputArgs,
    verdict::{Verdict, WrongSettings},
};

/// How often to poll for new events.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The time limit for each answer, and each row of it.
const ROW_DEADLINE: Duration = Duration::from_secs(30);

/// Without time limits of Postgres, which would include the time when nobody reads our output.
const LOOK: TransactionMode = TransactionMode::read()
    .statement_timeout(Duration::ZERO)
    .idle_timeout(Duration::ZERO);

/// Show events as workers store them, until Ctrl-C.
///
/// It only reads from `events`, so any user who may do that will do. It goes on by itself after a
/// restart of Postgres.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,

    /// Only those of a family: export-job, vendor or other
    #[arg(long, value_parser = family::parse)]
    pub family: Option<Family>,

    /// Only those with a problem
    #[arg(long)]
    pub problems: bool,

    /// Begin with so many that are stored already
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub lines: u32,

    /// Begin with those that were stored within this time, instead
    #[arg(long, value_parser = duration::parse, conflicts_with = "lines")]
    pub since: Option<Duration>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let options = args.database.postgres().map_err(WrongSettings::new)?;
    let stop = shutdown::on_signal()?;
    match stop.run_until_cancelled(args.follow(&options)).await {
        Some(ended) => Err(ended),
        None => Ok(Verdict::Fine),
    }
}

impl Args {
    /// Ends only with an error: before the first poll is done, or when the output fails.
    #[expect(clippy::print_stderr, reason = "notes beside the events")]
    async fn follow(&self, options: &DatabaseUrl) -> anyhow::Error {
        let begun = async {
            let mut connection = database::connect_to_tables(options).await?;
            let cursor = self.begin(&mut connection).await?;
            anyhow::Ok((connection, cursor))
        };
        let (mut connection, mut cursor) = match begun.await {
            Ok(begun) => begun,
            Err(error) => return error,
        };
        loop {
            let error = self.watch(connection, &mut cursor).await;
            if error.is::<io::Error>() {
                return error;
            }
            eprintln!(
                "postgres is away ({}); waiting for it",
                shared::reason::one_line(&error)
            );
            let mut delays = reconnect_delays();
            connection = loop {
                sleep(delays.next().unwrap_or_default()).await;
                if let Ok(connection) = database::connect(options).await {
                    break connection;
                }
            };
            eprintln!("postgres is back");
        }
    }

    /// Shows events that are stored already, and returns where to continue.
    async fn begin(&self, connection: &mut Connection) -> anyhow::Result<Cursor> {
        // All in one snapshot: events that the last ones leave out must not look new afterwards.
        let mut snapshot = connection.begin(&LOOK.in_one_snapshot()).await?;
        let now: DateTime<Utc> = sqlx::query_scalar("select now()")
            .fetch_one(&mut *snapshot)
            .await?;
        if let Some(since) = self.since {
            return Ok(Cursor::from(now - since));
        }
        let mut cursor = Cursor::after(now);
        let recent: Vec<(String, DateTime<Utc>)> =
            sqlx::query_as("select webhook_id, stored_at from events where stored_at >= $1")
                .bind(cursor.lower_bound())
                .fetch_all(&mut *snapshot)
                .await?;
        for (webhook_id, stored_at) in recent {
            cursor.pass(webhook_id, stored_at);
        }
        let mut last: Vec<Event> = self
            .select()
            .push(" order by stored_at desc, webhook_id desc limit ")
            .push_bind(i64::from(self.lines))
            .build_query_as()
            .fetch_all(&mut *snapshot)
            .await?;
        last.reverse();
        for event in &last {
            self.output.print(event, Event::to_string)?;
        }
        Ok(cursor)
    }

    /// Shows new events, poll by poll, until the connection ends.
    async fn watch(&self, mut connection: Connection, cursor: &mut Cursor) -> anyhow::Error {
        loop {
            if let Err(error) = self.look(&mut connection, cursor).await {
                return error;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, connection: &mut Connection, cursor: &mut Cursor) -> anyhow::Result<()> {
        let mut query = self.select();
        query
            .push(" and stored_at >= ")
            .push_bind(cursor.lower_bound())
            .push(" order by stored_at, webhook_id");
        let mut transaction = connection.begin(&LOOK).await?;
        let mut events = query.build_query_as::<Event>().fetch(&mut *transaction);
        while let Some(event) = timeout(ROW_DEADLINE, events.try_next())
            .await
            .context("no answer in time")??
        {
            if cursor.pass(event.webhook_id.clone(), event.stored_at) {
                self.output.print(&event, Event::to_string)?;
            }
        }
        drop(events);
        transaction.rollback().await?;
        cursor.forget();
        Ok(())
    }

    /// Selects the wanted events, without further conditions and an order.
    fn select(&self) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new(
            "select webhook_id, event_type, company_id, resource_id, received_at, stored_at,
                    attempts, problem
               from events where true",
        );
        if self.problems {
            query.push(" and problem is not null");
        }
        if let Some(family) = self.family {
            family::push(family, &mut query);
        }
        query
    }
}
