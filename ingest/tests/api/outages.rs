//! Either store alive is enough; with both away the sender is asked to come back.

use std::net::ToSocketAddrs;

use futures_util::future::join_all;
use shared::Family;
use sqlx::PgPool;
use stack::proxy::{Mode, Proxy};
use tokio::time::{Duration, Instant, sleep};

use crate::{
    app::{App, SOON, Stores},
    webhook::Webhook,
};

/// A service whose ways to both stores can be cut.
struct Proxied {
    app: App,
    broker: Proxy,
    database: Proxy,
}

impl Proxied {
    async fn start(stores: &Stores) -> Self {
        let broker = Proxy::start(host_of(&stores.amqp_url))
            .await
            .expect("a proxy");
        let database = Proxy::start(host_of(&stores.database_url))
            .await
            .expect("a proxy");
        let app = App::start_at(
            &through(&stores.database_url, &database),
            &through(&stores.amqp_url, &broker),
            &stores.prefix,
            &[],
        );
        app.until_ready("rabbitmq").await;
        app.until_ready("postgres").await;
        Self {
            app,
            broker,
            database,
        }
    }
}

fn authority(url: &str) -> &str {
    let rest = url.split_once("://").expect("a scheme").1;
    let authority = rest.split(['/', '?']).next().expect("an authority");
    authority.rsplit('@').next().expect("a host")
}

fn host_of(url: &str) -> std::net::SocketAddr {
    let mut addresses = authority(url).to_socket_addrs().expect("host:port");
    addresses.next().expect("an address")
}

fn through(url: &str, proxy: &Proxy) -> String {
    url.replace(authority(url), &proxy.address().to_string())
}

async fn spooled(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from webhook_spool")
        .fetch_one(pool)
        .await
        .expect("a count")
}

/// Sends a webhook for as long as it takes to be accepted.
async fn accepted_soon(app: &App, webhook: &Webhook) {
    let deadline = Instant::now() + SOON;
    while app.send(webhook).await.0 != 202 {
        assert!(Instant::now() < deadline, "never accepted");
        sleep(Duration::from_millis(100)).await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_rabbitmq_events_are_spooled_and_nothing_is_refused(pool: PgPool) {
    for mode in [Mode::Cut, Mode::Freeze] {
        let stores = Stores::new(&pool).await;
        let proxied = Proxied::start(&stores).await;
        let before = spooled(&pool).await;
        proxied.broker.set(mode).await;
        let webhooks: Vec<_> = (0..20)
            .map(|_| Webhook::vendor(&Webhook::new_id()))
            .collect();
        let answers = join_all(webhooks.iter().map(|w| proxied.app.send(w))).await;
        assert!(
            answers.iter().all(|(status, _)| *status == 202),
            "{mode:?}: {answers:?}"
        );
        assert_eq!(spooled(&pool).await - before, 20, "{mode:?}");

        // A repetition is recognised, also by a process that has no memory of it.
        let other = App::start(&stores).await;
        assert_eq!(other.send(&webhooks[0]).await.1["status"], "duplicate");
        other.stop().await;

        // Back without a restart.
        proxied.broker.set(Mode::Pass).await;
        proxied.app.until_ready("rabbitmq").await;
        let deadline = Instant::now() + SOON;
        while stores.drain(Family::Vendor).await.is_empty() {
            assert!(Instant::now() < deadline, "{mode:?}: never published again");
            proxied.app.send(&Webhook::vendor(&Webhook::new_id())).await;
        }
        proxied.app.stop().await;
        stores.clean_up().await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_postgres_events_are_published_and_nothing_is_refused(pool: PgPool) {
    for mode in [Mode::Cut, Mode::Freeze] {
        let stores = Stores::new(&pool).await;
        let proxied = Proxied::start(&stores).await;
        proxied.database.set(mode).await;
        let webhooks: Vec<_> = (0..20)
            .map(|_| Webhook::vendor(&Webhook::new_id()))
            .collect();
        let answers = join_all(webhooks.iter().map(|w| proxied.app.send(w))).await;
        assert!(
            answers.iter().all(|(status, _)| *status == 202),
            "{mode:?}: {answers:?}"
        );
        assert!(stores.drain(Family::Vendor).await.len() >= 20, "{mode:?}");
        let (status, readiness) = proxied.app.readiness().await;
        assert_eq!(status, 200, "one store is enough: {readiness}");
        proxied.app.until_check("postgres", false).await;

        proxied.database.set(Mode::Pass).await;
        proxied.app.until_ready("postgres").await;
        let receipts = async || -> i64 {
            sqlx::query_scalar("select count(*) from webhook_receipts")
                .fetch_one(&pool)
                .await
                .expect("a count")
        };
        let before = receipts().await;
        let deadline = Instant::now() + SOON;
        while receipts().await == before {
            assert!(Instant::now() < deadline, "{mode:?}: never deduped again");
            proxied.app.send(&Webhook::vendor(&Webhook::new_id())).await;
        }
        proxied.app.stop().await;
        stores.clean_up().await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_both_the_answer_is_503_and_the_service_recovers(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    proxied.broker.set(Mode::Cut).await;
    proxied.database.set(Mode::Cut).await;
    let webhook = Webhook::vendor("msg_1");
    let (status, answer) = proxied.app.send(&webhook).await;
    assert_eq!(status, 503, "{answer}");
    proxied.app.until_check("postgres", false).await;
    assert_eq!(proxied.app.readiness().await.0, 503);

    // What was refused may be sent again and is then accepted.
    proxied.broker.set(Mode::Pass).await;
    proxied.database.set(Mode::Pass).await;
    accepted_soon(&proxied.app, &webhook).await;
    proxied.app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_deleted_queue_is_declared_again_and_nothing_is_lost(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    for family in Family::ALL {
        stores.delete_queue(family).await;
    }
    // Without any queue the broker would confirm and drop it.
    assert_eq!(app.send(&Webhook::vendor("msg_1")).await.0, 202);
    assert_eq!(spooled(&pool).await, 1);
    app.until_ready("rabbitmq").await;
    let deadline = Instant::now() + SOON;
    loop {
        app.send(&Webhook::vendor(&Webhook::new_id())).await;
        app.until_ready("rabbitmq").await;
        // The queue is back once a message is in it.
        let published = app.metrics().await;
        if published.contains("pleo_ingest_breaker_open{store=\"rabbitmq\"} 0") {
            break;
        }
        assert!(Instant::now() < deadline, "never declared again");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(!stores.drain(Family::Vendor).await.is_empty());
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test]
async fn it_serves_before_the_schema_is_there(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    assert_eq!(app.send(&Webhook::vendor("msg_1")).await.0, 202);
    assert_eq!(stores.drain(Family::Vendor).await.len(), 1);
    app.stop().await;
    stores.clean_up().await;
}
