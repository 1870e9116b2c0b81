//! RabbitMQ accounts that may log in but not publish.

use std::{process::Stdio, sync::Arc};

use hookctl::management::Management;
use serde_json::json;
use shared::{Family, broker::BrokerUrl};
use sqlx::PgPool;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::Mutex,
    time::{Duration, Instant, sleep},
};

use crate::{
    app::{App, SOON, Stores},
    webhook::{SECRET, Webhook},
};

/// A RabbitMQ user that at first may only log in.
struct Account {
    management: Management,
    name: String,
}

impl Account {
    async fn new(stores: &Stores) -> Self {
        let url = std::env::var("RABBITMQ_MANAGEMENT_URL")
            .expect("set RABBITMQ_MANAGEMENT_URL, or run the tests with `cargo stack test`");
        let broker = BrokerUrl::parse(&stores.amqp_url).expect("an address");
        let account = Self {
            management: Management::new(&url, &broker).expect("an address"),
            name: stores.prefix.clone(),
        };
        let path = format!("/api/users/{}", account.name);
        let user = json!({"password": "letmein", "tags": ""});
        let made = account.management.put(&path, user).await;
        made.expect("a user");
        account.may_write("^$").await;
        account
    }

    async fn may_write(&self, pattern: &str) {
        let path = format!("/api/permissions/%2F/{}", self.name);
        let rights = json!({"configure": "^$", "write": pattern, "read": "^$"});
        let put = self.management.put(&path, rights).await;
        put.expect("the permissions");
    }

    fn url(&self, stores: &Stores) -> String {
        let (_, place) = stores.amqp_url.rsplit_once('@').expect("a user");
        format!("amqp://{}:letmein@{place}", self.name)
    }

    async fn remove(self) {
        let path = format!("/api/users/{}", self.name);
        self.management.delete(&path).await.expect("the user");
    }
}

fn start(stores: &Stores, account: &Account) -> App {
    let url = account.url(stores);
    let flags = ["--declare-topology=false"];
    App::start_at(&stores.database_url, &url, &stores.prefix, &flags)
}

/// Sends an event, which must be accepted.
async fn send(app: &App) {
    let (status, answer) = app.send(&Webhook::vendor(&Webhook::new_id())).await;
    assert_eq!(status, 202, "{answer}");
}

async fn spooled(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from webhook_spool")
        .fetch_one(pool)
        .await
        .expect("a count")
}

/// Waits until readiness reports an error of RabbitMQ, and returns it.
async fn complaint(app: &App) -> String {
    app.until_check("rabbitmq", false).await;
    let (status, readiness) = app.readiness().await;
    assert_eq!(status, 200, "the spool takes events: {readiness}");
    readiness.to_string()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_right_to_publish_that_is_missing_shows_before_and_after_an_event(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    stores.declare().await;
    let account = Account::new(&stores).await;
    let events = stores.topology().events_exchange();
    let pattern = |names: &str| format!("^{}\\.({names})$", stores.prefix);

    let app = start(&stores, &account);
    let deadline = Instant::now() + SOON;
    loop {
        let said = complaint(&app).await;
        if said.contains("ACCESS_REFUSED") && said.contains(&events) {
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
        sleep(Duration::from_millis(50)).await;
    }
    send(&app).await;
    assert_eq!(spooled(&pool).await, 1);

    // With the right on the probe's exchange only, readiness reports the refusal once an event has
    // met it.
    app.stop().await;
    account.may_write(&pattern("probe")).await;
    let app = start(&stores, &account);
    app.until_ready("rabbitmq").await;
    send(&app).await;
    assert_eq!(spooled(&pool).await, 2);
    sleep(Duration::from_secs(5)).await;
    let said = complaint(&app).await;
    assert!(
        said.contains("ACCESS_REFUSED") && said.contains(&events),
        "{said}"
    );

    // It notices the new right without a restart.
    account.may_write(&pattern("events|probe")).await;
    app.until_ready("rabbitmq").await;
    send(&app).await;
    assert_eq!(spooled(&pool).await, 2);
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    app.stop().await;

    // Accounts of an earlier version had no right on the probe's exchange.
    account.may_write(&pattern("events")).await;
    let app = start(&stores, &account);
    app.until_ready("rabbitmq").await;
    sleep(Duration::from_secs(5)).await;
    app.until_ready("rabbitmq").await;
    send(&app).await;
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    app.stop().await;
    account.remove().await;
    stores.clean_up().await;
}

/// Starts the service as a process and collects its log.
fn process(stores: &Stores, account: &Account, port: u16) -> (Child, Arc<Mutex<String>>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ingest"))
        .env_clear()
        .env("DATABASE_URL", &stores.database_url)
        .env("AMQP_URL", account.url(stores))
        .env("TOPOLOGY_PREFIX", &stores.prefix)
        .env("DECLARE_TOPOLOGY", "false")
        .env("WEBHOOK_SECRETS", SECRET)
        .env("LISTEN", format!("127.0.0.1:{port}"))
        .env("PRIVATE_LISTEN", "127.0.0.1:0")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let log = Arc::new(Mutex::new(String::new()));
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let kept = Arc::clone(&log);
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            *kept.lock().await += &format!("{line}\n");
        }
    });
    (child, log)
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_log_says_that_publishing_is_refused_in_the_brokers_words(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    stores.declare().await;
    let account = Account::new(&stores).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let (mut child, log) = process(&stores, &account, port);
    let url = format!("http://127.0.0.1:{port}/webhooks/pleo");
    let deadline = Instant::now() + SOON;
    while !log.lock().await.contains("connected to RabbitMQ") {
        assert!(Instant::now() < deadline, "{}", log.lock().await);
        sleep(Duration::from_millis(50)).await;
    }
    let webhook = Webhook::vendor(&Webhook::new_id());
    let answer = reqwest::Client::new()
        .post(&url)
        .header("webhook-id", &webhook.id)
        .header("webhook-timestamp", &webhook.timestamp)
        .header("webhook-signature", &webhook.signature)
        .body(webhook.body.clone())
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 202);
    // Repeated probes log the refusal only once.
    sleep(Duration::from_secs(8)).await;
    child.kill().await.expect("it ends");
    let log = log.lock().await;
    let refused = log
        .lines()
        .filter(|line| line.contains("ERROR") && line.contains("publish"))
        .collect::<Vec<_>>();
    assert_eq!(refused.len(), 1, "{log}");
    assert!(refused[0].contains("ACCESS_REFUSED"), "{log}");
    assert!(!log.contains("has no queue"), "{log}");
    assert_eq!(spooled(&pool).await, 1);
    account.remove().await;
    stores.clean_up().await;
}
