//! The backoff of an event that Postgres refuses.

use shared::Family;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use worker::work::Work;

use crate::sample::{count, persistence, sql, vendor, work};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn each_failed_attempt_waits_longer_and_the_last_is_a_dead_letter(pool: PgPool) {
    sql(
        &pool,
        "alter table vendors add constraint none check (false)",
    )
    .await;
    let batch: Vec<Work> = (0..=5)
        .map(|attempts| Work {
            attempts,
            ..work(vendor(&format!("failed-{attempts}")))
        })
        .collect();
    persistence(&pool, Family::Vendor)
        .persist(batch, &CancellationToken::new())
        .await
        .expect("not abandoned");
    // Both times are the transaction's start, so the result does not depend on the machine's speed.
    let delays: Vec<(String, i32, i64)> = sqlx::query_as(
        "select webhook_id, attempts, extract(epoch from due_at - spooled_at)::bigint
           from webhook_spool order by attempts",
    )
    .fetch_all(&pool)
    .await
    .expect("the spool");
    let expected = [1, 10, 60, 600, 3_600]
        .into_iter()
        .zip(1..)
        .map(|(delay, attempts)| (format!("failed-{}", attempts - 1), attempts, delay));
    assert!(expected.eq(delays));
    assert_eq!(
        count(
            &pool,
            "select count(*) from dead_letters
              where webhook_id = 'failed-5' and attempts = 6 and problem like '%none%'"
        )
        .await,
        1
    );
}
