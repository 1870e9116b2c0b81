//! The part of the ledger that is in Postgres. Every statement may read whole tables.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row as _};
use worker::problem::Kind;

use super::{
    Args,
    typed_tables::{self, Agreement},
};

/// Classes of age for unstored receipts: names, and the end of each in seconds.
const AGES: [(&str, Option<f64>); 6] = [
    ("under 1m", Some(60.0)),
    ("1m to 5m", Some(300.0)),
    ("5m to 15m", Some(900.0)),
    ("15m to 1h", Some(3_600.0)),
    ("1h to 1d", Some(86_400.0)),
    ("over 1d", None),
];

/// The counts in Postgres.
#[derive(Debug, Serialize)]
pub(super) struct Ledger {
    pub(super) receipts: i64,
    pub(super) events: Events,
    pub(super) spooled: i64,
    /// Accepted, and neither stored nor spooled.
    pub(super) unstored: i64,
    pub(super) unstored_by_age: Vec<Bucket>,
    /// Those of them that were accepted too long ago to be still on their way.
    pub(super) late: i64,
    /// The first of those.
    pub(super) late_receipts: Vec<LateReceipt>,
    /// Accepted, missing, and written off by an operator.
    pub(super) written_off: i64,
    /// The first of those.
    pub(super) written_off_receipts: Vec<WrittenOff>,
    pub(super) typed_tables: Vec<Agreement>,
    /// The first ids of second bodies under a taken id.
    pub(super) second_bodies: Vec<String>,
}

/// The rows of `events`.
#[derive(Debug, Serialize)]
pub(super) struct Events {
    pub(super) stored: i64,
    pub(super) healthy: i64,
    pub(super) dead_letters: i64,
    pub(super) dismissed: i64,
    /// Accepted while Postgres was away: a worker added their receipts.
    pub(super) without_dedup: i64,
    /// Without a receipt, which is swept some days after the event is stored.
    pub(super) receipt_swept: i64,
    pub(super) second_bodies: i64,
}

/// Receipts of one class of age.
#[derive(Debug, Serialize)]
pub(super) struct Bucket {
    pub(super) age: &'static str,
    pub(super) count: i64,
}

/// An accepted event that is neither stored nor spooled.
#[derive(Debug, Serialize)]
pub(super) struct LateReceipt {
    pub(super) webhook_id: String,
    pub(super) received_at: DateTime<Utc>,
    /// When RabbitMQ last confirmed it.
    pub(super) published_at: Option<DateTime<Utc>>,
    pub(super) age_s: f64,
    /// Until then ingest treats a retry as a duplicate; `None` if it accepts one now.
    pub(super) duplicate_until: Option<DateTime<Utc>>,
}

/// A receipt that an operator has written off.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub(super) struct WrittenOff {
    pub(super) webhook_id: String,
    pub(super) received_at: DateTime<Utc>,
    pub(super) written_off_at: DateTime<Utc>,
    pub(super) written_off_by: Option<String>,
    pub(super) write_off_reason: Option<String>,
}

impl Ledger {
    /// Reads everything in the caller's transaction, at most `limit` ids of each finding.
    pub(super) async fn read(connection: &mut PgConnection, args: &Args) -> anyhow::Result<Self> {
        let limit = args.limit;
        let receipts = sqlx::query_scalar("select count(*) from webhook_receipts")
            .fetch_one(&mut *connection)
            .await?;
        let spooled = sqlx::query_scalar("select count(*) from webhook_spool")
            .fetch_one(&mut *connection)
            .await?;
        let unstored_by_age = unstored_by_age(connection).await?;
        let (late, late_receipts) =
            late(connection, args.missing_after, args.receipt_trust, limit).await?;
        let (written_off, written_off_receipts) = written_off(connection, limit).await?;
        Ok(Self {
            receipts,
            events: Events::count(connection).await?,
            spooled,
            unstored: unstored_by_age.iter().map(|bucket| bucket.count).sum(),
            unstored_by_age,
            late,
            late_receipts,
            written_off,
            written_off_receipts,
            typed_tables: typed_tables::compare(
                connection,
                args.event_retention,
                args.newer_states_within,
                limit,
            )
            .await?,
            second_bodies: second_bodies(connection, limit).await?,
        })
    }
}

