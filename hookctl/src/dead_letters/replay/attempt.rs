//! A batch of dead letters in one transaction: locked, read, stored, and no dead letters any more.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use shared::{
    AcceptedEvent, Companies, EventType, Family,
    database::{DeadlineTransaction, Pool, TransactionError},
    message::Receipt,
};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, postgres::PgRow};
use tokio::time::Instant;
use worker::{
    families::{self, Text, Typed},
    judge::Class,
    problem::{self, Kind},
    record::{Body, Record},
    work::{Source, Work},
};

use super::outcome::{Outcome, Replayed};
use crate::{actions::Run, database::STORING, typed_table};

const DEADLINE: Duration = Duration::from_secs(40);

/// Whoever comes second waits, and then finds the row changed and no dead letter any more. One order
/// for all keeps two replays from deadlocking; a worker changes no row of `events`, and takes those
/// of the typed tables in the order in which `families::upsert` takes them here.
const LOCK: &str = "
    select webhook_id, event_type, problem, raw, payload::text as json, body_sha256, received_at,
           attempted_at, secret_name, array_to_string(secret_companies, ' ') as companies
      from events
     where webhook_id = any($1) and problem is not null and dismissed_at is null
     order by webhook_id
       for update";

/// What the JSON has lost, by the parser's own words.
const DOUBLED: &str = "duplicate field";

/// How to replay.
pub(super) struct Attempt {
    pub(super) pool: Pool,
    /// Commit and write that down, or take everything back.
    pub(super) run: Option<Run>,
    pub(super) include_withheld: bool,
    /// Accept events of companies that their secret does not speak for.
    pub(super) any_company: bool,
}

/// An open dead letter that is locked.
struct Letter {
    problem: String,
    event: AcceptedEvent,
    /// `payload` is there already.
    has_json: bool,
    /// `raw` is there: the body is what was sent.
    has_bytes: bool,
}

/// What a dead letter becomes.
enum Judgement {
    Mended(Letter, Box<Record>),
    Left(String, Outcome, String),
}

