//! A queue that answers late must not deliver to a worker that has given up waiting.

use hookctl::sample::VENDOR;
use shared::{Family, Program};
use tokio::time::{Duration, Instant, sleep};

use crate::pipeline::{Pipeline, SOON, send, until_count};

const QUEUE: &str = "whereis('%2F_pleo.vendor')";

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_was_given_up_takes_no_event() {
    let pipeline = Pipeline::new().await;
    let broker = &pipeline.stores.rabbitmq;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    ingest.ready(SOON).await.expect("ready");

    // As while there is no majority: the request waits in the queue's leader.
    let suspend = format!("sys:suspend({QUEUE}).");
    broker.ctl(&["eval", &suspend]).await.expect("suspended");
    let worker = pipeline.start(Program::Worker(Family::Vendor), "vendor-worker");
    let deadline = Instant::now() + 2 * SOON;
    while worker
        .process()
        .log_tail(1_000)
        .matches("cannot consume")
        .count()
        < 2
    {
        assert!(Instant::now() < deadline, "it never gives up");
        sleep(Duration::from_millis(200)).await;
    }
    let resume = format!("sys:resume({QUEUE}).");
    broker.ctl(&["eval", &resume]).await.expect("resumed");
    worker.ready(SOON).await.expect("ready");

    let deadline = Instant::now() + SOON;
    loop {
        let consumers = broker.ctl(&["list_consumers", "queue_name"]).await;
        let consumers = consumers.expect("a list");
        if consumers.matches("pleo.vendor").count() == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{consumers}");
        sleep(Duration::from_millis(200)).await;
    }
    let url = ingest.webhook_url();
    for _ in 0..10 {
        send(&url, &VENDOR).await;
    }
    let pool = pipeline.pool().await;
    until_count(&pool, "select count(*) from events", 10).await;
    for service in [ingest, worker] {
        service.stop(SOON).await.expect("a stop in time");
    }
}
