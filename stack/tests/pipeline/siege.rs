//! Strangers attack the ingest service, directly and through the proxy as it is shipped, and shut no
//! good sender out.

#![expect(clippy::print_stdout, reason = "figures for whoever runs it by hand")]

use std::time::Duration;

use shared::Program;
use stack::{
    haproxy::HaProxy,
    siege::{self, Attack, Entrance, Target},
};

use crate::{
    crowd::raise_file_limit,
    world::{SOON, World},
};

/// Of good events, answered 2xx.
const SHARE: f64 = 0.99;
/// Half of the good events are answered within this, in milliseconds. It is far more than they take.
const USUALLY_MS: u64 = 5_000;
const DURING: Duration = Duration::from_secs(10);
const CROWD: usize = 5_000;

/// By every way, one after the other.
async fn withstand(attack: Attack) {
    raise_file_limit(CROWD);
    let mut world = World::new().await;
    world.launcher = world
        .launcher
        .clone()
        .env("WEBHOOK_SECRETS", siege::secrets());
    let mut shut_out = Vec::new();
    for entrance in Entrance::ALL {
        let ingest = world.start(Program::Ingest, &format!("ingest-{}", entrance.name()));
        ingest.ready(SOON).await.expect("ready");
        let folder = world.folder().join(entrance.name());
        let proxy = HaProxy::start(&folder, ingest.public(), ingest.private_address());
        let proxy = proxy.await.expect("a proxy");
        let target = Target {
            entrance,
            address: match entrance {
                Entrance::Direct => ingest.public(),
                Entrance::Proxy => proxy.address(),
                Entrance::Terminator => proxy.behind_terminator(),
            },
        };
        let seen = siege::besiege(target, Some(attack), DURING).await;
        let seen = seen.expect("good events");
        println!("{}, {}: {seen}", attack.name(), entrance.name());
        if seen.share() < SHARE || seen.p50_ms > USUALLY_MS {
            shut_out.push((entrance, seen));
        }
    }
    assert!(shut_out.is_empty(), "{shut_out:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_shut_no_good_sender_out() {
    withstand(Attack::UnfinishedBodies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_shut_no_good_sender_out() {
    withstand(Attack::SlowBodies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_signatures_shut_no_good_sender_out() {
    withstand(Attack::MalformedSignatures).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_hmacs_shut_no_good_sender_out() {
    withstand(Attack::ForeignHmacs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_ed25519_signatures_shut_no_good_sender_out() {
    withstand(Attack::ForeignEd25519).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_shut_no_good_sender_out() {
    withstand(Attack::SilentConnections).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_shut_no_good_sender_out() {
    withstand(Attack::KeptConnections).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_streams_shut_no_good_sender_out() {
    withstand(Attack::Http2Streams).await;
}
