//! Which old rows are swept, and which never are.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use shared::{AcceptedEvent, metrics::ServiceMetrics};
use sqlx::PgPool;
use tokio::time::timeout;
use worker::{
    config::{Retention, RetentionArgs},
    housekeeping::{Housekeeping, Table},
    ledger::Ledger,
};

use crate::{
    ledger::unstored,
    sample::{
        SOON, count, event, exposed, metrics, persist, sql, until_count, vendor, vendor_body,
    },
};

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A housekeeping that sweeps receipts after a week, events and typed rows after a month.
fn housekeeping(pool: &PgPool, metrics: &ServiceMetrics) -> Housekeeping {
    let month = Retention::For(30 * DAY);
    let retention = RetentionArgs {
        event_retention: month,
        typed_row_retention: month,
    };
    Housekeeping::new(pool.clone(), metrics, 7 * DAY, retention)
}

async fn sweep(pool: &PgPool, table: Table) {
    housekeeping(pool, &metrics())
        .sweep(table)
        .await
        .expect("a sweep");
}

fn received_days_ago(days: i64, event: AcceptedEvent) -> AcceptedEvent {
    AcceptedEvent {
        received_at: Utc::now() - TimeDelta::days(days),
        ..event
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn old_receipts_of_stored_events_are_swept_and_no_others(pool: PgPool) {
    persist(&pool, ["old", "young"].map(vendor)).await;
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at)
         select webhook_id, body_sha256,
                now() - case webhook_id when 'old' then interval '8 days' else interval '6 days' end
           from events;
         insert into webhook_receipts (webhook_id, body_sha256, received_at)
         values ('nowhere', '', now() - interval '8 days'),
                ('spooled', '', now() - interval '8 days');
         insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                    has_receipt, due_at)
         values ('spooled', '', 'other', 'unknown', '', now(), true, now());
         -- More than one batch.
         insert into events (webhook_id, event_type, received_at, raw, body_sha256)
         select 'many-' || n, 'unknown', now(), '', '' from generate_series(1, 2500) n;
         insert into webhook_receipts (webhook_id, body_sha256, received_at)
         select 'many-' || n, '', now() - interval '9 days' from generate_series(1, 2500) n",
    )
    .await;
    let metrics = metrics();
    housekeeping(&pool, &metrics)
        .sweep(Table::Receipts)
        .await
        .expect("a sweep");
    let left: Vec<String> =
        sqlx::query_scalar("select webhook_id from webhook_receipts order by webhook_id")
            .fetch_all(&pool)
            .await
            .expect("receipts");
    assert_eq!(left, ["nowhere", "spooled", "young"]);
    let exposed = exposed(&metrics);
    assert!(
        exposed.contains("pleo_housekeeping_swept_total{table=\"webhook_receipts\"} 2501"),
        "{exposed}"
    );
}

/// One receipt with different stored or spooled events.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_receipt_counts_as_stored_only_by_an_event_of_its_body(pool: PgPool) {
    let metrics = metrics();
    let mut ledger = Ledger::new(pool.clone(), &metrics);
    for (what, there, is_unstored, left) in [
        ("nothing", "select", 1, 1),
        ("the event", "call store('m', 'the body', null)", 0, 0),
        ("a forged event", "call store('m', 'forged', null)", 1, 1),
        (
            "a dead letter with another body",
            "call store('m', 'forged', 'another body was accepted under this webhook id before')",
            1,
            1,
        ),
        (
            "the event as a second body",
            "call store('m', 'the first', null);
             call store(conflict_id('m', sha256('the body')), 'the body', 'a test')",
            0,
            0,
        ),
        (
            "another one as a second body",
            "call store('m', 'the first', null);
             call store(conflict_id('m', sha256('the body')), 'forged', 'a test')",
            1,
            1,
        ),
        (
            "what was erased",
            "call store('m', 'the body', null);
             update events set event_type = 'erased', raw = '', erased_at = now()",
            0,
            0,
        ),
        (
            "the event in the spool",
            "call spool('m', 'the body')",
            0,
            1,
        ),
        (
            "another body in the spool",
            "call spool('m', 'forged')",
            1,
            1,
        ),
    ] {
        sql(
            &pool,
            "truncate events, webhook_spool, webhook_receipts;
             create or replace procedure store(id text, body text, problem text) language sql as
             $$ insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem)
                values (id, 'unknown', now(), body::bytea, sha256(body::bytea), problem) $$;
             create or replace procedure spool(id text, body text) language sql as
             $$ insert into webhook_spool (webhook_id, body_sha256, family, event_type, body,
                                           received_at, has_receipt, due_at)
                values (id, sha256(body::bytea), 'other', 'unknown', body::bytea, now(), true, now())
             $$;
             insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
             values ('m', sha256('the body'), now() - interval '8 days', now() - interval '8 days')",
        )
        .await;
        sql(&pool, there).await;
        ledger.look().await.expect("a look");
        assert_eq!(unstored(&metrics), is_unstored, "{what}");
        sql(&pool, "update webhook_receipts set written_off_at = now()").await;
        let written_off = count(&pool, "select count(*) from written_off_receipts").await;
        assert_eq!(
            written_off,
            i64::try_from(is_unstored).expect("a number"),
            "{what}"
        );
        sweep(&pool, Table::Receipts).await;
        let receipts = count(&pool, "select count(*) from webhook_receipts").await;
        assert_eq!(receipts, left, "{what}");
    }
}

