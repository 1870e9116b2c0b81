//! A batch of events, and the rows that follow from them, in one transaction.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use anyhow::Context;
use shared::{
    AcceptedEvent, EventType, Family,
    database::{DeadlineTransaction, Pool, TransactionError},
    message::Receipt,
};
use sqlx::{
    AssertSqlSafe, PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::QueryScalar,
};
use tokio::time::Instant;
use worker::{
    families::{self, Resource, SortKey, Typed},
    record::Record,
    work::{Source, Work},
};

use super::report::Change;
use crate::{
    database::{READING, STORING},
    typed_table,
};

const DEADLINE: Duration = Duration::from_secs(40);

const COUNT_DEADLINE: Duration = Duration::from_secs(1_800);

/// The typed table of a family.
pub(super) struct Table {
    family: Family,
    name: &'static str,
    /// As SQL writes it.
    schema: String,
    /// Which types are the family's.
    pattern: String,
}

impl Table {
    pub(super) async fn find(
        connection: &mut PgConnection,
        family: Family,
    ) -> anyhow::Result<Self> {
        let name = typed_table::name(family).context("the family has a table")?;
        let resource = family.resource().context("the family has a resource")?;
        let schema: Option<String> = sqlx::query_scalar(
            "select quote_ident(n.nspname)
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
              where c.oid = to_regclass($1)",
        )
        .bind(name)
        .fetch_optional(connection)
        .await
        .context("cannot look for the typed tables")?;
        Ok(Self {
            family,
            name,
            schema: schema
                .with_context(|| format!("there is no table {name}: run `hookctl setup` first"))?,
            pattern: format!(r"^[^.]*\.{resource}\.[^.]*$"),
        })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// How many events there are to read.
    pub(super) async fn count_events(&self, pool: &Pool) -> anyhow::Result<u64> {
        let query = sqlx::query_scalar(
            "select count(*) from events where problem is null and event_type ~ $1",
        );
        let count = count(pool, query.bind(&self.pattern)).await;
        let count = count.context("cannot count the events")?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// How many rows name an event that is not among the healthy ones.
    pub(super) async fn count_rows_without_event(&self, pool: &Pool) -> anyhow::Result<i64> {
        let query = sqlx::query_scalar(AssertSqlSafe(format!(
            "select count(*) from {0} t
              where not exists (select from {1}.events e
                                 where e.webhook_id = t.webhook_id and e.problem is null)",
            self.qualified(),
            self.schema
        )));
        let count = count(pool, query).await;
        count.context("cannot compare the rows with the events")
    }
}

/// Counts rows of a whole table.
async fn count(
    pool: &Pool,
    query: QueryScalar<'_, Postgres, i64, PgArguments>,
) -> Result<i64, TransactionError> {
    let deadline = Instant::now() + COUNT_DEADLINE;
    let mode = READING.statement_timeout(COUNT_DEADLINE);
    let mut transaction = DeadlineTransaction::begin(pool, &mode, deadline).await?;
    let count = transaction
        .run(async |connection| query.fetch_one(connection).await)
        .await?;
    transaction.rollback().await?;
    Ok(count)
}

/// A healthy event, and the row that this version makes of it.
pub(super) struct Candidate {
    pub(super) webhook_id: String,
    /// An error says why there is none.
    pub(super) typed: Result<Typed, String>,
}

impl Candidate {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let raw: Option<Vec<u8>> = row.try_get("raw")?;
        let json: Option<String> = row.try_get("json")?;
        let hash: Vec<u8> = row.try_get("body_sha256")?;
        let event_type: &str = row.try_get("event_type")?;
        let webhook_id: String = row.try_get("webhook_id")?;
        let record = Record::new(&Work {
            event: AcceptedEvent {
                webhook_id: webhook_id.clone(),
                event_type: EventType::parse(event_type).unwrap_or_else(EventType::unknown),
                body_sha256: hash.try_into().unwrap_or_default(),
                body: raw
                    .unwrap_or_else(|| json.unwrap_or_default().into_bytes())
                    .into(),
                received_at: row.try_get("received_at")?,
                attempted_at: None,
                secret_name: None,
            },
            receipt: Receipt::Recorded,
            attempts: 0,
            problem: None,
            source: Source::Queue,
        });
        let typed = match (record.typed, record.problem) {
            (Some(typed), _) => Ok(typed),
            (None, problem) => Err(problem.unwrap_or_else(|| "its type has no table".to_owned())),
        };
        Ok(Self { webhook_id, typed })
    }
}

/// The row's key and its place among the states of its resource.
fn key(typed: &Typed) -> (&str, &SortKey, &str) {
    match typed {
        Typed::ExportJob(row) => (row.resource.id().as_str(), &row.sort_key, &row.webhook_id),
        Typed::Vendor(row) => (row.resource.id().as_str(), &row.sort_key, &row.webhook_id),
    }
}

/// A row as it is.
struct Current {
    webhook_id: String,
    sort_key: Vec<u8>,
}

/// Reads events and writes rows of one table.
pub(super) struct Writer<'a> {
    pool: &'a Pool,
    table: &'a Table,
    /// Commit, or take everything back.
    keep: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(pool: &'a Pool, table: &'a Table, keep: bool) -> Self {
        Self { pool, table, keep }
    }