impl Attempt {
    /// Replays these. Those that Postgres refuses are found by halving, so that they cost the others
    /// nothing; any other failure ends the replay, with everything before it done.
    pub(super) async fn batch(&self, ids: &[String]) -> Result<Vec<Replayed>, TransactionError> {
        let mut replayed = Vec::new();
        let mut groups = vec![ids];
        while let Some(group) = groups.pop() {
            match (self.transaction(group, false).await, group) {
                (Ok(done), _) => replayed.extend(done),
                (Err(error), _) if !is_a_rows_fault(&error) => return Err(error),
                (Err(_), [id]) => replayed.extend(self.again(id).await?),
                (Err(_), _) => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second, first]);
                }
            }
        }
        Ok(replayed)
    }

    /// Leaves the body as bytes, in case `jsonb` is what refuses it.
    async fn again(&self, id: &String) -> Result<Vec<Replayed>, TransactionError> {
        match self.transaction(std::slice::from_ref(id), true).await {
            Err(error) if is_a_rows_fault(&error) => Ok(vec![self.replayed(
                id,
                Outcome::Refused,
                Some(problem::refusal(&error)),
            )]),
            other => other,
        }
    }

    async fn transaction(
        &self,
        ids: &[String],
        keep_bytes: bool,
    ) -> Result<Vec<Replayed>, TransactionError> {
        let deadline = Instant::now() + DEADLINE;
        let mut transaction = DeadlineTransaction::begin(&self.pool, &STORING, deadline).await?;
        let replayed = transaction
            .run(async |connection| self.replay(connection, ids, keep_bytes).await)
            .await?;
        if self.run.is_some() {
            transaction.commit().await?;
        } else {
            // What would fail only with the commit is to fail now.
            transaction.execute("set constraints all immediate").await?;
            transaction.rollback().await?;
        }
        Ok(replayed)
    }

    async fn replay(
        &self,
        connection: &mut PgConnection,
        ids: &[String],
        keep_bytes: bool,
    ) -> Result<Vec<Replayed>, sqlx::Error> {
        let rows = sqlx::query(LOCK)
            .bind(ids)
            .fetch_all(&mut *connection)
            .await?;
        let mut replayed = Vec::new();
        let mut mended = Vec::new();
        for row in &rows {
            match self.judge(Letter::read(row)?, keep_bytes) {
                Judgement::Mended(letter, record) => mended.push((letter, record)),
                Judgement::Left(id, outcome, reason) => {
                    replayed.push(self.replayed(&id, outcome, Some(reason)));
                }
            }
        }
        let typed: Vec<&Typed> = mended
            .iter()
            .filter_map(|(_, r)| r.typed.as_ref())
            .collect();
        let strangers = families::upsert(connection, &typed).await?;
        let strangers: HashSet<String> = strangers.into_iter().map(str::to_owned).collect();
        mended.retain(|(_, record)| !strangers.contains(&record.webhook_id));
        replayed.extend(strangers.iter().map(|id| {
            let reason = problem::COMPANY_CHANGE.to_owned();
            self.replayed(id, Outcome::StillWrong, Some(reason))
        }));
        clear(connection, &mended, self.any_company).await?;
        let newest = newest(&mut *connection, &mended).await?;
        let mut changes = Vec::new();
        for (letter, record) in &mended {
            let outcome = if record.typed.is_none() {
                Outcome::Untyped
            } else if newest.contains(&record.webhook_id) {
                Outcome::Newest
            } else {
                Outcome::Superseded
            };
            changes.push(change(letter, outcome));
            replayed.push(self.replayed(&record.webhook_id, outcome, None));
        }
        if let Some(run) = &self.run {
            run.record(connection, changes).await?;
        }
        let found: HashSet<String> = replayed.iter().map(|r| r.webhook_id.clone()).collect();
        let gone = ids.iter().filter(|id| !found.contains(*id));
        replayed.extend(gone.map(|id| self.replayed(id, Outcome::Gone, None)));
        Ok(replayed)
    }

    /// What this version makes of it. Pure.
    fn judge(&self, letter: Letter, keep_bytes: bool) -> Judgement {
        let kind = Kind::of(&letter.problem);
        let is_withheld = kind.is_withheld() || problem::known_of(&letter.event).is_some();
        if is_withheld && !self.include_withheld {
            return Judgement::Left(letter.event.webhook_id, Outcome::Withheld, letter.problem);
        }
        if !letter.has_bytes && letter.problem.contains(DOUBLED) {
            let reason = "a doubled key, of which the stored JSON has only the last value";
            return Judgement::Left(
                letter.event.webhook_id,
                Outcome::StillWrong,
                reason.to_owned(),
            );
        }
        let work = Work {
            event: AcceptedEvent {
                secret_companies: (letter.event.secret_companies.clone())
                    .filter(|_| !self.any_company),
                ..letter.event.clone()
            },
            receipt: Receipt::Recorded,
            attempts: 0,
            problem: None,
            source: Source::Queue,
        };
        let mut record = Record::new(&work);
        if keep_bytes {
            record = record.as_bytes(&work);
        }
        match record.problem {
            Some(problem) => Judgement::Left(letter.event.webhook_id, Outcome::StillWrong, problem),
            None => Judgement::Mended(letter, Box::new(record)),
        }
    }

    fn replayed(&self, webhook_id: &str, outcome: Outcome, reason: Option<String>) -> Replayed {
        Replayed {
            webhook_id: webhook_id.to_owned(),
            outcome,
            kept: self.run.is_some() && outcome.is_good(),
            reason,
        }
    }
}

