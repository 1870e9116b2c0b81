//! The answers to good and bad requests; unauthenticated requests reach no store.

use shared::Family;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    app::{App, Stores},
    webhook::Webhook,
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_accepted_event_is_a_persistent_message_on_its_familys_queue(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    for (event_type, family) in [
        ("v1.vendor.created", Family::Vendor),
        ("v1.export-job.created", Family::ExportJob),
        ("v1.export.job-created", Family::ExportJob),
        ("v7.something.else", Family::Other),
        ("nonsense", Family::Other),
    ] {
        let body = format!(r#"{{ "eventType":"{event_type}", "data":{{"é":1.0}} }}"#);
        let webhook = Webhook::new(&Webhook::new_id(), body.as_bytes());
        let (status, answer) = app.send(&webhook).await;
        assert_eq!((status, &answer["status"]), (202, &"accepted".into()));

        let messages = stores.drain(family).await;
        assert_eq!(messages.len(), 1, "{event_type}");
        let message = &messages[0];
        assert_eq!(message.data, webhook.body, "the body is untouched");
        let properties = &message.properties;
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(
            properties.message_id().as_ref().map(|id| id.as_str()),
            Some(webhook.id.as_str())
        );
        let canonical = event_type.replace("export.job-", "export-job.");
        assert_eq!(
            properties.kind().as_ref().map(|kind| kind.as_str()),
            Some(canonical.as_str())
        );
    }
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn authentic_bodies_that_are_no_event_are_kept(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let deep = "[".repeat(50_000);
    let bodies: [&[u8]; 6] = [
        b"",
        b"not json",
        b"\xff\xfe",
        deep.as_bytes(),
        br#"{"eventType":"\u0000"}"#,
        br#"{"payload":{"eventType":7}}"#,
    ];
    for body in bodies {
        let webhook = Webhook::new(&Webhook::new_id(), body);
        let (status, answer) = app.send(&webhook).await;
        assert_eq!(status, 202, "{answer}");
    }
    assert_eq!(stores.events(Family::Other).await.len(), bodies.len());
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn unauthenticated_requests_get_a_clear_answer_and_leave_no_trace(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let good = Webhook::vendor("msg_1");
    let series_before = app.metrics().await.lines().count();

    let now = chrono::Utc::now().timestamp();
    let other_secret = ingest::signature::sign(
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        &good.id,
        now,
        &good.body,
    )
    .expect("a good secret");
    let truncated = good.signature[..good.signature.len() - 8].to_owned();
    let with = |change: &dyn Fn(&mut Webhook)| {
        let mut webhook = good.clone();
        change(&mut webhook);
        webhook
    };
    let cases = [
        (400, with(&|w| w.id = String::new())),
        (400, with(&|w| w.id = "a.b".to_owned())),
        (400, with(&|w| w.id = "i".repeat(201))),
        (400, with(&|w| w.timestamp = String::new())),
        (400, with(&|w| w.timestamp = "soon".to_owned())),
        (400, with(&|w| w.timestamp = format!("{now}.0"))),
        (400, with(&|w| w.timestamp = "9".repeat(19))),
        (400, with(&|w| w.timestamp = "9".repeat(40))),
        (400, with(&|w| w.signature = String::new())),
        (400, with(&|w| w.signature = "v1,AAAA ".repeat(1_000))),
        (401, Webhook::signed_at("msg_1", &good.body, now - 301)),
        (401, Webhook::signed_at("msg_1", &good.body, now + 330)),
        (401, Webhook::signed_at("msg_1", &good.body, 0)),
        (401, with(&|w| w.timestamp = (now - 1).to_string())),
        (401, with(&|w| w.id = "msg_2".to_owned())),
        (401, with(&|w| w.body.push(b' '))),
        (401, with(&|w| w.body.clear())),
        (401, with(&|w| w.signature = other_secret.clone())),
        (401, with(&|w| w.signature = truncated.clone())),
        (401, with(&|w| w.signature = "v1,@@@".to_owned())),
        (401, with(&|w| w.signature = "v1".to_owned())),
        (
            401,
            with(&|w| w.signature = w.signature.replace("v1,", "v2,")),
        ),
        (413, with(&|w| w.body = vec![b'x'; 262_145])),
    ];
    for (expected, webhook) in cases {
        let (status, answer) = app.send(&webhook).await;
        assert_eq!(status, expected, "{webhook:?} got {answer}");
        assert_eq!(answer["status"], expected, "a problem body: {answer}");
        let detail = answer["detail"].as_str().expect("what to fix");
        assert!(!detail.is_empty() && !detail.contains("whsec_"), "{detail}");
    }

    let id: (&str, &[u8]) = ("webhook-id", good.id.as_bytes());
    let timestamp: (&str, &[u8]) = ("webhook-timestamp", good.timestamp.as_bytes());
    let signature: (&str, &[u8]) = ("webhook-signature", good.signature.as_bytes());
    let raw_cases: [&[(&str, &[u8])]; 7] = [
        &[],
        &[id, timestamp],
        &[id, signature],
        &[timestamp, signature],
        &[id, id, timestamp, signature],
        &[id, timestamp, timestamp, signature],
        &[("webhook-id", b"\xff\xfe"), timestamp, signature],
    ];
    for headers in raw_cases {
        let (status, answer) = app.send_with(headers, &good.body).await;
        assert_eq!(status, 400, "{headers:?} got {answer}");
    }
    let mixed: [(&str, &[u8]); 3] = [("svix-id", good.id.as_bytes()), timestamp, signature];
    assert_eq!(app.send_with(&mixed, &good.body).await.0, 400);

    for family in Family::ALL {
        assert!(stores.drain(family).await.is_empty());
    }
    let rows: i64 = sqlx::query_scalar(
        "select (select count(*) from webhook_receipts) + (select count(*) from webhook_spool)",
    )
    .fetch_one(&pool)
    .await
    .expect("a count");
    assert_eq!(rows, 0);
    let metrics = app.metrics().await;
    assert_eq!(
        metrics.lines().count(),
        series_before,
        "no request mints a series: {metrics}"
    );

    // The unchanged request is accepted.
    assert_eq!(app.send(&good).await.0, 202);
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn both_header_sets_and_several_signatures_are_accepted(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let webhook = Webhook::vendor("msg_svix");
    let headers: [(&str, &[u8]); 3] = [
        ("svix-id", webhook.id.as_bytes()),
        ("svix-timestamp", webhook.timestamp.as_bytes()),
        ("svix-signature", webhook.signature.as_bytes()),
    ];
    assert_eq!(app.send_with(&headers, &webhook.body).await.0, 202);

    let webhook = Webhook::vendor("msg_rotation");
    let list = format!("v1,bm90IGl0 v1a,x  {}", webhook.signature);
    let headers: [(&str, &[u8]); 4] = [
        ("webhook-id", webhook.id.as_bytes()),
        ("webhook-timestamp", webhook.timestamp.as_bytes()),
        ("webhook-signature", b"v1,AAAA"),
        ("webhook-signature", list.as_bytes()),
    ];
    assert_eq!(app.send_with(&headers, &webhook.body).await.0, 202);
    assert_eq!(stores.events(Family::Vendor).await.len(), 2);

    // The two lines joined to one, as a proxy may do, in both orders.
    for (set, good_first) in [("webhook", true), ("webhook", false), ("svix", true)] {
        let webhook = Webhook::vendor(&Webhook::new_id());
        let (good, bad) = (
            &webhook.signature,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        );
        let joined = if good_first {
            format!("{good}, {bad}")
        } else {
            format!("{bad}, {good}")
        };
        let names = ["id", "timestamp", "signature"].map(|part| format!("{set}-{part}"));
        let headers: [(&str, &[u8]); 3] = [
            (&names[0], webhook.id.as_bytes()),
            (&names[1], webhook.timestamp.as_bytes()),
            (&names[2], joined.as_bytes()),
        ];
        let (status, answer) = app.send_with(&headers, &webhook.body).await;
        assert_eq!(status, 202, "{joined}: {answer}");
    }
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn slow_bodies_are_cut_off_and_shut_nobody_out(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start_at(
        &stores.database_url,
        &stores.amqp_url,
        &stores.prefix,
        &["--in-flight-limit", "1"],
    );
    app.until_ready("rabbitmq").await;
    let webhook = Webhook::vendor("msg_1");
    let address = app.url.split('/').nth(2).expect("a host");
    let head = format!(
        "POST /webhooks/pleo HTTP/1.1\r\nhost: x\r\nwebhook-id: slow\r\nwebhook-timestamp: {}\r\n\
         webhook-signature: {}\r\ncontent-length: 10\r\n\r\n{{",
        webhook.timestamp, webhook.signature
    );
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut connection = tokio::net::TcpStream::connect(address)
            .await
            .expect("a connection");
        connection
            .write_all(head.as_bytes())
            .await
            .expect("a write");
        slow.push(connection);
    }
    app.until_metric("pleo_ingest_in_flight 20").await;
    assert_eq!(app.send(&webhook).await.0, 202, "nobody is shut out");

    let mut gone = slow.split_off(10);
    for connection in &mut slow {
        let mut answer = String::new();
        connection
            .read_to_string(&mut answer)
            .await
            .expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    // The other clients disconnect early, and are counted as well.
    gone.clear();
    app.until_metric("pleo_ingest_in_flight 0").await;
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn whoever_shows_no_signature_keeps_no_connection(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let address = app.url.split('/').nth(2).expect("a host");
    for request in [
        "POST /webhooks/pleo HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        "GET /webhooks/pleo HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let mut connection = tokio::net::TcpStream::connect(address)
            .await
            .expect("a connection");
        connection
            .write_all(request.as_bytes())
            .await
            .expect("a write");
        let mut answer = String::new();
        let closed = tokio::time::timeout(
            std::time::Duration::from_secs(3),
            connection.read_to_string(&mut answer),
        );
        closed
            .await
            .expect("the connection is closed")
            .expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    app.stop().await;
    stores.clean_up().await;
}
