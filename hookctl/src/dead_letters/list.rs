//! `hookctl dead-letters list`

use operations::dead_letters::{COLUMNS, Filter, Letter, State, family};
use serde::Serialize;
use shared::config::DatabaseArgs;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow};
use worker::problem::Kind;

use super::connect;
use crate::{
    age,
    database::READING,
    output::{OutputArgs, Row},
    printable::printable,
    verdict::Verdict,
};

/// List dead letters, the newest first.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,

    #[command(flatten)]
    output: OutputArgs,

    /// Count them by family, type and problem instead
    #[arg(long)]
    summary: bool,

    /// At most so many rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    #[command(flatten)]
    filter: Filter,

    /// The dismissed ones instead of the open ones
    #[arg(long)]
    dismissed: bool,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut connection = connect(&args.database).await?;
    let mut transaction = connection.begin(&READING).await?;
    let state = if args.dismissed {
        State::Dismissed
    } else {
        State::Open
    };
    if args.summary {
        let groups = groups(&mut transaction, args, state).await?;
        print(args, &groups)?;
    } else {
        let letters = letters(&mut transaction, args, state).await?;
        print(args, &letters)?;
    }
    Ok(Verdict::Fine)
}

/// The first rows, and the total number.
struct Found<R> {
    rows: Vec<R>,
    total: i64,
}

impl<R> Found<R> {
    /// Reads rows that have the `total` in a column.
    fn read(
        rows: &[PgRow],
        read: impl Fn(&PgRow) -> Result<R, sqlx::Error>,
    ) -> Result<Self, sqlx::Error> {
        Ok(Self {
            total: rows.first().map_or(Ok(0), |row| row.try_get("total"))?,
            rows: rows.iter().map(read).collect::<Result<_, _>>()?,
        })
    }
}

#[expect(clippy::print_stderr, reason = "JSON on standard output stays JSON")]
fn print<R: Row>(args: &Args, found: &Found<R>) -> anyhow::Result<()> {
    args.output.print_rows(&found.rows)?;
    let shown = i64::try_from(found.rows.len()).unwrap_or(i64::MAX);
    if found.total > shown {
        eprintln!("and {} more; see them with --limit", found.total - shown);
    } else if shown == 0 {
        let kind = if args.dismissed { "dismissed" } else { "open" };
        eprintln!(
            "no {kind} dead letters{}",
            match args.filter.is_empty() {
                true => "",
                false => " like that",
            }
        );
    }
    Ok(())
}

async fn letters(
    connection: &mut PgConnection,
    args: &Args,
    state: State,
) -> anyhow::Result<Found<Letter>> {
    let mut query = QueryBuilder::<Postgres>::new(format!(
        "select {COLUMNS}, count(*) over () as total from events"
    ));
    args.filter.push(state, &mut query);
    query.push(" order by stored_at desc, webhook_id limit ");
    query.push_bind(i64::from(args.limit));
    let rows = query.build().fetch_all(connection).await?;
    Ok(Found::read(&rows, Letter::read)?)
}

/// Dead letters with the same problem.
#[derive(Debug, Serialize)]
struct Group {
    family: &'static str,
    event_type: String,
    kind: &'static str,
    problem: String,
    count: i64,
    /// Time since the first of them was stored, in seconds.
    oldest_s: f64,
    newest_s: f64,
}

async fn groups(
    connection: &mut PgConnection,
    args: &Args,
    state: State,
) -> anyhow::Result<Found<Group>> {
    // The line number in the body, or in Postgres' source, would separate equal problems.
    let mut query = QueryBuilder::<Postgres>::new(
        "select event_type, problem_kind, what, count(*),
                extract(epoch from now() - min(stored_at))::float8 as oldest,
                extract(epoch from now() - max(stored_at))::float8 as newest,
                count(*) over () as total
           from (select event_type, problem_kind, stored_at,
                        regexp_replace(problem, ' at line \\d+( column \\d+)?', '') as what
                   from events",
    );
    args.filter.push(state, &mut query);
    query.push(
        ") as letter group by event_type, problem_kind, what order by count(*) desc, what limit ",
    );
    query.push_bind(i64::from(args.limit));
    let rows = query.build().fetch_all(connection).await?;
    Ok(Found::read(&rows, |row| {
        let event_type: String = row.try_get("event_type")?;
        Ok(Group {
            family: family(&event_type),
            event_type,
            kind: Kind::shown(row.try_get("problem_kind")?).name(),
            problem: row.try_get("what")?,
            count: row.try_get("count")?,
            oldest_s: row.try_get("oldest")?,
            newest_s: row.try_get("newest")?,
        })
    })?)
}

impl Row for Group {
    const HEADER: &'static [&'static str] = &[
        "count", "family", "type", "kind", "problem", "oldest", "newest",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.count.to_string(),
            self.family.to_owned(),
            printable(&self.event_type, false),
            self.kind.to_owned(),
            printable(&self.problem, false),
            age::words(self.oldest_s),
            age::words(self.newest_s),
        ]
    }
}
