//! Settings of a database or a role neither break nor weaken a worker.

use std::time::Duration;

use prometheus::TextEncoder;
use shared::{Family, Program, metrics::ServiceMetrics};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use worker::{
    config::{Retention, RetentionArgs},
    housekeeping::{Housekeeping, Table},
};

use crate::sample::{count, event, persist, start_spool_reader, until_count, vendor, vendor_body};

/// Each is added to the ones before it.
const SETTINGS: [&str; 15] = [
    "default_transaction_isolation = 'serializable'",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_read_only = on",
    "default_transaction_deferrable = on",
    "synchronous_commit = off",
    "statement_timeout = '100ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "\"DateStyle\" = 'SQL, DMY'",
    "\"IntervalStyle\" = 'sql_standard'",
    "bytea_output = 'escape'",
    "standard_conforming_strings = off",
    "timezone = 'Asia/Kathmandu'",
    "search_path = decoy",
    "search_path = nowhere",
];

/// Settings without effect, which no transaction sets. They are active in every round.
const WITHOUT_EFFECT: [&str; 11] = [
    "array_nulls = off",
    "backslash_quote = off",
    "check_function_bodies = off",
    "exit_on_error = on",
    "extra_float_digits = 0",
    "jit_above_cost = 0",
    "max_parallel_workers_per_gather = 0",
    "quote_all_identifiers = on",
    "temp_tablespaces = nowhere",
    "transform_null_equals = on",
    "xmloption = document",
];

/// Does everything that a worker does, on connections with these settings.
async fn work_through(pool: &PgPool, unlimited: &PgPool, admin: &mut PgConnection, round: usize) {
    let fresh = PgPool::connect_with((*pool.connect_options()).clone())
        .await
        .expect("a pool");
    let id = |name: &str| format!("{name}-{round}");
    persist(&fresh, [vendor(&id("a")), vendor(&id("b"))]).await;
    // A repetition, and a second body under one id.
    let other = vendor_body("v", "Other", "DRAFT", "2025-02-21T10:05:43Z");
    persist(&fresh, [vendor(&id("a")), event(&id("b"), other)]).await;
    sqlx::query(
        "insert into public.webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                    has_receipt, due_at)
         values ($1, sha256('{}'), 'vendor', 'v1.vendor.created', '{}', now(), false, now())",
    )
    .bind(id("spooled"))
    .execute(&mut *admin)
    .await
    .expect("a row");
    let reader = start_spool_reader(&fresh, Family::Vendor);
    until_count(
        unlimited,
        "select count(*) from public.events where webhook_id like 'spooled-%'",
        i64::try_from(round).unwrap_or(0) + 1,
    )
    .await;
    reader.cancel();
    sqlx::query("update public.webhook_receipts set received_at = now() - interval '8 days'")
        .execute(admin)
        .await
        .expect("old receipts");
    let metrics = ServiceMetrics::new(Program::Worker(Family::Other));
    let housekeeping = Housekeeping::new(
        fresh.clone(),
        &metrics,
        Duration::from_secs(7 * 24 * 3_600),
        RetentionArgs {
            event_retention: Retention::For(Duration::from_secs(30 * 24 * 3_600)),
            typed_row_retention: Retention::For(Duration::from_secs(30 * 24 * 3_600)),
        },
    );
    for table in [Table::Receipts, Table::Events] {
        housekeeping.sweep(table).await.expect("a sweep");
    }
    let exposed = TextEncoder::new()
        .encode_to_string(&metrics.registry.gather())
        .expect("text");
    // The receipt that a worker added for the spooled event, and the old events.
    for line in [
        "pleo_housekeeping_swept_total{table=\"webhook_receipts\"} 1",
        "pleo_housekeeping_swept_total{table=\"events\"} 2",
    ] {
        assert!(exposed.contains(line), "{line}: {exposed}");
    }
    fresh.close().await;
}

async fn set(admin: &mut PgConnection, setting: &str) {
    sqlx::raw_sql(AssertSqlSafe(format!(
        "do $$ begin
            execute format('alter database %I set {}', current_database());
         end $$",
        setting.replace('\'', "''"),
    )))
    .execute(admin)
    .await
    .expect("good SQL");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn settings_of_a_database_change_nothing(pool: PgPool) {
    // This session started before the settings, so it does not have them.
    let mut admin = pool.acquire().await.expect("a connection");
    sqlx::raw_sql(
        "create schema decoy;
         create table decoy.events (webhook_id text);
         create table decoy.webhook_receipts (webhook_id integer);
         create table decoy.webhook_spool (webhook_id integer)",
    )
    .execute(&mut *admin)
    .await
    .expect("tables");
    // The test's own pool: on a busy machine, connecting alone takes longer than the limits.
    let options = (*pool.connect_options()).clone();
    let unlimited = PgPool::connect_with(options.options([("statement_timeout", "0")]))
        .await
        .expect("a pool");
    for setting in WITHOUT_EFFECT {
        set(&mut admin, setting).await;
    }
    for (round, setting) in SETTINGS.into_iter().enumerate() {
        set(&mut admin, setting).await;
        work_through(&pool, &unlimited, &mut admin, round).await;
    }
    let rounds = i64::try_from(SETTINGS.len()).unwrap_or(0);
    assert_eq!(
        count(
            &unlimited,
            "select count(*) from public.events where webhook_id like '%#conflict-%'"
        )
        .await,
        rounds
    );
    assert_eq!(
        count(&unlimited, "select count(*) from public.webhook_spool").await,
        0
    );
}
