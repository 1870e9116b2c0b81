//! Deduplication never loses an event.

use std::collections::HashSet;

use futures_util::future::join_all;
use shared::{Family, message::body_sha256};
use sqlx::PgPool;

use crate::{
    app::{App, Stores},
    webhook::Webhook,
};

pub(crate) async fn store_event(pool: &PgPool, webhook: &Webhook) {
    sqlx::query(
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
         values ($1, 'v1.vendor.created', now(), '', $2)",
    )
    .bind(&webhook.id)
    .bind(&body_sha256(&webhook.body)[..])
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

/// After a refusal the sender would retry for a day and then disable the endpoint.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_under_one_id_is_kept_and_accepted(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let replicas = [App::start(&stores).await, App::start(&stores).await];
    assert_eq!(replicas[0].send(&Webhook::vendor("msg_1")).await.0, 202);
    let other = Webhook::new("msg_1", b"{}");
    let (status, answer) = replicas[0].send(&other).await;
    assert_eq!((status, &answer["status"]), (202, &"conflict".into()));
    replicas[0]
        .until_metric(r#"pleo_ingest_requests_total{outcome="conflict"} 1"#)
        .await;
    // Both are duplicates from now on.
    for webhook in [&other, &Webhook::vendor("msg_1")] {
        let (status, answer) = replicas[1].send(webhook).await;
        assert_eq!((status, &answer["status"]), (202, &"duplicate".into()));
    }
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    let [kept] = &stores.events(Family::Other).await[..] else {
        panic!("not one second body");
    };
    assert_eq!(kept.body, other.body);
    assert!(
        kept.is_conflict(),
        "under an id of its own, so that it never counts as the first one"
    );
    // Each body has a receipt, so the ledger counts both.
    let unstored: i64 = sqlx::query_scalar("select count(*) from unstored_receipts")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!(unstored, 2);
    for replica in replicas {
        replica.stop().await;
    }
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn many_bodies_under_one_id_at_once_are_all_kept(pool: PgPool) {
    const BODIES: usize = 50;
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let webhooks: Vec<Webhook> = (0..2 * BODIES)
        .map(|i| Webhook::new("msg_1", format!("{}", i % BODIES).as_bytes()))
        .collect();
    let answers = join_all(webhooks.iter().map(|webhook| app.send(webhook))).await;
    assert!(
        answers.iter().all(|(status, _)| *status == 202),
        "{answers:?}"
    );
    let accepted = answers
        .iter()
        .filter(|(_, answer)| answer["status"] == "accepted")
        .count();
    assert_eq!(accepted, 1, "{answers:?}");
    let kept = stores.events(Family::Other).await;
    let bodies: HashSet<_> = kept.iter().map(|event| event.body.clone()).collect();
    assert_eq!(bodies.len(), BODIES);
    app.stop().await;
    stores.clean_up().await;
}

/// The bodies come in every order and are split into batches in every way.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn two_bodies_that_come_often_to_two_replicas_are_published_once_each(pool: PgPool) {
    const IDS: usize = 60;
    let stores = Stores::new(&pool).await;
    let replicas = [App::start(&stores).await, App::start(&stores).await];
    let webhooks: Vec<[Webhook; 2]> = (0..IDS)
        .map(|i| [&b"1"[..], b"2"].map(|body| Webhook::new(&format!("msg_{i}"), body)))
        .collect();
    let answers = join_all(webhooks.iter().flat_map(|bodies| {
        [(0, 0), (1, 1), (0, 1), (1, 0)].map(|(replica, body)| {
            let replica: &App = &replicas[replica];
            replica.send(&bodies[body])
        })
    }))
    .await;
    assert!(
        answers.iter().all(|(status, _)| *status == 202),
        "{answers:?}"
    );
    let kept = stores.events(Family::Other).await;
    let mut events: Vec<_> = kept
        .iter()
        .map(|event| {
            let id = event.webhook_id.split('#').next().expect("an id");
            (id, &event.body[..])
        })
        .collect();
    events.sort_unstable();
    events.dedup();
    assert_eq!((kept.len(), events.len()), (2 * IDS, 2 * IDS));
    for replica in replicas {
        replica.stop().await;
    }
    stores.clean_up().await;
}

/// Without Postgres, workers may store the second body first.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_body_that_was_stored_before_the_first_one_is_a_duplicate(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let first = App::start(&stores).await;
    assert_eq!(first.send(&Webhook::vendor("msg_1")).await.0, 202);
    first.stop().await;
    let other = Webhook::new("msg_1", b"{}");
    store_event(&pool, &other).await;
    let second = App::start(&stores).await;
    let (_, answer) = second.send(&other).await;
    assert_eq!(answer["status"], "duplicate");
    second.stop().await;
    assert!(stores.events(Family::Other).await.is_empty());
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_rabbitmq_a_second_body_is_spooled_beside_the_first(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let nowhere = "amqp://127.0.0.1:1/%2f";
    let app = App::start_at(&stores.database_url, nowhere, &stores.prefix, &[]);
    assert_eq!(app.send(&Webhook::vendor("msg_1")).await.0, 202);
    let (status, answer) = app.send(&Webhook::new("msg_1", b"{}")).await;
    assert_eq!((status, &answer["status"]), (202, &"conflict".into()));
    let spooled: i64 = sqlx::query_scalar("select count(*) from webhook_spool")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!(spooled, 2);
    // If the second body cannot be spooled, the first body's row must not count for it.
    sqlx::raw_sql(
        "create function skip() returns trigger language plpgsql as $$ begin return null; end $$;
         create trigger skip before insert on webhook_spool for each row execute function skip()",
    )
    .execute(&pool)
    .await
    .expect("a trigger");
    let (status, answer) = app.send(&Webhook::new("msg_1", b"[]")).await;
    assert_eq!(status, 503, "{answer}");
    app.stop().await;
    stores.clean_up().await;
}

/// A stored event with the same id and another body does not make a lost event safe.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn another_body_proves_nothing_for_a_lost_one(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let first = App::start(&stores).await;
    let webhook = Webhook::vendor("msg_1");
    assert_eq!(first.send(&webhook).await.0, 202);
    stores.purge(Family::Vendor).await;
    first.stop().await;
    age_receipts(&pool).await;
    store_event(&pool, &Webhook::new("msg_1", b"{}")).await;
    let second = App::start(&stores).await;
    assert_eq!(second.send(&webhook).await.1["status"], "accepted");
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    second.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_receipt_is_there_only_after_the_confirm(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    // Nothing listens at the broker's address, so no confirm comes; and without a spool, no event
    // is safe.
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

    // In a process that does not remember the id, a recent receipt makes it a duplicate.
    let second = App::start(&stores).await;
    assert_eq!(second.send(&webhook).await.1["status"], "duplicate");
    assert!(stores.events(Family::Vendor).await.is_empty());
    second.stop().await;

    // An old receipt does not, because the event is nowhere stored.
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

/// All readers of receipts use the clock of the database.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_receipt_has_the_time_of_the_database(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let (status, answer) = app.send(&Webhook::vendor("msg_1")).await;
    assert_eq!(status, 202, "{answer}");
    // The receipt commits after the answer.
    app.stop().await;
    // Both columns are set to the transaction's start by the database's clock, so they agree to the
    // microsecond.
    let of_the_database: bool =
        sqlx::query_scalar("select received_at = published_at from webhook_receipts")
            .fetch_one(&pool)
            .await
            .expect("the receipt");
    assert!(of_the_database);
    stores.clean_up().await;
}
