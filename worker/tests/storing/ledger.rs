//! Which receipts and dead letters the ledger's metrics count.

use std::time::Duration;

use shared::{Family, metrics::ServiceMetrics};
use sqlx::{PgPool, postgres::PgPoolOptions};
use worker::{floor::Floor, ledger::Ledger, spool_state};

use crate::sample::{count, event, exposed, metrics, persist, sql, vendor};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_ledger_shows_unstored_receipts_and_dead_letters_by_family(pool: PgPool) {
    persist(
        &pool,
        [
            vendor("healthy"),
            event("dead-1", r#"{"eventType":"v1.vendor.created"}"#),
            event("dead-2", r#"{"eventType":"v1.vendor.created","data":{}}"#),
            event("dead-3", "no JSON"),
        ],
    )
    .await;
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at)
         select webhook_id, body_sha256, now() from events where webhook_id = 'healthy';
         insert into webhook_receipts (webhook_id, body_sha256, received_at)
         values ('nowhere', '', now() - interval '1 hour')",
    )
    .await;
    let metrics = metrics();
    let mut ledger = Ledger::new(pool.clone(), &metrics);
    assert!(exposed(&metrics).contains("pleo_ledger_looked_at_timestamp_seconds 0\n"));
    ledger.look().await.expect("a look");
    let exposed = exposed(&metrics);
    for line in [
        "pleo_ledger_unstored_receipts 1",
        "pleo_dead_letters{family=\"export-job\"} 0",
        "pleo_dead_letters{family=\"vendor\"} 2",
        "pleo_dead_letters{family=\"other\"} 1",
    ] {
        assert!(
            exposed.lines().any(|found| found == line),
            "{line}: {exposed}"
        );
    }
    assert!(!exposed.contains("looked_at_timestamp_seconds 0\n"));
    assert!(
        exposed.contains("pleo_ledger_oldest_unstored_seconds 360"),
        "{exposed}"
    );
}

/// The metric's value.
pub(crate) fn unstored(metrics: &ServiceMetrics) -> u64 {
    let name = "pleo_ledger_unstored_receipts ";
    let exposed = exposed(metrics);
    let figure = exposed.lines().find_map(|line| line.strip_prefix(name));
    figure.expect("the metric").parse().expect("a number")
}