impl Letter {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let raw: Option<Vec<u8>> = row.try_get("raw")?;
        let json: Option<String> = row.try_get("json")?;
        let event_type: &str = row.try_get("event_type")?;
        let hash: Vec<u8> = row.try_get("body_sha256")?;
        let companies: Option<&str> = row.try_get("companies")?;
        let (has_bytes, has_json) = (raw.is_some(), json.is_some());
        let body = raw.unwrap_or_else(|| json.unwrap_or_default().into_bytes());
        Ok(Self {
            problem: row.try_get("problem")?,
            event: AcceptedEvent {
                webhook_id: row.try_get("webhook_id")?,
                event_type: EventType::parse(event_type).unwrap_or_else(EventType::unknown),
                body_sha256: hash.try_into().unwrap_or_default(),
                body: body.into(),
                received_at: row.try_get::<DateTime<Utc>, _>("received_at")?,
                attempted_at: row.try_get("attempted_at")?,
                secret_name: row.try_get("secret_name")?,
                secret_companies: companies.map(Companies::read),
            },
            has_json,
            has_bytes,
        })
    }
}

/// Lets Postgres tell rows that it refuses from its own troubles, as workers do. A lost connection
/// is never taken for an event's fault here: the proof would be more crashes.
fn is_a_rows_fault(error: &TransactionError) -> bool {
    matches!(Class::of(error), Class::Row | Class::Suspect | Class::Slow)
}

/// What is written down of it.
fn change(letter: &Letter, outcome: Outcome) -> Value {
    json!({
        "webhook_id": letter.event.webhook_id,
        "before": {"problem": letter.problem},
        "after": {"problem": null, "replayed_problem": letter.problem},
        "outcome": outcome,
    })
}

/// Makes them healthy events, as a worker would have stored them. Where any company was believed, a
/// rebuild is to believe it as well.
async fn clear(
    connection: &mut PgConnection,
    mended: &[(Letter, Box<Record>)],
    any_company: bool,
) -> Result<(), sqlx::Error> {
    fn column<'m, T>(
        mended: &'m [(Letter, Box<Record>)],
        pick: impl Fn(&'m Letter, &'m Record) -> T,
    ) -> Vec<T> {
        mended.iter().map(|(l, r)| pick(l, r)).collect()
    }
    if mended.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update events e
            set problem = null, replayed_problem = e.problem, replayed_at = now(),
                event_id = m.event_id, event_type = m.event_type, company_id = m.company_id,
                resource_id = m.resource_id,
                payload = coalesce(e.payload, m.payload::jsonb),
                raw = case when e.payload is null and m.payload is null then e.raw end,
                secret_companies = case when not $7 then e.secret_companies end
           from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
             as m (webhook_id, event_id, event_type, company_id, resource_id, payload)
          where e.webhook_id = m.webhook_id",
    )
    .bind(column(mended, |_, r| r.webhook_id.as_str()))
    .bind(column(mended, |_, r| Text::as_optional(&r.event_id)))
    .bind(column(mended, |_, r| r.event_type.as_str()))
    .bind(column(mended, |_, r| Text::as_optional(&r.company_id)))
    .bind(column(mended, |_, r| Text::as_optional(&r.resource_id)))
    .bind(column(mended, |letter, r| match &r.body {
        Body::Json(json) if !letter.has_json => Some(json.as_str()),
        Body::Json(_) | Body::Raw(_) => None,
    }))
    .bind(any_company)
    .execute(connection)
    .await?;
    Ok(())
}

/// Those that have set their resource's row.
async fn newest(
    connection: &mut PgConnection,
    mended: &[(Letter, Box<Record>)],
) -> Result<HashSet<String>, sqlx::Error> {
    let typed = || mended.iter().filter(|(_, record)| record.typed.is_some());
    let resources: Vec<_> = typed()
        .filter_map(|(_, record)| Text::as_optional(&record.resource_id))
        .collect();
    let events: Vec<_> = typed().map(|(_, r)| r.webhook_id.as_str()).collect();
    if events.is_empty() {
        return Ok(HashSet::new());
    }
    let mut newest = HashSet::new();
    for table in Family::ALL.into_iter().filter_map(typed_table::name) {
        let set: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
            "select webhook_id from {table} where id = any($1) and webhook_id = any($2)"
        )))
        .bind(&resources)
        .bind(&events)
        .fetch_all(&mut *connection)
        .await?;
        newest.extend(set);
    }
    Ok(newest)
}
