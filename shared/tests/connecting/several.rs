//! Several hosts, several addresses of one host, and IPv6.

use std::time::{Duration, Instant};

use shared::{
    broker::{self, BrokerUrl},
    database::{Access, DatabaseUrl},
};

use crate::stand_in::{DropsPackets, Store, closed_port, forward, silent};

/// The time that a dead address may cost, doubled for a busy machine.
const DETOUR: Duration = Duration::from_secs(6);

/// Connects to Postgres at these hosts.
async fn postgres(places: &str) {
    let Store { user, password, .. } = Store::postgres();
    let url = format!("postgres://{user}:{password}@{places}/postgres");
    let url = DatabaseUrl::parse(&url).expect("valid");
    let started = Instant::now();
    url.connect("test", Access::Write)
        .await
        .expect("it is found");
    assert!(started.elapsed() < DETOUR, "{:?}", started.elapsed());
}

/// Connects to RabbitMQ at these hosts.
async fn rabbitmq(places: &str) {
    let Store { user, password, .. } = Store::rabbitmq();
    let url = BrokerUrl::parse(&format!("amqp://{user}:{password}@{places}")).expect("valid");
    let started = Instant::now();
    broker::connect(&url, "test").await.expect("it is found");
    assert!(started.elapsed() < DETOUR, "{:?}", started.elapsed());
}

#[tokio::test]
async fn the_one_that_works_is_found_among_dead_ones() {
    let drops = DropsPackets::somewhere().await.address;
    let (_listener, says_nothing) = silent().await;
    let closed = closed_port().await;
    // The order is random, so one attempt proves little.
    for _ in 0..3 {
        for dead in [drops, says_nothing, closed] {
            postgres(&format!("{dead},{}", Store::postgres().place)).await;
            rabbitmq(&format!("{dead},{}", Store::rabbitmq().place)).await;
        }
    }
}

#[tokio::test]
async fn an_ipv6_literal_leads_there_and_not_to_localhost() {
    let place = forward("[::1]:0", Store::postgres().place, Duration::ZERO).await;
    postgres(&place.to_string()).await;
    let place = forward("[::1]:0", Store::rabbitmq().place, Duration::ZERO).await;
    rabbitmq(&place.to_string()).await;
    // If the host were ignored, this would reach the broker on localhost.
    let port = Store::rabbitmq().port();
    let url = format!("amqp://guest:guest@[100::1]:{port}");
    let url = BrokerUrl::parse(&url).expect("valid");
    broker::connect(&url, "test").await.expect_err("discarded");
}
