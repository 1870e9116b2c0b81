//! Readiness detects a broker that does not confirm before an event is affected.

use hookctl::delivery::Outcome;
use serde_json::Value;
use shared::Program;
use stack::service::Service;
use tokio::time::{Duration, Instant, sleep};

use crate::pipeline::{Pipeline, SOON, post, until_count};

/// The status and body of `/readyz`.
async fn readiness(service: &Service) -> (u16, Value) {
    let response = reqwest::get(service.private_url("/readyz"))
        .await
        .expect("an answer");
    let status = response.status().as_u16();
    let body = response.text().await.expect("a body");
    (status, serde_json::from_str(&body).expect("JSON"))
}

/// Waits until readiness and the metric agree on RabbitMQ; returns the text of readiness then.
async fn until_rabbitmq_is(service: &Service, well: bool) -> (u16, Value) {
    let metric = format!(
        "pleo_ingest_breaker_open{{store=\"rabbitmq\"}} {}",
        u8::from(!well)
    );
    let deadline = Instant::now() + SOON;
    loop {
        let (status, body) = readiness(service).await;
        let checks = body["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| check["name"] == "rabbitmq");
        let metrics = reqwest::get(service.private_url("/metrics")).await;
        let metrics = metrics.expect("an answer").text().await.expect("a body");
        let shows = metrics.lines().any(|line| line == metric);
        if check.expect("a check")["ok"] == well && shows {
            return (status, body);
        }
        assert!(Instant::now() < deadline, "never {well}: {body} {metrics}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Erlang for `rabbitmqctl eval`: calls a function of `ra` for each queue. Not only for the probe's queue,
/// because the event's own queue would still confirm when the breaker lets one batch try.
fn of_each_queue(function: &str) -> String {
    format!(
        "[ra:{function}(quorum_queues, amqqueue:get_pid(Queue)) || Queue <- rabbit_amqqueue:list()]."
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_confirms_nothing_shows_before_an_event_comes() {
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    ingest.ready(SOON).await.expect("ready");
    let (_, body) = until_rabbitmq_is(&ingest, true).await;
    assert_eq!(body.get("note"), None, "{body}");
    let pool = pipeline.pool().await;

    let watermark = "set_vm_memory_high_watermark";
    let [stop, restart] = ["stop_server", "restart_server"].map(of_each_queue);
    let faults: [(&str, [&str; 2], [&str; 2]); 2] = [
        ("an alarm", [watermark, "0.0000001"], [watermark, "0.4"]),
        ("no quorum", ["eval", &stop], ["eval", &restart]),
    ];
    for (number, (fault, begin, end)) in faults.into_iter().enumerate() {
        let broker = &pipeline.stores.rabbitmq;
        broker.ctl(&begin).await.expect("a fault");
        let (status, body) = until_rabbitmq_is(&ingest, false).await;
        assert_eq!(status, 200, "{fault}: Postgres takes events: {body}");
        assert_eq!(body["note"], "events are spooled in Postgres", "{fault}");

        let id = format!("msg_{number}");
        let answer = post(&ingest.webhook_url(), &id, "{}").await;
        assert_eq!(answer.outcome, Outcome::Accepted, "{fault}: {answer:?}");
        let spooled = i64::try_from(number).expect("few") + 1;
        until_count(&pool, "select count(*) from webhook_spool", spooled).await;

        broker.ctl(&end).await.expect("the fault ends");
        let (_, body) = until_rabbitmq_is(&ingest, true).await;
        assert_eq!(body.get("note"), None, "{fault}: {body}");
    }
    ingest.stop(SOON).await.expect("a stop in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_spooled_only_where_postgres_takes_events() {
    const SPOOLED: &str = "RabbitMQ is away; events are spooled in Postgres meanwhile";
    const REFUSED: &str = "RabbitMQ is away, and Postgres takes no event either";

    let mut pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    ingest.ready(SOON).await.expect("ready");
    pipeline.stores.postgres.kill();
    pipeline.stores.rabbitmq.kill();
    until_logged(&ingest, REFUSED).await;
    let log = ingest.process().log_tail(1_000);
    assert!(!log.contains(SPOOLED), "{log}");

    pipeline.stores.postgres.restart().await.expect("postgres");
    until_logged(&ingest, SPOOLED).await;
    ingest.stop(SOON).await.expect("a stop in time");
}

async fn until_logged(service: &Service, line: &str) {
    let deadline = Instant::now() + SOON;
    loop {
        let log = service.process().log_tail(1_000);
        if log.contains(line) {
            return;
        }
        assert!(Instant::now() < deadline, "never logs {line}: {log}");
        sleep(Duration::from_millis(100)).await;
    }
}
