//! How the publisher interprets the broker's answers.

use std::time::Duration;

use futures_util::future::join_all;
use ingest::publisher::{self, Publisher};
use shared::{
    AcceptedEvent, EventType, Family, Program,
    broker::BrokerUrl,
    message::{Receipt, body_sha256},
    metrics::ServiceMetrics,
    topology::Declare,
};
use sqlx::PgPool;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::app::{SOON, Stores};

/// A connected publisher, and its supervisor.
async fn connected(
    stores: &Stores,
    pool: &PgPool,
    stop: &CancellationToken,
) -> (Publisher, JoinHandle<()>) {
    // Passive, so that the publisher does not declare again what a test deletes.
    let (publisher, supervisor) = publisher::new(
        BrokerUrl::parse(&stores.amqp_url).expect("an address"),
        stores.topology(),
        Declare::Passive,
        ServiceMetrics::new(Program::Ingest),
        pool.clone().into(),
    );
    let supervisor = tokio::spawn(supervisor.run(stop.clone()));
    let deadline = Instant::now() + SOON;
    while publisher.probe().await.is_err() {
        assert!(Instant::now() < deadline, "never connected");
        sleep(Duration::from_millis(20)).await;
    }
    (publisher, supervisor)
}

fn event(event_type: &str) -> AcceptedEvent {
    AcceptedEvent {
        webhook_id: "msg_1".to_owned(),
        event_type: EventType::parse(event_type).expect("a type"),
        body: "{}".into(),
        body_sha256: body_sha256(b"{}"),
        received_at: chrono::Utc::now(),
        attempted_at: None,
        secret_name: None,
        secret_companies: None,
    }
}

/// The broker confirms unroutable messages too, and returns them in a message that does not name
/// the publish. Among many confirms, the return must not be attached to another event.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_without_a_queue_never_counts_as_confirmed(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    stores.declare().await;
    stores.delete_queue(Family::Other).await;
    let stop = CancellationToken::new();
    let (publisher, supervisor) = connected(&stores, &pool, &stop).await;

    let (routable, unroutable) = (event("v1.vendor.created"), event("v1.x.y"));
    let vendors = [&routable; 5];
    let mixed = [&routable, &unroutable, &routable];
    for _ in 0..300 {
        let deadline = Instant::now() + SOON;
        let (mixed, vendors) = tokio::join!(
            join_all((0..4).map(|_| publisher.publish(&mixed, Receipt::Missing, deadline))),
            join_all((0..4).map(|_| publisher.publish(&vendors, Receipt::Missing, deadline))),
        );
        assert!(
            mixed.iter().all(|outcomes| outcomes[1].is_err()),
            "{mixed:?}"
        );
        assert!(
            vendors.iter().flatten().all(Result::is_ok),
            "other batches are not touched: {vendors:?}"
        );
    }
    stop.cancel();
    supervisor.await.expect("the supervisor does not panic");
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn events_that_are_published_together_share_messages(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    stores.declare().await;
    let stop = CancellationToken::new();
    let (publisher, supervisor) = connected(&stores, &pool, &stop).await;

    let mut events = vec![event("v1.vendor.created"); 40];
    events[7] = event("v1.export-job.created");
    for (number, event) in events.iter_mut().enumerate() {
        event.webhook_id = format!("msg_{number}");
    }
    let deadline = Instant::now() + SOON;
    let together: Vec<_> = events.iter().collect();
    let confirms = publisher
        .publish(&together, Receipt::Missing, deadline)
        .await;
    assert_eq!(confirms.len(), 40);
    assert!(confirms.iter().all(Result::is_ok), "{confirms:?}");
    assert_eq!(stores.drain(Family::ExportJob).await.len(), 1);
    assert_eq!(stores.drain(Family::Vendor).await.len(), 2, "32 and 7");
    stop.cancel();
    supervisor.await.expect("the supervisor does not panic");
    stores.clean_up().await;
}