impl Events {
    async fn count(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        // A worker that adds a missing receipt does so in the transaction that stores the event, with the
        // same time for both.
        let row = sqlx::query(
            "select count(*) as stored,
                    count(*) filter (where problem is null) as healthy,
                    count(*) filter (where problem is not null and dismissed_at is null) as dead,
                    count(*) filter (where problem is not null and dismissed_at is not null)
                        as dismissed,
                    count(*) filter (where r.published_at = e.stored_at) as without_dedup,
                    count(*) filter (where r.webhook_id is null
                                       and (problem is null or problem_kind is distinct from $1))
                        as receipt_swept,
                    count(*) filter (where problem_kind = $1) as second_bodies
               from events e
               left join webhook_receipts r on r.webhook_id = e.webhook_id",
        )
        .bind(Kind::Conflict.name())
        .fetch_one(connection)
        .await?;
        Ok(Self {
            stored: row.try_get("stored")?,
            healthy: row.try_get("healthy")?,
            dead_letters: row.try_get("dead")?,
            dismissed: row.try_get("dismissed")?,
            without_dedup: row.try_get("without_dedup")?,
            receipt_swept: row.try_get("receipt_swept")?,
            second_bodies: row.try_get("second_bodies")?,
        })
    }
}

async fn unstored_by_age(connection: &mut PgConnection) -> Result<Vec<Bucket>, sqlx::Error> {
    let ends: Vec<f64> = AGES.iter().filter_map(|(_, end)| *end).collect();
    let counts: Vec<(i32, i64)> = sqlx::query_as(
        "select width_bucket(extract(epoch from age)::float8, $1::float8[]), count(*)
           from unstored_receipts group by 1",
    )
    .bind(ends)
    .fetch_all(connection)
    .await?;
    let bucket = |(index, &(age, _)): (usize, &(&'static str, _))| Bucket {
        age,
        count: counts
            .iter()
            .filter(|(bucket, _)| usize::try_from(*bucket) == Ok(index))
            .map(|(_, count)| count)
            .sum(),
    };
    Ok(AGES.iter().enumerate().map(bucket).collect())
}

async fn late(
    connection: &mut PgConnection,
    after: Duration,
    receipt_trust: Duration,
    limit: u32,
) -> Result<(i64, Vec<LateReceipt>), sqlx::Error> {
    let count = sqlx::query_scalar(
        "select count(*) from unstored_receipts
          where received_at < now() - make_interval(secs => $1)",
    )
    .bind(after.as_secs_f64())
    .fetch_one(&mut *connection)
    .await?;
    let rows = sqlx::query(
        "select webhook_id, received_at, published_at, extract(epoch from age)::float8 as age,
                case when published_at > now() - make_interval(secs => $3)
                     then published_at + make_interval(secs => $3) end as duplicate_until
           from unstored_receipts
          where received_at < now() - make_interval(secs => $1)
          order by received_at, webhook_id limit $2",
    )
    .bind(after.as_secs_f64())
    .bind(i64::from(limit))
    .bind(receipt_trust.as_secs_f64())
    .fetch_all(connection)
    .await?;
    let receipts = rows.iter().map(|row| {
        Ok(LateReceipt {
            webhook_id: row.try_get("webhook_id")?,
            received_at: row.try_get("received_at")?,
            published_at: row.try_get("published_at")?,
            age_s: row.try_get("age")?,
            duplicate_until: row.try_get("duplicate_until")?,
        })
    });
    Ok((count, receipts.collect::<Result<_, sqlx::Error>>()?))
}

async fn written_off(
    connection: &mut PgConnection,
    limit: u32,
) -> Result<(i64, Vec<WrittenOff>), sqlx::Error> {
    let count = sqlx::query_scalar("select count(*) from written_off_receipts")
        .fetch_one(&mut *connection)
        .await?;
    let receipts = sqlx::query_as(
        "select webhook_id, received_at, written_off_at, written_off_by, write_off_reason
           from written_off_receipts order by written_off_at desc, webhook_id limit $1",
    )
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    Ok((count, receipts))
}

async fn second_bodies(
    connection: &mut PgConnection,
    limit: u32,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select webhook_id from events
          where problem_kind = $1 order by stored_at limit $2",
    )
    .bind(Kind::Conflict.name())
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await
}
