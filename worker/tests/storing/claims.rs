//! Statements that take some rows take no more of them, and read no more than those, whatever the
//! planner believes.

use std::time::Duration;

use shared::Family;
use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use worker::spool_reader::SpoolReader;

use crate::sample::{count, persistence, sql, until_count};

/// What stock autovacuum can leave behind in a table that was empty when it looked, and settings that
/// keep the planner from the plan that it would choose by itself.
const BAD_PLANS: &str = "
    update pg_class set relpages = 1, reltuples = 0
     where relname in ('webhook_spool', 'webhook_receipts', 'events');
    do $$ begin
        execute format('alter database %I set plan_cache_mode = force_generic_plan',
                       current_database());
        execute format('alter database %I set enable_hashjoin = off', current_database());
        execute format('alter database %I set enable_mergejoin = off', current_database());
        execute format('alter database %I set enable_indexscan = off', current_database());
        execute format('alter database %I set enable_bitmapscan = off', current_database());
        execute format('alter database %I set enable_material = off', current_database());
    end $$";

/// A pool whose connections know the settings of the database.
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