/// Whether the metrics say that they count all receipts.
fn counts_all(metrics: &ServiceMetrics) -> bool {
    exposed(metrics)
        .lines()
        .any(|line| line == "pleo_ledger_counts_all_receipts 1")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn after_a_start_looks_go_back_from_the_newest_receipt_and_say_until_they_are_through(
    pool: PgPool,
) {
    sql(
        &pool,
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
         select 'm' || n, 'v1.x.y', now() - n * interval '1 second', '', ''
           from generate_series(200, 100300) n;
         insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select webhook_id, '', received_at, received_at from events;
         insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select 'nowhere-' || days, '', now() - days * interval '1 day', now()
           from unnest(array[0.01, 3]) days",
    )
    .await;
    let metrics = metrics();
    let mut ledger = Ledger::new(pool.clone(), &metrics);
    for (expected, is_through) in [(1, false), (2, true), (2, true)] {
        ledger.look().await.expect("a look");
        assert_eq!(unstored(&metrics), expected);
        assert_eq!(counts_all(&metrics), is_through);
    }
    let exposed = exposed(&metrics);
    let oldest = exposed
        .lines()
        .find_map(|line| line.strip_prefix("pleo_ledger_oldest_unstored_seconds "))
        .expect("the metric");
    let oldest: f64 = oldest.parse().expect("a number");
    assert!(oldest >= 3.0 * 86_400.0, "{oldest}");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_receipt_counts_whatever_time_it_has(pool: PgPool) {
    let metrics = metrics();
    let mut ledger = Ledger::new(pool.clone(), &metrics);
    ledger.look().await.expect("a look");
    assert_eq!(unstored(&metrics), 0);
    // Such receipts come from an older ingest with a wrong clock, or from a late commit.
    for (count, receipt) in [
        "values ('slow', '', now() - interval '7 minutes', now())",
        "values ('fast', '', now() + interval '7 minutes', now())",
        "values ('now', '', now(), now())",
        "values ('late', '', now() - interval '2 days', now() - interval '2 days')",
    ]
    .into_iter()
    .enumerate()
    {
        let insert = format!(
            "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at) {receipt}"
        );
        sqlx::query(sqlx::AssertSqlSafe(insert))
            .execute(&pool)
            .await
            .expect("a receipt");
        for _ in 0..2 {
            ledger.look().await.expect("a look");
            assert_eq!(unstored(&metrics), count as u64 + 1, "{receipt}");
        }
    }
    persist(&pool, ["slow", "fast", "late"].map(vendor)).await;
    sql(
        &pool,
        "update webhook_receipts r set body_sha256 = e.body_sha256
           from events e where e.webhook_id = r.webhook_id",
    )
    .await;
    ledger.look().await.expect("a look");
    assert_eq!(unstored(&metrics), 1);
}

/// The number of rows of `events` read so far, by sequential and index scans.
const ROWS_READ: &str = "select coalesce(seq_tup_read, 0) + coalesce(idx_scan, 0)
    from pg_stat_user_tables where relname = 'events'";

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_receipt_that_is_never_stored_makes_no_look_read_the_whole_table(pool: PgPool) {
    sql(
        &pool,
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
         select 'm' || n, 'v1.x.y', now() - n * interval '1 second', '', ''
           from generate_series(100, 30000) n;
         insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select webhook_id, '', received_at, received_at from events;
         insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         values ('nowhere', '', now() - interval '2 days', now() - interval '2 days');
         analyze",
    )
    .await;
    let metrics = metrics();
    let looks = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(pool.connect_options().as_ref().clone())
        .await
        .expect("a pool");
    let mut ledger = Ledger::new(looks.clone(), &metrics);
    ledger.look().await.expect("the first look");
    assert_eq!(unstored(&metrics), 1);
    // A backend's statistics are visible when it has ended at the latest.
    let counted = async || {
        sql(&looks, "select pg_sleep(1.1)").await;
        count(&pool, ROWS_READ).await
    };
    let before = counted().await;
    for _ in 0..5 {
        ledger.look().await.expect("a look");
        assert_eq!(unstored(&metrics), 1);
    }
    let read = counted().await - before;
    assert!(read < 5 * 10_000, "five looks read {read} rows of 29,901");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_was_written_off_counts_only_when_it_is_published_again(pool: PgPool) {
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select id, '', now() - interval '1 day', now() - interval '1 day'
           from unnest(array['m1', 'm2']) id",
    )
    .await;
    let metrics = metrics();
    let mut ledger = Ledger::new(pool.clone(), &metrics);
    for (change, expected) in [
        ("select", 2),
        (
            "update webhook_receipts set written_off_at = now() where webhook_id = 'm1'",
            1,
        ),
        (
            "update webhook_receipts set published_at = null where webhook_id = 'm1'",
            1,
        ),
        (
            "update webhook_receipts set published_at = now() where webhook_id = 'm1'",
            2,
        ),
        ("update webhook_receipts set written_off_at = now()", 0),
        ("update webhook_receipts set written_off_at = null", 2),
    ] {
        sql(&pool, change).await;
        ledger.look().await.expect("a look");
        assert_eq!(unstored(&metrics), expected, "{change}");
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn more_unstored_receipts_than_are_remembered_are_at_least_so_many(pool: PgPool) {
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select 'm' || n, '', now() - interval '2 days' + n * interval '1 second', now()
           from generate_series(1, 20050) n",
    )
    .await;
    let metrics = metrics();
    let mut ledger = Ledger::new(pool.clone(), &metrics);
    for (change, expected, is_all) in [
        ("select", 20_000, false),
        ("select", 20_000, false),
        (
            "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
             select 'm' || n, 'v1.x.y', now(), '', '' from generate_series(20001, 20030) n",
            20_000,
            false,
        ),
        (
            "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
             select 'm' || n, 'v1.x.y', now(), '', '' from generate_series(1, 30) n",
            19_990,
            true,
        ),
        (
            "update webhook_receipts set written_off_at = now()",
            0,
            true,
        ),
    ] {
        sql(&pool, change).await;
        ledger.look().await.expect("a look");
        assert_eq!(unstored(&metrics), expected, "{change}");
        assert_eq!(counts_all(&metrics), is_all, "{change}");
    }
}

/// More rows do not make a measurement more expensive.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_look_counts_no_more_rows_than_it_may(pool: PgPool) {
    sql(
        &pool,
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem)
         select 'm' || n, 'v1.vendor.created', now(), '', '', 'a test'
           from generate_series(1, 100010) n;
         insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                    has_receipt, due_at)
         select 'm' || n, '', 'vendor', 'v1.vendor.created', '', now(), true,
                now() - interval '1 minute'
           from generate_series(1, 100010) n",
    )
    .await;
    let metrics = metrics();
    Ledger::new(pool.clone(), &metrics)
        .look()
        .await
        .expect("a look");
    let line = "pleo_dead_letters{family=\"vendor\"} 100000\n";
    assert!(exposed(&metrics).contains(line), "{}", exposed(&metrics));
    let services = pool.clone().into();
    let mut floor = Floor::new(Duration::from_secs(24 * 3_600));
    let mut look = async || {
        spool_state::look(&services, Family::Vendor, &mut floor)
            .await
            .expect("a look")
    };
    for _ in 0..2 {
        let spool = look().await;
        assert_eq!(spool.depth, 100_000);
        assert!(spool.oldest_due_seconds >= 60.0, "{spool:?}");
    }
    // Rows that become due next are counted from that position, and deferred rows stay counted.
    sql(
        &pool,
        "delete from webhook_spool where webhook_id not in ('m1', 'm2');
         update webhook_spool set due_at = now() + interval '1 hour' where webhook_id = 'm1'",
    )
    .await;
    assert_eq!(look().await.depth, 2);
    sql(&pool, "delete from webhook_spool where webhook_id = 'm2'").await;
    assert_eq!(look().await.depth, 1);
    sql(
        &pool,
        "insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                    has_receipt, due_at)
         values ('m3', '', 'vendor', 'v1.vendor.created', '', now(), true, now())",
    )
    .await;
    assert_eq!(look().await.depth, 2);
}
