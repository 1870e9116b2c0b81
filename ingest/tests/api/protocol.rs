//! The public port's answers to requests that are no webhooks, and how long it keeps connections.

use std::{
    fs::{self, File},
    process::{Child, Command},
};

use serde_json::Value;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, Instant, sleep, timeout},
};

use crate::{
    app::{App, SOON, Stores},
    raw::{connect, exchange, head, post, read},
    webhook::{SECRET, Webhook},
};

/// Writes the bytes and reads until the service closes the connection.
async fn answer(app: &App, request: &[u8]) -> String {
    let mut connection = connect(app).await;
    connection.write_all(request).await.expect("a write");
    let mut answer = Vec::new();
    let read = timeout(SOON, connection.read_to_end(&mut answer)).await;
    // The connection may be reset after the answer.
    read.expect("the connection is closed").ok();
    String::from_utf8(answer).expect("text")
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().expect("a head");
    head.lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_refusal_has_a_problem_body_and_is_counted(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let request = |start: &str| format!("{start} HTTP/1.1\r\nhost: x\r\n\r\n");
    let long = "a".repeat(70_000);
    let cases = [
        (405, "wrong_method", request("GET /webhooks/pleo")),
        (405, "wrong_method", request("DELETE /webhooks/pleo/")),
        (404, "wrong_path", request("POST /")),
        (404, "wrong_path", request("GET /favicon.ico")),
        (404, "wrong_path", request("POST //webhooks/pleo")),
        (404, "wrong_path", request("POST /Webhooks/Pleo")),
        (404, "wrong_path", request("POST /webhooks/pleo/1")),
        (400, "bad_headers", request("POST /webhooks/pleo")),
        (400, "bad_headers", request("POST /webhooks/pleo/?a=b")),
        (400, "not_http", "hello\r\n\r\n".to_owned()),
        (
            400,
            "not_http",
            "POST /webhooks/pleo HTTP/1.1\r\n\r\n".to_owned(),
        ),
        (
            400,
            "not_http",
            request("POST /webhooks/pleo HTTP/1.1\r\nhost: y"),
        ),
        (
            408,
            "slow_head",
            "POST /webhooks/pleo HTTP/1.1\r\n".to_owned(),
        ),
        (
            431,
            "head_too_large",
            format!("POST / HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n"),
        ),
        (
            431,
            "head_too_large",
            format!("POST / HTTP/1.1\r\nhost: x\r\n{long}: x\r\n\r\n"),
        ),
        (
            431,
            "head_too_large",
            format!("POST /{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
        ),
    ];
    for (status, label, request) in &cases {
        let shown = &request[..request.len().min(60)];
        let counter = format!("pleo_ingest_requests_total{{outcome=\"{label}\"}}");
        let before = count(&app.metrics().await, &counter);
        let answer = answer(&app, request.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{shown:?}: {answer}"
        );
        assert_eq!(
            header(&answer, "content-type"),
            Some("application/problem+json"),
            "{answer}"
        );
        let body = answer.split_once("\r\n\r\n").expect("a head and a body").1;
        assert_eq!(
            header(&answer, "content-length"),
            Some(&*body.len().to_string())
        );
        let problem: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(problem["status"], *status);
        for text in ["title", "detail"] {
            assert!(
                problem[text].as_str().is_some_and(|text| !text.is_empty()),
                "{problem}"
            );
        }
        assert_eq!(
            count(&app.metrics().await, &counter),
            before + 1,
            "{shown:?}"
        );
    }
    app.stop().await;
    stores.clean_up().await;
}

fn count(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.expect("the series").trim().parse().expect("a count")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_methods_are_told(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    for (method, status) in [
        ("OPTIONS", 204),
        ("HEAD", 405),
        ("GET", 405),
        ("PATCH", 405),
    ] {
        let request = format!("{method} /webhooks/pleo HTTP/1.1\r\nhost: x\r\n\r\n");
        let answer = answer(&app, request.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert_eq!(header(&answer, "allow"), Some("POST, OPTIONS"), "{answer}");
        assert_eq!(
            answer.ends_with("\r\n\r\n"),
            ["OPTIONS", "HEAD"].contains(&method)
        );
    }
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_path_is_taken_in_every_usual_form(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    for (target, version) in [
        ("/webhooks/pleo/", "HTTP/1.1"),
        ("/webhooks/pleo?source=pleo", "HTTP/1.1"),
        ("/webhooks/pleo/?", "HTTP/1.1"),
        ("http://elsewhere:80/webhooks/pleo/", "HTTP/1.1"),
        ("/webhooks/pleo", "HTTP/1.0"),
    ] {
        let webhook = Webhook::vendor(&Webhook::new_id());
        let head = head(&format!("POST {target} {version}"), &webhook);
        let mut request = format!("{head}content-length: {}\r\n\r\n", webhook.body.len());
        request += std::str::from_utf8(&webhook.body).expect("text");
        let answers = exchange(&app, request.as_bytes(), 1).await;
        assert_eq!(
            answers.accepted(),
            ["accepted"],
            "{target} {version}: {answers:?}"
        );
    }
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_idle_connection_ends_with_its_keep_alive_or_with_the_service(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start_at(
        &stores.database_url,
        &stores.amqp_url,
        &stores.prefix,
        &["--keep-alive", "2s"],
    );
    app.until_ready("rabbitmq").await;
    let idle = async |app: &App| {
        let mut connection = connect(app).await;
        let webhook = Webhook::vendor(&Webhook::new_id());
        connection
            .write_all(&post(&webhook))
            .await
            .expect("a write");
        let answers = read(&mut connection, 1).await;
        assert!(
            !answers.closed && answers.statuses() == [202],
            "{answers:?}"
        );
        connection
    };
    let (mut connection, started) = (idle(&app).await, Instant::now());
    let end = timeout(SOON, connection.read(&mut [0])).await;
    assert_eq!(end.expect("it is closed").expect("in order"), 0);
    assert!(
        started.elapsed() > Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    app.stop().await;

    let app = App::start(&stores).await;
    let mut connection = idle(&app).await;
    let started = Instant::now();
    app.stop().await;
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(10),
        "it waited for the idle connection: {took:?}"
    );
    assert_eq!(connection.read(&mut [0]).await.expect("closed in order"), 0);
    stores.clean_up().await;
}

/// The real binary, which logs JSON.
struct Process {
    child: Child,
    folder: tempfile::TempDir,
}

impl Process {
    fn start(stores: &Stores) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let child = Command::new(env!("CARGO_BIN_EXE_ingest"))
            .env_clear()
            .env("DATABASE_URL", &stores.database_url)
            .env("AMQP_URL", &stores.amqp_url)
            .env("TOPOLOGY_PREFIX", &stores.prefix)
            .env("WEBHOOK_SECRETS", SECRET)
            .env("LISTEN", "127.0.0.1:0")
            .env("PRIVATE_LISTEN", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .stderr(File::create(folder.path().join("log")).expect("a log"))
            .spawn()
            .expect("the binary runs");
        Self { child, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("text")
    }

    async fn connect(&self) -> TcpStream {
        let deadline = Instant::now() + SOON;
        loop {
            let log = self.log();
            let lines = log
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let address = lines
                .filter(|line| line["message"] == "listening")
                .find_map(|line| line["address"].as_str().map(str::to_owned));
            if let Some(address) = address {
                return TcpStream::connect(address).await.expect("a connection");
            }
            assert!(Instant::now() < deadline, "it does not listen: {log}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is a child");
    }
}

/// A header name of more than 64 KiB makes actix panic. Only the second request of a connection
/// gets that far, so the client needs a secret.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn whatever_is_sent_the_service_goes_on_and_its_log_is_json(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let process = Process::start(&stores);
    let bad = format!(
        "POST / HTTP/1.1\r\nhost: x\r\n{}: x\r\n\r\n",
        "a".repeat(70_000)
    );
    let mut stranger = process.connect().await;
    stranger.write_all(bad.as_bytes()).await.ok();
    let answers = read(&mut stranger, 1).await;
    assert_eq!(answers.statuses(), [431], "{answers:?}");
    assert!(!process.log().contains("panicked"), "{}", process.log());

    let deadline = Instant::now() + SOON;
    let mut sender = loop {
        let mut sender = process.connect().await;
        let good = post(&Webhook::vendor(&Webhook::new_id()));
        sender.write_all(&good).await.expect("a write");
        if read(&mut sender, 1).await.statuses() == [202] {
            break sender;
        }
        assert!(Instant::now() < deadline, "never accepted");
    };
    sender.write_all(bad.as_bytes()).await.ok();
    assert!(read(&mut sender, 1).await.closed);
    while !process.log().contains("panicked") {
        assert!(Instant::now() < deadline + SOON, "{}", process.log());
        sleep(Duration::from_millis(20)).await;
    }
    for line in process.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(
            line["timestamp"].is_string() && line["level"].is_string(),
            "{line}"
        );
    }
    let mut sender = process.connect().await;
    let good = post(&Webhook::vendor(&Webhook::new_id()));
    sender.write_all(&good).await.expect("a write");
    assert_eq!(
        read(&mut sender, 1).await.statuses(),
        [202],
        "it goes on serving"
    );
    drop(process);
    stores.clean_up().await;
}
