//! What a pool does while callers wait for a connection.

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
    // A connection is not tested right after its last use.
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
    let open = backends(&pool, "places").await;
    assert!((1..=2).contains(&open), "{open}");
}

/// The number of backends named `name` in the test's own database.
async fn backends(pool: &PgPool, name: &str) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_stat_activity
          where application_name = $1 and datname = current_database()",
    )
    .bind(name)
    .fetch_one(pool)
    .await
    .expect("a number")
}

/// As ingest's first connections do while a user alters a table.
#[sqlx::test(migrations = false)]
async fn a_locked_table_neither_ends_connections_nor_adds_any(pool: PgPool) {
    let create = sqlx::raw_sql("create table locked (id int)");
    create.execute(&pool).await.expect("a table");
    let mut user = pool.begin().await.expect("a transaction");
    let lock = sqlx::raw_sql("lock table locked");
    lock.execute(&mut *user).await.expect("the lock");

    let url = url(&pool, &Store::postgres().place);
    let ours = database::pool_preparing(url, "held", 2, &["select id from locked"]);
    let mut tasks = tokio::task::JoinSet::new();
    let end = Instant::now() + Duration::from_secs(12);
    for _ in 0..4 {
        let ours = ours.clone();
        tasks.spawn(async move {
            let mut done = 0;
            while Instant::now() < end {
                let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
                let Ok(transaction) = DeadlineTransaction::begin(&ours, &MODE, deadline).await
                else {
                    continue;
                };
                done += i32::from(transaction.commit().await.is_ok());
            }
            done
        });
    }
    let mut most = 0;
    while Instant::now() < end {
        most = most.max(backends(&pool, "held").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One more than the pool has: a backend ends shortly after its client.
    assert!(most <= 3, "{most} backends");
    let done: i32 = tasks.join_all().await.into_iter().sum();
    assert!(done > 0, "no transaction got through");
    user.rollback().await.expect("the lock is free");
}
