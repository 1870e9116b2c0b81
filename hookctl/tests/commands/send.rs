//! `hookctl send`.

use std::{sync::Arc, time::Duration};

use hookctl::sample::Sample;
use serde_json::Value;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Mutex,
    time::Instant,
};

use crate::place::Place;

const NOBODY: &str = "http://127.0.0.1:1/webhooks/pleo";

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_samples_are_accepted_and_kept_for_the_workers(pool: PgPool) {
    let place = Place::new(&pool).await;
    let ingest = place.ingest().await;
    let flags = ["send", "--url", &ingest.url, "--count", "3"];
    let sent = place.run(&flags).await;
    assert_eq!(sent.code, 0, "{sent:?}");
    assert_eq!(sent.out.matches("202 accepted").count(), 6, "{sent:?}");
    let bodies: Vec<_> = place
        .take_kept()
        .await
        .into_iter()
        .map(|kept| kept.1)
        .collect();
    for sample in Sample::ALL {
        let of_it = bodies.iter().filter(|body| *body == sample.body.as_bytes());
        assert_eq!(of_it.count(), 3, "{}", sample.event_type);
    }

    let one = ["--type=v1.vendor.created", "--json"];
    let sent = place.run(&[&flags[..], &one].concat()).await;
    assert_eq!(sent.code, 0, "{sent:?}");
    let mut ids = Vec::new();
    for row in sent.json() {
        assert_eq!(
            (&row["outcome"], &row["status"]),
            (&"accepted".into(), &202.into())
        );
        ids.push(row["webhook_id"].as_str().expect("an id").to_owned());
    }
    ids.sort();
    let kept: Vec<_> = place
        .take_kept()
        .await
        .into_iter()
        .map(|kept| kept.0)
        .collect();
    assert_eq!(kept, ids);
    ingest.stop().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn one_id_twice_is_a_duplicate_and_with_another_body_a_conflict(pool: PgPool) {
    let place = Place::new(&pool).await;
    let ingest = place.ingest().await;
    let base = ["send", "--url", &ingest.url, "--id", "msg_1", "--json"];
    let outcomes = |ended: &crate::place::Ended| -> Vec<Value> {
        ended
            .json()
            .iter()
            .map(|row| row["outcome"].clone())
            .collect()
    };
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let twice = place
        .run(&with(&["--type=v1.vendor.created", "--count=2"]))
        .await;
    assert_eq!(
        (twice.code, outcomes(&twice)),
        (0, vec!["accepted".into(), "duplicate".into()])
    );

    let other = place
        .run_with(&with(&["--body=-"]), r#"{"eventType":"v1.x.y"}"#)
        .await;
    assert_eq!(
        (other.code, outcomes(&other)),
        (0, vec!["conflict".into()]),
        "{other:?}"
    );
    assert_eq!(other.json()[0]["status"], 202);
    ingest.stop().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_body_is_sent_byte_for_byte_and_signed_for_the_time_asked_for(pool: PgPool) {
    let place = Place::new(&pool).await;
    let ingest = place.ingest().await;
    let base = ["send", "--url", &ingest.url, "--body=-"];
    let body = "no JSON, \u{0} and two line ends\n\n";
    let sent = place.run_with(&base, body).await;
    assert_eq!(sent.code, 0, "{sent:?}");
    let [(_, kept)] = &place.take_kept().await[..] else {
        panic!("not one event");
    };
    assert_eq!(kept, body.as_bytes());

    let stale = place
        .run(&["send", "--url", &ingest.url, "--at=-10m"])
        .await;
    assert_eq!(stale.code, 3, "{stale:?}");
    assert_eq!(stale.out.matches("refused (401)").count(), 2, "{stale:?}");
    let recent = place
        .run(&["send", "--url", &ingest.url, "--at", "-4m"])
        .await;
    assert_eq!(recent.code, 0, "{recent:?}");
    ingest.stop().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_secret_is_read_as_ingest_reads_it_and_chosen_by_its_name(pool: PgPool) {
    let place = Place::new(&pool).await;
    let ingest = place.ingest().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("a path");
    let secrets = format!(
        "# two\nwrong=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nright={}\n",
        ingest::secrets::DEVELOPMENT_SECRET
    );
    std::fs::write(path, secrets).expect("a write");
    let run = async |more: &[&str]| {
        let base = ["send", "--url", &ingest.url, "--webhook-secrets-file", path];
        let mut command = place.hookctl(&[&base, more].concat());
        command.env_remove("WEBHOOK_SECRETS");
        command.output().await.expect("hookctl runs").status.code()
    };
    assert_eq!(run(&[]).await, Some(3), "the first signs");
    assert_eq!(run(&["--secret-name", "right"]).await, Some(0));
    assert_eq!(run(&["--secret-name", "none"]).await, Some(2));
    std::fs::write(path, "short=whsec_c2hvcnQ=").expect("a write");
    assert_eq!(run(&[]).await, Some(2));
    ingest.stop().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn nobody_there_is_a_finding_and_a_bad_setting_an_error(pool: PgPool) {
    let place = Place::new(&pool).await;
    let nobody = place.run(&["send", "--url", NOBODY]).await;
    assert_eq!(nobody.code, 3, "{nobody:?}");
    assert!(nobody.out.contains("Connection refused"), "{nobody:?}");
    for bad in [
        &["--url", "ftp://localhost/"][..],
        &["--type", "v1.card.created"],
        &["--body", "/nowhere"],
        &["--id", "two\nlines"],
        &["--at", "soon"],
        &["--count", "0"],
    ] {
        let ended = place.run(&[&["send"], bad].concat()).await;
        assert_eq!(ended.code, 2, "{bad:?}: {ended:?}");
        assert!(
            ended.out.is_empty() && ended.err.starts_with("error: "),
            "{ended:?}"
        );
    }
    place.clean_up().await;
}

/// Answers the first request with 503 and the next with 202; returns what it was asked.
async fn reluctant() -> (String, Arc<Mutex<Vec<(Instant, String)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let requests = Arc::<Mutex<Vec<(Instant, String)>>>::default();
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            let mut request = vec![0; 4_096];
            let length = connection.read(&mut request).await.expect("a request");
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let mut seen = seen.lock().await;
            let head = if seen.is_empty() {
                "503 Service Unavailable\r\nretry-after: 2"
            } else {
                "202 Accepted"
            };
            seen.push((Instant::now(), request));
            let answer =
                format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            connection
                .write_all(answer.as_bytes())
                .await
                .expect("a write");
        }
    });
    (url, requests)
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_retry_waits_as_asked_and_is_signed_anew_under_the_same_id(pool: PgPool) {
    let place = Place::new(&pool).await;
    let (url, requests) = reluctant().await;
    let sent = place
        .run(&[
            "send",
            "--url",
            &url,
            "--type=v1.vendor.created",
            "--retry=1",
            "--json",
        ])
        .await;
    assert_eq!(
        (sent.code, &sent.json()[0]["attempts"]),
        (0, &Value::from(2)),
        "{sent:?}"
    );
    let requests = requests.lock().await;
    let [(first, one), (second, two)] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert!(*second - *first >= Duration::from_secs(2), "too soon");
    let header = |request: &str, name: &str| {
        let line = request.lines().find(|line| line.starts_with(name));
        line.expect("the header").to_owned()
    };
    assert_eq!(header(one, "webhook-id"), header(two, "webhook-id"));
    for fresh in ["webhook-timestamp", "webhook-signature"] {
        assert_ne!(header(one, fresh), header(two, fresh));
    }
    place.clean_up().await;
}
