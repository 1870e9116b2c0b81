//! Overload: ingest refuses what it cannot serve, does not shut legitimate senders out, and stays within
//! its memory.

#![expect(clippy::print_stdout, reason = "figures for whoever runs it by hand")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hookctl::delivery::Outcome;
use shared::{Family, Program};
use stack::service::Service;
use tokio::time::sleep;

use crate::{
    crowd::{
        GoodSender, address, answer, drip, open, peak_memory, raise_file_limit, signed,
        signed_head, until_cut,
    },
    pipeline::{Pipeline, SOON, post},
};

const CROWD: usize = 5_000;

/// About three times the memory that the largest of these crowds used; an idle service has 28.
const MEMORY_MIB: u64 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn past_the_in_flight_limit_the_answer_is_a_fast_503_and_it_recovers_by_itself() {
    let mut pipeline = Pipeline::new().await;
    pipeline.launcher = pipeline.launcher.clone().env("IN_FLIGHT_LIMIT", "8");
    let ingest = pipeline.start(Program::Ingest, "ingest");
    ingest.ready(SOON).await.expect("ready");
    let address = address(&ingest.webhook_url());
    pipeline.stores.postgres.pause().expect("frozen");
    pipeline.stores.rabbitmq.pause().expect("frozen");

    let connections = open(address, 40, |number| {
        signed(&format!("msg_{number}")).into_bytes()
    })
    .await;
    let started = Instant::now();
    let answers = connections.into_iter().map(|connection| async move {
        let text = answer(connection).await;
        (text, started.elapsed())
    });
    let answers = join_all(answers).await;
    for (text, _) in &answers {
        assert!(text.starts_with("HTTP/1.1 503"), "{text}");
        assert!(text.contains("retry-after: "), "{text}");
    }
    let refused: Vec<_> = answers
        .iter()
        .filter(|(text, _)| text.contains("too many requests at once"))
        .map(|(_, waited)| *waited)
        .collect();
    assert_eq!(refused.len(), 32);
    let slowest = refused.iter().max().expect("some");
    assert!(
        *slowest < Duration::from_secs(3),
        "less than the events that hang: {slowest:?}"
    );

    pipeline.stores.postgres.resume().expect("thawed");
    pipeline.stores.rabbitmq.resume().expect("thawed");
    let deadline = Instant::now() + SOON;
    for number in 0..40 {
        let id = format!("msg_{number}");
        let url = ingest.webhook_url();
        while post(&url, &id, "{}").await.outcome == Outcome::Refused(503) {
            assert!(Instant::now() < deadline, "it never recovers");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_silent_connections_shut_no_good_sender_out() {
    raise_file_limit(CROWD);
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    ingest.ready(SOON).await.expect("ready");
    let url = ingest.webhook_url();
    let good = GoodSender::start(&url);

    let silent = open(address(&url), CROWD, |_| Vec::new()).await;
    let cut = join_all(silent.into_iter().map(until_cut)).await;
    assert_eq!(statuses(&cut), [(408, CROWD)].into());
    good.stop().await;
    within_memory(&ingest);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_off_and_shut_no_good_sender_out() {
    raise_file_limit(CROWD);
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    ingest.ready(SOON).await.expect("ready");
    let url = ingest.webhook_url();
    let address = address(&url);
    let good = GoodSender::start(&url);

    const EACH: usize = 1_000;
    let head = "POST /webhooks/pleo HTTP/1.1\r\nhost: x\r\n";
    let heads = open(address, EACH, |_| format!("{head}x: ").into_bytes()).await;
    let big_heads = open(address, EACH, |_| {
        format!("{head}x: {}", "a".repeat(100 * 1_024)).into_bytes()
    })
    .await;
    // Whether a body is signed is known only at its end.
    let bodies = open(address, EACH, |number| {
        let head = signed_head(&format!("slow_{number}"), "");
        format!("{head}content-length: 100\r\n\r\n").into_bytes()
    })
    .await;
    let unsigned = open(address, EACH, |_| {
        format!("{head}transfer-encoding: chunked\r\n\r\n64\r\n").into_bytes()
    })
    .await;
    let (heads, big_heads, bodies, unsigned) = tokio::join!(
        join_all(heads.into_iter().map(drip)),
        join_all(big_heads.into_iter().map(until_cut)),
        join_all(bodies.into_iter().map(drip)),
        join_all(unsigned.into_iter().map(drip)),
    );
    assert_eq!(statuses(&heads), [(408, EACH)].into());
    assert_eq!(statuses(&big_heads), [(431, EACH)].into());
    assert_eq!(statuses(&bodies), [(408, EACH)].into());
    assert_eq!(statuses(&unsigned), [(400, EACH)].into());
    good.stop().await;
    within_memory(&ingest);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_burst_each_event_is_stored_or_refused_with_a_time_to_come_back() {
    raise_file_limit(CROWD);
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    let worker = pipeline.start(Program::Worker(Family::Vendor), "vendor-worker");
    ingest.ready(SOON).await.expect("ready");
    worker.ready(SOON).await.expect("ready");

    let started = Instant::now();
    let connections = open(address(&ingest.webhook_url()), CROWD, |number| {
        signed(&format!("msg_{number}")).into_bytes()
    })
    .await;
    let answers = connections.into_iter().map(answer);
    let mut accepted = BTreeSet::new();
    for (number, text) in join_all(answers).await.into_iter().enumerate() {
        if text.starts_with("HTTP/1.1 202") {
            accepted.insert(format!("msg_{number}"));
        } else {
            assert!(text.starts_with("HTTP/1.1 503"), "{text:?}");
            assert!(text.contains("retry-after: "), "{text}");
        }
    }
    println!("{} accepted in {:?}", accepted.len(), started.elapsed());
    within_memory(&ingest);

    assert!(!accepted.is_empty());
    let pool = pipeline.pool().await;
    // The ledger is not enough: events that were accepted while Postgres was slow may have no receipt.
    let deadline = Instant::now() + SOON;
    loop {
        let stored: Vec<String> = sqlx::query_scalar("select webhook_id from events")
            .fetch_all(&pool)
            .await
            .expect("events");
        for id in &stored {
            accepted.remove(id);
        }
        if accepted.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "missing: {accepted:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

/// How many connections were cut off with which status; 0 means without a status.
fn statuses(cut: &[u16]) -> BTreeMap<u16, usize> {
    let mut statuses = BTreeMap::new();
    for status in cut {
        *statuses.entry(*status).or_insert(0) += 1;
    }
    statuses
}

fn within_memory(ingest: &Service) {
    let peak = peak_memory(ingest.process());
    println!("peak memory: {peak} MiB");
    assert!(peak < MEMORY_MIB, "{peak} MiB");
}
