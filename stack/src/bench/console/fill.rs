//! A database as it is after a long time, written by SQL alone.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use hookctl::sample::{EXPORT_JOB, VENDOR};
use serde::Serialize;
use sqlx::PgPool;
use worker::problem::Kind;

use crate::progress::{Progress, Step};

const EVENTS: &str = include_str!("events.sql");
const VENDORS: &str = include_str!("vendors.sql");
const EXPORT_JOBS: &str = include_str!("export_jobs.sql");
const RECEIPTS: &str = include_str!("receipts.sql");
const WAITING: &str = include_str!("waiting.sql");

/// For how long events have come, as `events.sql` has it.
pub(super) const DAYS: i64 = 30;

/// Days in which each resource had its newest state: a vendor's sixth state comes in the last five, a job's
/// third one in the last ten. Where that is a dead letter, it is the state before.
const DAYS_OF_STATES: i64 = 12;

/// As `RECEIPT_RETENTION`.
const DAYS_OF_RECEIPTS: i64 = 7;

/// What Postgres is asked for at once.
const CHUNK: i64 = 250_000;

/// Open dead letters of many events; of few events a tenth of them.
const DEAD_LETTERS: i64 = 10_000;

/// The company that every fifth resource is of.
pub(super) const LARGE_COMPANY: &str = "b5fdaec1-1b43-4b62-996a-000000000000";

/// One of the 499 others.
pub(super) fn small_company(number: u32) -> String {
    format!("b5fdaec1-1b43-4b62-996a-{:012x}", 1 + number % 499)
}

/// What is in the database.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Filled {
    /// Events in all.
    pub events: i64,
    /// Of them, those of the largest company.
    pub of_largest_company: i64,
    /// Open dead letters.
    pub dead_letters: i64,
    /// Rows of `vendors`.
    pub vendors: i64,
    /// Rows of `export_jobs`.
    pub export_jobs: i64,
    /// Receipts in all.
    pub receipts: i64,
    /// Actions of operators.
    pub actions: i64,
    /// Of the database, indexes included.
    pub mib: i64,
}

/// Writes so many events, and all that follows from them.
pub(super) async fn fill(pool: &PgPool, events: i64, progress: Progress) -> Result<Filled> {
    let step = progress.step(format!("writing {events} events"));
    let now = Utc::now();
    write_events(pool, events, now, &step).await?;
    for (sql, days, what) in [
        (VENDORS, DAYS_OF_STATES, "vendors"),
        (EXPORT_JOBS, DAYS_OF_STATES, "export jobs"),
        (RECEIPTS, DAYS_OF_RECEIPTS, "receipts"),
    ] {
        for day in 0..days {
            step.update(format!("writing {what}: day {} of {days}", day + 1));
            sqlx::query(sql)
                .bind(now - TimeDelta::days(day + 1))
                .bind(now - TimeDelta::days(day))
                .execute(pool)
                .await?;
        }
    }
    sqlx::raw_sql(WAITING).execute(pool).await?;
    step.update("vacuuming".to_owned());
    for sql in ["vacuum (analyze)", "checkpoint"] {
        sqlx::raw_sql(sql).execute(pool).await?;
    }
    let filled = count(pool).await?;
    step.done(&format!("there are {events} events"));
    Ok(filled)
}

async fn write_events(pool: &PgPool, events: i64, now: DateTime<Utc>, step: &Step) -> Result<()> {
    let open = DEAD_LETTERS.min(events / 10);
    let from_one_to_the_next = events / (open * 11 / 10);
    let kinds = Kind::ALL.map(Kind::name);
    let mut first = 0;
    while first < events {
        let next = (first + CHUNK).min(events);
        sqlx::query(EVENTS)
            .bind(first)
            .bind(next - 1)
            .bind(events)
            .bind(now)
            .bind(from_one_to_the_next)
            .bind(kinds)
            .bind(VENDOR.body)
            .bind(EXPORT_JOB.body)
            .execute(pool)
            .await?;
        first = next;
        step.update(format!("writing events: {first} of {events}"));
    }
    Ok(())
}

async fn count(pool: &PgPool) -> Result<Filled> {
    Ok(sqlx::query_as(
        "select (select count(*) from events) as events,
                (select count(*) from events where company_id = $1) as of_largest_company,
                (select count(*) from dead_letters) as dead_letters,
                (select count(*) from vendors) as vendors,
                (select count(*) from export_jobs) as export_jobs,
                (select count(*) from webhook_receipts) as receipts,
                (select count(*) from operator_actions) as actions,
                pg_database_size(current_database()) / 1024 / 1024 as mib",
    )
    .bind(LARGE_COMPANY)
    .fetch_one(pool)
    .await?)
}
