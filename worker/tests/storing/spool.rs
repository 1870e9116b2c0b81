//! Events from the spool, and events that stop the worker.

use std::time::Duration;

use shared::{
    AcceptedEvent, Family,
    message::Receipt,
    spool::{self, SpoolEntry},
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use worker::work::{Source, Work};

use crate::sample::{count, persistence, sql, start_spool_reader, until_count, vendor, work};

pub(crate) async fn spool_events(pool: &PgPool, events: &[AcceptedEvent], claims: i32) {
    let entries: Vec<_> = events
        .iter()
        .map(|event| SpoolEntry {
            event,
            family: event.event_type.family(),
            receipt: Receipt::Recorded,
            attempts: 0,
            claims,
            delay: Duration::ZERO,
            reason: "a test",
        })
        .collect();
    let mut connection = pool.acquire().await.expect("a connection");
    spool::insert(&mut connection, &entries)
        .await
        .expect("an insert");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn spooled_events_are_stored_once_by_several_readers(pool: PgPool) {
    let events: Vec<_> = (0..1_000).map(|i| vendor(&format!("m{i}"))).collect();
    spool_events(&pool, &events, 0).await;
    spool_events(&pool, &events, 0).await;
    let readers = [(); 3].map(|()| start_spool_reader(&pool, Family::Vendor));
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 1_000);
    assert_eq!(count(&pool, "select count(*) from vendors").await, 1_000);
    for reader in readers {
        reader.cancel();
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_reader_takes_only_its_familys_rows(pool: PgPool) {
    spool_events(&pool, &[vendor("m1")], 0).await;
    let other = start_spool_reader(&pool, Family::Other);
    let export_job = start_spool_reader(&pool, Family::ExportJob);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        count(&pool, "select count(*) from webhook_spool where claims = 0").await,
        1
    );
    other.cancel();
    export_job.cancel();
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_that_keeps_stopping_workers_is_stored_unread(pool: PgPool) {
    // The state after two workers died with the batch and three with the event alone.
    spool_events(&pool, &[vendor("killer")], 5).await;
    // The state after two workers died with the batch, although this event is healthy.
    spool_events(&pool, &[vendor("neighbour")], 2).await;
    let reader = start_spool_reader(&pool, Family::Vendor);
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    assert_eq!(
        count(
            &pool,
            "select count(*) from dead_letters
              where webhook_id = 'killer' and problem = 'stopped the worker 3 times'
                and payload is null and raw is not null"
        )
        .await,
        1
    );
    assert_eq!(
        count(&pool, "select count(*) from vendors where id = 'neighbour'").await,
        1
    );
    reader.cancel();
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_claim_is_counted_before_anything_is_done_with_the_event(pool: PgPool) {
    sql(&pool, "alter table vendors rename to gone").await;
    spool_events(&pool, &[vendor("m1")], 0).await;
    let reader = start_spool_reader(&pool, Family::Vendor);
    until_count(
        &pool,
        "select count(*) from webhook_spool where claims = 1 and due_at > now()",
        1,
    )
    .await;
    // A reader that is stopped properly releases the row and does not count the claim.
    reader.cancel();
    until_count(
        &pool,
        "select count(*) from webhook_spool where claims = 0 and due_at <= now()",
        1,
    )
    .await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_reader_outlives_every_error(pool: PgPool) {
    let reader = start_spool_reader(&pool, Family::Vendor);
    for (event, stored) in [(vendor("m1"), 1), (vendor("m2"), 2)] {
        sql(&pool, "alter table webhook_spool rename to gone").await;
        // The reader polls every second.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        sql(&pool, "alter table gone rename to webhook_spool").await;
        spool_events(&pool, &[event], 0).await;
        until_count(&pool, "select count(*) from vendors", stored).await;
    }
    reader.cancel();
}

/// A user may lock a row with `select for update` after it was claimed.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_locked_row_of_the_spool_holds_nothing_up(pool: PgPool) {
    let events: Vec<AcceptedEvent> = (0..100).map(|n| vendor(&format!("m{n}"))).collect();
    spool_events(&pool, &events, 1).await;
    let mut user = pool.begin().await.expect("a transaction");
    sqlx::query("select from webhook_spool where webhook_id = 'm50' for update")
        .execute(&mut *user)
        .await
        .expect("a lock");
    let claimed = events.into_iter().map(|event| Work {
        source: Source::Spool,
        ..work(event)
    });
    persistence(&pool, Family::Vendor)
        .persist(claimed.collect(), &CancellationToken::new())
        .await
        .expect("not abandoned");
    assert_eq!(count(&pool, "select count(*) from vendors").await, 100);
    let left = "select count(*) from webhook_spool where webhook_id = 'm50' and attempts = 0";
    assert_eq!(count(&pool, left).await, 1);
    assert_eq!(count(&pool, "select count(*) from webhook_spool").await, 1);
    user.rollback().await.expect("the end");
    // Its claim has expired.
    sql(&pool, "update webhook_spool set due_at = now()").await;
    let reader = start_spool_reader(&pool, Family::Vendor);
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 100);
    reader.cancel();
}

/// Rows that are handled alone often have the same due time, that of their worker's crash. The locked
/// row is found by a later search.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_locked_row_hides_none_that_was_due_at_the_same_time_and_is_found_soon(pool: PgPool) {
    let events: Vec<AcceptedEvent> = (0..20).map(|n| vendor(&format!("m{n}"))).collect();
    spool_events(&pool, &events, 2).await;
    sql(
        &pool,
        "update webhook_spool set due_at = now() - interval '10 minutes'",
    )
    .await;
    let mut user = pool.begin().await.expect("a transaction");
    sqlx::query("select from webhook_spool order by due_at limit 1 for update")
        .execute(&mut *user)
        .await
        .expect("a lock");
    let reader = start_spool_reader(&pool, Family::Vendor);
    until_count(&pool, "select count(*) from vendors", 19).await;
    user.rollback().await.expect("the end");
    until_count(&pool, "select count(*) from vendors", 20).await;
    reader.cancel();
    // Searches that miss no row are 60 s apart.
    let took = "select extract(epoch from max(stored_at) - min(stored_at))::int8 from events";
    assert!(count(&pool, took).await < 45);
}
