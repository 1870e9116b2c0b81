//! `hookctl load`.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use serde_json::Value;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
    time::sleep,
};

use crate::place::{Ended, Place, until};

fn count(report: &Value, outcome: &str) -> u64 {
    let answers = report["answers"].as_array().expect("answers");
    let answered = answers.iter().find(|a| a["outcome"] == outcome);
    answered.map_or(0, |a| a["count"].as_u64().expect("a count"))
}

/// The ids of what is kept for the workers, all of which must be of this load.
async fn kept(place: &Place, report: &Value) -> BTreeSet<String> {
    let prefix = report["id_prefix"].as_str().expect("a prefix");
    let kept = place.take_kept().await.into_iter().map(|kept| kept.0);
    kept.inspect(|id| assert!(id.starts_with(prefix), "{id}"))
        .collect()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_event_of_a_load_is_kept_for_the_workers(pool: PgPool) {
    let place = Place::new(&pool).await;
    let ingest = place.ingest().await;
    let ended = place
        .run(&[
            "load",
            "--url",
            &ingest.url,
            "--rate=400",
            "--count=400",
            "--connections=8",
            "--duplicates=0.25",
            "--json",
        ])
        .await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let report = ended.json().remove(0);
    assert_eq!(report["sent"], 400);
    let (new, duplicates) = (count(&report, "accepted"), count(&report, "duplicate"));
    assert_eq!(new + duplicates, 400, "{report}");
    assert!((40..=180).contains(&duplicates), "a quarter: {report}");
    let rate = report["rate"].as_f64().expect("a rate");
    assert!((1.0..=500.0).contains(&rate), "{report}");

    let kept = kept(&place, &report).await;
    let prefix = report["id_prefix"].as_str().expect("a prefix");
    let all: BTreeSet<_> = (0..kept.len()).map(|n| format!("{prefix}{n}")).collect();
    assert_eq!(kept, all, "each event is kept");
    // Where Postgres is slow, ingest accepts a repetition without looking for the first one.
    let events = kept.len() as u64;
    assert!((220..=new).contains(&events), "{events}: {report}");
    ingest.stop().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn ctrl_c_ends_a_load_with_its_report(pool: PgPool) {
    let place = Place::new(&pool).await;
    let ingest = place.ingest().await;
    let types = "--types=v1.vendor.created";
    let child = place
        .hookctl(&[
            "load",
            "--url",
            &ingest.url,
            "--rate=50",
            "--duration=1h",
            types,
            "--json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hookctl runs");
    let pid = child.id().expect("running").to_string();
    until("events are kept", async || place.kept_count().await > 10).await;
    let kill = Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(kill.expect("a signal").success());
    let ended = Ended::new(child.wait_with_output().await.expect("it ends"));
    assert_eq!(ended.code, 0, "{ended:?}");
    let report = ended.json().remove(0);
    assert_eq!(report["planned"], 180_000);
    assert_eq!(report["sent"], count(&report, "accepted"));
    assert_eq!(
        kept(&place, &report).await.len() as u64,
        count(&report, "accepted")
    );
    ingest.stop().await;
    place.clean_up().await;
}

/// Takes a second for its first answer and no time for the others.
async fn slow_at_first() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.expect("a connection");
        let mut buffer = vec![0; 65_536];
        let mut pause = Duration::from_secs(1);
        while connection
            .read(&mut buffer)
            .await
            .is_ok_and(|read| read > 0)
        {
            sleep(pause).await;
            pause = Duration::ZERO;
            let answer = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";
            connection.write_all(answer).await.expect("a write");
        }
    });
    url
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_waits_behind_a_slow_answer_counts_its_waiting(pool: PgPool) {
    let place = Place::new(&pool).await;
    let url = slow_at_first().await;
    let flags = [
        "load",
        "--url",
        &url,
        "--rate=100",
        "--count=50",
        "--connections=1",
        "--json",
    ];
    let ended = place.run(&flags).await;
    let report = ended.json().remove(0);
    assert_eq!((ended.code, &report["sent"]), (0, &Value::from(50)));
    for figure in ["latency", "begun_late"] {
        let p50 = report[figure]["p50_ms"].as_f64().expect("a figure");
        assert!(p50 > 500.0, "49 of 50 were held up: {report}");
    }
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn other_machines_need_a_yes_and_refusals_are_findings(pool: PgPool) {
    let place = Place::new(&pool).await;
    let elsewhere = ["load", "--url=http://192.0.2.1/webhooks/pleo", "--count=1"];
    let ended = place.run(&elsewhere).await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.err.contains("--yes"), "{ended:?}");

    let nobody = [
        "load",
        "--url=http://127.0.0.1:1/",
        "--rate=100",
        "--count=3",
        "--json",
    ];
    let ended = place.run(&nobody).await;
    assert_eq!(ended.code, 3, "{ended:?}");
    assert_eq!(count(&ended.json()[0], "no_answer"), 3);
    place.clean_up().await;
}
