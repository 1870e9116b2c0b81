//! Reads the final state from the stores, when no event is on its way any more.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{PgPool, Row};
use tokio::time::{Instant, sleep};

use super::event::{self, Kind};
use super::system::System;

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Typed rows that do not have the newest state of their resource. The stored events alone determine the
/// newest state; two events of one resource never have the same time.
const OUTDATED: &str = "
    with states as (
        select resource_id, webhook_id, event_type like '%.vendor.%' as is_vendor,
               coalesce(payload->'data'->>'updatedAt', payload->'data'->>'lastUpdatedAt') as time
          from events
         where problem is null and event_type similar to '%.(vendor|export-job).%'),
    newest as (
        select distinct on (is_vendor, resource_id) *
          from states order by is_vendor, resource_id, time::timestamptz desc)
    select format('%s %s: the newest state is of %s (%s), the row shows %s',
                  case when is_vendor then 'vendor' else 'export job' end, n.resource_id,
                  n.webhook_id, n.time, coalesce(v.webhook_id, j.webhook_id, 'none'))
      from newest n
      left join vendors v on n.is_vendor and v.id = n.resource_id
      left join export_jobs j on not n.is_vendor and j.id = n.resource_id
     where n.webhook_id is distinct from coalesce(v.webhook_id, j.webhook_id)";

/// The final state of the stores.
#[derive(Debug, Default)]
pub struct Audit {
    /// Numbers of the events in `events`.
    pub stored: BTreeSet<u64>,
    /// Events that are in `events` more than once.
    pub stored_twice: i64,
    /// Events with a problem that are supposed to have one.
    pub problems: usize,
    /// Numbers of events that have a problem and should not, or the other way round.
    pub wrong_problems: Vec<u64>,
    /// Descriptions of typed rows that do not have the newest state.
    pub outdated: Vec<String>,
    /// Events left in `webhook_spool`.
    pub spooled: i64,
    /// Messages left in the queues.
    pub queued: u64,
    /// Receipts without an event.
    pub unstored_receipts: i64,
}

/// Waits until the queues and the spool are empty, at most until `deadline`, then reads the state.
///
/// # Errors
/// When a store does not answer.
pub(super) async fn audit(
    system: &impl System,
    pool: &PgPool,
    seed: u64,
    deadline: Instant,
) -> Result<Audit> {
    let count = async |sql: &'static str| -> Result<i64> {
        sqlx::query_scalar(sql)
            .fetch_one(pool)
            .await
            .with_context(|| format!("cannot ask: {sql}"))
    };
    let (spooled, queued) = loop {
        let spooled = count("select count(*) from webhook_spool").await?;
        let queued = system.queued().await?;
        if spooled == 0 && queued == 0 || Instant::now() > deadline {
            break (spooled, queued);
        }
        sleep(LOOK_EVERY).await;
    };
    let mut audit = Audit {
        stored_twice: count("select count(*) - count(distinct body_sha256) from events").await?,
        outdated: sqlx::query_scalar(OUTDATED).fetch_all(pool).await?,
        spooled,
        queued,
        unstored_receipts: count("select count(*) from unstored_receipts").await?,
        ..Audit::default()
    };
    let rows = sqlx::query("select webhook_id, problem is not null from events")
        .fetch_all(pool)
        .await?;
    for row in rows {
        let webhook_id: String = row.try_get(0)?;
        let has_problem: bool = row.try_get(1)?;
        let number = event::number_of(seed, &webhook_id)
            .with_context(|| format!("nobody sent {webhook_id}"))?;
        audit.stored.insert(number);
        if has_problem != (event::kind(number) == Kind::Malformed) {
            audit.wrong_problems.push(number);
        } else if has_problem {
            audit.problems += 1;
        }
    }
    Ok(audit)
}

/// Numbers of the events in `events`.
///
/// # Errors
/// When Postgres does not answer.
pub(super) async fn stored(pool: &PgPool, seed: u64) -> Result<BTreeSet<u64>> {
    let ids: Vec<String> = sqlx::query_scalar("select webhook_id from events")
        .fetch_all(pool)
        .await?;
    Ok(ids
        .iter()
        .filter_map(|id| event::number_of(seed, id))
        .collect())
}

/// Waits until all of these are in `events`, and repeats failed queries.
pub(super) async fn until_stored(pool: &PgPool, webhook_ids: &[String]) {
    loop {
        let stored: Result<i64, _> =
            sqlx::query_scalar("select count(*) from events where webhook_id = any($1)")
                .bind(webhook_ids)
                .fetch_one(pool)
                .await;
        // The connection may date from before a restart of Postgres; the next one does not.
        if stored.is_ok_and(|stored| usize::try_from(stored) == Ok(webhook_ids.len())) {
            return;
        }
        sleep(LOOK_EVERY / 4).await;
    }
}
