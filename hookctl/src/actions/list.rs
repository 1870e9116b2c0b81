//! Lists the record of operators' actions, for people and scripts.

use std::time::Duration;

use anyhow::bail;
use chrono::{DateTime, Utc};
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use serde_json::Value;
use shared::config::DatabaseArgs;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::{
    database::{self, READING},
    duration,
    output::{OutputArgs, Row},
    printable::printable,
    verdict::{Verdict, WrongSettings},
};

/// List what operators have changed, the newest first: who, when, and how they chose it.
///
/// With --json each row also has the changes: what was before and after.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,

    /// Only what this role in Postgres did
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub account: Option<String>,

    /// Only what a program did for this person
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub person: Option<String>,

    /// Only this command, such as "dead-letters dismiss", or all of one, such as dead-letters
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub action: Option<String>,

    /// Only what changed the event of this webhook id, or a typed row that it had set
    #[arg(long, value_name = "WEBHOOK_ID", value_parser = NonEmptyStringValueParser::new())]
    pub id: Option<String>,

    /// Only what is older than this, such as 2h
    #[arg(long, value_parser = duration::parse)]
    pub older_than: Option<Duration>,

    /// Only what was done since then, such as 7d
    #[arg(long, value_parser = duration::parse)]
    pub newer_than: Option<Duration>,

    /// At most so many rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

/// Runs the subcommand.
#[expect(clippy::print_stderr, reason = "JSON on standard output stays JSON")]
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let url = args.database.postgres().map_err(WrongSettings::new)?;
    let mut connection = database::connect_to_tables(&url).await?;
    let mut transaction = connection.begin(&READING).await?;
    let is_there: bool = sqlx::query_scalar("select to_regclass('operator_actions') is not null")
        .fetch_one(&mut *transaction)
        .await?;
    if !is_there {
        bail!(
            "the schema is older than this hookctl: it has no table operator_actions. Run `hookctl \
             setup` of this version first"
        );
    }
    let actions = args.find(&mut transaction).await?;
    args.output.print_rows(&actions)?;
    if actions.is_empty() {
        eprintln!("no actions like that");
    }
    Ok(Verdict::Fine)
}

/// A row of `operator_actions`.
#[derive(Debug, Serialize, FromRow)]
struct Action {
    id: i64,
    run: String,
    at: DateTime<Utc>,
    account: String,
    person: Option<String>,
    action: String,
    filter: Value,
    changed: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Value>,
}

impl Args {
    async fn find(&self, connection: &mut PgConnection) -> Result<Vec<Action>, sqlx::Error> {
        // The table for people has no column for the changes, which may be megabytes.
        let changes = if self.output.json { "changes" } else { "null" };
        let mut query = QueryBuilder::<Postgres>::new(format!(
            "select id, run::text, at, account, person, action, filter, changed,
                    {changes}::jsonb as changes
               from operator_actions where true"
        ));
        if let Some(account) = &self.account {
            query.push(" and account = ").push_bind(account);
        }
        if let Some(person) = &self.person {
            query.push(" and person = ").push_bind(person);
        }
        if let Some(action) = &self.action {
            query.push(" and starts_with(action || ' ', ");
            query.push_bind(format!("{action} ")).push(")");
        }
        if let Some(id) = &self.id {
            // The same expression as in the index.
            query.push(" and jsonb_path_query_array(changes, '$[*].**{0 to 1}.webhook_id') ? ");
            query.push_bind(id);
        }
        if let Some(age) = self.older_than {
            query.push(" and at < now() - make_interval(secs => ");
            query.push_bind(age.as_secs_f64()).push(")");
        }
        if let Some(age) = self.newer_than {
            query.push(" and at > now() - make_interval(secs => ");
            query.push_bind(age.as_secs_f64()).push(")");
        }
        query.push(" order by at desc, id desc limit ");
        query.push_bind(i64::from(self.limit));
        query.build_query_as().fetch_all(connection).await
    }
}

impl Row for Action {
    const HEADER: &'static [&'static str] = &[
        "at (UTC)", "account", "person", "action", "filter", "changed",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.at.format("%F %T").to_string(),
            printable(&self.account, false),
            printable(self.person.as_deref().unwrap_or_default(), false),
            printable(&self.action, false),
            printable(&self.filter.to_string(), false),
            self.changed.to_string(),
        ]
    }
}
