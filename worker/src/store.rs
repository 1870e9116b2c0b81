//! Stores a batch in one transaction: rows of `events` and the typed tables, missing receipts, and
//! the deletion of finished spool rows. Messages may be acknowledged only after its commit.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use shared::{
    Companies, Family,
    database::{self, DeadlineTransaction, Durability, Pool, TransactionError, TransactionMode},
    message::Receipt,
};
use sqlx::{PgConnection, Row};
use tokio::time::Instant;

use crate::{
    due_rows::free_spooled,
    families::{self, Text, Typed},
    judge::Class,
    problem::{self, Kind},
    record::{Body, Record},
    work::{Source, Work},
};

/// The deadline of a transaction. Postgres' own limits below are shorter and give a reason.
const DEADLINE: Duration = Duration::from_secs(30);

/// The message is acknowledged after the commit and is then gone, so the commit must be durable.
const MODE: TransactionMode = TransactionMode::write(Durability::Replicated);

/// The time limit of statements. Later batches wait meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeouts {
    /// For a first attempt.
    Short,
    /// For a part of a batch with slow events.
    Shortest,
    /// For a single event from the spool that was refused before; it may just be slow.
    Long,
}

impl Timeouts {
    /// The lock timeout is shorter, so that waiting for a lock is not taken for slowness. Other
    /// workers hold locks for milliseconds.
    const fn mode(self) -> TransactionMode {
        let (statement, lock) = match self {
            Self::Shortest => (100, 50),
            Self::Short => (1_000, 500),
            Self::Long => (10_000, 1_000),
        };
        MODE.statement_timeout(Duration::from_millis(statement))
            .lock_timeout(Duration::from_millis(lock))
    }
}

/// Fails unless a batch could be stored now, apart from its typed table. It writes nothing.
pub const PROBE: &str =
    "insert into events (webhook_id, event_type, received_at, raw, body_sha256, secret_companies,
                         problem_kind)
     select '', '', now(), '', '', null, null where false;
    delete from webhook_spool where false";

/// The error if a row was neither inserted nor there before.
const NOT_KEPT: &str = "Postgres did not keep the row: does a trigger on events skip it?";

/// The result of storing an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// New, and healthy.
    Healthy,
    /// New, with a problem.
    WithProblem,
    /// It was in `events` already.
    Already,
}

/// The result of a transaction's statements.
enum Written {
    /// The transaction can be committed. The results are in the order of the batch.
    All(Vec<Stored>),
    /// The transaction must be rolled back: the resources of the events at these positions belong
    /// to another company. Their rows of `events` were written without that problem, and workers
    /// may not change rows there.
    CompanyChanges(Vec<usize>),
}

/// Stores the batch and returns the results in its order. After an error nothing is stored, unless
/// the commit was interrupted; storing the batch again is harmless in any case.
pub(crate) async fn store(
    pool: &Pool,
    batch: &[(&Work, &Record)],
    timeouts: Timeouts,
) -> Result<Vec<Stored>, TransactionError> {
    let company_changes = match in_one_transaction(pool, batch, timeouts).await? {
        Written::All(stored) => return Ok(stored),
        Written::CompanyChanges(positions) => positions,
    };
    let records: Vec<(usize, Record)> = company_changes
        .into_iter()
        .map(|i| (i, batch[i].1.clone().of_another_company()))
        .collect();
    let mut judged = batch.to_vec();
    for (i, record) in &records {
        judged[*i].1 = record;
    }
    // The recursion ends, because these records now have no typed row.
    Box::pin(store(pool, &judged, timeouts)).await
}