    pub(super) fn family(&self) -> Family {
        self.table.family
    }

    /// The next healthy events of the family, in the order of their ids.
    pub(super) async fn read(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Candidate>, TransactionError> {
        let mut transaction = self.begin().await?;
        let rows = transaction
            .run(async |connection| {
                sqlx::query(
                    "select webhook_id, event_type, raw, payload::text as json, body_sha256,
                            received_at
                       from events
                      where webhook_id > $1 and problem is null and event_type ~ $2
                      order by webhook_id limit $3",
                )
                .bind(after)
                .bind(&self.table.pattern)
                .bind(i64::from(limit))
                .fetch_all(connection)
                .await
            })
            .await?;
        transaction.rollback().await?;
        rows.iter()
            .map(Candidate::read)
            .collect::<Result<_, _>>()
            .map_err(TransactionError::from)
    }

    /// Writes the rows of these, whose `typed` is there, where the table needs them. Answers with the
    /// rows' ids and what was wrong with each.
    pub(super) async fn write(
        &self,
        batch: &[Candidate],
    ) -> Result<Vec<(String, Change)>, TransactionError> {
        let typed: Vec<&Typed> = batch
            .iter()
            .filter_map(|candidate| candidate.typed.as_ref().ok())
            .collect();
        let mut transaction = self.begin().await?;
        let changes = transaction
            .run(async |connection| self.write_on(connection, &typed).await)
            .await;
        match changes {
            Ok(changes) if self.keep => transaction.commit().await.map(|()| changes),
            changes => {
                transaction.rollback().await?;
                changes
            }
        }
    }

    async fn begin(&self) -> Result<DeadlineTransaction, TransactionError> {
        let deadline = Instant::now() + DEADLINE;
        DeadlineTransaction::begin(self.pool, &STORING, deadline).await
    }

    async fn write_on(
        &self,
        connection: &mut PgConnection,
        typed: &[&Typed],
    ) -> Result<Vec<(String, Change)>, sqlx::Error> {
        let ids: Vec<&str> = typed.iter().map(|typed| key(typed).0).collect();
        let current = self.lock(connection, &ids).await?;
        let setters: Vec<&Typed> = typed
            .iter()
            .filter(|typed| {
                let (id, _, webhook_id) = key(typed);
                current.get(id).is_some_and(|c| c.webhook_id == webhook_id)
            })
            .copied()
            .collect();
        let wrong = self.find_wrong(connection, &setters).await?;
        let writes = judge(typed, &current, &wrong);
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        let newest: Vec<&Typed> = writes.values().map(|(typed, _)| *typed).collect();
        families::upsert(connection, &newest).await?;
        self.date(connection, &newest).await?;
        Ok(writes
            .into_iter()
            .map(|(id, (_, change))| (id.to_owned(), change))
            .collect())
    }

    /// Locks the rows in the order in which workers take them.
    async fn lock(
        &self,
        connection: &mut PgConnection,
        ids: &[&str],
    ) -> Result<HashMap<String, Current>, sqlx::Error> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select id, webhook_id, sort_key from {} where id = any($1) order by id for update",
            self.table.qualified()
        )))
        .bind(ids)
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let current = Current {
                    webhook_id: row.try_get("webhook_id")?,
                    sort_key: row.try_get("sort_key")?,
                };
                Ok((row.try_get("id")?, current))
            })
            .collect()
    }

    /// The ids of the rows that are not what the events say that they name. Their sort key is made
    /// the least of all, so that any event replaces them.
    ///
    /// The worker's own statement writes the rows that should be there into a temporary table of the
    /// same name, which hides the real one for as long as the search path says so. The table ends with
    /// the transaction: behind a pooler another client would find it in place of the real one.
    async fn find_wrong(
        &self,
        connection: &mut PgConnection,
        setters: &[&Typed],
    ) -> Result<HashSet<String>, sqlx::Error> {
        if setters.is_empty() {
            return Ok(HashSet::new());
        }
        let (schema, name, real) = (&self.table.schema, self.table.name, self.table.qualified());
        let execute = async |connection: &mut PgConnection, sql: String| {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await
        };
        execute(
            connection,
            format!(
                "create temporary table if not exists {name} (like {real} including all)
                     on commit drop;
                 truncate pg_temp.{name};
                 set local search_path = pg_temp, {schema}"
            ),
        )
        .await?;
        families::upsert(connection, setters).await?;
        execute(
            connection,
            format!("set local search_path = {schema}, pg_temp"),
        )
        .await?;
        let wrong: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
            "update {real} r set sort_key = ''
               from pg_temp.{name} t
              where t.id = r.id
                and to_jsonb(t) - 'stored_at' is distinct from to_jsonb(r) - 'stored_at'
             returning r.id"
        )))
        .fetch_all(connection)
        .await?;
        Ok(wrong.into_iter().collect())
    }

    /// Gives the rows the time at which a worker would have stored them, which retention goes by.
    async fn date(
        &self,
        connection: &mut PgConnection,
        written: &[&Typed],
    ) -> Result<(), sqlx::Error> {
        let (ids, webhook_ids): (Vec<&str>, Vec<&str>) = written
            .iter()
            .map(|typed| {
                let (id, _, webhook_id) = key(typed);
                (id, webhook_id)
            })
            .unzip();
        sqlx::query(AssertSqlSafe(format!(
            "update {} t set stored_at = greatest(e.stored_at, e.replayed_at)
               from {}.events e
              where t.id = any($1) and t.webhook_id = any($2) and e.webhook_id = t.webhook_id",
            self.table.qualified(),
            self.table.schema
        )))
        .bind(ids)
        .bind(webhook_ids)
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Which rows are to be written, and why: for each resource the newest of its events, where the table
/// has no row, a wrong one, or an older one.
fn judge<'t>(
    typed: &[&'t Typed],
    current: &HashMap<String, Current>,
    wrong: &HashSet<String>,
) -> BTreeMap<&'t str, (&'t Typed, Change)> {
    let mut newest: BTreeMap<&str, &Typed> = BTreeMap::new();
    for &typed in typed {
        let (id, sort_key, _) = key(typed);
        let known = newest.entry(id).or_insert(typed);
        if key(known).1 < sort_key {
            *known = typed;
        }
    }
    newest
        .into_iter()
        .filter_map(|(id, typed)| {
            let change = match current.get(id) {
                None => Change::Missing,
                Some(_) if wrong.contains(id) => Change::Wrong,
                Some(row) if row.sort_key.as_slice() < key(typed).1.as_bytes() => Change::Older,
                Some(_) => return None,
            };
            Some((id, (typed, change)))
        })
        .collect()
}
