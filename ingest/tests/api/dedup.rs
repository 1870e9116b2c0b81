//! Dedup that cannot lose.

use futures_util::future::join_all;
use shared::Family;
use sqlx::PgPool;

use crate::{
    app::{App, Stores},
    webhook::Webhook,
};

pub(crate) async fn store_event(pool: &PgPool, webhook: &Webhook) {
    sqlx::query(
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
         values ($1, 'v1.vendor.created', now(), '', '')",
    )
    .bind(&webhook.id)
    .execute(pool)
    .await
    .expect("an insert");
}

pub(crate) async fn age_receipts(pool: &PgPool) {
    sqlx::query("update webhook_receipts set published_at = published_at - interval '1 hour'")
        .execute(pool)
        .await
        .expect("an update");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_hundred_deliveries_at_once_to_two_replicas_are_one_message(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let replicas = [App::start(&stores).await, App::start(&stores).await];
    let webhook = Webhook::vendor("msg_1");
    let answers = join_all((0..100).map(|i| replicas[i % 2].send(&webhook))).await;
    assert!(
        answers.iter().all(|(status, _)| *status == 202),
        "{answers:?}"
    );
    let accepted = answers
        .iter()
        .filter(|(_, answer)| answer["status"] == "accepted")
        .count();
    assert_eq!(accepted, 1);
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    for replica in replicas {
        replica.stop().await;
    }
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_same_id_with_another_body_is_a_conflict(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let replicas = [App::start(&stores).await, App::start(&stores).await];
    assert_eq!(replicas[0].send(&Webhook::vendor("msg_1")).await.0, 202);
    let other = Webhook::new("msg_1", b"{}");
    for replica in &replicas {
        let (status, answer) = replica.send(&other).await;
        assert_eq!(status, 409, "{answer}");
    }
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    for replica in replicas {
        replica.stop().await;
    }
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_receipt_is_there_only_after_the_confirm(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    // Nothing listens there, so nothing is ever confirmed; and without a spool nothing is safe.
    sqlx::query("alter table webhook_spool rename to gone")
        .execute(&pool)
        .await
        .expect("a rename");
    let app = App::start_at(
        &stores.database_url,
        "amqp://127.0.0.1:1/%2f",
        &stores.prefix,
        &[],
    );
    let (status, answer) = app.send(&Webhook::vendor("msg_1")).await;
    assert_eq!(status, 503, "{answer}");
    let receipts: i64 = sqlx::query_scalar("select count(*) from webhook_receipts")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!(receipts, 0, "the sender's next try must go through");
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_heals_a_purged_queue(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let first = App::start(&stores).await;
    let webhook = Webhook::vendor("msg_1");
    assert_eq!(first.send(&webhook).await.0, 202);
    stores.purge(Family::Vendor).await;
    first.stop().await;

    // A process that does not remember the id: fresh receipts still count as proof.
    let second = App::start(&stores).await;
    assert_eq!(second.send(&webhook).await.1["status"], "duplicate");
    assert!(stores.events(Family::Vendor).await.is_empty());
    second.stop().await;

    // An old receipt does not, unless the event is where it should be.
    age_receipts(&pool).await;
    let third = App::start(&stores).await;
    assert_eq!(third.send(&webhook).await.1["status"], "accepted");
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    third.stop().await;

    age_receipts(&pool).await;
    store_event(&pool, &webhook).await;
    let fourth = App::start(&stores).await;
    assert_eq!(fourth.send(&webhook).await.1["status"], "duplicate");
    assert!(stores.events(Family::Vendor).await.is_empty());
    fourth.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn two_replicas_heal_an_id_once(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let first = App::start(&stores).await;
    let webhook = Webhook::vendor("msg_1");
    first.send(&webhook).await;
    first.stop().await;
    stores.purge(Family::Vendor).await;
    age_receipts(&pool).await;
    let replicas = [App::start(&stores).await, App::start(&stores).await];
    let answers = join_all((0..20).map(|i| replicas[i % 2].send(&webhook))).await;
    assert!(
        answers.iter().all(|(status, _)| *status == 202),
        "{answers:?}"
    );
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    for replica in replicas {
        replica.stop().await;
    }
    stores.clean_up().await;
}

/// One clock for all that looks at receipts, whatever machine ingest runs on.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_receipt_has_the_time_of_the_database(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let (status, answer) = app.send(&Webhook::vendor("msg_1")).await;
    assert_eq!(status, 202, "{answer}");
    // The receipt commits after the answer.
    app.stop().await;
    // The database's clock at the beginning of the transaction is written twice, to the microsecond.
    let of_the_database: bool =
        sqlx::query_scalar("select received_at = published_at from webhook_receipts")
            .fetch_one(&pool)
            .await
            .expect("the receipt");
    assert!(of_the_database);
    stores.clean_up().await;
}