/// If receipts are kept longer than events.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_stays_as_long_as_its_receipt(pool: PgPool) {
    let old = |body: &str| received_days_ago(40, event("m", body.to_owned()));
    let body = |name: &str| vendor_body("v", name, "DRAFT", "2025-02-21T10:05:43Z");
    persist(&pool, [old(&body("First"))]).await;
    persist(&pool, [old(&body("Second"))]).await;
    sql(
        &pool,
        "update events set dismissed_at = now() where problem is not null;
         insert into webhook_receipts (webhook_id, body_sha256, received_at)
         select 'm', body_sha256, now() from events where problem is not null",
    )
    .await;
    sweep(&pool, Table::Events).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 2);
    assert_eq!(
        count(&pool, "select count(*) from unstored_receipts").await,
        0
    );
    sql(
        &pool,
        "update webhook_receipts set received_at = now() - interval '8 days'",
    )
    .await;
    sweep(&pool, Table::Receipts).await;
    sweep(&pool, Table::Events).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 0);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_sweep_waits_for_no_lock(pool: PgPool) {
    persist(&pool, ["free", "locked"].map(vendor)).await;
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at)
         select webhook_id, body_sha256, now() - interval '8 days' from events",
    )
    .await;
    let mut ingest = pool.begin().await.expect("a transaction");
    sqlx::query("update webhook_receipts set published_at = now() where webhook_id = 'locked'")
        .execute(&mut *ingest)
        .await
        .expect("a lock");
    timeout(SOON, sweep(&pool, Table::Receipts))
        .await
        .expect("no waiting");
    assert_eq!(
        count(&pool, "select count(*) from webhook_receipts").await,
        1
    );
    ingest.rollback().await.expect("the end");
    sweep(&pool, Table::Receipts).await;
    assert_eq!(
        count(&pool, "select count(*) from webhook_receipts").await,
        0
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn old_events_are_swept_but_dead_letters_and_what_has_a_receipt_stay(pool: PgPool) {
    persist(
        &pool,
        [
            received_days_ago(31, vendor("old")),
            received_days_ago(29, vendor("young")),
            received_days_ago(31, vendor("repeated")),
            received_days_ago(31, event("dead", r#"{"eventType":"v1.vendor.created"}"#)),
            received_days_ago(31, vendor("replayed")),
            received_days_ago(62, vendor("replayed long ago")),
        ],
    )
    .await;
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at)
         values ('repeated', '', now());
         update events set replayed_at = now() where webhook_id = 'replayed';
         update events set replayed_at = now() - interval '31 days'
          where webhook_id = 'replayed long ago'",
    )
    .await;
    sweep(&pool, Table::Events).await;
    let left: Vec<String> = sqlx::query_scalar("select webhook_id from events order by webhook_id")
        .fetch_all(&pool)
        .await
        .expect("events");
    assert_eq!(left, ["dead", "repeated", "replayed", "young"]);
    assert_eq!(count(&pool, "select count(*) from vendors").await, 5);
    assert_eq!(
        count(&pool, "select count(*) from webhook_receipts").await,
        1
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn events_and_typed_rows_are_kept_for_ever_unless_asked_otherwise(pool: PgPool) {
    persist(&pool, [vendor("old")]).await;
    sql(&pool, "update events set received_at = '2000-01-01'").await;
    let retention = RetentionArgs {
        event_retention: Retention::Forever,
        typed_row_retention: Retention::Forever,
    };
    let housekeeping = Housekeeping::new(pool.clone(), &metrics(), 7 * DAY, retention);
    housekeeping.sweep(Table::Events).await.expect("nothing");
    assert_eq!(count(&pool, "select count(*) from events").await, 1);
    sql(
        &pool,
        "delete from events; update vendors set stored_at = '2000-01-01'",
    )
    .await;
    housekeeping.sweep(VENDORS).await.expect("nothing");
    assert_eq!(count(&pool, "select count(*) from vendors").await, 1);
}

const VENDORS: Table = Table::Typed("vendors");

/// The indexes that `hookctl setup` creates if typed rows are swept.
const INDEXES: &str =
    "create index on events (resource_id); create index on export_jobs (stored_at);
                       create index on vendors (stored_at)";

/// The ids of all vendors.
async fn vendors(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("select id from vendors order by id")
        .fetch_all(pool)
        .await
        .expect("vendors")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn typed_rows_are_swept_when_they_are_old_and_no_event_of_theirs_is_left(pool: PgPool) {
    let of = |id: &str, webhook_id: &str, time: &str| {
        event(webhook_id, vendor_body(id, "Name", "DRAFT", time))
    };
    persist(
        &pool,
        [
            received_days_ago(31, of("old", "m1", "2025-02-21T10:05:43Z")),
            received_days_ago(31, of("changed", "m2", "2025-02-21T10:05:43Z")),
            received_days_ago(31, of("told-late", "m3", "2025-02-21T10:05:43Z")),
            received_days_ago(29, of("event-is-young", "m4", "2025-02-21T10:05:43Z")),
            received_days_ago(31, of("has-dead-letter", "m5", "2025-02-21T10:05:43Z")),
        ],
    )
    .await;
    // An older state that arrived later, which changes no row, and an event that cannot be parsed.
    let late = received_days_ago(2, of("told-late", "m6", "2025-01-01T00:00:00Z"));
    let dead = r#"{"eventType":"v1.vendor.created","data":{"id":"has-dead-letter"}}"#;
    persist(&pool, [late, received_days_ago(31, event("m7", dead))]).await;
    sql(&pool, INDEXES).await;
    sql(
        &pool,
        "update vendors set stored_at = now() - interval '31 days' where id <> 'changed'",
    )
    .await;
    // No row is swept before its events.
    sweep(&pool, VENDORS).await;
    assert_eq!(vendors(&pool).await.len(), 5);
    sweep(&pool, Table::Events).await;
    sweep(&pool, VENDORS).await;
    let left = ["changed", "event-is-young", "has-dead-letter", "told-late"];
    assert_eq!(vendors(&pool).await, left);
    let noted = "select count(*) from sweeps where swept = 1 and table_name = 'vendors'
                    and account = session_user and older_than < now() - interval '29 days'";
    assert_eq!(count(&pool, noted).await, 1);
    assert_eq!(count(&pool, "select count(*) from sweeps").await, 2);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn typed_rows_are_swept_by_batches_and_counted_by_table(pool: PgPool) {
    sql(&pool, INDEXES).await;
    sql(
        &pool,
        "insert into vendors (id, company_id, name, state, sort_key, webhook_id, stored_at)
         select 'v' || n, 'c', 'n', 'DRAFT', '', 'gone', now() - interval '40 days'
           from generate_series(1, 2500) n;
         insert into export_jobs (id, company_id, status, sort_key, webhook_id, stored_at)
         values ('j', 'c', 'pending', '', 'gone', now() - interval '40 days')",
    )
    .await;
    let batch = "select looked_at * 10000 + swept
                   from sweep_typed_rows('vendors', null, now() - interval '30 days', 2)";
    assert_eq!(count(&pool, batch).await, 20_002);
    let metrics = metrics();
    let housekeeping = housekeeping(&pool, &metrics);
    for table in [Table::Typed("export_jobs"), VENDORS] {
        housekeeping.sweep(table).await.expect("a sweep");
    }
    assert_eq!(vendors(&pool).await, [""; 0]);
    assert_eq!(count(&pool, "select count(*) from export_jobs").await, 0);
    let exposed = exposed(&metrics);
    for line in [
        "pleo_housekeeping_swept_total{table=\"vendors\"} 2498",
        "pleo_housekeeping_swept_total{table=\"export_jobs\"} 1",
    ] {
        assert!(exposed.contains(line), "{line}: {exposed}");
    }
    let noted = "select sum(swept)::bigint from sweeps where table_name = 'vendors'";
    assert_eq!(count(&pool, noted).await, 2500);
}

/// A worker has stored an older state of a resource whose row is about to be swept, and has not
/// committed yet.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_typed_row_that_a_worker_has_locked_stays(pool: PgPool) {
    persist(&pool, ["free", "locked"].map(vendor)).await;
    sql(&pool, INDEXES).await;
    sql(
        &pool,
        "delete from events; update vendors set stored_at = '2000-01-01'",
    )
    .await;
    let mut worker = pool.begin().await.expect("a transaction");
    sqlx::query("select from vendors where webhook_id = 'locked' for update")
        .execute(&mut *worker)
        .await
        .expect("a lock");
    timeout(SOON, sweep(&pool, VENDORS))
        .await
        .expect("no waiting");
    assert_eq!(vendors(&pool).await.len(), 1);
    worker.rollback().await.expect("the end");
    sweep(&pool, VENDORS).await;
    assert_eq!(vendors(&pool).await, [""; 0]);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn no_sweep_of_typed_rows_reads_whole_tables_or_touches_others(pool: PgPool) {
    let sweep = async |table: &str, age: &str| {
        let swept: Result<i64, _> = sqlx::query_scalar(
            "select swept from sweep_typed_rows($1, null, now() - $2::text::interval, 10)",
        )
        .bind(table)
        .bind(age)
        .fetch_one(&pool)
        .await;
        swept.map_err(|error| error.to_string())
    };
    let refused = sweep("vendors", "30 days").await.expect_err("no index");
    assert!(refused.contains("run `hookctl setup`"), "{refused}");
    sql(&pool, INDEXES).await;
    assert_eq!(sweep("vendors", "30 days").await, Ok(0));
    let refused = sweep("vendors", "29 days").await.expect_err("too young");
    assert!(refused.contains("30 days at least"), "{refused}");
    for table in [
        "events",
        "operator_actions",
        "latest_events",
        "pg_class",
        "v; --",
        "",
    ] {
        let refused = sweep(table, "30 days").await.expect_err(table);
        assert!(refused.contains("only typed tables"), "{table}: {refused}");
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_swept_event_that_comes_again_changes_no_newer_state(pool: PgPool) {
    let old = || {
        let body = vendor_body("v", "Old", "DRAFT", "2025-02-21T10:05:43Z");
        received_days_ago(40, event("old", body))
    };
    let new = event(
        "new",
        vendor_body("v", "New", "ACTIVE", "2025-02-22T10:05:43Z"),
    );
    persist(&pool, [old()]).await;
    persist(&pool, [received_days_ago(1, new)]).await;
    sweep(&pool, Table::Events).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 1);

    persist(&pool, [old(), old()]).await;
    assert_eq!(
        count(
            &pool,
            "select count(*) from events where webhook_id = 'old'"
        )
        .await,
        1
    );
    assert_eq!(
        count(
            &pool,
            "select count(*) from vendors where name = 'New' and webhook_id = 'new'"
        )
        .await,
        1
    );
}

/// Ingest has claimed the id of a repetition and has not committed yet. The worker will then find
/// the event stored.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_repetition_on_its_way_keeps_its_event(pool: PgPool) {
    persist(&pool, [received_days_ago(31, vendor("repeated"))]).await;
    let mut ingest = pool.begin().await.expect("a transaction");
    sqlx::query(
        "insert into webhook_receipts (webhook_id, body_sha256, received_at)
         select webhook_id, body_sha256, now() from events",
    )
    .execute(&mut *ingest)
    .await
    .expect("a claim");
    // Without the lock timeout, which may be exceeded on a busy machine.
    let sweeping = tokio::spawn({
        let pool = pool.clone();
        async move {
            sqlx::query_scalar::<_, i64>(
                "select swept from sweep_events(null, now() - interval '30 days', 10)",
            )
            .fetch_one(&pool)
            .await
        }
    });
    until_count(
        &pool,
        "select count(*) from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock'",
        1,
    )
    .await;
    ingest.commit().await.expect("committed");
    assert_eq!(sweeping.await.expect("no panic").expect("a sweep"), 0);
    assert_eq!(count(&pool, "select count(*) from events").await, 1);
    assert_eq!(
        count(&pool, "select count(*) from unstored_receipts").await,
        0
    );
}
