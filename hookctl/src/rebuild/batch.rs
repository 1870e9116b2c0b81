//! A batch of events and their typed rows, in one transaction.
//!
//! Events are read before that. So their state is checked again when rows are written, and they stay locked
//! until the end. A command that reverts one of these events waits for the batch, and then finds its rows.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use migrations::Blocker;
use shared::{
    Family,
    database::{DeadlineTransaction, Pool, TransactionError},
};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, postgres::PgArguments, query::QueryScalar};
use tokio::time::Instant;
use worker::families::{self, Typed};

use super::report::Change;
use crate::{
    actions::Run,
    database::{READING, STORING},
    lock_holders::{LAST_LOCK_WAIT, Watch, said},
    typed_table::{
        self, Candidate, Current, Ended, NAMED, Recomputing, Survivors, Table, key, lock_events,
    },
};

const DEADLINE: Duration = Duration::from_secs(40);

/// Another try finds new rows, too.
const MEANWHILE: &str = "events of these rows changed meanwhile";

const WHOLE_TABLE_DEADLINE: Duration = Duration::from_secs(1_800);

/// How many events of the table's family have to be read.
pub(super) async fn count_events(pool: &Pool, table: &Table) -> anyhow::Result<u64> {
    let query =
        sqlx::query_scalar("select count(*) from events where problem is null and event_type ~ $1");
    let count = count(pool, query.bind(table.pattern())).await;
    let count = count.context("cannot count the events")?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// How many rows name an event that does not exist.
pub(super) async fn count_rows_without_event(pool: &Pool, table: &Table) -> anyhow::Result<i64> {
    let query = sqlx::query_scalar(AssertSqlSafe(format!(
        "select count(*) from {0} t
          where not exists (select from {1}.events e where {NAMED})",
        table.qualified(),
        table.schema()
    )));
    let count = count(pool, query).await;
    count.context("cannot compare the rows with the events")
}

/// Counts rows of a whole table.
async fn count(
    pool: &Pool,
    query: QueryScalar<'_, Postgres, i64, PgArguments>,
) -> Result<i64, TransactionError> {
    read_all(pool, async |connection| query.fetch_one(connection).await).await
}

/// Runs a read whose time depends on the size of the tables.
async fn read_all<T>(
    pool: &Pool,
    read: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, TransactionError> {
    let deadline = Instant::now() + WHOLE_TABLE_DEADLINE;
    let mode = READING.statement_timeout(WHOLE_TABLE_DEADLINE);
    let mut transaction = DeadlineTransaction::begin(pool, &mode, deadline).await?;
    let found = transaction.run(read).await?;
    transaction.rollback().await?;
    Ok(found)
}

/// A row by its id and the event that it names.
pub(super) type Named = (String, String);

/// The rows whose event exists and sets no row, or sets the row of another resource, in the order of the
/// events' ids.
pub(super) async fn find_not_set(pool: &Pool, table: &Table) -> anyhow::Result<Vec<Named>> {
    let query = format!(
        "select t.id, e.webhook_id from {} t join {}.events e on {NAMED}
          where {} or e.resource_id <> t.id order by e.webhook_id",
        table.qualified(),
        table.schema(),
        table.not_set_by()
    );
    let query = sqlx::query_as(AssertSqlSafe(query));
    let found = read_all(pool, async |connection| query.fetch_all(connection).await).await;
    found.context("cannot compare the rows with the events")
}

/// The changes of a batch.
pub(super) struct Written {
    /// The ids of rows, and what was wrong with each.
    pub(super) changes: Vec<(String, Change)>,
    /// The webhook ids of events whose resource belongs to another company.
    pub(super) strangers: Vec<String>,
}

/// Reads events and writes rows of one table.
pub(super) struct Writer<'a> {
    pool: &'a Pool,
    watch: &'a Watch,
    /// The session that was seen to hold up the last write.
    holders: Mutex<Vec<Blocker>>,
    table: &'a Table,
    /// Commit and record the change; or, without, roll back.
    run: Option<&'a Run>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        pool: &'a Pool,
        watch: &'a Watch,
        table: &'a Table,
        run: Option<&'a Run>,
    ) -> Self {
        Self {
            pool,
            watch,
            holders: Mutex::default(),
            table,
            run,
        }
    }

    /// The error that the last write did not get a lock, with the session that held it.
    pub(super) fn lock_holders(&self) -> String {
        said(&self.holders.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs statements that take locks, and watches meanwhile which session holds them.
    async fn watched<T>(
        &self,
        connection: &mut PgConnection,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut holders = Vec::new();
        let done = self.watch.during(connection, &mut holders, work).await;
        *self.holders.lock().unwrap_or_else(PoisonError::into_inner) = holders;
        done
    }

    pub(super) fn family(&self) -> Family {
        self.table.family()
    }

    /// The next healthy events of the family, in the order of their ids.
    pub(super) async fn read(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Candidate>, TransactionError> {
        let mut transaction = self.begin(LAST_LOCK_WAIT).await?;
        let rows = transaction
            .run(async |connection| {
                sqlx::query(AssertSqlSafe(format!(
                    "select {} from events e
                      where webhook_id > $1 and problem is null and event_type ~ $2
                      order by webhook_id limit $3",
                    Candidate::COLUMNS
                )))
                .bind(after)
                .bind(self.table.pattern())
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

    /// Writes the rows of these, whose `typed` is set, if the table needs them.
    pub(super) async fn write(
        &self,
        batch: &[Candidate],
        lock_wait: Duration,
    ) -> Result<Written, TransactionError> {
        let mut transaction = self.begin(lock_wait).await?;
        let written = transaction
            .run(async |connection| {
                let work = async |connection: &mut _| {
                    let ids = batch.iter().map(|event| &*event.webhook_id).collect();
                    let held = self.hold(connection, ids).await?;
                    let typed: Vec<&Typed> = batch
                        .iter()
                        .filter(|event| matches!(held.get(&event.webhook_id), Some(Some(_))))
                        .filter_map(|event| event.typed.as_ref().ok())
                        .collect();
                    self.write_on(connection, &typed).await
                };
                self.watched(connection, work).await
            })
            .await;
        match written {
            Ok(written) if self.run.is_some() => transaction.commit().await.map(|()| written),
            written => {
                transaction.rollback().await?;
                written
            }
        }
    }

    /// Gives these rows, where their event still does not set them, the newest state of the healthy events
    /// of their resource, or removes them if there is none. Returns their ids.
    pub(super) async fn replace(
        &self,
        run: &Run,
        rows: &[Named],
        lock_wait: Duration,
    ) -> Result<Vec<String>, TransactionError> {
        let (ids, setters): (Vec<&str>, Vec<&str>) =
            rows.iter().map(|(id, event)| (&**id, &**event)).unzip();
        let survivors = read_all(self.pool, async |connection| {
            Survivors::find(connection, self.table, &ids, &|_| {}).await
        })
        .await?;
        let mut transaction = self.begin(lock_wait).await?;
        let replaced = transaction
            .run(async |connection| {
                let work = async |connection: &mut _| {
                    self.replace_on(connection, run, (ids, setters), &survivors)
                        .await
                };
                self.watched(connection, work).await
            })
            .await;
        match replaced {
            Ok(replaced) => transaction.commit().await.map(|()| replaced),
            Err(error) => {
                transaction.rollback().await?;
                Err(error)
            }
        }
    }

    async fn replace_on(
        &self,
        connection: &mut PgConnection,
        run: &Run,
        (ids, setters): (Vec<&str>, Vec<&str>),
        survivors: &Survivors,
    ) -> Result<Vec<String>, sqlx::Error> {
        let mut events = setters.clone();
        events.extend(ids.iter().flat_map(|id| survivors.ids(id)));
        lock_events(connection, &events).await?;
        let held = self.hold(connection, setters).await?;
        let mut before = self.table.lock(connection, &ids).await?;
        before.retain(|id, row| {
            let sets = held.get(&row.webhook_id);
            sets.is_some_and(|resource| resource.as_ref() != Some(id))
        });
        let mut ids: Vec<&str> = before.keys().map(|id| &**id).collect();
        ids.sort_unstable();
        let recomputing = Recomputing {
            table: self.table,
            survivors,
            trust: &|_| {},
            locked: &events.into_iter().map(str::to_owned).collect(),
        };
        let ended = recomputing.apply(connection, &before, &ids).await?;
        let Ended::Done(done) = ended else {
            return Err(sqlx::Error::Protocol(MEANWHILE.to_owned()));
        };
        run.record(connection, done.changes).await?;
        Ok(ids.into_iter().map(str::to_owned).collect())
    }

    /// The resource whose row each event sets, `None` for an event that sets none. That stays so until the
    /// transaction ends, because events are locked first, before any typed row and in the order of their
    /// ids, as in a replay. A trial needs no lock.
    async fn hold(
        &self,
        connection: &mut PgConnection,
        ids: Vec<&str>,
    ) -> Result<HashMap<String, Option<String>>, sqlx::Error> {
        let lock = self.run.map_or("", |_| "for share");
        let held: Vec<(String, Option<String>)> = sqlx::query_as(AssertSqlSafe(format!(
            "select webhook_id, case when not {} then coalesce(resource_id, '') end from events e
              where webhook_id = any($1) order by webhook_id {lock}",
            self.table.not_set_by()
        )))
        .bind(ids)
        .fetch_all(connection)
        .await?;
        Ok(held.into_iter().collect())
    }

    async fn begin(&self, lock_wait: Duration) -> Result<DeadlineTransaction, TransactionError> {
        let deadline = Instant::now() + DEADLINE;
        DeadlineTransaction::begin(self.pool, &STORING.lock_timeout(lock_wait), deadline).await
    }

    async fn write_on(
        &self,
        connection: &mut PgConnection,
        typed: &[&Typed],
    ) -> Result<Written, sqlx::Error> {
        let ids: Vec<&str> = typed.iter().map(|typed| key(typed).0).collect();
        let before = self.table.lock(connection, &ids).await?;
        let named = self.named(connection, &ids).await?;
        let setters: Vec<&Typed> = typed
            .iter()
            .filter(|typed| {
                let (id, _, webhook_id) = key(typed);
                named.get(id).is_some_and(|event| event == webhook_id)
            })
            .copied()
            .collect();
        let wrong = self.find_wrong(connection, &setters).await?;
        let mended;
        let current = match wrong.is_empty() {
            true => &before,
            false => {
                mended = self.table.lock(connection, &ids).await?;
                &mended
            }
        };
        let (own, strangers) = by_company(typed, current);
        let mut writes = judge(&own, current, &wrong);
        let newest: Vec<&Typed> = writes.values().map(|(typed, _)| *typed).collect();
        // A worker may have inserted a row that did not exist to be locked.
        let late = families::upsert(connection, &newest).await?;
        if !newest.is_empty() {
            self.table.date(connection, &newest).await?;
        }
        writes.retain(|_, (typed, _)| !late.contains(key(typed).2));
        if let Some(run) = self.run {
            let ids: Vec<&str> = writes.keys().copied().collect();
            let changes = typed_table::describe(connection, self.table, &before, &ids).await?;
            run.record(connection, changes).await?;
        }
        let strangers = strangers.into_iter().map(|typed| key(typed).2).chain(late);
        Ok(Written {
            strangers: strangers.map(str::to_owned).collect(),
            changes: writes
                .into_iter()
                .map(|(id, (_, change))| (id.to_owned(), change))
                .collect(),
        })
    }

    /// The event that each of these rows names, by the row's id.
    async fn named(
        &self,
        connection: &mut PgConnection,
        ids: &[&str],
    ) -> Result<HashMap<String, String>, sqlx::Error> {
        let named: Vec<Named> = sqlx::query_as(AssertSqlSafe(format!(
            "select t.id, e.webhook_id from {} t join {}.events e on {NAMED} where t.id = any($1)",
            self.table.qualified(),
            self.table.schema()
        )))
        .bind(ids)
        .fetch_all(connection)
        .await?;
        Ok(named.into_iter().collect())
    }

    /// The ids of the rows that differ from the event that they name. They get the company that their event
    /// names and the lowest sort key, so that any event of that company replaces them.
    ///
    /// The worker's own statement writes the rows that should be there into a temporary table of the same
    /// name, which the search path puts in front of the real one. The table is dropped with the
    /// transaction, because behind a pooler another client would find it in place of the real one.
    async fn find_wrong(
        &self,
        connection: &mut PgConnection,
        setters: &[&Typed],
    ) -> Result<HashSet<String>, sqlx::Error> {
        if setters.is_empty() {
            return Ok(HashSet::new());
        }
        let (schema, name) = (self.table.schema(), self.table.name());
        let real = self.table.qualified();
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
            "update {real} r set sort_key = '', company_id = t.company_id
               from pg_temp.{name} t
              where t.id = r.id
                and to_jsonb(t) - 'stored_at' is distinct from to_jsonb(r) - 'stored_at'
             returning r.id"
        )))
        .fetch_all(connection)
        .await?;
        Ok(wrong.into_iter().collect())
    }
}

/// Splits events into those of the company that owns their resource, and the others. Without a row the
/// company of the first event owns it.
fn by_company<'t>(
    typed: &[&'t Typed],
    current: &HashMap<String, Current>,
) -> (Vec<&'t Typed>, Vec<&'t Typed>) {
    let mut firsts: HashMap<&str, &str> = HashMap::new();
    typed.iter().partition(|typed| {
        let company = match current.get(typed.id()) {
            Some(row) => row.company_id.as_str(),
            None => firsts.entry(typed.id()).or_insert(typed.company_id()),
        };
        company == typed.company_id()
    })
}

/// Which rows have to be written, and why: for each resource the newest of its events, if the table has no
/// row, a wrong one, or an older one.
fn judge<'t>(
    typed: &[&'t Typed],
    current: &HashMap<String, Current>,
    wrong: &HashSet<String>,
) -> BTreeMap<&'t str, (&'t Typed, Change)> {
    typed_table::newest(typed.iter().copied())
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
