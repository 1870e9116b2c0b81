//! A policy on the broker is visible to a worker under its own account.

use hookctl::management::Management;
use serde_json::json;
use shared::{Family, Program, broker::BrokerUrl};
use tokio::time::{Instant, sleep};

use crate::pipeline::{Pipeline, SOON};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_shows_a_policy_that_lets_its_queue_drop_messages() {
    let pipeline = Pipeline::new().await;
    let owner = pipeline.stores.owner_urls().expect("addresses");
    let broker = BrokerUrl::parse(&owner.amqp).expect("an address");
    let management = Management::new(&owner.management, &broker).expect("an address");
    let policy = json!({"pattern": "^pleo\\.", "definition": {"message-ttl": 3_600_000}});
    let path = "/api/policies/%2F/short-lived";
    management.put(path, policy).await.expect("a policy");
    let deadline = Instant::now() + SOON;
    // The management API shows it some seconds later, and the worker checks again only after a minute.
    loop {
        let queue = management.get("/api/queues/%2F/pleo.vendor").await;
        let queue = queue.expect("the queue");
        if queue["effective_policy_definition"]["message-ttl"] == 3_600_000 {
            break;
        }
        assert!(Instant::now() < deadline, "no policy: {queue}");
        sleep(std::time::Duration::from_millis(100)).await;
    }

    let worker = pipeline.start(Program::Worker(Family::Vendor), "vendor-worker");
    worker.ready(SOON).await.expect("ready");
    let deadline = Instant::now() + SOON;
    loop {
        let metrics = reqwest::get(worker.private_url("/metrics")).await;
        let metrics = metrics.expect("an answer").text().await.expect("text");
        if metrics.contains("pleo_topology_drift{entity=\"pleo.vendor\"} 1") {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{}",
            worker.process().log_tail(15)
        );
        sleep(std::time::Duration::from_millis(100)).await;
    }
    let log = worker.process().log_tail(50);
    for words in [
        "policy short-lived",
        "message-ttl 3600000",
        "take the queue out",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    worker.stop(SOON).await.expect("it ends");
}
