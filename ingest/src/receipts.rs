//! `webhook_receipts`: a row for each event that ingest has answered 2xx.
//!
//! The transaction that writes a receipt commits only after the broker's confirm. So a crash in
//! between leaves no receipt, and the sender's retry is accepted.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use shared::{
    AcceptedEvent,
    database::{Durability, TransactionMode},
};
use sqlx::{PgConnection, Row};

use crate::outcome::Layer;

/// The commit does not wait for the disk: if a crash of Postgres loses a receipt, a repetition is
/// published again and the workers absorb it. The time limits release the locks of an ingest that
/// froze during a transaction.
pub const MODE: TransactionMode = TransactionMode::write(Durability::Relaxed)
    .lock_timeout(Duration::from_secs(1))
    .statement_timeout(Duration::from_secs(5))
    .idle_timeout(Duration::from_secs(15));

/// Inserts the missing receipts. They are sorted by id, so that two batches with the same ids wait
/// for each other and do not deadlock. Times come from the database, so that all readers of
/// receipts use one clock.
const INSERT: &str =
    "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
     select id, body_sha256, now(), now()
       from unnest($1::text[], $2::bytea[]) as r (id, body_sha256)
      order by id
     on conflict do nothing
     returning webhook_id";

/// Reads the existing receipts, each with the proof that its event is safe, if there is one. The
/// rule is the same as in the view `stored_receipts`. `offset 0` keeps the planner from reading the
/// whole spool.
const LOOK_UP: &str = "select webhook_id, body_sha256,
            case when published_at > now() - make_interval(secs => $2) then 'receipt'
                 when exists (select from events e
                               where e.webhook_id in (r.webhook_id, r.webhook_id || '#conflict-'
                                                      || left(encode(r.body_sha256, 'hex'), 16))
                                 and e.body_sha256 = r.body_sha256)
                     then 'stored'
                 when exists (select from webhook_spool s
                               where s.webhook_id = r.webhook_id and s.body_sha256 = r.body_sha256
                              offset 0)
                     then 'spooled'
            end
       from webhook_receipts r
      where webhook_id = any($1)";

/// The statements of a usual claim. A new connection prepares them while it is opened.
pub const STATEMENTS: &[&str] = &[INSERT, LOOK_UP];

/// Fails unless ingest could claim and spool an event now. It writes nothing.
pub const PROBE: &str = "select webhook_id, body_sha256 from events where false;
    select webhook_id, body_sha256 from webhook_spool where false;
    insert into webhook_receipts (webhook_id, body_sha256, received_at)
    select '', '', now() where false;
    insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                               secret_companies, has_receipt, due_at)
    select '', '', '', '', '', now(), null, false, now() where false";

/// What to do with an event, by its receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// This batch must publish it.
    Publish,
    /// It is already safe.
    Duplicate(Layer),
    /// Its id was accepted with another body. This batch must publish it, under an id of its own.
    Conflict,
}

/// The claim on the body that a receipt is for.
struct Known {
    body_sha256: [u8; 32],
    claim: Claim,
}

/// Claims distinct events for publishing and returns the claims in the same order. The transaction
/// holds a claim: another batch with the same id waits until it ends.
///
/// An old receipt alone proves little, because the queue may have been purged since. After `trust`,
/// an event counts as a duplicate only if it is in `events` or the spool; otherwise it is claimed
/// again.
///
/// Of several bodies under one id, the first is the event. Each other one is a conflict and gets a
/// receipt under an id of its own. By this receipt its repetitions are detected and the ledger
/// counts it.
pub async fn claim(
    connection: &mut PgConnection,
    events: &[&AcceptedEvent],
    trust: Duration,
) -> Result<Vec<Claim>, sqlx::Error> {
    debug_assert!(are_distinct(events));
    let mut claims = claim_ids(connection, events, trust).await?;
    let conflicts: Vec<(&AcceptedEvent, &mut Claim)> = events
        .iter()
        .copied()
        .zip(&mut claims)
        .filter(|(_, claim)| **claim == Claim::Conflict)
        .collect();
    if !conflicts.is_empty() {
        claim_conflicts(connection, conflicts, trust).await?;
    }
    Ok(claims)
}

/// Whether no event is there twice, by id and body.
pub(crate) fn are_distinct(events: &[&AcceptedEvent]) -> bool {
    let mut seen = HashSet::new();
    events
        .iter()
        .all(|event| seen.insert((event.webhook_id.as_str(), &event.body_sha256)))
}