async fn in_one_transaction(
    pool: &Pool,
    batch: &[(&Work, &Record)],
    timeouts: Timeouts,
) -> Result<Written, TransactionError> {
    let deadline = Instant::now() + DEADLINE;
    let mut transaction = DeadlineTransaction::begin(pool, &timeouts.mode(), deadline).await?;
    let stored = transaction
        .run(async |connection| write(connection, batch).await)
        .await;
    match stored {
        Ok(Written::All(stored)) => transaction.commit().await.map(|()| Written::All(stored)),
        Ok(company_changes) => transaction.rollback().await.map(|()| company_changes),
        Err(error @ TransactionError::Database(_)) => {
            // Postgres answered, so the connection is usable. If the rollback fails, dropping the
            // transaction closes the connection; the first error is the useful one.
            transaction.rollback().await.ok();
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Does everything that storing `work` does, including a commit, and leaves nothing behind.
pub async fn rehearse(pool: &Pool, work: &Work, record: &Record) -> Result<(), TransactionError> {
    let deadline = Instant::now() + DEADLINE;
    let mode = Timeouts::Short.mode();
    let mut transaction = DeadlineTransaction::begin(pool, &mode, deadline).await?;
    transaction.execute("savepoint rehearsal").await?;
    transaction
        .run(async |connection| write(connection, &[(work, record)]).await)
        .await?;
    // Deferred constraints must be checked now, before the rollback.
    transaction
        .execute("set constraints all immediate; rollback to savepoint rehearsal")
        .await?;
    transaction.commit().await
}

/// Whether Postgres accepts a body as JSON. If Postgres cannot be asked, the answer is yes.
pub(crate) async fn takes_as_json(pool: &Pool, body: &str) -> bool {
    const MODE: TransactionMode = TransactionMode::read();
    let deadline = Instant::now() + DEADLINE;
    let Ok(mut transaction) = DeadlineTransaction::begin(pool, &MODE, deadline).await else {
        return true;
    };
    let parsed = transaction
        .run(async |connection| {
            sqlx::query("select $1::text::jsonb is null")
                .bind(body)
                .execute(connection)
                .await
        })
        .await;
    // Nothing was written, so a failed rollback does not matter.
    transaction.rollback().await.ok();
    !parsed.is_err_and(|error| matches!(Class::of(&error), Class::Row | Class::Suspect))
}

/// Which of the events change a row of the family's typed table that another session has locked.
pub(crate) async fn locked(
    pool: &Pool,
    family: Family,
    batch: &[(&Work, &Record)],
) -> Result<Vec<bool>, TransactionError> {
    const MODE: TransactionMode = TransactionMode::write(Durability::Relaxed);
    let typed: Vec<&Typed> = batch
        .iter()
        .filter_map(|(_, record)| record.typed.as_ref())
        .collect();
    let deadline = Instant::now() + DEADLINE;
    let mut transaction = DeadlineTransaction::begin(pool, &MODE, deadline).await?;
    let locked = transaction
        .run(async |connection| families::locked(connection, family, &typed).await)
        .await?;
    // If the rollback fails, the locks end with the connection.
    transaction.rollback().await.ok();
    Ok(batch
        .iter()
        .map(|(_, record)| {
            let typed = record.typed.as_ref();
            typed.is_some_and(|typed| locked.contains(typed.id()))
        })
        .collect())
}

async fn write(
    connection: &mut PgConnection,
    batch: &[(&Work, &Record)],
) -> Result<Written, sqlx::Error> {
    // All batches use the same order, so that workers wait for each other and do not deadlock.
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|&i| &batch[i].1.webhook_id);
    // The first event of each id. A repetition within the batch is handled like one of an earlier
    // batch.
    let mut firsts: Vec<usize> = order.clone();
    firsts.dedup_by_key(|i| &batch[*i].1.webhook_id);

    let rows: Vec<_> = firsts
        .iter()
        .map(|&i| EventRow::new(batch[i].0, batch[i].1))
        .collect();
    let inserted = insert_events(connection, &rows.iter().collect::<Vec<_>>()).await?;
    let new: HashSet<usize> = firsts
        .into_iter()
        .filter(|&i| inserted.contains(&batch[i].1.webhook_id))
        .collect();
    let known: Vec<usize> = order.into_iter().filter(|i| !new.contains(i)).collect();
    let conflicts = insert_conflicts(connection, batch, &known).await?;

    // In the order of arrival: the first one decides which company a new resource belongs to.
    let typed: Vec<&Typed> = (0..batch.len())
        .filter(|i| new.contains(i))
        .filter_map(|i| batch[i].1.typed.as_ref())
        .collect();
    let company_changes = families::upsert(connection, &typed).await?;
    if !company_changes.is_empty() {
        let positions = (0..batch.len())
            .filter(|i| new.contains(i) && company_changes.contains(&*batch[*i].1.webhook_id));
        return Ok(Written::CompanyChanges(positions.collect()));
    }
    insert_missing_receipts(connection, batch, &new).await?;
    let deleted = delete_spooled(connection, batch).await?;
    if new.is_empty() && conflicts.is_empty() && deleted == 0 {
        database::make_commit_wait(connection).await?;
    }

    let stored = (0..batch.len())
        .map(|i| {
            if conflicts.contains(&i) {
                Stored::WithProblem
            } else if !new.contains(&i) {
                Stored::Already
            } else if batch[i].1.problem.is_some() {
                Stored::WithProblem
            } else {
                Stored::Healthy
            }
        })
        .collect();
    Ok(Written::All(stored))
}

struct EventRow<'a> {
    work: &'a Work,
    record: &'a Record,
    webhook_id: String,
    problem: Option<(Kind, &'a str)>,
}

impl<'a> EventRow<'a> {
    fn new(work: &'a Work, record: &'a Record) -> Self {
        Self {
            work,
            record,
            webhook_id: record.webhook_id.clone(),
            problem: record.problem.as_ref().map(|p| (p.kind, p.text.as_str())),
        }
    }

    /// Turns it into a conflict, with an id of its own.
    fn conflicting(self) -> Self {
        let problem = match self.problem {
            Some(known @ (Kind::ForeignCompany, _)) => known,
            _ => (Kind::Conflict, problem::CONFLICT),
        };
        Self {
            webhook_id: self.work.event.conflict_id(&self.webhook_id),
            problem: Some(problem),
            ..self
        }
    }
}

/// Inserts the rows that do not exist yet, and returns their ids. The rows' ids must be distinct
/// and sorted.
async fn insert_events(
    connection: &mut PgConnection,
    rows: &[&EventRow<'_>],
) -> Result<HashSet<String>, sqlx::Error> {
    fn column<'r, T>(rows: &[&'r EventRow<'_>], pick: impl Fn(&'r EventRow<'_>) -> T) -> Vec<T> {
        rows.iter().map(|row| pick(row)).collect()
    }
    let inserted: Vec<String> = sqlx::query_scalar(
        "insert into events
             (webhook_id, event_id, event_type, company_id, resource_id, attempted_at, received_at,
              payload, raw, body_sha256, secret_name, secret_companies, problem, problem_kind,
              attempts)
         select webhook_id, event_id, event_type, company_id, resource_id, attempted_at,
                received_at, payload::jsonb, raw, body_sha256, secret_name,
                string_to_array(companies, ' '), problem, problem_kind, attempts
           from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
                       $6::timestamptz[], $7::timestamptz[], $8::text[], $9::bytea[], $10::bytea[],
                       $11::text[], $12::text[], $13::text[], $14::text[], $15::int[])
             as event (webhook_id, event_id, event_type, company_id, resource_id, attempted_at,
                       received_at, payload, raw, body_sha256, secret_name, companies, problem,
                       problem_kind, attempts)
         on conflict (webhook_id) do nothing
         returning webhook_id",
    )
    .bind(column(rows, |r| r.webhook_id.as_str()))
    .bind(column(rows, |r| Text::as_optional(&r.record.event_id)))
    .bind(column(rows, |r| r.record.event_type.as_str()))
    .bind(column(rows, |r| Text::as_optional(&r.record.company_id)))
    .bind(column(rows, |r| Text::as_optional(&r.record.resource_id)))
    .bind(column(rows, |r| r.work.event.attempted_at))
    .bind(column(rows, |r| r.work.event.received_at))
    .bind(column(rows, |r| match &r.record.body {
        Body::Json(json) => Some(json.as_str()),
        Body::Raw(_) => None,
    }))
    .bind(column(rows, |r| match &r.record.body {
        // jsonb loses key order, white space and duplicate keys. To examine a problem, operators
        // need the exact body.
        Body::Json(_) => r.problem.map(|_| &r.work.event.body[..]),
        Body::Raw(raw) => Some(&raw[..]),
    }))
    .bind(column(rows, |r| &r.work.event.body_sha256[..]))
    .bind(column(rows, |r| r.work.event.secret_name.as_deref()))
    .bind(column(rows, |r| {
        let companies = r.work.event.secret_companies.as_ref();
        companies.map(Companies::as_str)
    }))
    .bind(column(rows, |r| r.problem.map(|(_, text)| text)))
    .bind(column(rows, |r| r.problem.map(|(kind, _)| kind.name())))
    .bind(column(rows, |r| r.work.attempts.saturating_add(1)))
    .fetch_all(connection)
    .await?;
    Ok(inserted.into_iter().collect())
}

/// Among events whose id is taken, stores those with another body under ids of their own. Returns
/// their positions.
async fn insert_conflicts(
    connection: &mut PgConnection,
    batch: &[(&Work, &Record)],
    known: &[usize],
) -> Result<HashSet<usize>, sqlx::Error> {
    // A sender may have used an id that looks like that of a conflict, or the hashes of two bodies
    // may begin with the same bytes.
    const ROUNDS: usize = 4;
    let row = |&i: &usize| (i, EventRow::new(batch[i].0, batch[i].1));
    let mut conflicts = with_another_body(connection, known.iter().map(row).collect()).await?;
    let mut stored = HashSet::new();
    for _ in 0..ROUNDS {
        if conflicts.is_empty() {
            return Ok(stored);
        }
        let mut rows: Vec<_> = (conflicts.into_iter())
            .map(|(i, row)| (i, row.conflicting()))
            .collect();
        rows.sort_by(|(_, a), (_, b)| a.webhook_id.cmp(&b.webhook_id));
        let mut firsts: Vec<&(usize, EventRow<'_>)> = rows.iter().collect();
        firsts.dedup_by(|(_, a), (_, b)| a.webhook_id == b.webhook_id);
        let inserting: Vec<&EventRow<'_>> = firsts.iter().map(|(_, row)| row).collect();
        let inserted = insert_events(&mut *connection, &inserting).await?;
        let new = firsts
            .iter()
            .filter(|(_, row)| inserted.contains(&row.webhook_id));
        stored.extend(new.map(|(i, _)| *i));
        conflicts = with_another_body(connection, rows).await?;
    }
    Err(sqlx::Error::InvalidArgument(NOT_KEPT.to_owned()))
}

/// Returns the rows whose id is taken by another body. An event that a worker of another family
/// stored counts as another body even if the hash is equal, because only this family's workers may
/// store the event itself.
///
/// # Errors
/// If an id does not exist at all: a trigger may silently skip a row, and acknowledging the event
/// would lose it.
async fn with_another_body<'a>(
    connection: &mut PgConnection,
    mut rows: Vec<(usize, EventRow<'a>)>,
) -> Result<Vec<(usize, EventRow<'a>)>, sqlx::Error> {
    if rows.is_empty() {
        return Ok(rows);
    }
    let ids: Vec<&str> = rows.iter().map(|(_, r)| r.webhook_id.as_str()).collect();
    // An event that an operator has erased has no type.
    let stored: HashMap<String, (Option<Family>, Vec<u8>)> = sqlx::query(
        "select webhook_id, case when erased_at is null then event_type end, body_sha256
           from events where webhook_id = any($1)",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| {
        let event_type: Option<&str> = row.try_get(1)?;
        Ok((
            row.try_get(0)?,
            (event_type.map(Family::of), row.try_get(2)?),
        ))
    })
    .collect::<Result<_, sqlx::Error>>()?;
    if (rows.iter()).any(|(_, row)| !stored.contains_key(&row.webhook_id)) {
        return Err(sqlx::Error::InvalidArgument(NOT_KEPT.to_owned()));
    }
    rows.retain(|(_, row)| {
        let (family, body_sha256) = &stored[&row.webhook_id];
        family.is_some_and(|family| family != row.record.event_type.family())
            || body_sha256[..] != row.work.event.body_sha256
    });
    Ok(rows)
}

/// Adds the receipts of events that were accepted while ingest could not write them, so that their
/// repetitions are detected from now on.
async fn insert_missing_receipts(
    connection: &mut PgConnection,
    batch: &[(&Work, &Record)],
    new: &HashSet<usize>,
) -> Result<(), sqlx::Error> {
    let missing: Vec<&Work> = new
        .iter()
        .map(|&i| batch[i].0)
        .filter(|work| work.receipt == Receipt::Missing)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = missing
        .iter()
        .map(|w| w.event.webhook_id.as_str())
        .collect();
    let hashes: Vec<&[u8]> = missing.iter().map(|w| &w.event.body_sha256[..]).collect();
    sqlx::query(
        "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select id, body_sha256, now(), now()
           from unnest($1::text[], $2::bytea[]) as r (id, body_sha256)
          order by id
         on conflict do nothing",
    )
    .bind(ids)
    .bind(hashes)
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the number of deleted rows.
async fn delete_spooled(
    connection: &mut PgConnection,
    batch: &[(&Work, &Record)],
) -> Result<u64, sqlx::Error> {
    let spooled: Vec<&Work> = batch
        .iter()
        .map(|(work, _)| *work)
        .filter(|work| work.source == Source::Spool)
        .collect();
    if spooled.is_empty() {
        return Ok(0);
    }
    let ids: Vec<&str> = spooled
        .iter()
        .map(|w| w.event.webhook_id.as_str())
        .collect();
    let hashes: Vec<&[u8]> = spooled.iter().map(|w| &w.event.body_sha256[..]).collect();
    sqlx::query(concat!(
        "delete from webhook_spool s where ",
        free_spooled!()
    ))
    .bind(ids)
    .bind(hashes)
    .execute(connection)
    .await
    .map(|done| done.rows_affected())
}
