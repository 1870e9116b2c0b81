//! Statements with a limit affect no more rows than that, and read no more, with any plan.

use std::time::Duration;

use shared::{Family, Program, metrics::ServiceMetrics};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use worker::{
    config::{Retention, RetentionArgs},
    housekeeping::{Housekeeping, Table},
    spool_reader::SpoolReader,
};

use crate::sample::{count, persistence, sql, until_count};

/// Statistics that autovacuum can leave behind for a table that was empty when it ran, and settings
/// that keep the planner from its own choice of a plan.
const BAD_PLANS: &str = "
    update pg_class set relpages = 1, reltuples = 0
     where relname in ('webhook_spool', 'webhook_receipts', 'events', 'vendors');
    do $$ begin
        execute format('alter database %I set plan_cache_mode = force_generic_plan',
                       current_database());
        execute format('alter database %I set enable_hashjoin = off', current_database());
        execute format('alter database %I set enable_mergejoin = off', current_database());
        execute format('alter database %I set enable_indexscan = off', current_database());
        execute format('alter database %I set enable_bitmapscan = off', current_database());
        execute format('alter database %I set enable_material = off', current_database());
    end $$";

/// A pool of new connections, which have the database's settings.
async fn fresh(pool: &PgPool) -> PgPool {
    PgPool::connect_with((*pool.connect_options()).clone())
        .await
        .expect("a pool")
}

fn start_reader(pool: &PgPool, batch_size: usize) -> CancellationToken {
    let reader = SpoolReader {
        pool: pool.clone().into(),
        persistence: persistence(pool, Family::Vendor),
        family: Family::Vendor,
        batch_size,
    };
    let stop = CancellationToken::new();
    tokio::spawn(reader.run(stop.clone(), stop.clone()));
    stop
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_claim_takes_no_more_rows_than_it_may(pool: PgPool) {
    sql(
        &pool,
        "insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                    has_receipt, due_at)
         select 'm' || n, '', 'vendor', 'v1.vendor.created', '{}', now(), true, now()
           from generate_series(1, 25) n;
         -- What was claimed stays claimed.
         alter table vendors rename to gone;
         alter table events rename to gone_as_well",
    )
    .await;
    sql(&pool, BAD_PLANS).await;
    let fresh = fresh(&pool).await;
    let reader = start_reader(&fresh, 1);
    until_count(&pool, "select least(1, sum(claims)) from webhook_spool", 1).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(
        count(&pool, "select sum(claims) from webhook_spool").await,
        1
    );
    reader.cancel();
}

/// Spools vendor events that became due this long ago; `since` is an SQL interval.
async fn spool_vendors(pool: &PgPool, prefix: &str, events: i32, since: &str) {
    sqlx::query(
        r#"insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                      has_receipt, due_at)
           select id, sha256(body), 'vendor', 'v1.vendor.created', body, now(), true,
                  now() - $3::text::interval
             from generate_series(1, $2) n,
                  lateral (select $1 || n as id) named,
                  lateral (select convert_to(format('{"eventType":"v1.vendor.created","data":
                      {"id":"%s","companyId":"c1","name":"n","state":"DRAFT"}}', id), 'UTF8') as body) sent"#,
    )
    .bind(prefix)
    .bind(events)
    .bind(since)
    .execute(pool)
    .await
    .expect("rows");
}

/// A pool of an account whose searches take two seconds for each old row, like a search that reads
/// millions of dead index entries.
async fn slow_account(pool: &PgPool) -> (String, PgPool) {
    let name = format!("slow_{:016x}", rand::random::<u64>());
    let statements = format!(
        "create role {name} login password '{name}';
         grant all on all tables in schema public to {name};
         alter table webhook_spool enable row level security;
         create policy slow on webhook_spool
          using (due_at > now() - interval '5 minutes'
                 or current_setting('transaction_read_only') = 'off'
                 or pg_sleep(2)::text = '')
           with check (true)"
    );
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(pool)
        .await
        .expect("good SQL");
    let options = (*pool.connect_options()).clone();
    let slow = PgPool::connect_with(options.username(&name).password(&name)).await;
    (name, slow.expect("it logs in"))
}

/// Otherwise a worker that starts while an old snapshot keeps dead entries would store nothing for
/// a long time.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn no_claim_waits_for_a_search_and_a_search_may_take_long(pool: PgPool) {
    spool_vendors(&pool, "old", 3, "1 hour").await;
    spool_vendors(&pool, "fresh", 3, "0").await;
    let (name, slow) = slow_account(&pool).await;
    let reader = start_reader(&slow, 10);
    until_count(&pool, "select count(*) from vendors", 6).await;
    reader.cancel();
    slow.close().await;
    let drop = format!("drop owned by {name}; drop role {name}");
    sqlx::raw_sql(AssertSqlSafe(drop))
        .execute(&pool)
        .await
        .expect("nothing is left of it");
    let earlier = "select count(*) from events
                    where webhook_id like 'fresh%'
                      and stored_at < all (select stored_at from events
                                            where webhook_id like 'old%')";
    assert_eq!(count(&pool, earlier).await, 3);
}

/// The backlog has more rows than one search finds, many with the same due time.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_backlog_is_stored_by_all_readers_without_pauses(pool: PgPool) {
    spool_vendors(&pool, "old", 1_000, "1 hour").await;
    let readers = [start_reader(&pool, 10), start_reader(&pool, 10)];
    until_count(&pool, "select count(*) from vendors", 1_000).await;
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    // With a pause of one second after each search, each reader's 50 pages would take longer.
    let took = "select extract(epoch from max(stored_at) - min(stored_at))::int8 from events";
    assert!(count(&pool, took).await < 45);
    readers.iter().for_each(CancellationToken::cancel);
}

const GONE: i64 = 20_000;

/// The state that workers leave: each row was claimed once and deleted, and an old snapshot keeps
/// the dead entries.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn only_a_search_passes_the_entries_of_rows_that_are_gone(pool: PgPool) {
    let mut old = pool.begin().await.expect("a transaction");
    sqlx::raw_sql("set transaction isolation level repeatable read; select from events")
        .execute(&mut *old)
        .await
        .expect("an old snapshot");
    spool_vendors(&pool, "gone", GONE.try_into().expect("small"), "1 hour").await;
    sql(&pool, "delete from webhook_spool; analyze webhook_spool").await;
    let options = (*pool.connect_options()).clone();
    let own = PgPool::connect_with(options.application_name("reader")).await;
    let own = own.expect("a pool");
    let reader = start_reader(&own, 100);
    for n in 0..3 {
        // Meanwhile several claims find nothing.
        sleep(Duration::from_secs(2)).await;
        spool_vendors(&pool, &format!("fresh{n}-"), 1, "0").await;
        until_count(&pool, "select count(*) from vendors", n + 1).await;
    }
    reader.cancel();
    own.close().await;
    // The rows that its sessions read are counted when they end.
    until_count(
        &pool,
        "select count(*) from pg_stat_activity
          where application_name = 'reader' and datname = current_database()",
        0,
    )
    .await;
    let read = count(
        &pool,
        "select sum(idx_tup_read)::int8 from pg_stat_user_indexes where relname = 'webhook_spool'",
    )
    .await;
    old.rollback().await.expect("the end");
    assert!(read >= GONE, "the search has read {read}");
    assert!(read < 2 * GONE, "claims have read {read}");
}