/// Turns the claim of each conflict that is already safe into that of a duplicate, and claims the
/// others under ids of their own.
async fn claim_conflicts(
    connection: &mut PgConnection,
    conflicts: Vec<(&AcceptedEvent, &mut Claim)>,
    trust: Duration,
) -> Result<(), sqlx::Error> {
    let events: Vec<&AcceptedEvent> = conflicts.iter().map(|(event, _)| *event).collect();
    let stored = stored(connection, &events).await?;
    let mut renamed: Vec<(AcceptedEvent, &mut Claim)> = Vec::new();
    for ((event, claim), is_stored) in conflicts.into_iter().zip(stored) {
        if is_stored {
            *claim = Claim::Duplicate(Layer::Stored);
        } else {
            renamed.push((event.clone().into_conflict(), claim));
        }
    }
    let events: Vec<&AcceptedEvent> = renamed.iter().map(|(event, _)| event).collect();
    let claims = claim_ids(connection, &events, trust).await?;
    for ((_, claim), again) in renamed.into_iter().zip(claims) {
        if let Claim::Duplicate(_) = again {
            *claim = again;
        }
    }
    Ok(())
}

async fn claim_ids(
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
    let mut known = insert(connection, &firsts).await?;
    if known.len() < firsts.len() {
        firsts.retain(|id, _| !known.contains_key(*id));
        let ids: Vec<&str> = firsts.into_keys().collect();
        known.extend(look_up(connection, &ids, events, trust).await?);
    }
    Ok(events
        .iter()
        .map(|event| match known.get(&event.webhook_id) {
            Some(known) if known.body_sha256 == event.body_sha256 => known.claim,
            Some(_) => Claim::Conflict,
            // The receipt was swept between the two statements.
            None => Claim::Publish,
        })
        .collect())
}

async fn insert(
    connection: &mut PgConnection,
    hashes_by_id: &HashMap<&str, &[u8; 32]>,
) -> Result<HashMap<String, Known>, sqlx::Error> {
    let (ids, hashes): (Vec<&str>, Vec<&[u8]>) = hashes_by_id
        .iter()
        .map(|(id, hash)| (*id, &hash[..]))
        .unzip();
    let new: Vec<String> = sqlx::query_scalar(INSERT)
        .bind(ids)
        .bind(hashes)
        .fetch_all(connection)
        .await?;
    let claimed = |id: String| {
        let body_sha256 = *hashes_by_id[&*id];
        let claim = Claim::Publish;
        (id, Known { body_sha256, claim })
    };
    Ok(new.into_iter().map(claimed).collect())
}

async fn look_up(
    connection: &mut PgConnection,
    ids: &[&str],
    events: &[&AcceptedEvent],
    trust: Duration,
) -> Result<HashMap<String, Known>, sqlx::Error> {
    let batch: HashSet<(&str, &[u8; 32])> = events
        .iter()
        .map(|event| (event.webhook_id.as_str(), &event.body_sha256))
        .collect();
    let rows = sqlx::query(LOOK_UP)
        .bind(ids)
        .bind(trust.as_secs_f64())
        .fetch_all(&mut *connection)
        .await?;
    let mut known = HashMap::new();
    let mut stale = Vec::new();
    for row in rows {
        let id: String = row.try_get(0)?;
        let body_sha256: &[u8] = row.try_get(1)?;
        // A value of another length is not a hash, so it matches no event.
        let body_sha256 = body_sha256.try_into().unwrap_or_default();
        let proof: Option<&str> = row.try_get(2)?;
        let claim = match proof {
            Some("receipt") => Claim::Duplicate(Layer::Receipt),
            Some(_) => Claim::Duplicate(Layer::Stored),
            None => {
                if batch.contains(&(&*id, &body_sha256)) {
                    stale.push(id.clone());
                }
                Claim::Publish
            }
        };
        known.insert(id, Known { body_sha256, claim });
    }
    for (id, claim) in reclaim(connection, stale, trust).await? {
        if let Some(known) = known.get_mut(&id) {
            known.claim = claim;
        }
    }
    Ok(known)
}

/// Whether each of these conflicts is in `events` under its original id. Without Postgres, workers
/// may have stored the second body first.
async fn stored(
    connection: &mut PgConnection,
    events: &[&AcceptedEvent],
) -> Result<Vec<bool>, sqlx::Error> {
    let ids: Vec<&str> = events.iter().map(|e| e.webhook_id.as_str()).collect();
    let hashes: Vec<&[u8]> = events.iter().map(|e| &e.body_sha256[..]).collect();
    sqlx::query_scalar(
        "select exists (select from events e
                         where e.webhook_id = r.webhook_id and e.body_sha256 = r.body_sha256)
           from unnest($1::text[], $2::bytea[]) with ordinality as r (webhook_id, body_sha256, n)
          order by n",
    )
    .bind(ids)
    .bind(hashes)
    .fetch_all(connection)
    .await
}

/// Claims again events that have an old receipt and are nowhere stored. If several batches try at
/// once, the first one gets the event and the others see a recent receipt.
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

/// Notes that these events are in the spool and not with the broker.
pub async fn mark_spooled(connection: &mut PgConnection, ids: &[&str]) -> Result<(), sqlx::Error> {
    sqlx::query("update webhook_receipts set published_at = null where webhook_id = any($1)")
        .bind(ids)
        .execute(connection)
        .await?;
    Ok(())
}
