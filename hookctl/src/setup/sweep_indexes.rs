//! The indexes that sweeping typed rows needs. They cost each event a little, so they are made only where
//! typed rows are swept. They are made concurrently, so that inserts go on meanwhile.

use anyhow::{Context, ensure};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::database::{Connection, READING};

/// Tables, each with the column that its index is for.
const NEEDED: [(&str, &str); 3] = [
    ("events", "resource_id"),
    ("export_jobs", "stored_at"),
    ("vendors", "stored_at"),
];

/// The indexes that are missing, of the tables `$1` with the columns `$2`. A partitioned table takes no
/// concurrent build. `leftover` is the index that a build has left invalid because it was cut off.
const MISSING: &str = "
    select format('create index %s on %I.%I (%I)',
                  case t.relkind when 'p' then '' else 'concurrently' end,
                  n.nspname, t.relname, by_column) as statement,
           (select format('drop index concurrently if exists %I.%I', n.nspname, own.relname)
              from pg_index i
              join pg_class own on own.oid = i.indexrelid
              join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
             where i.indrelid = t.oid and t.relkind <> 'p'
               and a.attname = by_column and not i.indisvalid
             limit 1) as leftover
      from unnest($1::text[], $2::text[]) as needed (in_table, by_column)
      join pg_namespace n on n.nspname = current_schema()
      join pg_class t on t.relnamespace = n.oid and t.relname = in_table
     where not is_indexed(in_table, by_column)";

/// A build takes minutes on a large table, and no limit of a role or a database is to end it. It waits for
/// all older transactions of the database, but not longer than half an hour.
const LIMITS: &str = "
    select set_config(name,
                      case name when 'lock_timeout' then '30min'
                                when 'default_transaction_read_only' then 'off'
                                when 'default_transaction_isolation' then 'read committed'
                                else '0' end,
                      false)
      from pg_settings
     where name in ('lock_timeout', 'statement_timeout', 'transaction_timeout',
                    'default_transaction_read_only', 'default_transaction_isolation')";

/// Two setups at once would remove each other's unfinished index. Neither may wait for the lock in
/// Postgres: a build waits for every transaction, also for one that waits for this lock.
const LOCK: &str = "select pg_try_advisory_lock(7236839910422)";

#[derive(sqlx::FromRow)]
struct Index {
    statement: String,
    leftover: Option<String>,
}

/// The statements that make all of them, for a dry run.
pub(super) fn statements() -> impl Iterator<Item = String> {
    NEEDED
        .into_iter()
        .map(|(table, column)| format!("create index concurrently on {table} ({column})"))
}

/// Makes those that are missing. It can be stopped and repeated.
pub(super) async fn make(connection: &mut Connection) -> anyhow::Result<()> {
    let locked: bool = sqlx::query_scalar(LOCK)
        .fetch_one(connection.bare())
        .await?;
    ensure!(
        locked,
        "another setup is making indexes: run it again when that one has ended"
    );
    let mut transaction = connection.begin(&READING).await?;
    let (tables, columns): (Vec<&str>, Vec<&str>) = NEEDED.into_iter().unzip();
    let missing: Vec<Index> = sqlx::query_as(MISSING)
        .bind(tables)
        .bind(columns)
        .fetch_all(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    let bare = connection.bare();
    if !missing.is_empty() {
        bare.execute(LIMITS).await?;
    }
    for index in missing {
        for statement in index.leftover.into_iter().chain([index.statement]) {
            execute(bare, statement).await?;
        }
    }
    bare.execute("select pg_advisory_unlock_all()").await?;
    Ok(())
}

async fn execute(connection: &mut PgConnection, statement: String) -> anyhow::Result<()> {
    let failed = format!("cannot {statement}");
    connection
        .execute(AssertSqlSafe(statement))
        .await
        .context(failed)?;
    Ok(())
}
