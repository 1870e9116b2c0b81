//! A synchronous standby that is down: commits wait for it without limit.

use std::time::Duration;

use futures_util::future::join_all;
use shared::Family;
use sqlx::PgPool;
use stack::{
    data_folder::DataFolder,
    packages::Packages,
    ports,
    postgres::{Durability, Postgres},
};
use tokio::time::{Instant, sleep};

use crate::{
    app::{App, SOON, Stores},
    dedup::{age_receipts, store_event},
    webhook::Webhook,
};

/// `BATCHES_IN_FLIGHT` + 1, and one that watches hanging commits.
const MOST_BACKENDS: i64 = 4;

/// An address at which nothing listens.
const NO_BROKER: &str = "amqp://127.0.0.1:1/%2f";

/// A Postgres server for this test alone, because the setting applies to the whole server.
struct Server {
    pool: PgPool,
    _postgres: Postgres,
    _base: DataFolder,
}

impl Server {
    async fn start() -> Self {
        let packages = Packages::find().expect("the packages");
        let base = DataFolder::temporary().expect("a folder");
        let postgres = Postgres::start(
            &packages,
            &base.path().join("postgres"),
            ports::free().expect("a port"),
            Durability::ProcessOnly,
        )
        .await
        .expect("a server");
        postgres.create_database("pleo").await.expect("a database");
        let pool = PgPool::connect(&postgres.url("pleo"))
            .await
            .expect("a connection");
        migrations::MIGRATOR.run(&pool).await.expect("the schema");
        Self {
            pool,
            _postgres: postgres,
            _base: base,
        }
    }

    /// From now on, commits wait for the standby.
    async fn lose_standby(&self) {
        self.set("alter system set synchronous_standby_names = 'away'")
            .await;
    }

    /// Commits no longer wait, including those that are waiting now.
    async fn end_the_wait(&self) {
        self.set("alter system reset synchronous_standby_names")
            .await;
    }

    async fn set(&self, sql: &'static str) {
        for statement in [sql, "select pg_reload_conf()"] {
            sqlx::raw_sql(statement)
                .execute(&self.pool)
                .await
                .expect("the superuser may");
        }
        // Running backends apply the setting when they are next idle.
        sleep(Duration::from_millis(200)).await;
    }

    async fn backends(&self) -> i64 {
        sqlx::query_scalar(
            "select count(*) from pg_stat_activity where application_name = 'ingest'",
        )
        .fetch_one(&self.pool)
        .await
        .expect("a count")
    }
}

async fn accepted_soon(app: &App) {
    let deadline = Instant::now() + SOON;
    while app.send(&Webhook::vendor(&Webhook::new_id())).await.0 != 202 {
        assert!(Instant::now() < deadline, "never accepted");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_duplicate_of_a_stored_event_rests_on_what_the_standby_has() {
    let server = Server::start().await;
    let stores = Stores::new(&server.pool).await;
    let webhook = Webhook::vendor("msg_1");
    let first = App::start(&stores).await;
    assert_eq!(first.send(&webhook).await.0, 202);
    first.stop().await;
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    age_receipts(&server.pool).await;
    store_event(&server.pool, &webhook).await;

    // While the standby is up, the row is proof enough.
    let second = App::start(&stores).await;
    assert_eq!(second.send(&webhook).await.1["status"], "duplicate");
    second.stop().await;
    assert!(stores.events(Family::Vendor).await.is_empty());

    // While it is down, visible rows may be lost with the primary.
    server.lose_standby().await;
    let third = App::start(&stores).await;
    third.until_ready("postgres").await;
    assert_eq!(third.send(&webhook).await.1["status"], "accepted");
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    third.stop().await;
    let fourth = App::start_at(&stores.database_url, NO_BROKER, &stores.prefix, &[]);
    fourth.until_ready("postgres").await;
    let (status, answer) = fourth.send(&webhook).await;
    assert_eq!(status, 503, "nothing is safe: {answer}");

    server.end_the_wait().await;
    accepted_soon(&fourth).await;
    fourth.stop().await;
    stores.clean_up().await;
}

#[tokio::test]
async fn a_duplicate_of_a_spooled_event_rests_on_what_the_standby_has() {
    let server = Server::start().await;
    let stores = Stores::new(&server.pool).await;
    let webhook = Webhook::vendor("msg_1");
    let without_broker = || App::start_at(&stores.database_url, NO_BROKER, &stores.prefix, &[]);
    let first = without_broker();
    first.until_ready("postgres").await;
    assert_eq!(first.send(&webhook).await.1["status"], "accepted");
    first.stop().await;

    // While the standby is up, the row is proof enough.
    let second = without_broker();
    second.until_ready("postgres").await;
    assert_eq!(second.send(&webhook).await.1["status"], "duplicate");
    second.stop().await;

    // While it is down, visible rows may be lost with the primary.
    server.lose_standby().await;
    let third = without_broker();
    third.until_ready("postgres").await;
    let (status, answer) = third.send(&webhook).await;
    assert_eq!(status, 503, "nothing is safe: {answer}");
    third.stop().await;
    let fourth = App::start(&stores).await;
    fourth.until_ready("postgres").await;
    assert_eq!(fourth.send(&webhook).await.1["status"], "accepted");
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    server.end_the_wait().await;
    fourth.stop().await;
    stores.clean_up().await;
}

#[tokio::test]
async fn commits_that_wait_for_a_standby_take_no_more_connections_than_the_pool_has() {
    let server = Server::start().await;
    let stores = Stores::new(&server.pool).await;
    let app = App::start_at(&stores.database_url, NO_BROKER, &stores.prefix, &[]);
    app.until_ready("postgres").await;
    accepted_soon(&app).await;

    server.lose_standby().await;
    let end = Instant::now() + Duration::from_secs(25);
    let load = join_all((0..8).map(async |_| {
        while Instant::now() < end {
            let (status, answer) = app.send(&Webhook::vendor(&Webhook::new_id())).await;
            assert_eq!(status, 503, "{answer}");
        }
    }));
    let watch = async {
        let mut most = 0;
        while Instant::now() < end {
            most = most.max(server.backends().await);
            sleep(Duration::from_millis(50)).await;
        }
        most
    };
    let (_, most) = tokio::join!(load, watch);
    assert!(most <= MOST_BACKENDS, "{most} backends");

    server.end_the_wait().await;
    accepted_soon(&app).await;
    let deadline = Instant::now() + SOON;
    while server.backends().await >= MOST_BACKENDS {
        assert!(Instant::now() < deadline, "the looks never end");
        sleep(Duration::from_millis(50)).await;
    }
    app.stop().await;
}