/// Two and a half batches of rows to sweep, and triggers that record how many rows a statement
/// deleted.
const OLD_ROWS: &str = "
    insert into webhook_receipts (webhook_id, body_sha256, received_at)
    select 'r' || n, '', now() - interval '9 days' from generate_series(1, 2500) n;
    insert into events (webhook_id, event_type, received_at, raw, body_sha256)
    select 'r' || n, 'unknown', now(), '', '' from generate_series(1, 2500) n;
    insert into events (webhook_id, event_type, received_at, raw, body_sha256)
    select 'e' || n, 'unknown', now() - interval '90 days', '', '' from generate_series(1, 2500) n;
    insert into vendors (id, company_id, name, state, sort_key, webhook_id, stored_at)
    select 'v' || n, 'c', 'n', 'DRAFT', '', '', now() - interval '90 days'
      from generate_series(1, 2500) n;
    create index on events (resource_id);
    create index on vendors (stored_at);
    create table taken (name text, size bigint);
    create function note() returns trigger language plpgsql as
      $$ begin insert into taken select tg_table_name, count(*) from gone; return null; end $$;
    create trigger note after delete on webhook_receipts referencing old table as gone
       for each statement execute function note();
    create trigger note after delete on events referencing old table as gone
       for each statement execute function note();
    create trigger note after delete on vendors referencing old table as gone
       for each statement execute function note()";

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_sweep_takes_no_more_rows_than_a_batch_has(pool: PgPool) {
    sql(&pool, OLD_ROWS).await;
    sql(&pool, BAD_PLANS).await;
    let month = Retention::For(Duration::from_secs(30 * 24 * 3_600));
    let housekeeping = Housekeeping::new(
        fresh(&pool).await,
        &ServiceMetrics::new(Program::Worker(Family::Other)),
        Duration::from_secs(7 * 24 * 3_600),
        RetentionArgs {
            event_retention: month,
            typed_row_retention: month,
        },
    );
    for table in [Table::Receipts, Table::Events, Table::Typed("vendors")] {
        housekeeping.sweep(table).await.expect("a sweep");
    }
    let taken: Vec<(String, i64)> =
        sqlx::query_as("select name, size from taken where size > 0 order by name, size desc")
            .fetch_all(&pool)
            .await
            .expect("what was taken");
    let of = |name: &str| -> Vec<i64> {
        let sizes = taken.iter().filter(|(table, _)| table == name);
        sizes.map(|(_, size)| *size).collect()
    };
    assert_eq!(of("vendors"), [1000, 1000, 500]);
    assert_eq!(of("events"), [1000, 1000, 500]);
    // These include the receipts that the sweep of events deletes, one for each event.
    assert_eq!(of("webhook_receipts"), [1000, 1000, 1000, 1000, 500, 500]);
}
