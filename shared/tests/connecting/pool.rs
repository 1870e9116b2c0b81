//! What a pool does for those who wait for a connection.

use std::time::{Duration, Instant};

use shared::database::{
    self, DatabaseUrl, DeadlineTransaction, Durability, TransactionError, TransactionMode,
};
use sqlx::PgPool;
use tokio::time::timeout;

use crate::stand_in::{Store, closed_port, forward};

const MODE: TransactionMode = TransactionMode::write(Durability::Local);

fn url(pool: &PgPool, place: &str) -> DatabaseUrl {
    let Store { user, password, .. } = Store::postgres();
    let options = pool.connect_options();
    let database = options.get_database().expect("a database");
    DatabaseUrl::parse(&format!("postgres://{user}:{password}@{place}/{database}")).expect("valid")
}

#[sqlx::test(migrations = false)]
async fn a_login_that_takes_longer_than_anybody_waits_still_serves(pool: PgPool) {
    let place = forward(
        "127.0.0.1:0",
        Store::postgres().place,
        Duration::from_millis(150),
    )
    .await;
    let slow = database::pool(url(&pool, &place.to_string()), "test", 1);
    let started = Instant::now();
    while timeout(Duration::from_millis(300), slow.acquire())
        .await
        .is_err()
    {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "every login is thrown away"
        );
    }
}

#[sqlx::test(migrations = false)]
async fn a_transaction_that_finds_no_postgres_says_why_at_once(pool: PgPool) {
    let place = closed_port().await;
    let away = database::pool(url(&pool, &place.to_string()), "test", 1);
    let started = Instant::now();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let error = DeadlineTransaction::begin(&away, &MODE, deadline)
        .await
        .err()
        .expect("away");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    assert!(
        matches!(error, TransactionError::NotConnected(_)),
        "{error}"
    );
    assert!(error.to_string().contains("connection refused"), "{error}");
}

#[sqlx::test(migrations = false)]
async fn a_connection_that_was_ended_meanwhile_is_replaced_unnoticed(pool: PgPool) {
    let ours = database::pool(url(&pool, &Store::postgres().place), "ended", 2);
    ours.acquire().await.expect("a connection").give_back();
    sqlx::raw_sql(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = 'ended' and datname = current_database()",
    )
    .execute(&pool)
    .await
    .expect("it is ended");
    // A connection is trusted for a moment after its last use.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    database::probe(&ours, "select 1").await.expect("a new one");
}

#[sqlx::test(migrations = false)]
async fn no_more_connections_are_open_than_there_are_places(pool: PgPool) {
    let ours = database::pool(url(&pool, &Store::postgres().place), "places", 2);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let ours = ours.clone();
        tasks.spawn(async move {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            let transaction = DeadlineTransaction::begin(&ours, &MODE, deadline).await?;
            transaction.commit().await
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic").expect("a transaction");
    }
    let open: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity
          where application_name = 'places' and datname = current_database()",
    )
    .fetch_one(&pool)
    .await
    .expect("a number");
    assert!((1..=2).contains(&open), "{open}");
}
