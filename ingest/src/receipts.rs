//! `webhook_receipts`: ingest's memory of what it answered 2xx to.
//!
//! A receipt is written in a transaction that commits only after the broker's confirm, so a crash
//! in between leaves none and the sender's retry goes through.

use std::{collections::HashMap, time::Duration};

use shared::{
    AcceptedEvent,
    database::{Durability, TransactionMode},
};
use sqlx::{PgConnection, Row};

use crate::acceptor::Layer;

/// A receipt may be lost in a crash of Postgres (then a repetition is published again, which the
/// workers absorb), so its commit need not wait for the disk. The limits free the locks of an ingest
/// that froze in the middle.
pub const MODE: TransactionMode = TransactionMode::write(Durability::Relaxed)
    .lock_timeout(Duration::from_secs(1))
    .statement_timeout(Duration::from_secs(5))
    .idle_timeout(Duration::from_secs(15));

/// Inserts the receipts that are not there yet. The order of the ids makes two batches with the same
/// ones wait instead of deadlocking. Times are the database's: one clock for all that looks at
/// receipts, whatever machine ingest runs on.
const INSERT: &str =
    "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
     select id, body_sha256, now(), now()
       from unnest($1::text[], $2::bytea[]) as r (id, body_sha256)
      order by id
     on conflict do nothing
     returning webhook_id";

/// The receipts that are there, with what proves that their events are safe.
const LOOK_UP: &str = "select webhook_id, body_sha256,
            case when published_at > now() - make_interval(secs => $2) then 'receipt'
                 when exists (select from events e
                               where e.webhook_id = r.webhook_id and e.body_sha256 = r.body_sha256)
                     then 'stored'
                 when exists (select from webhook_spool s
                               where s.webhook_id = r.webhook_id and s.body_sha256 = r.body_sha256)
                     then 'spooled'
            end
       from webhook_receipts r
      where webhook_id = any($1)";

/// What a claim usually needs. A connection prepares it while it is being made.
pub const STATEMENTS: &[&str] = &[INSERT, LOOK_UP];

/// Fails unless an event could be claimed and spooled now, and writes nothing.
pub const PROBE: &str = "insert into webhook_receipts (webhook_id, body_sha256, received_at)
    select '', '', now() where false;
    insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                               has_receipt, due_at)
    select '', '', '', '', '', now(), false, now() where false";

/// What is to be done with an event, by its receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours to publish.
    Publish,
    /// It is safe already.
    Duplicate(Layer),
    /// Its id was accepted with another body. It is ours to publish, under an id of its own.
    Conflict,
}

/// Claims the events, which must be distinct, for publishing: the answer is in their order. A claim is
/// held by the transaction, and whoever else has the same id waits for its end. Of several bodies under
/// one id the first is the event.
///
/// A receipt alone proves little when it is old: the queue may have been purged since. So past
/// `trust` an event counts as a duplicate only if it is in `events` or in the spool, and is
/// otherwise claimed anew.
pub async fn claim(
    connection: &mut PgConnection,
    events: &[&AcceptedEvent],
    trust: Duration,
) -> Result<Vec<Claim>, sqlx::Error> {
    let mut firsts: HashMap<&str, &[u8; 32]> = HashMap::with_capacity(events.len());
    for event in events {
        firsts
            .entry(&event.webhook_id)
            .or_insert(&event.body_sha256);
    }
    let new = insert(connection, &firsts).await?;
    let mut known = firsts.clone();
    known.retain(|id, _| !new.contains_key(*id));
    let mut claims: HashMap<String, Claim> = new;
    if !known.is_empty() {
        claims.extend(look_up(connection, &known, trust).await?);
    }
    Ok(events
        .iter()
        .map(|event| {
            if *firsts[&*event.webhook_id] != event.body_sha256 {
                return Claim::Conflict;
            }
            // An id in neither was swept between the two statements.
            *claims.get(&event.webhook_id).unwrap_or(&Claim::Publish)
        })
        .collect())
}

async fn insert(
    connection: &mut PgConnection,
    hashes_by_id: &HashMap<&str, &[u8; 32]>,
) -> Result<HashMap<String, Claim>, sqlx::Error> {
    let (ids, hashes): (Vec<&str>, Vec<&[u8]>) = hashes_by_id
        .iter()
        .map(|(id, hash)| (*id, &hash[..]))
        .unzip();
    let rows = sqlx::query(INSERT)
        .bind(ids)
        .bind(hashes)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, Claim::Publish)))
        .collect()
}

async fn look_up(
    connection: &mut PgConnection,
    hashes_by_id: &HashMap<&str, &[u8; 32]>,
    trust: Duration,
) -> Result<HashMap<String, Claim>, sqlx::Error> {
    let ids: Vec<&str> = hashes_by_id.keys().copied().collect();
    let rows = sqlx::query(LOOK_UP)
        .bind(ids)
        .bind(trust.as_secs_f64())
        .fetch_all(&mut *connection)
        .await?;
    let mut claims = HashMap::new();
    let mut stale = Vec::new();
    for row in rows {
        let id: String = row.try_get(0)?;
        let body_sha256: &[u8] = row.try_get(1)?;
        let proof: Option<&str> = row.try_get(2)?;
        let same_body = hashes_by_id
            .get(id.as_str())
            .is_some_and(|hash| hash[..] == *body_sha256);
        let claim = match proof {
            _ if !same_body => Claim::Conflict,
            Some("receipt") => Claim::Duplicate(Layer::Receipt),
            Some(_) => Claim::Duplicate(Layer::Stored),
            None => {
                stale.push(id);
                continue;
            }
        };
        claims.insert(id, claim);
    }
    claims.extend(reclaim(connection, stale, trust).await?);
    Ok(claims)
}

/// Claims anew what has a receipt and is nowhere to be found. Of several that try at once, the
/// first gets it, and the others then see a fresh receipt.
async fn reclaim(
    connection: &mut PgConnection,
    stale: Vec<String>,
    trust: Duration,
) -> Result<Vec<(String, Claim)>, sqlx::Error> {
    if stale.is_empty() {
        return Ok(Vec::new());
    }
    let ours: Vec<String> = sqlx::query_scalar(
        "update webhook_receipts set published_at = now()
          where webhook_id = any($1)
            and (published_at is null or published_at <= now() - make_interval(secs => $2))
         returning webhook_id",
    )
    .bind(&stale)
    .bind(trust.as_secs_f64())
    .fetch_all(connection)
    .await?;
    Ok(stale
        .into_iter()
        .map(|id| {
            let claim = if ours.contains(&id) {
                Claim::Publish
            } else {
                Claim::Duplicate(Layer::Receipt)
            };
            (id, claim)
        })
        .collect())
}

/// Notes that these are in the spool and not with the broker.
pub async fn mark_spooled(connection: &mut PgConnection, ids: &[&str]) -> Result<(), sqlx::Error> {
    sqlx::query("update webhook_receipts set published_at = null where webhook_id = any($1)")
        .bind(ids)
        .execute(connection)
        .await?;
    Ok(())
}
