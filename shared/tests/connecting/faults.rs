//! Each fault has its own message, which appears within seconds.

use std::time::{Duration, Instant};

use shared::{
    broker::{self, BrokerUrl},
    database::{Access, DatabaseUrl},
};
use sqlx::PgPool;

use crate::stand_in::{DropsPackets, Store, closed_port, silent, web_server};

/// Far below a transaction's deadline, even on a busy machine.
const SOON: Duration = Duration::from_secs(15);

async fn postgres(url: &str) -> String {
    let started = Instant::now();
    let url = DatabaseUrl::parse(url).expect("valid");
    let error = url.connect("test", Access::Write).await.expect_err("away");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    error.to_string()
}

async fn rabbitmq(url: &str) -> String {
    let started = Instant::now();
    let url = BrokerUrl::parse(url).expect("valid");
    let error = broker::connect(&url, "test").await.expect_err("away");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    error.to_string()
}

fn assert_says(error: &str, words: &str) {
    assert!(error.contains(words), "{error:?} does not say {words:?}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[sqlx::test(migrations = false)]
async fn postgres_faults_are_told_apart(pool: PgPool) {
    let Store {
        user,
        password,
        place,
    } = Store::postgres();
    let options = pool.connect_options();
    let database = options.get_database().expect("a database");
    let role = format!("full_{}", std::process::id());
    let sql = format!("create role \"{role}\" login password 'hunter2' connection limit 0");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&pool)
        .await
        .expect("a role");
    let drops = DropsPackets::somewhere().await;
    let (_listener, says_nothing) = silent().await;
    let closed = closed_port().await;
    let rabbitmq = Store::rabbitmq().place;
    let web = web_server().await;

    let table = [
        (format!("u:hunter2@{closed}/d"), "connection refused"),
        ("u:hunter2@nowhere.invalid/d".to_owned(), "no such host"),
        (format!("u:hunter2@{}/d", drops.address), "no answer"),
        (format!("u:hunter2@{says_nothing}/d"), "says nothing"),
        (
            format!("{user}:hunter2@{place}/{database}"),
            "password authentication failed",
        ),
        (
            format!("{user}:{password}@{place}/nowhere"),
            "database \"nowhere\" does not exist",
        ),
        (
            format!("{user}:{password}@{place}/{database}?sslmode=require"),
            "server does not support TLS",
        ),
        (
            format!("{role}:hunter2@{place}/{database}"),
            "too many connections",
        ),
        (
            format!("u:hunter2@{rabbitmq}/d"),
            "not a Postgres server: RabbitMQ",
        ),
        (
            format!("u:hunter2@{rabbitmq}/d?sslmode=disable"),
            "not a Postgres server: RabbitMQ",
        ),
        (
            format!("u:hunter2@{rabbitmq}/d?sslmode=require"),
            "not a Postgres server: RabbitMQ",
        ),
        (
            format!("u:hunter2@{web}/d"),
            "not a Postgres server: a web server",
        ),
        (
            format!("u:hunter2@{web}/d?sslmode=disable"),
            "not a Postgres server: a web server",
        ),
        (
            "u:hunter2@%2Fnowhere/d".to_owned(),
            "no such file or directory",
        ),
    ];
    for (address, words) in table {
        let error = postgres(&format!("postgres://{address}")).await;
        assert_says(&error, words);
    }
    let sql = format!("drop role \"{role}\"");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&pool)
        .await
        .expect("no role");
}

#[tokio::test]
async fn rabbitmq_faults_are_told_apart() {
    let Store {
        user,
        password,
        place,
    } = Store::rabbitmq();
    let drops = DropsPackets::somewhere().await;
    let (_listener, says_nothing) = silent().await;
    let closed = closed_port().await;
    let postgres = Store::postgres().place;
    let web = web_server().await;

    let table = [
        ("amqp", format!("u:hunter2@{closed}"), "connection refused"),
        (
            "amqp",
            "u:hunter2@nowhere.invalid".to_owned(),
            "no such host",
        ),
        ("amqp", format!("u:hunter2@{}", drops.address), "no answer"),
        ("amqp", format!("u:hunter2@{says_nothing}"), "says nothing"),
        ("amqp", format!("{user}:hunter2@{place}"), "ACCESS_REFUSED"),
        (
            "amqp",
            format!("{user}:{password}@{place}/nowhere"),
            "vhost nowhere not found",
        ),
        ("amqps", format!("{user}:hunter2@{place}"), "TLS failed"),
        (
            "amqp",
            format!("u:hunter2@{postgres}"),
            "not a RabbitMQ: Postgres",
        ),
        (
            "amqp",
            format!("u:hunter2@{web}"),
            "not a RabbitMQ: a web server",
        ),
        (
            "amqp",
            format!("{user}:{password}@{place}/"),
            "leave the slash at its end out",
        ),
    ];
    for (scheme, address, words) in table {
        let error = rabbitmq(&format!("{scheme}://{address}")).await;
        assert_says(&error, words);
    }
}

#[tokio::test]
async fn every_address_that_was_tried_is_named_with_its_reason() {
    let closed = closed_port().await;
    let error = postgres(&format!("postgres://u:hunter2@{closed},nowhere.invalid/d")).await;
    assert_says(&error, &format!("{closed}: connection refused"));
    assert_says(&error, "nowhere.invalid:5432: no such host");
    let error = rabbitmq(&format!("amqp://u:hunter2@{closed},nowhere.invalid/d")).await;
    assert_says(&error, &format!("{closed}: connection refused"));
    assert_says(&error, "nowhere.invalid:5672: no such host");
}
