//! Inserts events into `webhook_spool`, the second path to the workers. Ingest uses it while
//! RabbitMQ is down, and workers use it for events that wait for their next attempt. Claiming rows
//! is done in `worker`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{AcceptedEvent, Companies, Family, database, message::Receipt};

/// An event to be spooled.
#[derive(Debug)]
pub struct SpoolEntry<'a> {
    /// The event.
    pub event: &'a AcceptedEvent,
    /// The family whose worker takes it.
    pub family: Family,
    /// Whether ingest recorded a receipt for it.
    pub receipt: Receipt,
    /// Failed attempts to store it so far.
    pub attempts: i32,
    /// How often a worker claimed it and died before it had finished.
    pub claims: i32,
    /// How long from now until a worker may take it.
    pub delay: Duration,
    /// Why it was spooled.
    pub reason: &'a str,
}

/// Inserts the entries; an event that is already spooled is left unchanged. The caller's
/// transaction must have [`Durability::Replicated`](crate::database::Durability::Replicated),
/// because a row may be the event's only copy. If no row is new, the commit waits for the standby
/// all the same.
pub async fn insert(
    connection: &mut PgConnection,
    entries: &[SpoolEntry<'_>],
) -> Result<(), sqlx::Error> {
    let column = |pick: fn(&AcceptedEvent) -> &str| -> Vec<&str> {
        entries.iter().map(|e| pick(e.event)).collect()
    };
    let bodies: Vec<&[u8]> = entries.iter().map(|e| &e.event.body[..]).collect();
    let hashes: Vec<&[u8]> = entries.iter().map(|e| &e.event.body_sha256[..]).collect();
    let received: Vec<DateTime<Utc>> = entries.iter().map(|e| e.event.received_at).collect();
    let attempted: Vec<Option<DateTime<Utc>>> =
        entries.iter().map(|e| e.event.attempted_at).collect();
    let secrets: Vec<Option<&str>> = entries
        .iter()
        .map(|e| e.event.secret_name.as_deref())
        .collect();
    let companies: Vec<Option<&str>> = entries
        .iter()
        .map(|e| e.event.secret_companies.as_ref().map(Companies::as_str))
        .collect();
    let receipts: Vec<bool> = entries
        .iter()
        .map(|e| e.receipt == Receipt::Recorded)
        .collect();
    let attempts: Vec<i32> = entries.iter().map(|e| e.attempts).collect();
    let claims: Vec<i32> = entries.iter().map(|e| e.claims).collect();
    let delays: Vec<f64> = entries.iter().map(|e| e.delay.as_secs_f64()).collect();
    let reasons: Vec<&str> = entries.iter().map(|e| e.reason).collect();
    let inserted = sqlx::query(
        "insert into webhook_spool
             (webhook_id, body_sha256, family, event_type, body, received_at, attempted_at,
              secret_name, secret_companies, has_receipt, attempts, claims, due_at, last_error)
         select webhook_id, body_sha256, family, event_type, body, received_at, attempted_at,
                secret_name, string_to_array(companies, ' '), has_receipt, attempts, claims,
                now() + make_interval(secs => delay), reason
           from unnest($1::text[], $2::bytea[], $3::text[], $4::text[], $5::bytea[],
                       $6::timestamptz[], $7::timestamptz[], $8::text[], $9::text[], $10::boolean[],
                       $11::int[], $12::int[], $13::float8[], $14::text[])
             as entry (webhook_id, body_sha256, family, event_type, body, received_at,
                       attempted_at, secret_name, companies, has_receipt, attempts, claims, delay,
                       reason)
          order by webhook_id, body_sha256
         on conflict do nothing",
    )
    .bind(column(|event| &event.webhook_id))
    .bind(hashes)
    .bind(families(entries))
    .bind(column(|event| event.event_type.as_str()))
    .bind(bodies)
    .bind(received)
    .bind(attempted)
    .bind(secrets)
    .bind(companies)
    .bind(receipts)
    .bind(attempts)
    .bind(claims)
    .bind(delays)
    .bind(reasons)
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() < entries.len() as u64 {
        check_kept(connection, entries).await?;
    }
    if inserted.rows_affected() == 0 {
        database::make_commit_wait(connection).await?;
    }
    Ok(())
}

fn families(entries: &[SpoolEntry<'_>]) -> Vec<&'static str> {
    entries.iter().map(|entry| entry.family.name()).collect()
}

/// Fails if an event was neither inserted, nor spooled before, nor stored meanwhile: a trigger can
/// skip a row silently. A row of another family does not count, because this family's worker may
/// not take it. `offset 0` keeps the planner from reading whole tables.
async fn check_kept(
    connection: &mut PgConnection,
    entries: &[SpoolEntry<'_>],
) -> Result<(), sqlx::Error> {
    let ids: Vec<&str> = entries.iter().map(|e| &*e.event.webhook_id).collect();
    let conflict_ids: Vec<String> = entries
        .iter()
        .map(|e| e.event.conflict_id(&e.event.webhook_id))
        .collect();
    let hashes: Vec<&[u8]> = entries.iter().map(|e| &e.event.body_sha256[..]).collect();
    let are_kept: bool = sqlx::query_scalar(
        "select not exists (
             select from unnest($1::text[], $2::text[], $3::bytea[], $4::text[])
                 as entry (webhook_id, conflict_id, body_sha256, family)
              where not exists (select from webhook_spool s
                                 where s.webhook_id = entry.webhook_id
                                   and s.body_sha256 = entry.body_sha256
                                   and s.family = entry.family
                                offset 0)
                and not exists (select from events e
                                 where e.webhook_id in (entry.webhook_id, entry.conflict_id)
                                   and e.body_sha256 = entry.body_sha256))",
    )
    .bind(ids)
    .bind(conflict_ids)
    .bind(hashes)
    .bind(families(entries))
    .fetch_one(connection)
    .await?;
    match are_kept {
        true => Ok(()),
        false => Err(sqlx::Error::InvalidArgument(
            "Postgres did not keep the row: does a trigger on webhook_spool skip it, or has another \
             family's row its id?"
                .to_owned(),
        )),
    }
}
