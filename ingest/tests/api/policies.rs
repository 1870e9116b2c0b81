//! Events under broker policies, and with queues of earlier versions.

use std::collections::HashSet;

use hookctl::management::{Management, encode};
use serde_json::json;
use shared::{Family, broker::BrokerUrl, topology::Topology};
use sqlx::PgPool;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    app::{App, SOON, Stores},
    webhook::Webhook,
};

/// Declares the queues, and sets a policy that limits the vendor queue to two messages.
async fn limit_vendors(stores: &Stores, management: &Management) {
    stores.declare().await;
    let queue = stores.topology().queue(Family::Vendor);
    let policy = json!({
        "pattern": format!("^{}$", queue.replace('.', "\\.")),
        "apply-to": "queues",
        "definition": {"max-length": 2},
    });
    management
        .put(&format!("/api/policies/%2F/{}", stores.prefix), policy)
        .await
        .expect("a policy");
    let deadline = Instant::now() + SOON;
    loop {
        let path = format!("/api/queues/%2F/{}", encode(&queue));
        let found = management.get(&path).await.expect("the queue");
        if found["effective_policy_definition"]["max-length"] == 2 {
            return;
        }
        assert!(Instant::now() < deadline, "no policy: {found}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_queue_that_a_policy_calls_full_refuses_and_no_accepted_event_is_lost(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let url = std::env::var("RABBITMQ_MANAGEMENT_URL")
        .expect("set RABBITMQ_MANAGEMENT_URL, or run the tests with `cargo stack test`");
    let broker = BrokerUrl::parse(&stores.amqp_url).expect("an address");
    let management = Management::new(&url, &broker).expect("an address");
    limit_vendors(&stores, &management).await;

    let app = App::start(&stores).await;
    let mut accepted = HashSet::new();
    for _ in 0..10 {
        let id = Webhook::new_id();
        let (status, answer) = app.send(&Webhook::vendor(&id)).await;
        assert_eq!(status, 202, "{answer}");
        accepted.insert(id);
    }
    let queued = stores.events(Family::Vendor).await;
    let spooled: Vec<String> = sqlx::query_scalar("select webhook_id from webhook_spool")
        .fetch_all(&pool)
        .await
        .expect("the spool");
    assert!(!spooled.is_empty(), "the queue was never full");
    let safe: HashSet<String> = (queued.into_iter().map(|event| event.webhook_id))
        .chain(spooled)
        .collect();
    assert_eq!(safe, accepted);

    app.stop().await;
    management
        .delete(&format!("/api/policies/%2F/{}", stores.prefix))
        .await
        .expect("the policy");
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_queue_that_an_earlier_version_declared_is_taken_as_it_is(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let earlier = Topology::earlier_queue_arguments();
    stores.declare_with(Family::Vendor, earlier).await;
    let app = App::start(&stores).await;
    let (status, answer) = app.send(&Webhook::vendor(&Webhook::new_id())).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    let queue = stores.topology().queue(Family::Vendor);
    let metrics = app.metrics().await;
    let expected = format!("pleo_topology_drift{{entity=\"{queue}\"}} 0");
    assert!(metrics.contains(&expected), "{metrics}");
    app.stop().await;
    stores.clean_up().await;
}
